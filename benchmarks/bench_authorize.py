"""Durable authorisations over HTTP against a bare echo, in one run and in turns.

Everything is on: fsync, keys, validation, idempotency, logs (to a file), metrics, the in-process
simulator with its books. The servers are pinned to one core; the load and Postgres share the
other. Stated as the ratio of the two rates, because machines are shared.

    python -m benchmarks.bench_authorize [--json] [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

TARGET = 0.25
CONNECTIONS = 128


def free_port() -> int:
    """A port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def pin(pid: int, core: int) -> None:
    """Pin a process to a core, where there are two and the system can."""
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})


def wait_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server accepts connections."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("the server did not start")


def load(
    port: int, seconds: float, connections: int = CONNECTIONS, items: int = 0
) -> dict[str, object]:
    """One round of load from another process on the other core."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "benchmarks.load",
            f"--port={port}",
            f"--connections={connections}",
            f"--seconds={seconds}",
            f"--items={items}",
        ],
        stdout=subprocess.PIPE,
    )
    pin(process.pid, 1)
    try:
        out, _ = process.communicate(timeout=seconds + 30)
    finally:
        process.kill()
    result: dict[str, object] = json.loads(out)
    return result


def measure(rounds: int, seconds: float) -> dict[str, object]:
    """Start both servers, load them in turns, stop them."""
    with tempfile.TemporaryDirectory() as folder:
        echo_port, engine_port = free_port(), free_port()
        echo = subprocess.Popen([sys.executable, "-m", "benchmarks.echo", f"--port={echo_port}"])
        engine = subprocess.Popen(
            [sys.executable, "-m", "engine", "dev", f"--port={engine_port}", f"--data={folder}"],
            stdout=subprocess.DEVNULL,
            env={**os.environ, "ENGINE_LOG_FILE": f"{folder}/engine.log"},
        )
        try:
            wait_listening(echo_port, echo)
            wait_listening(engine_port, engine)
            time.sleep(2)  # what the start left to do is not measured
            pin(echo.pid, 0)
            pin(engine.pid, 0)
            for child in psutil.Process(engine.pid).children(recursive=True):
                pin(child.pid, 1)
            pairs = [(load(echo_port, seconds), load(engine_port, seconds)) for _ in range(rounds)]
        finally:
            echo.terminate()
            engine.terminate()
            echo.wait(30)
            engine.wait(30)
    ratios = [float(str(e["per_s"])) / float(str(b["per_s"])) for b, e in pairs]
    return {
        "what": "durable authorisations over HTTP, as a part of a bare echo's rate",
        "target": TARGET,
        "figure": round(statistics.median(ratios), 3),
        "holds": statistics.median(ratios) >= TARGET,
        "ratios": [round(ratio, 3) for ratio in ratios],
        "echo": [pair[0] for pair in pairs],
        "engine": [pair[1] for pair in pairs],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    chosen = parser.parse_args()
    result = measure(chosen.rounds, chosen.seconds)
    if chosen.json:
        print(json.dumps(result))
        return
    for echo, engine in zip(result["echo"], result["engine"], strict=True):  # type: ignore[call-overload]
        print(
            f"echo {echo['per_s']:8,.0f}/s   engine {engine['per_s']:8,.0f}/s "
            f"p50 {engine['p50_ms']:.1f} ms p99 {engine['p99_ms']:.1f} ms {engine['statuses']}"
        )
    print(f"ratio {result['figure']} (target {TARGET}): {'holds' if result['holds'] else 'MISSED'}")


if __name__ == "__main__":
    main()
