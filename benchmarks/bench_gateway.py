"""Row 8: the gateway reached over HTTP, a process of its own that answers after 50 ms.

The figure is the rate as a part of row 1's (the simulator within the engine), measured in turns.
The gateway's own limit is measured by asking it directly, as many calls in flight: at most the
number in flight divided by its latency, and less where its process has not the core for more (it
shares one with the load and Postgres). It holds at 0.35 of row 1 or 0.9 of that limit, whichever
is less.

    python -m benchmarks.bench_gateway [--json] [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import statistics

from benchmarks import processes
from benchmarks.command import run_bench, say
from benchmarks.processes import good_per_s, load
from benchmarks.table import Row

TARGET, OF_LIMIT = 0.35, 0.9
LATENCY_MS, IN_FLIGHT = 50.0, 256


def measure(chosen: argparse.Namespace) -> list[Row]:
    """Two engines, one on each kind of gateway, and the gateway itself, in turns."""
    far: list[float] = []
    near: list[float] = []
    limits: list[float] = []
    with (
        processes.folder() as folder,
        processes.simulator(folder / "gateway", latency_ms=LATENCY_MS) as gateway,
        processes.engine(folder / "near") as near_engine,
        processes.engine(
            folder / "far",
            settings=f'[simulator]\nurl = "http://127.0.0.1:{gateway.port}"\n'
            f"inflight_max = {IN_FLIGHT}\n",
        ) as far_engine,
    ):
        for _ in range(chosen.rounds):
            near_engine.pin()
            far_engine.pin()
            near.append(good_per_s(load(near_engine.port, seconds=chosen.seconds)))
            found = load(
                far_engine.port, connections=IN_FLIGHT, seconds=chosen.seconds + 1, warm_up=1
            )
            far.append(good_per_s(found))
            limits.append(
                good_per_s(
                    load(gateway.port, path="/v1/operations", connections=IN_FLIGHT, seconds=3)
                )
            )
            say(f"near {near[-1]:,.0f}/s, far {far[-1]:,.0f}/s, gateway {limits[-1]:,.0f}/s")
            if strange := set(found["by_status"]) - {"201"}:
                say(f"also {strange}: {found['first_bodies']}")
    part = statistics.median(ours / single for ours, single in zip(far, near, strict=True))
    rate, single, limit = (statistics.median(values) for values in (far, near, limits))
    of_limit = statistics.median(ours / own for ours, own in zip(far, limits, strict=True))
    # Stated as a part of row 1; the target is the one that binds.
    needed = min(TARGET, OF_LIMIT * limit / single)
    return [
        Row(
            "8", "gateway over HTTP, 50 ms, 256 in flight: as a part of row 1's rate, in turns",
            needed, part,
            f"{rate:,.0f} of {single:,.0f}/s; the gateway itself {limit:,.0f}/s "
            f"({IN_FLIGHT / LATENCY_MS * 1000:,.0f}/s by its latency), {of_limit:.2f} of it; the "
            f"simulator shares a core with load and Postgres",
        )
    ]  # fmt: skip


if __name__ == "__main__":
    run_bench(measure, __doc__ or "", options={"rounds": 2, "seconds": 4.0})
