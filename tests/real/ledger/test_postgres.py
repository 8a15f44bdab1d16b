"""The ledger on Postgres keeps the contract, and what only a real database can show."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import asyncpg
import pytest

pytest.register_assert_rewrite("tests.contracts.ledger")

from engine.domain.entry import Entry  # noqa: E402
from engine.domain.journal import GENESIS, seal  # noqa: E402
from engine.ledger.connections import DurabilityError  # noqa: E402
from engine.ledger.lock import LockTaken  # noqa: E402
from engine.ledger.postgres import PostgresLedger  # noqa: E402
from engine.ledger.queries import QUERIES  # noqa: E402
from engine.ports import Fenced, LedgerUnavailable  # noqa: E402
from tests.contracts.ledger import (  # noqa: E402
    NOW,
    Ledger,
    LedgerContract,
    Maker,
    authorized,
    chain,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def make() -> Maker:
    return Maker()


class LosesOnce:
    """In the place of the prepared statement: loses the batch, or the answer, once."""

    def __init__(self, ledger: PostgresLedger, *, applied: bool) -> None:
        self.writer = ledger._writer
        self.statement = ledger._writer._append
        self.applied = applied

    async def fetchval(self, *arguments: Any, timeout: float) -> Any:  # noqa: ASYNC109
        assert self.statement is not None
        if self.applied:
            await self.statement.fetchval(*arguments, timeout=timeout)
        raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle")


class PostgresBench:
    """Engines on one database; opening the next one breaks the lock of the one before."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.opened: list[PostgresLedger] = []

    async def open(self) -> PostgresLedger:
        if self.opened:
            self.opened[-1]._lock.release()
        ledger = PostgresLedger(self.dsn)
        self.opened.append(ledger)
        await ledger.open()
        await ledger.take_over("test")
        return ledger

    def lose_reply(self, ledger: Ledger) -> None:
        assert isinstance(ledger, PostgresLedger)
        ledger._writer._append = LosesOnce(ledger, applied=True)  # type: ignore[assignment]

    def lose_batch(self, ledger: Ledger) -> None:
        assert isinstance(ledger, PostgresLedger)
        ledger._writer._append = LosesOnce(ledger, applied=False)  # type: ignore[assignment]


@pytest.fixture
async def bench(database: str, anyio_backend: str) -> AsyncIterator[PostgresBench]:
    bench = PostgresBench(database)
    yield bench
    for ledger in bench.opened:
        await ledger.close()


class TestPostgresLedger(LedgerContract):
    """The contract, on a real server."""


async def raw(bench: PostgresBench) -> asyncpg.Connection:
    return await asyncpg.connect(bench.dsn)


async def test_the_chain_can_be_recomputed_from_the_tables(
    bench: PostgresBench,
    make: Maker,
) -> None:
    ledger = await bench.open()
    hold = make.transfer(phase="pending")
    post = make.transfer(phase="post_pending", resolves=hold.id)
    await ledger.commit(make.batch(Entry(transfers=(hold,))))
    await ledger.commit(make.batch(Entry(transfers=(make.transfer("fee"), post))))
    await ledger.commit(make.batch())
    connection = await raw(bench)
    prev = GENESIS
    for batch in await connection.fetch("SELECT * FROM batches ORDER BY number"):
        transfers = await connection.fetch(
            "SELECT id, debit_account, credit_account, amount, kind, phase, resolves, link, "
            "payment_id, op, event_ms FROM transfers WHERE batch = $1 ORDER BY id",
            batch["number"],
        )
        accounts = await connection.fetch(
            "SELECT id, book, kind, owner, currency, livemode FROM accounts WHERE batch = $1 "
            "ORDER BY id",
            batch["number"],
        )
        prev = seal(
            prev,
            batch["number"],
            batch["key"],
            batch["recorded_ms"],
            [tuple(t) for t in transfers],
            accounts=[tuple(a) for a in accounts],
            lane=batch["lane"],
        )
        assert prev == batch["hash"]
        assert len(transfers) == batch["transfers"]
    await connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE transfers SET amount = 1",
        "DELETE FROM transfers",
        "TRUNCATE transfers",
        "DELETE FROM batches",
        "UPDATE account_history SET version = 1",
    ],
)
async def test_the_journal_is_append_only(
    bench: PostgresBench,
    make: Maker,
    statement: str,
) -> None:
    await chain(await bench.open(), make, 1)
    connection = await raw(bench)
    with pytest.raises(asyncpg.PostgresError, match="append-only") as raised:
        await connection.execute(statement)
    assert raised.value.sqlstate == "PE005"
    await connection.close()


async def test_a_commit_goes_on_after_its_connection_was_killed(
    bench: PostgresBench,
    make: Maker,
) -> None:
    ledger = await bench.open()
    await chain(ledger, make, 1)
    connection = await raw(bench)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'engine-writer' AND datname = current_database()"
    )
    batch = make.batch(Entry(transfers=(make.transfer(),)))
    with pytest.raises(LedgerUnavailable):
        await ledger.commit(batch)
    assert (await ledger.commit(batch)).number == 2
    await connection.close()


async def test_a_read_only_database_is_unavailable_and_read_from(
    bench: PostgresBench,
    make: Maker,
) -> None:
    ledger = await bench.open()
    payment = make.payment()
    await ledger.commit(make.batch(Entry(payment=payment)))
    connection = await raw(bench)
    name = await connection.fetchval("SELECT current_database()")
    await connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    ledger._writer._disconnect()
    batch = make.batch(Entry(payment=authorized(payment)))
    for _ in range(2):
        with pytest.raises(LedgerUnavailable):
            await ledger.commit(batch)
    assert await ledger.payments([payment.id]) == {payment.id: payment}
    await connection.execute("SET default_transaction_read_only = off")
    await connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
    assert (await ledger.commit(batch)).number == 2
    await connection.close()


async def test_a_lock_held_by_another_is_waited_for_and_tried_again(
    bench: PostgresBench,
    make: Maker,
) -> None:
    ledger = await bench.open()
    await chain(ledger, make, 1)
    assert ledger._writer._connection is not None
    await ledger._writer._connection.execute("SET lock_timeout = '50ms'")
    connection = await raw(bench)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("SELECT FROM accounts FOR UPDATE")
    batch = make.batch(Entry(transfers=(make.transfer(),)))

    async def let_go() -> None:
        while not ledger.statistics().writer.tried_again:
            await anyio.sleep(0.01)
        await transaction.rollback()

    async with anyio.create_task_group() as group:
        group.start_soon(let_go)
        receipt = await ledger.commit(batch)
    assert (receipt.number, receipt.resolved) == (2, False)
    await connection.close()


async def test_a_commit_that_takes_too_long_is_settled_by_the_next_try(
    bench: PostgresBench, make: Maker
) -> None:
    await chain(await bench.open(), make, 1)
    await bench.opened[-1].close()
    ledger = PostgresLedger(bench.dsn, commit_timeout_s=0.2)
    bench.opened.append(ledger)
    await ledger.take_over("test")
    connection = await raw(bench)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("SELECT FROM accounts FOR UPDATE")
    batch = make.batch(Entry(transfers=(make.transfer(),)))
    with pytest.raises(LedgerUnavailable, match="TimeoutError"):
        await ledger.commit(batch)
    assert ledger.statistics().writer.unsettled == batch.key
    await transaction.rollback()
    assert (await ledger.commit(batch)).number == 2
    assert (await chain(ledger, make, 1))[0].number == 3
    await connection.close()


async def test_a_second_engine_waits_for_the_lock_and_takes_over(
    bench: PostgresBench,
    make: Maker,
) -> None:
    first = await bench.open()
    second = PostgresLedger(bench.dsn)
    bench.opened.append(second)
    with pytest.raises(LockTaken):
        await second.take_over("second", patience_s=0)
    epochs: list[int] = []

    async def stand_by() -> None:
        epochs.append(await second.stand_by("second"))

    async with anyio.create_task_group() as group:
        group.start_soon(stand_by)
        await chain(first, make, 1)
        connection = await raw(bench)
        await connection.execute(
            "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_database d "
            "ON d.oid = l.database WHERE l.locktype = 'advisory' AND d.datname = current_database()"
        )
        await first.wait_lock_lost()
        await connection.close()
    assert epochs == [2]
    with pytest.raises(Fenced):
        await first.commit(make.batch())
    with pytest.raises(LedgerUnavailable):
        await first.retake()
    second._lock.release()
    with pytest.raises(Fenced):
        await first.retake()
    await second.retake()
    assert (await chain(second, make, 1))[0].number == 2


async def test_a_database_that_lost_commits_is_fenced_off(
    bench: PostgresBench,
    make: Maker,
) -> None:
    ledger = await bench.open()
    await chain(ledger, make, 2)
    connection = await raw(bench)
    await connection.execute("ALTER TABLE batches DISABLE TRIGGER ALL")
    await connection.execute("DELETE FROM batches WHERE number = 2")
    await connection.close()
    ledger._writer._disconnect()
    with pytest.raises(Fenced, match="lost commits"):
        await ledger.commit(make.batch())


@pytest.mark.parametrize(
    ("found", "advice"),
    [(("off", "on"), "set fsync"), (("on", "off"), "synchronous_commit is off")],
)
async def test_a_database_that_would_lose_commits_is_not_used(
    bench: PostgresBench,
    monkeypatch: pytest.MonkeyPatch,
    found: tuple[str, str],
    advice: str,
) -> None:
    # A server that runs without fsync would be another server; a pooler may change the other one.
    answer = f"SELECT '{found[0]}' AS fsync, '{found[1]}' AS commit"
    monkeypatch.setitem(QUERIES, "durability", answer)
    careful, careless = PostgresLedger(bench.dsn), PostgresLedger(bench.dsn, durable=False)
    bench.opened += [careful, careless]
    with pytest.raises(DurabilityError, match=advice):
        await careful.take_over("test")
    await careful.close()
    await careless.take_over("test")


async def test_a_cancelled_read_leaves_no_broken_connection_behind(
    bench: PostgresBench,
    make: Maker,
) -> None:
    ledger = await bench.open()
    payment = make.payment()
    await ledger.commit(make.batch(Entry(payment=payment)))
    for _ in range(20):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await ledger.payments([payment.id])
    assert await ledger.payments([payment.id]) == {payment.id: payment}
    statistics = ledger.statistics().reader
    assert statistics.busy == 0
    assert statistics.idle <= statistics.connections_max


async def test_a_cancelled_commit_is_finished_first(
    bench: PostgresBench,
    make: Maker,
) -> None:
    ledger = await bench.open()
    with anyio.CancelScope() as scope:
        scope.cancel()
        receipt = await ledger.commit(make.batch(at_ms=NOW))
    assert receipt.number == 1
    assert ledger.statistics().writer.unsettled is None


async def test_an_address_where_nobody_listens_is_unavailable(make: Maker) -> None:
    ledger = PostgresLedger("postgresql://engine@127.0.0.1:1/none")
    with pytest.raises(LedgerUnavailable, match="cannot connect"):
        await ledger.open()
    with pytest.raises(LedgerUnavailable, match="cannot connect"):
        await ledger.take_over("test")
    await ledger.close()
