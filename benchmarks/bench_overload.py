"""Row 11: offered three times what it can do, open loop.

The peak is measured first, closed loop, in the same run. Goodput is what was authorised while
three times as much was offered; a refusal is a 503 and its latency counts from the moment the
request was due; nothing may stay without an answer for 10 s. The generator is given connections
enough for all that the engine admits and more. How late it was itself is part of the note: where
it could not offer what it should, the row is not measured.

    python -m benchmarks.bench_overload [--json] [--seconds S]
"""

from __future__ import annotations

import argparse

from benchmarks import processes
from benchmarks.command import run_bench, say
from benchmarks.processes import good_per_s, load
from benchmarks.table import Row

TIMES = 3.0
CONNECTIONS = 3_500
LATE_MS_MAX = 250.0


def measure(chosen: argparse.Namespace) -> list[Row]:
    """The peak, then the flood."""
    with processes.folder() as folder, processes.engine(folder / "data") as engine:
        peak = max(
            good_per_s(load(engine.port, connections=connections, seconds=chosen.seconds))
            for connections in (128, 512)
        )
        say(f"peak {peak:,.0f}/s")
        found = load(
            engine.port, connections=CONNECTIONS, rate=peak * TIMES, seconds=chosen.seconds * 2,
            warm_up=2,
        )  # fmt: skip
    good = good_per_s(found)
    refused = found["by_status"].get("503", {"count": 0})
    say(f"good {good:,.0f}/s; refused {refused}; {found['by_status']}; late {found['late']}")
    offered = peak * TIMES
    lateness = found["late"]["p99_ms"]
    unanswered = found["unanswered"] + found["lost"] + found["timed_out"]
    from_sent = found["from_sent"].get("503", {})
    took = found["by_status"].get("201", {}).get("p99_ms", 0.0)
    note = (
        f"peak {peak:,.0f}/s, offered {offered:,.0f}/s on {CONNECTIONS:,} connections: "
        f"{good:,.0f}/s good (p99 {took:,.0f} ms), {refused['count']:,} refused; the generator was "
        f"late by {lateness:.0f} ms at p99, at most {found['most_waiting']:,} waited for a "
        f"connection"
    )
    could = lateness <= LATE_MS_MAX
    if not could:
        note = f"the generator could not offer it: {note}"
    refusal_ms = refused.get("p99_ms")
    return [
        Row("11a", "offered three times the capacity: goodput as a part of the peak", 0.9,
            good / peak if could else None, note),
        Row("11b", "the same: refusals answered, p99", 10.0,
            refusal_ms if could else None,
            f"p50 {refused.get('p50_ms', 0.0):.1f} ms, counted from when the request was due; from "
            f"when it was sent p50 {from_sent.get('p50_ms', 0.0):.1f} ms, p99 "
            f"{from_sent.get('p99_ms', 0.0):.1f} ms",
            "at most", "ms"),
        Row("11c", "the same: requests without an answer within 10 s", 0.0, float(unanswered), "",
            "at most"),
    ]  # fmt: skip


if __name__ == "__main__":
    run_bench(measure, __doc__ or "", options={"seconds": 5.0})
