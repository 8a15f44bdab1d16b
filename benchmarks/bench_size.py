"""Row 9: millions of settled payments in the database, against an empty one.

Two engines, each on data of its own, loaded in turns; both get the same rounds. The settled
payments are copies of one that the engine made (`benchmarks/replicate.py`), and `engine verify`
is run on them unless `--verify 0` is given.

    python -m benchmarks.bench_size [--json] [--payments N] [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import asyncpg

from benchmarks import processes
from benchmarks.command import run_bench, say
from benchmarks.filling import NoRoom, fill, verify_holds
from benchmarks.processes import Server, good_per_s, load
from benchmarks.table import Row
from engine.ledger.embedded import find_running

THROUGHPUT, MEMORY = 0.9, 1.1
PATH = "/v1/payments/purchase"
SAME_RATE, SAME_S = 200, 8
SIZE = "SELECT pg_database_size(current_database())"
WAL = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint"


def measure(chosen: argparse.Namespace) -> list[Row]:
    """Fill, verify, load in turns."""
    what = f"{chosen.payments:,} settled payments against none"
    names = (f"{what}: throughput", f"{what}: memory of the process")
    with processes.folder() as folder:
        began = time.monotonic()
        try:
            fill(folder / "full", chosen.payments, settled=True)
        except NoRoom as trouble:
            return rows(names, None, None, f"not measured: {trouble}")
        filled_s = time.monotonic() - began
        holds = verify_holds(folder / "full") if chosen.verify else None
        say(f"filled in {filled_s:.0f} s; verify holds: {holds}")
        with (
            processes.engine(folder / "empty") as empty,
            processes.engine(folder / "full") as full,
        ):
            data = {full.port: folder / "full", empty.port: folder / "empty"}
            size = asyncio.run(ask(data[full.port], SIZE))
            memory = memory_ratio(full, empty)
            turns = [turn(full, empty, n, chosen.seconds, data) for n in range(chosen.rounds)]
        ratios = [one.ratio for one in turns]
        note = (
            f"purchases, 128 connections; {size / 2**30:.1f} GiB in the database, made in "
            f"{filled_s:.0f} s; rounds from {min(ratios):.2f} to {max(ratios):.2f}; WAL a payment "
            f"{statistics.mean(one.wal_full for one in turns) / 1024:.1f} KiB against "
            f"{statistics.mean(one.wal_empty for one in turns) / 1024:.1f}"
        )
    if holds is not None:
        note += f"; engine verify {'holds' if holds else 'does NOT hold'} on them"
    return rows(names, statistics.median(ratios), memory, note)


def memory_ratio(full: Server, empty: Server) -> float:
    """After the same number of payments, so that what they leave in memory is no difference."""
    for engine in (full, empty):
        load(engine.port, path=PATH, rate=SAME_RATE, seconds=SAME_S)
    ours, none = full.memory_bytes(), empty.memory_bytes()
    say(f"memory: full {ours / 2**20:.0f} MiB, empty {none / 2**20:.0f} MiB")
    return ours / none


class Turn(NamedTuple):
    """The full one's rate as a part of the empty one's; bytes of WAL a payment."""

    ratio: float
    wal_full: float
    wal_empty: float


def turn(full: Server, empty: Server, number: int, seconds: float, data: dict[int, Path]) -> Turn:
    """One round of each; every other time the other one is first."""
    found = {
        engine.port: one_round(engine, data[engine.port], seconds)
        for engine in ((full, empty) if number % 2 else (empty, full))
    }
    (rate, wal), (rate_empty, wal_empty) = found[full.port], found[empty.port]
    say(f"full {rate:,.0f}/s, empty {rate_empty:,.0f}/s")
    return Turn(rate / rate_empty, wal, wal_empty)


def one_round(engine: Server, data: Path, seconds: float) -> tuple[float, float]:
    """Payments a second, and bytes of WAL for each."""
    engine.pin()
    before = asyncio.run(ask(data, WAL))
    rate = good_per_s(load(engine.port, path=PATH, seconds=seconds, warm_up=1))
    written = asyncio.run(ask(data, WAL)) - before
    return rate, written / (rate * seconds)  # the warm-up is a part of them


async def ask(data: Path, question: str) -> int:
    """A number that the engine's database knows."""
    dsn = find_running(data)
    assert dsn is not None, "the engine's own Postgres runs"
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval(question))
    finally:
        await connection.close()


def rows(
    names: tuple[str, str], throughput: float | None, memory: float | None, note: str
) -> list[Row]:
    """Both targets."""
    return [
        Row("9a", names[0], THROUGHPUT, throughput, note),
        Row("9b", names[1], MEMORY, memory, "", "at most", "times"),
    ]


if __name__ == "__main__":
    run_bench(
        measure, __doc__ or "",
        options={"payments": 5_000_000, "rounds": 12, "seconds": 8.0, "verify": 1},
    )  # fmt: skip
