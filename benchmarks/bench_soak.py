"""Row 12: ten minutes at seventy per cent of what it can do.

Purchases, which settle at once, so that nothing has to stay in memory; the gateway is a process of
its own, because the simulator remembers everything and its memory is not the engine's. The engine
itself measures by how much its event loop is late, fifty times a second, so that a stall of less
than 120 ms may look like one of 100; memory is read from outside. WAL and bloat are stated, not
judged. Where less than nine tenths of what was offered was done there is nothing to judge.

    python -m benchmarks.bench_soak [--json] [--seconds S] [--share F]
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import threading
from pathlib import Path

import asyncpg

from benchmarks import processes
from benchmarks.command import run_bench, say
from benchmarks.processes import Result, Server, good_per_s, load
from benchmarks.table import Row
from engine.ledger.embedded import find_running

PATH = "/v1/payments/purchase"
GATEWAY_MS = 20.0
STALLS, GROWTH = 0.0, 1.05
DONE_AT_LEAST = 0.9
SAMPLE_S = 1.0
_BUSY = re.compile(rb'event_loop_stalls_total\{cause="busy"\} ([0-9.e+]+)')
_LAG = re.compile(rb'event_loop_lag_seconds_bucket\{le="([^"]+)"\} ([0-9.e+]+)')

TABLES = """
SELECT relname, pg_total_relation_size(relid) AS bytes, n_live_tup AS live, n_dead_tup AS dead
FROM pg_stat_user_tables ORDER BY bytes DESC LIMIT 6
"""


class Memory(threading.Thread):
    """Reads the process's memory once a second."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._server = server
        self._done = threading.Event()
        self.samples: list[int] = []

    def run(self) -> None:
        """Until told to stop."""
        while not self._done.wait(SAMPLE_S):
            self.samples.append(self._server.memory_bytes())

    def stop(self) -> None:
        """No more."""
        self._done.set()
        self.join(10)


def stalls(port: int) -> tuple[int, int, int]:
    """How often the event loop was late by more than 100 ms, in how many of these its thread ran
    for most of the time, and how often it was asked.
    """
    metrics = processes.get(port, "/metrics")[1]
    counts = {le: float(n) for le, n in _LAG.findall(metrics)}
    busy = _BUSY.search(metrics)
    assert busy is not None
    return int(counts[b"+Inf"] - counts[b"0.1"]), int(float(busy[1])), int(counts[b"+Inf"])


async def database_state(dsn: str) -> tuple[int, str]:
    """Bytes of WAL written since the cluster was made, and the largest tables in words."""
    connection = await asyncpg.connect(dsn)
    wal = await connection.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint")
    tables = await connection.fetch(TABLES)
    await connection.close()
    words = ", ".join(
        f"{row['relname']} {row['bytes'] / 2**20:,.0f} MiB "
        f"({row['dead'] / max(1, row['live'] + row['dead']):.0%} dead)"
        for row in tables
    )
    return int(wal), words


def soak(folder: Path, seconds: float, share: float) -> tuple[Result, dict[str, float], str]:
    """The load, with what was seen of the engine meanwhile."""
    settings = '[simulator]\nurl = "http://127.0.0.1:{port}"\n'
    with (
        processes.simulator(folder / "gateway", latency_ms=GATEWAY_MS) as gateway,
        processes.engine(folder / "data", settings=settings.format(port=gateway.port)) as engine,
    ):
        dsn = find_running(folder / "data")
        assert dsn is not None, "the engine's own Postgres runs"
        most = good_per_s(load(engine.port, path=PATH, connections=256, seconds=6, warm_up=1))
        say(f"at most {most:,.0f}/s")
        wal_before, _ = asyncio.run(database_state(dsn))
        late_before, busy_before, _ = stalls(engine.port)
        memory = Memory(engine)
        memory.start()
        found = load(
            engine.port, path=PATH, connections=512, rate=most * share, seconds=seconds,
            warm_up=min(10.0, seconds / 10),
        )  # fmt: skip
        memory.stop()
        late, busy, asked = stalls(engine.port)
        wal, words = asyncio.run(database_state(dsn))
    third = len(memory.samples) // 3
    flat = statistics.mean(memory.samples[-third:]) / statistics.mean(memory.samples[third:-third])
    seen = {
        "rate": most * share, "growth": flat,
        "late": late - late_before, "busy": busy - busy_before, "asked": asked,
        "wal_bytes_each": (wal - wal_before) / (most * share * seconds),
        "mib": memory.samples[-1] / 2**20,
    }  # fmt: skip
    return found, seen, words


def measure(chosen: argparse.Namespace) -> list[Row]:
    """One soak."""
    with processes.folder() as folder:
        found, seen, words = soak(folder, chosen.seconds, chosen.share)
    good, latency = good_per_s(found), found["latency"]
    trouble = found["unanswered"] + found["lost"]
    note = (
        f"{chosen.seconds:.0f} s at {seen['rate']:,.0f}/s offered, {good:,.0f}/s good, {trouble} "
        f"without an answer; p50 {latency['p50_ms']:.1f} p99 {latency['p99_ms']:.1f} p99.9 "
        f"{latency['p999_ms']:.1f} max {latency['max_ms']:.0f} ms with a gateway of "
        f"{GATEWAY_MS:.0f} ms; {seen['asked']:.0f} readings of the event loop's lag"
    )
    if seen["late"]:
        note += f"; in {seen['busy']:.0f} of the stalls the engine was at work, in the others it "
        note += "did not run"
    stated = f"{seen['mib']:.0f} MiB at the end; WAL {seen['wal_bytes_each'] / 1024:.1f} KiB a "
    stated += f"payment; {words}"
    share = f"{chosen.share:.0%}"
    could = good >= DONE_AT_LEAST * seen["rate"]
    return [
        Row("12a", f"soak at {share}: stalls of the event loop over 100 ms", STALLS,
            float(seen["late"]) if could else None, note, "at most"),
        Row("12b", f"soak at {share}: memory of the last third as times the middle one", GROWTH,
            seen["growth"] if could else None, stated, "at most", "times"),
    ]  # fmt: skip


if __name__ == "__main__":
    run_bench(measure, __doc__ or "", options={"seconds": 600.0, "share": 0.7})
