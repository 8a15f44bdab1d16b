"""Authorisations in batches of 1,000 against single requests, in one run and in turns.

Set up as `bench_authorize`: everything on, the engine on one core, load and Postgres on the other.
While a batch is loaded, one connection also sends single requests: what they wait is printed too.

    python -m benchmarks.bench_batch [--json] [--rounds N] [--seconds S] [--connections N]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import psutil

from benchmarks.bench_authorize import free_port, load, pin, wait_listening

TARGET = 3.0
ITEMS = 1_000


def measure(rounds: int, seconds: float, connections: int) -> dict[str, object]:
    """Start the engine, load it in turns, stop it."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        engine = subprocess.Popen(
            [sys.executable, "-m", "engine", "dev", f"--port={port}", f"--data={folder}"],
            stdout=subprocess.DEVNULL,
            env={**os.environ, "ENGINE_LOG_FILE": f"{folder}/engine.log"},
        )
        try:
            wait_listening(port, engine)
            time.sleep(2)  # what the start left to do is not measured
            pin(engine.pid, 0)
            for child in psutil.Process(engine.pid).children(recursive=True):
                pin(child.pid, 1)
            pairs = [
                (load(port, seconds), load(port, seconds, connections, ITEMS))
                for _ in range(rounds)
            ]
        finally:
            engine.terminate()
            engine.wait(30)
    ratios = [float(str(b["per_s"])) / float(str(s["per_s"])) for s, b in pairs]
    return {
        "what": "durable authorisations in batches, as a multiple of single requests' rate",
        "target": TARGET,
        "figure": round(statistics.median(ratios), 2),
        "holds": statistics.median(ratios) >= TARGET,
        "ratios": [round(ratio, 2) for ratio in ratios],
        "single": [pair[0] for pair in pairs],
        "batch": [pair[1] for pair in pairs],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=2, help="that send batches")
    chosen = parser.parse_args()
    result = measure(chosen.rounds, chosen.seconds, chosen.connections)
    if chosen.json:
        print(json.dumps(result))
        return
    for single, batch in zip(result["single"], result["batch"], strict=True):  # type: ignore[call-overload]
        print(
            f"single {single['per_s']:8,.0f}/s   batch {batch['per_s']:8,.0f}/s "
            f"p50 {batch['p50_ms']:.1f} ms p99 {batch['p99_ms']:.1f} ms {batch['statuses']}"
        )
    print(f"ratio {result['figure']} (target {TARGET}): {'holds' if result['holds'] else 'MISSED'}")


if __name__ == "__main__":
    main()
