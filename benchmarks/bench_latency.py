"""Rows 5 and 6: how long one authorisation takes, under half of the load it can bear, and alone.

Row 5: the simulator answers after a constant time, which is subtracted. The largest rate is
measured first, in a closed loop in the same run; then an open loop offers half of it. Row 6: one
caller, and in turns with it one-row commits on the same database, from the engine's core.

    python -m benchmarks.bench_latency [--json] [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks import processes
from benchmarks.command import run_bench, say
from benchmarks.processes import good_per_s, load
from benchmarks.table import Row
from engine.ledger.embedded import find_running

GATEWAY_MS = 20.0
SHARE = 0.5
LIMITS = (("p50_ms", "p50", 3.0), ("p99_ms", "p99", 15.0), ("p999_ms", "p99.9", 50.0))
TIMES_A_COMMIT = 3.0


def open_loop(folder: Path, seconds: float) -> list[Row]:
    """Row 5."""
    settings = f"[simulator]\nlatency_ms = {GATEWAY_MS}\n"
    with processes.engine(folder / "slow", settings=settings) as engine:
        most = good_per_s(load(engine.port, connections=256, seconds=4))
        rate = most * SHARE
        say(f"at most {most:,.0f}/s with a gateway of {GATEWAY_MS:.0f} ms")
        found = load(engine.port, connections=512, seconds=seconds, rate=rate, warm_up=1)
    say(f"open loop at {rate:,.0f}/s: {found['latency']}, sent late by {found['late']}")
    good = good_per_s(found)
    note = (
        f"open loop, {rate:,.0f}/s offered, half of {most:,.0f}/s, {good:,.0f}/s good; "
        f"gateway {GATEWAY_MS:.0f} ms, subtracted; {found['latency']['count']:,} requests; the "
        f"generator was late by {found['late']['p99_ms']:.2f} ms at p99"
    )
    if found["unanswered"] or found["lost"] or set(found["by_status"]) != {"201"}:
        counts = {status: some["count"] for status, some in found["by_status"].items()}
        note += f"; {counts}, {found['unanswered']} unanswered"
    return [
        Row(f"5{letter}", f"latency over the gateway's own at half the largest rate, {name}",
            limit, found["latency"][key] - GATEWAY_MS, note if letter == "a" else "",
            "at most", "ms")
        for letter, (key, name, limit) in zip("abc", LIMITS, strict=True)
    ]  # fmt: skip


def alone(folder: Path, rounds: int) -> Row:
    """Row 6."""
    pairs = []
    with processes.engine(folder / "alone") as engine:
        dsn = find_running(folder / "alone")
        assert dsn is not None, "the engine's own Postgres runs"
        for _ in range(rounds):
            commit = durable_commit(dsn)
            payment = load(engine.port, connections=1, seconds=2.5)["latency"]
            say(f"one commit {commit['p50_ms']:.2f} ms, one payment {payment['p50_ms']:.2f} ms")
            pairs.append((payment["p50_ms"], commit["p50_ms"], payment["p99_ms"]))
    times = statistics.median(payment / commit for payment, commit, _ in pairs)
    payment, commit, p99 = (statistics.median(values) for values in zip(*pairs, strict=True))
    return Row(
        "6", "one caller, nothing else running: p50 as times one durable commit's",
        TIMES_A_COMMIT, times,
        f"{payment:.2f} ms (p99 {p99:.2f}) against {commit:.2f} ms; two group commits a payment",
        "at most", "times",
    )  # fmt: skip


def durable_commit(dsn: str, seconds: float = 2.0) -> dict[str, float]:
    """Latencies of one-row commits, from a process on the engine's core."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.durable_commit", f"--dsn={dsn}", f"--seconds={seconds}"],
        stdout=subprocess.PIPE,
    )
    processes.pin(process.pid, processes.SERVER_CORE)
    out, _ = process.communicate(timeout=seconds + 30)
    found: dict[str, float] = json.loads(out)
    return found


def measure(chosen: argparse.Namespace) -> list[Row]:
    """Both rows, each on new data."""
    with processes.folder() as folder:
        return [*open_loop(folder, chosen.seconds), alone(folder, chosen.rounds)]


if __name__ == "__main__":
    run_bench(measure, __doc__ or "", options={"rounds": 3, "seconds": 12.0})
