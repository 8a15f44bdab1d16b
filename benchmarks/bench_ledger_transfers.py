"""How many transfers the ledger commits per second, beside pgbench's TPC-B on the same server.

    python -m benchmarks.bench_ledger_transfers [--json] [--seconds S] [--accounts N] [--no-pgbench]

Each transfer has all that the ledger gives one: two phases (every second batch posts the holds of
the one before it), both accounts' four totals, the account's history, the hash chain. `spread`
draws pairs from `--accounts` merchants' accounts and their gateways'; `hot` uses one pair. The
`callers` have one transfer each under way and meet in the group commit of the writer actor.

fsync and synchronous_commit are on. `ratio` is to TPC-B in the same run, at 16 clients for batches
and as many clients as callers for callers. `python_us` and `postgres_us` are CPU time per transfer
of this process and of its backend. Making the transfers is excluded, committing them is not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
import msgspec
import uvloop

from engine.actors.directory import Directory
from engine.actors.ledger_writer import LedgerWriterActor
from engine.domain.entry import Batch, Entry
from engine.domain.ids import new_id
from engine.domain.posting import Books, Transfer, books_of, leg
from engine.ledger.embedded import EmbeddedPostgres
from engine.ledger.embedded_cluster import find_binaries
from engine.ledger.migrate import migrate
from engine.ledger.postgres import PostgresLedger
from engine.messages import Committed, Write
from engine.supervisor.mailbox import Mailbox

SIZES = (8189, 1000, 100)
CALLERS = 32
ACCOUNTS = 1_000
SECONDS = 4.0
START_MS = 1_800_000_000_000


class Source:
    """Holds, and what posts them."""

    def __init__(self, accounts: int) -> None:
        self._random = random.Random(1)
        gateways = [f"gateway_{n}" for n in range(max(1, accounts // 20))]
        self._books = [
            books_of(f"mer_{n:024d}", gateways[n % len(gateways)], "EUR", True)
            for n in range(accounts)
        ]
        self._ids = 0
        self._batches = 0

    def batches(self, count: int, size: int, *, hot: bool) -> list[Batch]:
        """`count` batches, holds and posts by turns."""
        made = []
        holds: list[Transfer] = []
        for at in range(count):
            if at % 2:
                transfers = [self._post(hold) for hold in holds]
            else:
                holds = transfers = [
                    self._hold(self._books[0] if hot else self._random.choice(self._books))
                    for _ in range(size)
                ]
            self._batches += 1
            # Transfers that are not linked are entries of their own: one may fail without another.
            entries = tuple([Entry(transfers=(transfer,)) for transfer in transfers])
            made.append(Batch(f"b_{self._batches:030d}", START_MS + self._batches, entries))
        return made

    def holds(self, count: int) -> list[Entry]:
        """Single transfers for callers."""
        return [
            Entry(transfers=(self._hold(self._random.choice(self._books)),)) for _ in range(count)
        ]

    def _hold(self, books: Books) -> Transfer:
        self._ids += 1
        n = self._ids
        return leg(
            books, "hold", id=n, amount=1 + n % 100_000, op=1, event_ms=START_MS + n,
            payment_id=new_id("pay_", START_MS + n, n % 4096, n), phase="pending",
        )  # fmt: skip

    def _post(self, hold: Transfer) -> Transfer:
        self._ids += 1
        return msgspec.structs.replace(
            hold, id=self._ids, phase="post_pending", resolves=hold.id, event_ms=hold.event_ms + 1
        )


class _Ids:
    """Keys of batches."""

    def __init__(self) -> None:
        self._made = 0

    def new(self, prefix: str) -> str:
        self._made += 1
        return f"{prefix}_callers_{self._made:024d}"

    def jitter(self) -> float:
        return 0.5


class _Clock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


class _Silence:
    """Telemetry that nobody reads, but for the sizes of the groups."""

    def __init__(self) -> None:
        self.groups = 0

    def group_commit(self, size: int, seconds: float) -> None:
        self.groups += 1

    def warn(self, event: str, **fields: Any) -> None:
        raise AssertionError((event, fields))

    error = warn


def _cpu_of(pid: int) -> float:
    """Seconds of CPU a process of one thread has used, in nanoseconds' resolution."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


async def _backend(ledger: PostgresLedger) -> int:
    connection = ledger._writer._connection
    assert connection is not None
    return connection.get_server_pid()


async def batched(
    ledger: PostgresLedger, source: Source, size: int, *, hot: bool, seconds: float
) -> dict[str, Any]:
    """One measurement: batches one after the other for about this long."""
    warm = source.batches(2, size, hot=hot)
    began = time.perf_counter()
    for batch in warm:
        await ledger.commit(batch)
    per_batch = (time.perf_counter() - began) / 2
    count = max(4, int(seconds / per_batch) // 2 * 2)
    count = min(count, max(4, 600_000 // size // 2 * 2))
    batches = source.batches(count, size, hot=hot)
    pid = await _backend(ledger)
    began, cpu, backend = time.perf_counter(), time.process_time(), _cpu_of(pid)
    for batch in batches:
        await ledger.commit(batch)
    took = time.perf_counter() - began
    cpu, backend = time.process_time() - cpu, _cpu_of(pid) - backend
    return _figures(f"{'hot' if hot else 'spread'} {size}", count * size, count, took, cpu, backend)


def _figures(
    kind: str, transfers: int, commits: int, took: float, cpu: float, backend: float
) -> dict[str, Any]:
    return {
        "kind": kind,
        "transfers_per_s": round(transfers / took),
        "commit_ms": round(took / commits * 1000, 2),
        "python_us": round(cpu / transfers * 1e6, 2),
        "postgres_us": round(backend / transfers * 1e6, 2),
    }


async def single_callers(
    ledger: PostgresLedger, source: Source, callers: int, seconds: float
) -> dict[str, Any]:
    """`callers`, each of which sends its next transfer when the last one is durable."""
    directory = Directory(1, lambda reply: None)
    to_writer: Mailbox[Any] = Mailbox(capacity=callers * 2, reserved_capacity=callers * 2)
    to_callers: Mailbox[Any] = Mailbox(capacity=callers * 2, reserved_capacity=callers * 2)
    directory.add("callers", to_callers)
    silence: Any = _Silence()
    ids: Any = _Ids()
    actor = LedgerWriterActor(
        to_writer, directory, ledger, _Clock(), ids, silence, entries_max=512
    )  # fmt: skip
    entries = iter(source.holds(int(seconds * 60_000)))
    done = 0
    pid = await _backend(ledger)
    async with anyio.create_task_group() as group:
        await group.start(actor.run)
        reader = to_callers.attach()
        began, cpu, backend = time.perf_counter(), time.process_time(), _cpu_of(pid)
        for token in range(callers):
            to_writer.put_reserved_nowait(Write("callers", 1, token, next(entries)))
        while time.perf_counter() - began < seconds:
            for message in await reader.receive_all():
                assert type(message) is Committed, message
                done += len(message.tokens)
                for token in message.tokens:
                    to_writer.put_reserved_nowait(Write("callers", 1, token, next(entries)))
            reader.acknowledge()
        took = time.perf_counter() - began
        cpu, backend = time.process_time() - cpu, _cpu_of(pid) - backend
        group.cancel_scope.cancel()
    return _figures(f"callers {callers}", done, silence.groups, took, cpu, backend)


def pgbench(dsn: str, clients: int, seconds: float) -> float:
    """Transactions a second of TPC-B; prepared statements, two threads."""
    return float(
        re.findall(
            r"^tps = ([0-9.]+)",
            _run(
                dsn, "pgbench", "--client", str(clients), "--jobs", "2", "--protocol", "prepared",
                "--no-vacuum", "--time", str(max(1, round(seconds))),
            ),
            re.MULTILINE,
        )[0]
    )  # fmt: skip


def _run(dsn: str, program: str, *arguments: str) -> str:
    parts = urlsplit(dsn)
    host = parse_qs(parts.query).get("host", [parts.hostname or ""])[0]
    environment = os.environ | {
        "PGHOST": host,
        "PGUSER": parts.username or "",
        "PGDATABASE": parts.path.lstrip("/"),
    }
    if parts.port:
        environment["PGPORT"] = str(parts.port)
    if parts.password:
        environment["PGPASSWORD"] = parts.password
    return subprocess.run(
        [str(find_binaries() / program), *arguments],
        env=environment, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip


async def measure(
    dsn: str,
    *,
    seconds: float = SECONDS,
    accounts: int = ACCOUNTS,
    sizes: tuple[int, ...] = SIZES,
    callers: int = CALLERS,
    with_pgbench: bool = True,
) -> list[dict[str, Any]]:
    """All figures on an empty database; pgbench's tables go into the same one."""
    base = base_callers = 0.0
    if with_pgbench:
        _run(dsn, "pgbench", "--initialize", "--scale", "50", "--quiet")
        base, base_callers = pgbench(dsn, 16, seconds), pgbench(dsn, callers, seconds)
    await migrate(dsn)
    ledger = PostgresLedger(dsn)
    await ledger.open()
    await ledger.take_over("benchmark")
    source, results = Source(accounts), []
    for size in sizes:
        for hot in (False, True):
            results.append(await batched(ledger, source, size, hot=hot, seconds=seconds))
    results.append(await single_callers(ledger, source, callers, seconds))
    await ledger.close()
    if with_pgbench:
        # Before and after, since the machine may be shared.
        base = (base + pgbench(dsn, 16, seconds)) / 2
        base_callers = (base_callers + pgbench(dsn, callers, seconds)) / 2
        for result in results:
            alone = result["kind"].startswith("callers")
            result["ratio"] = round(
                result["transfers_per_s"] / (base_callers if alone else base), 1
            )
        results.append({"kind": "pgbench 16", "transfers_per_s": round(base)})
        results.append({"kind": f"pgbench {callers}", "transfers_per_s": round(base_callers)})
    return results


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_ledger_transfers")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.add_argument("--dsn", help="an empty database instead of the embedded one")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="per measurement")
    parser.add_argument("--accounts", type=int, default=ACCOUNTS, help="accounts to spread over")
    parser.add_argument("--no-pgbench", action="store_true", help="only the ledger")
    options = parser.parse_args()
    keywords = {
        "seconds": options.seconds,
        "accounts": options.accounts,
        "with_pgbench": not options.no_pgbench,
    }
    if options.dsn:
        results = uvloop.run(measure(options.dsn, **keywords))
    else:
        with (
            tempfile.TemporaryDirectory(prefix="bench-transfers-") as folder,
            EmbeddedPostgres(Path(folder)) as postgres,
        ):
            results = uvloop.run(measure(postgres.dsn, **keywords))
    if options.json:
        json.dump({"python": sys.version.split()[0], "results": results}, sys.stdout, indent=2)
        return
    columns = ("transfers_per_s", "ratio", "commit_ms", "python_us", "postgres_us")
    print(f"{'kind':<14}" + "".join(f"{name:>17}" for name in columns))
    for result in results:
        print(f"{result['kind']:<14}" + "".join(f"{result.get(name, ''):>17}" for name in columns))


if __name__ == "__main__":
    main()
