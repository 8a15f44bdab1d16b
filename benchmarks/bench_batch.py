"""Authorisations in batches of 1,000 against single requests, in one run and in turns.

Set up as `bench_authorize`: everything on, the engine on one core, load and Postgres on the other.
The engine's own CPU time per authorisation is printed too, since it depends less on the machine;
and how long single requests of one more connection take beside the batches.

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
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil

from benchmarks.bench_authorize import CONNECTIONS, free_port, load, pin, wait_listening

TARGET = 3.0
ITEMS = 1_000


class Bench:
    """One engine, and what it takes to load it."""

    def __init__(self, port: int, pid: int, seconds: float) -> None:
        self.port = port
        self.seconds = seconds
        self._process = psutil.Process(pid)

    def _cpu_s(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def load(self, connections: int, items: int) -> dict[str, Any]:
        """The figures of one load, with the engine's CPU time per authorisation."""
        began = self._cpu_s()
        found: dict[str, Any] = load(self.port, self.seconds, connections, items)
        done = sum(found["statuses"].values())
        return {**found, "cpu_us": round((self._cpu_s() - began) / done * 1e6)}

    def beside(self, connections: int) -> dict[str, Any]:
        """The figures of single requests that come one by one beside batches."""
        with ThreadPoolExecutor(1) as thread:
            alone = thread.submit(load, self.port, self.seconds, 1)
            load(self.port, self.seconds, connections, ITEMS)
            return dict(alone.result())


def measure(rounds: int, seconds: float, connections: int) -> dict[str, Any]:
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
            bench = Bench(port, engine.pid, seconds)
            pairs = [
                (bench.load(CONNECTIONS, 0), bench.load(connections, ITEMS)) for _ in range(rounds)
            ]
            beside = bench.beside(connections)
        finally:
            engine.terminate()
            engine.wait(30)
    ratios = [batch["per_s"] / single["per_s"] for single, batch in pairs]
    return {
        "what": "durable authorisations in batches, as a multiple of single requests' rate",
        "target": TARGET,
        "figure": round(statistics.median(ratios), 2),
        "holds": statistics.median(ratios) >= TARGET,
        "ratios": [round(ratio, 2) for ratio in ratios],
        "single": [pair[0] for pair in pairs],
        "batch": [pair[1] for pair in pairs],
        "beside": beside,
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
    for single, batch in zip(result["single"], result["batch"], strict=True):
        print(
            f"single {single['per_s']:8,.0f}/s {single['cpu_us']} us CPU   "
            f"batch {batch['per_s']:8,.0f}/s {batch['cpu_us']} us CPU "
            f"p50 {batch['p50_ms']:.0f} ms {batch['statuses']}"
        )
    beside = result["beside"]
    print(f"a single request beside batches: p50 {beside['p50_ms']:.0f} ms")
    print(f"ratio {result['figure']} (target {TARGET}): {'holds' if result['holds'] else 'MISSED'}")


if __name__ == "__main__":
    main()
