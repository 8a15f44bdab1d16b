"""The ledger on Postgres keeps the contract, and what only a real database can show."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from typing import Any

import anyio
import asyncpg
import pytest

pytest.register_assert_rewrite("tests.contracts.ledger")

from engine.domain.entry import Batch, Entry  # noqa: E402
from engine.domain.journal import GENESIS, seal  # noqa: E402
from engine.ledger import preparing, writer  # noqa: E402
from engine.ledger.connections import DurabilityError  # noqa: E402
from engine.ledger.lock import LockTaken  # noqa: E402
from engine.ledger.postgres import PostgresLedger  # noqa: E402
from engine.ledger.queries import QUERIES  # noqa: E402
from engine.ledger.rows import INT64_MAX, Rows  # noqa: E402
from engine.ledger.verify import verify  # noqa: E402
from engine.ports import EntryInvalid, Fenced, LedgerUnavailable, Receipt  # noqa: E402
from tests.contracts.ledger import (  # noqa: E402
    NOW,
    Ledger,
    LedgerContract,
    Maker,
    authorized,
    chain,
)

pytestmark = pytest.mark.anyio


SEND_BUFFER = (socket.SOL_SOCKET, socket.SO_SNDBUF)
COUNT_OF_TRANSFERS = 7
"""The place of that argument of append_batch."""


class LosesOnce:
    """In the place of the prepared statement: loses the batch, or the answer, once."""

    def __init__(self, ledger: PostgresLedger, *, applied: bool) -> None:
        self.writer = ledger._writer
        self.statement = ledger._writer._append
        self.applied = applied
        self.copied = preparing.COPIED_MIN == 1

    async def fetchval(self, *arguments: Any, timeout: float) -> Any:  # noqa: ASYNC109
        assert self.statement is not None
        if self.applied:
            applied = await self.statement.fetchval(*arguments, timeout=timeout)
            if self.copied and arguments[COUNT_OF_TRANSFERS]:
                return applied  # The answer to lose is that to COMMIT.
        raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle")


class LosesCommitOnce:
    """In the place of the connection: loses the answer to a COMMIT, once."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)

    async def execute(self, query: str, *, timeout: float) -> str:  # noqa: ASYNC109
        status = await self.connection.execute(query, timeout=timeout)
        if query == "COMMIT":
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle")
        return status


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
        if preparing.COPIED_MIN == 1:
            connection = ledger._writer._connection
            assert connection is not None
            ledger._writer._connection = LosesCommitOnce(connection)  # type: ignore[assignment]
        ledger._writer._append = LosesOnce(ledger, applied=True)  # type: ignore[assignment]

    def lose_batch(self, ledger: Ledger) -> None:
        assert isinstance(ledger, PostgresLedger)
        ledger._writer._append = LosesOnce(ledger, applied=False)  # type: ignore[assignment]

    def take_a_while(self, ledger: Ledger) -> None:
        """It always waits for the database."""


@pytest.fixture
async def bench(database: str, anyio_backend: str) -> AsyncIterator[PostgresBench]:
    bench = PostgresBench(database)
    yield bench
    for ledger in bench.opened:
        await ledger.close()


class TestPostgresLedger(LedgerContract):
    """The contract, on a real server."""


class TestPostgresLedgerCopies(LedgerContract):
    """The contract, where one transfer is so many that it goes by COPY, and totals never lag."""

    @pytest.fixture(autouse=True)
    def few_are_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        commit = PostgresLedger.commit

        async def commit_and_project(
            ledger: PostgresLedger, batch: Batch, following: Batch | None = None
        ) -> Receipt:
            receipt = await commit(ledger, batch, following)
            with anyio.CancelScope(shield=True):
                await ledger.project_totals()
            return receipt

        monkeypatch.setattr(PostgresLedger, "commit", commit_and_project)
        monkeypatch.setattr(preparing, "COPIED_MIN", 1)
        monkeypatch.setattr(writer, "PIECE", 2)


async def test_what_was_made_ready_is_used_on_the_connection_it_was_made_for(
    bench: PostgresBench, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = await bench.open()
    in_their_turn: list[Batch] = []
    rows_of = preparing.Preparer.rows_of

    def note(preparer: preparing.Preparer, batch: Batch) -> Rows:
        in_their_turn.append(batch)
        return rows_of(preparer, batch)

    monkeypatch.setattr(preparing.Preparer, "rows_of", note)
    one, two, three, four = (make.batch(Entry(transfers=(make.transfer(),))) for _ in range(4))
    await ledger.commit(one, two)
    await ledger.commit(two, three)
    await ledger.commit(three, four)
    ledger._writer._disconnect()
    await ledger.commit(four)
    assert in_their_turn == [one, four]


@pytest.mark.parametrize("count", [2, 3, 5])
async def test_copied_transfers_are_what_was_committed(
    bench: PostgresBench, make: Maker, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(preparing, "COPIED_MIN", 2)
    monkeypatch.setattr(writer, "PIECE", 2)
    ledger = await bench.open()
    holds = [make.transfer(phase="pending") for _ in range(count)]
    posts = [make.transfer(phase="post_pending", resolves=hold.id) for hold in holds]
    await ledger.commit(make.batch(Entry(transfers=tuple(holds))))
    await ledger.commit(make.batch(*(Entry(transfers=(post,)) for post in posts)))
    for sent in (*holds, *posts):
        row = await ledger.transfer(sent.id)
        assert row is not None
        assert (row.amount, row.kind, row.phase, row.resolves, row.link) == (
            sent.amount, sent.kind, sent.phase, sent.resolves, sent.link,
        )  # fmt: skip
        assert (row.payment_id, row.op, row.event_ms) == (sent.payment_id, sent.op, sent.event_ms)
    report = await verify(bench.dsn, witness=None, now_ms=NOW)
    assert {check.name: check.holds for check in report.checks}["journal"]
    assert {check.name: check.holds for check in report.checks}["balances"]


async def test_a_refused_copy_leaves_the_connection_usable(
    bench: PostgresBench, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "COPIED_MIN", 1)
    ledger = await bench.open()
    hold = make.transfer(phase="pending")
    await ledger.commit(make.batch(Entry(transfers=(hold,))))
    more = make.transfer(phase="post_pending", resolves=hold.id, amount=hold.amount + 1)
    for bad in (hold, more, make.transfer(event_ms=2**63)):
        with pytest.raises(EntryInvalid):
            await ledger.commit(make.batch(Entry(transfers=(bad,))))
    assert (await chain(ledger, make, 1))[0].number == 2
    assert ledger.statistics().writer.connections == 1


async def test_the_commit_of_a_copy_whose_answer_was_lost_is_found(
    bench: PostgresBench, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "COPIED_MIN", 1)
    ledger = await bench.open()
    await chain(ledger, make, 1)
    connection = ledger._writer._connection
    assert connection is not None
    ledger._writer._connection = LosesCommitOnce(connection)  # type: ignore[assignment]
    sent = make.transfer()
    batch = make.batch(Entry(transfers=(sent,)))
    with pytest.raises(LedgerUnavailable):
        await ledger.commit(batch)
    receipt = await ledger.commit(batch)
    assert (receipt.number, receipt.resolved) == (2, True)
    assert await ledger.transfer(sent.id) is not None
    assert (await chain(ledger, make, 1))[0].number == 3


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
    try:
        receipt = await ledger.commit(batch)
    except LedgerUnavailable:
        # Nobody had noticed yet that the connection is gone.
        receipt = await ledger.commit(batch)
    assert receipt.number == 2
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
    await connection.execute("SELECT FROM engine_epoch FOR UPDATE")
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
    await connection.execute("SELECT FROM engine_epoch FOR UPDATE")
    batch = make.batch(Entry(transfers=(make.transfer(),)))
    with pytest.raises(LedgerUnavailable, match="TimeoutError"):
        await ledger.commit(batch)
    assert ledger.statistics().writer.unsettled == batch.key
    await transaction.rollback()
    assert (await ledger.commit(batch)).number == 2
    assert (await chain(ledger, make, 1))[0].number == 3
    await connection.close()


SLOW_COMMIT = """
CREATE FUNCTION wait_at_commit() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN PERFORM pg_advisory_xact_lock(42); RETURN NULL; END$$;
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON batches DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION wait_at_commit();
"""


async def test_a_first_try_that_ends_while_the_ledger_is_read_counts_once(
    bench: PostgresBench, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = await bench.open()
    hold = make.transfer(amount=1000, phase="pending")
    await ledger.commit(make.batch(Entry(transfers=(hold,))))
    part = make.transfer(amount=1000, phase="post_pending", resolves=hold.id)
    batch = make.batch(Entry(transfers=(part,)))
    other = await raw(bench)
    await other.execute(SLOW_COMMIT)
    await other.execute("SELECT pg_advisory_lock(42)")
    waits = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = 42"
    )
    connection = ledger._writer._connection
    assert connection is not None

    async def cut() -> None:
        while not await other.fetchval(waits):
            await anyio.sleep(0.01)
        connection.terminate()

    async with anyio.create_task_group() as group:
        group.start_soon(cut)
        with pytest.raises(LedgerUnavailable):
            await ledger.commit(batch)
    # It ends after the journal's end has been read, and before what is pending is.
    fetch = asyncpg.Connection.fetch

    async def let_it_end_first(self: asyncpg.Connection, query: str, *args: Any, **kw: Any) -> Any:
        if query == QUERIES["accounts_above"]:
            await other.execute("SELECT pg_advisory_unlock(42)")
            while await other.fetchval("SELECT count(*) FROM batches") < 2:
                await anyio.sleep(0.01)
        return await fetch(self, query, *args, **kw)

    with monkeypatch.context() as patch:
        patch.setattr(asyncpg.Connection, "fetch", let_it_end_first)
        with anyio.fail_after(20):
            receipt = await ledger.commit(batch)
    assert (receipt.number, receipt.resolved) == (2, True)
    assert [r.number for r in await chain(ledger, make, 2)] == [3, 4]
    await other.close()


async def test_a_first_try_that_is_applied_while_the_journals_end_is_read_is_adopted(
    bench: PostgresBench, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The accounts it opened are read, its place in the journal is not: what it sealed counts."""
    ledger = await bench.open()
    asked: list[Any] = []

    class Lost:
        async def fetchval(self, *arguments: Any, timeout: float) -> bool:  # noqa: ASYNC109
            asked.extend(arguments)
            raise asyncpg.ConnectionDoesNotExistError("the reply is lost")

    class Overtaken:
        """A connection on which the lost try is applied right after the head has been read."""

        def __init__(self, connection: asyncpg.Connection) -> None:
            self._connection = connection

        def __getattr__(self, name: str) -> Any:
            return getattr(self._connection, name)

        async def fetchrow(self, query: str, *arguments: Any, **how: Any) -> Any:
            found = await self._connection.fetchrow(query, *arguments, **how)
            if asked and query == writer.QUERIES["head"]:
                other = await connect(bench.dsn, writer.WRITER, wanted="read-write")
                await writer._take_packed(other)
                append = await other.prepare(writer.QUERIES["append_batch"])
                assert await append.fetchval(*asked) is True
                asked.clear()
                await other.close()
            return found

    async def overtaken(*arguments: Any, **options: Any) -> Any:
        return Overtaken(await connect(*arguments, **options))

    connect = writer.connect
    monkeypatch.setattr(writer, "connect", overtaken)
    ledger._writer._append = Lost()  # type: ignore[assignment]
    batch = make.batch(Entry(transfers=(make.transfer(),)))
    with pytest.raises(LedgerUnavailable):
        await ledger.commit(batch)
    receipt = await ledger.commit(batch)
    assert receipt.resolved
    stored = await ledger._connections.fetchrow("head", 0)
    assert stored is not None
    assert receipt.hash == stored["hash"]
    following = await ledger.commit(make.batch(Entry(transfers=(make.transfer(),))))
    assert following.number == receipt.number + 1


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


async def test_a_database_that_lost_commits_is_fenced_off_though_others_took_their_place(
    bench: PostgresBench,
    make: Maker,
) -> None:
    """Restored to before the take-over, and written to since, under an epoch of the same number."""
    ledger = await bench.open()
    await chain(ledger, make, 2)
    connection = await raw(bench)
    await connection.execute("ALTER TABLE batches DISABLE TRIGGER ALL")
    await connection.execute("UPDATE batches SET hash = sha256(hash) WHERE number = 2")
    await connection.execute(
        "INSERT INTO batches (lane, number, key, epoch, recorded_ms, transfers, first_transfer, "
        "last_transfer, prev_hash, hash) "
        "SELECT lane, 3, 'theirs', epoch, recorded_ms, 0, 0, 0, hash, sha256(hash) "
        "FROM batches WHERE number = 2"
    )
    await connection.close()
    ledger._writer._disconnect()
    with pytest.raises(Fenced, match="lost commits"):
        await ledger.commit(make.batch())


async def test_only_totals_that_are_large_leave_no_room_and_not_what_has_passed_through_them(
    bench: PostgresBench,
    make: Maker,
) -> None:
    ledger = await bench.open()
    await chain(ledger, make, 1)
    # As after 2**63 - 1 minor units that were held and voided; then they are there.
    ledger._writer._preparer.measure(INT64_MAX)
    assert (await chain(ledger, make, 2))[-1].number == 3
    await ledger.project_totals()
    connection = await raw(bench)
    await connection.execute("ALTER TABLE accounts DISABLE TRIGGER ALL")
    await connection.execute(
        f"UPDATE accounts SET debits_posted = {INT64_MAX} WHERE id = (SELECT max(id) FROM accounts)"
    )
    await connection.close()
    ledger._writer._preparer.measure(INT64_MAX)
    for _ in range(2):
        with pytest.raises(EntryInvalid, match="NumericValueOutOfRange"):
            await chain(ledger, make, 1)
    assert (await ledger.commit(make.batch())).number == 4


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


async def test_a_database_that_became_careless_is_waited_for(
    bench: PostgresBench,
    make: Maker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether a batch was applied before it did is open, so the very same one is tried again."""
    ledger = await bench.open()
    await chain(ledger, make, 1)
    batch = make.batch()
    ledger._writer._unsettled = batch.key
    ledger._writer._disconnect()
    with monkeypatch.context() as patch:
        patch.setitem(QUERIES, "durability", "SELECT 'off' AS fsync, 'on' AS commit")
        for _ in range(2):
            with pytest.raises(LedgerUnavailable, match="set fsync = on"):
                await ledger.commit(batch)
    assert (await ledger.commit(batch)).number == 2


async def test_nothing_is_written_behind_a_commit_that_crashed(
    bench: PostgresBench,
    make: Maker,
) -> None:
    ledger = await bench.open()
    batch = make.batch()
    statement = ledger._writer._append

    class Crashes:
        async def fetchval(self, *arguments: Any, timeout: float) -> None:  # noqa: ASYNC109
            assert statement is not None
            await statement.fetchval(*arguments, timeout=timeout)
            raise RuntimeError("a bug")

    ledger._writer._append = Crashes()  # type: ignore[assignment]
    with pytest.raises(RuntimeError):
        await ledger.commit(batch)
    with pytest.raises(Fenced, match=f"{batch.key} is open"):
        await ledger.commit(make.batch())
    assert (await ledger.commit(batch)).resolved


async def test_taken_over_while_it_looks_for_the_end_of_the_journal(
    bench: PostgresBench,
    make: Maker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Applied by an earlier try, and another engine has written behind it by the time it looks."""
    first, second = await bench.open(), PostgresLedger(bench.dsn)
    bench.opened.append(second)
    batch, theirs = make.batch(), make.batch()
    take_packed = writer._take_packed

    class AppliedBefore:
        async def fetchval(self, *_: object, **__: object) -> bool:
            monkeypatch.setattr(writer, "_take_packed", after_a_take_over)
            return False

    async def after_a_take_over(connection: asyncpg.Connection) -> dict[str, int]:
        monkeypatch.setattr(writer, "_take_packed", take_packed)
        await first._lock.close()
        await second.take_over("second")
        await second.commit(theirs)
        return await take_packed(connection)

    first._writer._append = AppliedBefore()  # type: ignore[assignment]
    with pytest.raises(Fenced, match="written behind"):
        await first.commit(batch)


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


async def test_an_engine_whose_schema_is_migrated_beneath_it_is_fenced(
    bench: PostgresBench, make: Maker
) -> None:
    ledger = await bench.open()
    await ledger.commit(make.batch(Entry(payment=make.payment())))
    migrating = await asyncpg.connect(bench.dsn)
    async with migrating.transaction():
        await migrating.execute("UPDATE engine_epoch SET epoch = epoch + 1")
        await migrating.execute("ALTER TYPE payment_input ADD ATTRIBUTE one_more boolean")
    await migrating.close()
    batch = make.batch(Entry(payment=make.payment()))
    with pytest.raises(LedgerUnavailable):
        await ledger.commit(batch)
    with pytest.raises(Fenced):
        await ledger.commit(batch)


async def test_the_kernel_takes_more_of_a_commit_at_once_than_it_usually_would(
    bench: PostgresBench,
) -> None:
    ledger = await bench.open()
    connection = ledger._writer._connection
    assert connection is not None
    writers = connection._transport.get_extra_info("socket")
    with socket.socket(writers.family) as usual:
        assert writers.family == socket.AF_UNIX
        assert writers.getsockopt(*SEND_BUFFER) > usual.getsockopt(*SEND_BUFFER)


async def test_an_address_where_nobody_listens_is_unavailable(make: Maker) -> None:
    ledger = PostgresLedger("postgresql://engine@127.0.0.1:1/none")
    with pytest.raises(LedgerUnavailable, match="cannot connect"):
        await ledger.open()
    with pytest.raises(LedgerUnavailable, match="cannot connect"):
        await ledger.take_over("test")
    await ledger.close()
