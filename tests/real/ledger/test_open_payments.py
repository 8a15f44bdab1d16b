"""Open payments as a start reads them from Postgres: a stream that may break or be given up."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import pytest

pytest.register_assert_rewrite("tests.contracts.ledger")

from engine.domain.entry import Entry  # noqa: E402
from engine.ledger import connections  # noqa: E402
from engine.ledger.migrate import FOLDER, migrate  # noqa: E402
from engine.ledger.postgres import PostgresLedger  # noqa: E402
from engine.ledger.rows import build  # noqa: E402
from engine.ports import LedgerUnavailable  # noqa: E402
from tests.contracts.ledger import Maker, authorized, by_id, by_work, into  # noqa: E402

pytestmark = pytest.mark.anyio


async def sessions_left(database: str) -> None:
    """Wait until no session reads any more."""
    watching = await asyncpg.connect(database)
    with anyio.fail_after(20):
        while await watching.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'COPY%'"
        ):
            await anyio.sleep(0.01)
    await watching.close()


@pytest.mark.parametrize("whose", ["the engine's", "the database's"])
async def test_open_payments_that_do_not_come_are_not_waited_for(
    ledger: PostgresLedger, database: str, make: Maker, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """A session that waits for a lock does not notice that its engine has given up."""
    await ledger.commit(make.batch(Entry(payment=make.payment())))
    quiet: dict[str, bytes] = {}
    working: list[bytes] = []
    monkeypatch.setitem(connections.READER_OF_TABLES, "lock_timeout", "300")
    blocker = await asyncpg.connect(database)
    async with blocker.transaction():
        await blocker.execute("LOCK TABLE payments")
        with monkeypatch.context() as impatient:
            if whose == "the engine's":
                impatient.setattr(connections, "READ_TIMEOUT_S", 0.1)
            with pytest.raises(LedgerUnavailable):
                await ledger.open_payments(range(4_096), into(quiet, working))
        await sessions_left(database)
    await blocker.close()
    assert not quiet
    assert not working
    await ledger.open_payments(range(4_096), into(quiet, working))
    assert len(working) == 1


def test_a_lock_is_waited_for_no_longer_than_a_read() -> None:
    limit_ms = int(connections.READER_OF_TABLES["lock_timeout"])
    assert 0 < limit_ms <= connections.READ_TIMEOUT_S * 1000


async def test_open_payments_may_take_as_long_as_they_keep_coming(
    ledger: PostgresLedger, database: str, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ledger.commit(make.batch(*(Entry(payment=make.payment()) for _ in range(3_000))))
    scopes: list[anyio.CancelScope] = []
    deadlines: list[float] = []
    fail_after = anyio.fail_after

    def watched(seconds: float) -> Any:
        scope = fail_after(seconds)

        @contextmanager
        def entered() -> Iterator[anyio.CancelScope]:
            with scope as inner:
                scopes.append(inner)
                yield inner

        return entered()

    monkeypatch.setattr(anyio, "fail_after", watched)
    await ledger.open_payments(range(4_096), lambda *_: deadlines.append(scopes[0].deadline))
    assert len(deadlines) > 2, "it came in pieces"
    assert deadlines == sorted(set(deadlines)), "each of which gave the next one its time"


async def test_a_start_that_is_cancelled_leaves_no_session_behind(
    ledger: PostgresLedger, database: str, make: Maker
) -> None:
    await ledger.commit(make.batch(*(Entry(payment=make.payment()) for _ in range(3_000))))
    pieces: list[int] = []
    with anyio.CancelScope() as scope:

        def take(quiet: dict[str, bytes], working: list[bytes]) -> None:
            pieces.append(len(quiet) + len(working))
            scope.cancel()

        await ledger.open_payments(range(4_096), take)
    assert scope.cancelled_caught
    assert sum(pieces) < 3_000
    await sessions_left(database)


OLD_PAYMENT = """
INSERT INTO payments (
    id, merchant_id, livemode, open, slot, version, created_ms, amount, authorized, capturing,
    captured, releasing, released, refunding, refunded, excess_captured, excess_refunded, status,
    currency, customer, subscription, reference, doc, reference_held
) VALUES (
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21,
    $22, $23, $24
)
"""


def test_payments_from_before_the_column_may_have_work_until_they_change(
    new_database: Callable[..., str], make: Maker, tmp_path: Path
) -> None:
    for script in sorted(FOLDER.glob("000[12]_*.sql")):
        shutil.copy(script, tmp_path)
    asyncio.run(bring_over(new_database(), make, tmp_path))


async def bring_over(dsn: str, make: Maker, before: Path) -> None:
    """Migrate to before the column, fill, migrate on, and go on."""
    await migrate(dsn, folder=before)
    asked, waiting = make.payment(), make.payment()
    rows = build(make.batch(Entry(payment=asked), Entry(payment=waiting)), {}, 1)
    connection = await asyncpg.connect(dsn)
    await connection.execute("UPDATE engine_epoch SET epoch = 1")
    await connection.executemany(OLD_PAYMENT, [row[:-1] for row in rows.payments])
    await connection.close()

    applied = await migrate(dsn)
    assert applied[0].number == 3
    connection = await asyncpg.connect(dsn)
    epoch = await connection.fetchval("SELECT epoch FROM engine_epoch")
    assert epoch == 1 + len(applied), "each fences the old one"
    await connection.close()
    ledger = PostgresLedger(dsn)
    await ledger.open()
    await ledger.take_over("test")
    assert await by_work(ledger) == ({}, by_id(asked, waiting))
    waiting = authorized(waiting)
    await ledger.commit(make.batch(Entry(payment=waiting)))
    assert await by_work(ledger) == (by_id(waiting), by_id(asked))
    await ledger.close()
