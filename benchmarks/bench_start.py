"""Row 13: from the start of the process to ready, on data that is there.

A closed loop fills the data, the engine is stopped in order, then started several times; the first
`/readyz` that says 200 ends each. The embedded Postgres starts with it and is part of the time.

    python -m benchmarks.bench_start [--json] [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import statistics

from benchmarks import processes
from benchmarks.command import run_bench, say
from benchmarks.processes import load
from benchmarks.table import Row

TARGET_S = 2.0


def measure(chosen: argparse.Namespace) -> list[Row]:
    """Fill, stop, and start again and again."""
    starts: list[float] = []
    with processes.folder() as folder:
        data = folder / "data"
        with processes.engine(data) as engine:
            new_s = engine.ready_after_s
            filled = load(engine.port, seconds=chosen.seconds)["latency"]["count"]
        for n in range(chosen.rounds):
            engine = processes.engine(data)
            engine.spawn()
            engine.wait_ready()
            starts.append(engine.ready_after_s)
            engine.stop(kill=n == chosen.rounds - 2)
            say(f"ready after {starts[-1]:.2f} s")
    ordered = statistics.median(starts[:-1])
    note = (
        f"{filled:,} open payments; {starts[-1]:.2f} s after kill -9; new data {new_s:.2f} s; "
        f"its Postgres included"
    )
    return [Row("13", "start with data to ready", TARGET_S, ordered, note, "at most", "s")]


if __name__ == "__main__":
    run_bench(measure, __doc__ or "", options={"rounds": 4, "seconds": 5.0})
