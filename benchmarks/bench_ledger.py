"""Rows 2, 3 and 4: the ledger without HTTP, against what Postgres does by itself.

Each transfer has everything that it has in the engine: the chain, both accounts' four totals and
their history, two phases (half are holds, half post a hold of an earlier batch), the epoch, fsync;
between four gateways and ten thousand merchants. The totals follow as they do in
the engine, and that they have caught up at the end is part of the measured time. The peers run in
the same cluster and in turns with it: pgbench TPC-B, and a transaction with two row locks per
transfer. Neither side is pinned: both have the same two cores.

    python -m benchmarks.bench_ledger [--json] [--rounds N] [--seconds S]

`--seconds` is how long pgbench runs each time; the ledger is given a number of transfers.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from benchmarks import processes
from benchmarks.command import run_bench, say
from benchmarks.pgbench import PgBench
from benchmarks.table import Row
from benchmarks.transfers import Shape, TransferSource
from engine.actors.directory import Directory
from engine.actors.ledger_writer import LedgerWriterActor
from engine.actors.settings import ActorSettings
from engine.app.identity import RandomIds, SystemClock
from engine.app.run import calm_collector
from engine.app.telemetry import StructlogTelemetry
from engine.domain.entry import Entry
from engine.ledger.embedded import EmbeddedPostgres
from engine.ledger.migrate import migrate
from engine.ledger.postgres import PostgresLedger
from engine.ledger.preparing import COPIED_MIN
from engine.messages import Committed, ToWriter, Write, WriteRefused
from engine.supervisor.mailbox import Mailbox

BATCHES = {8_189: (66.0, 60), 1_000: (40.0, 400), 100: (20.0, 1_500)}
"""Size -> (how many times TPC-B with 16 clients, batches per round)."""
MEASURED_S_MAX = 5.0
CALLERS = 32
CALLS_EACH = 1_500
HOT_BATCHES, HOT_SIZE = 200, 1_000
SHAPES: tuple[Shape, ...] = ("hot", "spread")
Rates = defaultdict[str, list[float]]


class Callers:
    """Stands where a shard would: each caller has one transfer in flight."""

    def __init__(self, writer: Mailbox[ToWriter]) -> None:
        self._writer = writer
        self._token = 0
        self._waiting: dict[int, asyncio.Future[None]] = {}

    def put_reserved_nowait(self, message: Committed | WriteRefused) -> None:
        """What the writer says; the callers whose transfer is durable go on."""
        assert isinstance(message, Committed), message
        for token in message.tokens:
            self._waiting.pop(token).set_result(None)

    async def call(self, entries: list[Entry]) -> None:
        """One transfer after the other, each when the one before is durable."""
        for entry in entries:
            self._token += 1
            done = self._waiting[self._token] = asyncio.get_running_loop().create_future()
            self._writer.put_reserved_nowait(Write("callers", 1, self._token, entry))
            await done


class Bench:
    """The ledger and its peers, in one cluster."""

    def __init__(self, ledger: PostgresLedger, peer: PgBench, folder: str) -> None:
        self.ledger = ledger
        self.peer = peer
        self.rates: Rates = defaultdict(list)
        self._next_id = 1
        self._sources: dict[str, TransferSource] = {}
        self._telemetry = StructlogTelemetry.to(f"{folder}/ledger.log")

    @asynccontextmanager
    async def projected(self) -> AsyncIterator[None]:
        """Let the accounts' totals follow as they do in the engine, and catch up at the end."""
        ended = anyio.Event()

        async def follow() -> None:
            while not ended.is_set():
                with anyio.move_on_after(ActorSettings().totals_every_s):
                    await ended.wait()
                await self.ledger.project_totals()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            yield
            ended.set()

    async def batches(self, name: str, count: int, size: int, **kind: Any) -> None:
        """Commit batches that were made before, for a while; kept is the rate of transfers.

        The ledger is told what follows, as it is where more waits than one commit takes.
        """
        source = self._sources.setdefault(name, TransferSource(**kind))
        made = list(source.batches(self._next_id, count, size))
        self._next_id += count * size
        calm_collector()  # as the engine does at its start
        began = time.perf_counter()
        done, took_s = 0, 0.0
        async with self.projected():
            while done < count and took_s < MEASURED_S_MAX:
                await self.ledger.commit(made[done], made[done + 1] if done + 1 < count else None)
                done, took_s = done + 1, time.perf_counter() - began
        self.note(name, done * size / (time.perf_counter() - began))
        gc.unfreeze()
        if done < count:
            # Its later batches post holds that were never made.
            del self._sources[name]

    async def callers(self, name: str) -> None:
        """32 callers through the actor that makes the group commits."""
        mailbox: Mailbox[ToWriter] = Mailbox(capacity=1_000, reserved_capacity=1_000)
        directory = Directory(1, *[lambda _: None] * 3)
        callers: Any = Callers(mailbox)
        directory.add("callers", callers)
        clock = SystemClock()
        actor = LedgerWriterActor(
            mailbox, directory, self.ledger, clock, RandomIds(clock), self._telemetry,
            entries_max=ActorSettings().batch_entries_max,
            gather_entries=ActorSettings().gather_entries,
            told_max=128,
        )  # fmt: skip
        source = self._sources.setdefault(name, TransferSource())
        entries = source.entries(self._next_id, CALLERS * CALLS_EACH)
        self._next_id += len(entries)
        async with anyio.create_task_group() as tasks:
            await tasks.start(actor.run)
            began = time.perf_counter()
            async with self.projected(), asyncio.TaskGroup() as calls:
                for n in range(CALLERS):
                    calls.create_task(callers.call(entries[n::CALLERS]))
            self.note(name, len(entries) / (time.perf_counter() - began))
            tasks.cancel_scope.cancel()

    async def pgbench(self, name: str, clients: int, seconds: int) -> None:
        """The peer, in a thread so that nothing here is in its way."""
        run = self.peer.row_lock if name == "row lock" else self.peer.tpc_b
        self.note(name, await asyncio.to_thread(run, clients, seconds))

    def note(self, name: str, rate: float) -> None:
        """Keep a rate."""
        say(f"{name}: {rate:,.0f}/s")
        self.rates[name].append(rate)

    def median(self, name: str) -> float:
        """The middle one of a rate's rounds."""
        return statistics.median(self.rates[name])


async def run(dsn: str, folder: str, rounds: int, seconds: int) -> Bench:
    """All rounds, in turns."""
    await migrate(dsn)
    peer = PgBench(dsn)
    await peer.prepare()
    ledger = PostgresLedger(dsn)
    await ledger.open()
    await ledger.take_over("benchmark")
    bench = Bench(ledger, peer, folder)
    # Accounts are opened, and the first holds made, before anything counts.
    await bench.batches("warm-up", 2, 2_000)
    await bench.batches("spread", 40, HOT_SIZE, shape="spread")
    await bench.callers("callers")
    bench.rates.clear()
    for n in range(rounds):
        await bench.pgbench("TPC-B 16", 16, seconds)
        for size, (_, count) in BATCHES.items():
            await bench.batches(f"batches of {size}", count, size)
        await bench.pgbench("TPC-B 32", CALLERS, seconds)
        await bench.callers("callers")
        await bench.pgbench("row lock", 16, seconds)
        await bench.batches("one phase", 60, 1_000, two_phases=False)
        for shape in SHAPES if n % 2 else reversed(SHAPES):
            await bench.batches(shape, HOT_BATCHES, HOT_SIZE, shape=shape)
    await ledger.close()
    return bench


def rows_of(bench: Bench) -> list[Row]:
    """The figures against their targets."""
    tpc_b, tpc_b_32 = bench.median("TPC-B 16"), bench.median("TPC-B 32")
    row_lock = bench.median("row lock")
    rows = []
    for letter, (size, (times, _)) in zip("abc", BATCHES.items(), strict=True):
        rate = bench.median(f"batches of {size}")
        note = f"{rate:,.0f} transfers/s; pgbench TPC-B with 16 clients {tpc_b:,.0f}/s"
        if size == 1_000:
            one = bench.median("one phase")
            note += f"; {one:,.0f}/s where all are single-phase; row locks {row_lock:,.0f}/s"
        if size >= COPIED_MIN:
            note += f"; by COPY, as all batches from {COPIED_MIN:,} on; those of the engine's own "
            note += f"actors have at most {ActorSettings().batch_entries_max:,} entries"
        what = f"ledger, batches of {size:,}: transfers a second as times TPC-B, 16 clients"
        rows.append(Row(f"2{letter}", what, times, rate / tpc_b, note, unit="times"))
    calls = bench.median("callers")
    rows.append(
        Row("3", "ledger, 32 callers with one transfer each, as times TPC-B, 32 clients", 10.0,
            calls / tpc_b_32, unit="times",
            note=f"{calls:,.0f} transfers/s; pgbench TPC-B with 32 clients {tpc_b_32:,.0f}/s")
    )  # fmt: skip
    hot, spread = bench.median("hot"), bench.median("spread")
    rows.append(
        Row("4", "ledger, all transfers on one hot account against ten thousand accounts", 0.9,
            hot / spread, f"{hot:,.0f} against {spread:,.0f} transfers/s")
    )  # fmt: skip
    return rows


def measure(chosen: argparse.Namespace) -> list[Row]:
    """On an embedded Postgres of its own, with fsync on."""
    with processes.folder() as folder, EmbeddedPostgres(folder / "data") as postgres:
        # As the engine is run: anyio is told its backend, or it looks for it at every step.
        bench = anyio.run(
            run, postgres.dsn, str(folder), chosen.rounds, chosen.seconds,
            backend="asyncio", backend_options={"use_uvloop": True},
        )  # fmt: skip
        return rows_of(bench)


if __name__ == "__main__":
    run_bench(measure, __doc__ or "", options={"rounds": 2, "seconds": 4})
