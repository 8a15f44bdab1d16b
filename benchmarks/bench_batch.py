"""Row 7: the batch endpoint, a thousand authorisations a call, against single ones in turns.

Payments that were authorised are counted, not calls: every item of an answer has a status of its
own. Where the server has no such endpoint the row says so.

    python -m benchmarks.bench_batch [--json] [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import statistics

from benchmarks import processes
from benchmarks.command import run_bench, say
from benchmarks.processes import good_per_s, load
from benchmarks.table import Row

TARGET = 3.0
SIZE = 1_000
CALLERS = 4
PATH = "/v1/payments/batch"
SECONDS = 13.0
"""For the batches, one of them warming up: they come a thousand at a time."""
WHAT = f"batch endpoint, {SIZE:,} a call: payments a second as times row 1's, in turns"


def measure(chosen: argparse.Namespace) -> list[Row]:
    """Single ones and batches in turns, on one engine."""
    pairs: list[tuple[float, float]] = []
    with processes.folder() as folder, processes.engine(folder / "data") as engine:
        first = load(engine.port, path=PATH, batch=1, connections=1, seconds=0.3, warm_up=0)
        if set(first["by_status"]) != {"200"} or not first["items"].get("201"):
            said = ", ".join(first["by_status"]) or "nothing"
            body = next(iter(first["first_bodies"].values()), str(first["items"]))
            say(f"{PATH}: {said}: {body}")
            note = f"not measured: the server answered {said}"
            return [Row("7", WHAT, TARGET, None, note, unit="times")]
        for _ in range(chosen.rounds):
            engine.pin()
            single = good_per_s(load(engine.port, connections=128, seconds=chosen.seconds))
            found = load(
                engine.port, path=PATH, batch=SIZE, connections=CALLERS,
                seconds=SECONDS, warm_up=1,
            )  # fmt: skip
            batched = found["items"].get("201", 0.0)
            say(f"single {single:,.0f}/s, batched {batched:,.0f}/s {found['items']}")
            pairs.append((batched, single))
    times = statistics.median(batched / single for batched, single in pairs)
    batched, single = (statistics.median(values) for values in zip(*pairs, strict=True))
    note = f"{CALLERS} callers, {batched:,.0f} against {single:,.0f} single payments/s; p50 of a "
    note += f"call {found['latency']['p50_ms']:.0f} ms"
    return [Row("7", WHAT, TARGET, times, note, unit="times")]


if __name__ == "__main__":
    run_bench(measure, __doc__ or "", options={"rounds": 3, "seconds": 4.0})
