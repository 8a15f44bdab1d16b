"""Totals that follow the journal: whatever has been projected, what is read is the same."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import anyio
import asyncpg
import pytest

pytest.register_assert_rewrite("tests.contracts.ledger")

from engine.domain.entry import Batch, Entry  # noqa: E402
from engine.domain.journal import GENESIS, AccountTuple, TransferTuple, seal  # noqa: E402
from engine.domain.posting import Transfer  # noqa: E402
from engine.ledger import totals  # noqa: E402
from engine.ledger.memory import MemoryLedger  # noqa: E402
from engine.ledger.migrate import FOLDER, migrate  # noqa: E402
from engine.ledger.postgres import PostgresLedger  # noqa: E402
from engine.ledger.verify import verify  # noqa: E402
from engine.ports import Balance, EntryInvalid, LedgerUnavailable, TransferRow  # noqa: E402
from tests.contracts.ledger import NOW, Maker  # noqa: E402

pytestmark = pytest.mark.anyio

MERCHANTS = ("mer_a", "mer_b", "mer_c")


def some_batches(seed: int, count: int) -> list[Batch]:
    """Holds, their second phases and fees; ids of a batch lie among those of its neighbours."""
    random, make = Random(seed), Maker()
    holds: list[Transfer] = []
    transfers: list[Transfer] = []
    for _ in range(count * 5):
        merchant = random.choice(MERCHANTS)
        if holds and random.random() < 0.5:
            hold = holds.pop(random.randrange(len(holds)))
            phase = random.choice(("post_pending", "void_pending", "expire_pending"))
            merchant = hold.credit.owner
            transfers.append(
                make.transfer(amount=hold.amount, phase=phase, resolves=hold.id, merchant=merchant)
            )
        elif random.random() < 0.3:
            transfers.append(make.transfer("fee", amount=random.randrange(1, 9), merchant=merchant))
        else:
            amount = random.randrange(1, 1000)
            transfers.append(make.transfer(amount=amount, phase="pending", merchant=merchant))
            holds.append(transfers[-1])
    batches: list[list[Transfer]] = [[] for _ in range(count)]
    of: dict[int, int] = {}
    for at, transfer in enumerate(transfers):
        # Near its place, and never before the hold it resolves.
        place = min(count - 1, max(at // 5 + random.randrange(3), of.get(transfer.resolves, 0)))
        of[transfer.id] = place
        batches[place].append(transfer)
    return [
        make.batch(*(Entry(transfers=(t,)) for t in some), at_ms=NOW + 10 * n)
        for n, some in enumerate(batches)
    ]


async def everything(
    ledger: PostgresLedger | MemoryLedger, until_ms: int
) -> tuple[list[Balance], list[Balance | None], list[list[TransferRow]]]:
    """All that can be read of the accounts, now and at every time."""
    accounts = await ledger.accounts(owner=None, livemode=True, after=0, limit=99)
    ids = [account.id for account in accounts]
    assert [await ledger.account(id_) for id_ in ids] == accounts
    then = [
        await ledger.account(id_, at_ms) for id_ in ids for at_ms in range(NOW - 5, until_ms, 10)
    ]
    pages = []
    for id_ in ids:
        page = await ledger.account_transfers(id_, before=None, limit=6)
        pages.append(page)
        while len(page) > 6:
            page = await ledger.account_transfers(id_, before=page[5].id, limit=6)
            pages.append(page)
    return accounts, then, pages


@pytest.mark.parametrize("seed", range(4))
async def test_what_is_read_does_not_depend_on_what_has_been_projected(
    ledger: PostgresLedger, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = Random(seed)
    model = MemoryLedger()
    await model.take_over("test")
    monkeypatch.setattr(totals, "FOLDED_MAX", 7)
    monkeypatch.setattr(totals, "BATCHES_MAX", 2)
    for n, batch in enumerate(some_batches(seed, 14)):
        await ledger.commit(batch)
        await model.commit(batch)
        if random.random() < 0.3:
            await ledger.project_totals()
        if n % 4 == 3:
            until_ms = NOW + 10 * n + 16
            assert await everything(ledger, until_ms) == await everything(model, until_ms)
    before = await everything(ledger, NOW + 200)
    await ledger.project_totals()
    assert await ledger.project_totals() == 0, "there is nothing left"
    assert await everything(ledger, NOW + 200) == before


async def test_two_that_project_at_once_fold_each_batch_once(
    ledger: PostgresLedger, database: str
) -> None:
    for batch in some_batches(1, 6):
        await ledger.commit(batch)
    other = PostgresLedger(database)
    folded = await asyncio.gather(ledger.project_totals(), other.project_totals())
    assert sorted(folded) == [0, 30]
    await other.close()


async def test_transfers_that_have_vanished_are_not_passed_over(
    ledger: PostgresLedger, database: str
) -> None:
    make = Maker()
    await ledger.commit(make.batch(Entry(transfers=(make.transfer(), make.transfer()))))
    connection = await asyncpg.connect(database)
    await connection.execute("ALTER TABLE transfers DISABLE TRIGGER USER")
    await connection.execute("DELETE FROM transfers WHERE id = (SELECT min(id) FROM transfers)")
    await connection.close()
    for _ in range(2):
        with pytest.raises(EntryInvalid, match="transfers_missing"):
            await ledger.project_totals()


async def test_commits_and_reads_go_on_while_totals_are_projected(
    ledger: PostgresLedger, database: str
) -> None:
    first, second = some_batches(2, 2)
    await ledger.commit(first)
    connection = await asyncpg.connect(database)
    async with connection.transaction():
        await connection.execute("SELECT project_totals(1000, 1000)")
        await ledger.commit(second)
        accounts = await ledger.accounts(owner=None, livemode=True, after=0, limit=99)
        assert sum(a.version for a in accounts) == 2 * 10
    await connection.close()


async def test_a_projection_that_is_cut_off_is_done_again(
    ledger: PostgresLedger, database: str
) -> None:
    for batch in some_batches(3, 3):
        await ledger.commit(batch)
    connection = await asyncpg.connect(database)
    with anyio.fail_after(20):
        async with connection.transaction():
            await connection.execute("LOCK TABLE projections")
            waiting = asyncio.ensure_future(ledger.project_totals())
            query = (
                "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'projections'::regclass"
            )
            while (pid := await connection.fetchval(query)) is None:
                await anyio.sleep(0.01)
            await connection.execute("SELECT pg_terminate_backend($1)", pid)
            with pytest.raises(LedgerUnavailable):
                await waiting
    assert await ledger.project_totals() == 15
    await connection.close()


OLD = """
INSERT INTO batches VALUES
    (0, 1, 'b-1', 1, 1000, 1, 1, 1, '{genesis}', '{one}'),
    (0, 2, 'b-2', 1, 2000, 3, 2, 4, '{one}', '{two}');
INSERT INTO accounts VALUES
    (1, 'platform', 'gateway_receivable', 'sim', 'EUR', true, 1, 1000, 0, 70, 0, 0, 2),
    (2, 'platform', 'merchant_pending', 'mer', 'EUR', true, 1, 1000, 0, 3, 0, 70, 2),
    (3, 'platform', 'platform_fees', 'platform', 'EUR', true, 2, 2000, 0, 0, 0, 3, 1);
INSERT INTO account_history VALUES
    (1, 1, 1000, 100, 0, 0, 0, 1, 1, 1),
    (2, 1, 1000, 0, 0, 100, 0, 1, 1, 1),
    (1, 2, 2000, 0, 70, 0, 0, 2, 2, 3),
    (2, 2, 2000, 0, 3, 0, 70, 2, 2, 4),
    (3, 2, 2000, 0, 0, 0, 3, 1, 4, 4);
INSERT INTO transfers VALUES
    (1, 1, 1, 2, 100, 0, 0, 0, 1, 'hold', 'pending', 'pay_1'),
    (2, 2, 1, 2, 70, 1, 0, 0, 2, 'hold', 'post_pending', 'pay_1'),
    (3, 2, 1, 2, 30, 1, 0, 0, 2, 'hold', 'void_pending', 'pay_1'),
    (4, 2, 2, 3, 3, 0, 2, 0, 2, 'fee', 'posted', 'pay_1');
UPDATE engine_epoch SET epoch = 1;
"""
"""Two batches as they were written when every commit changed the totals."""


def test_a_database_whose_totals_never_lagged_is_brought_over(
    new_database: Callable[..., str], tmp_path: Path
) -> None:
    dsn = new_database()
    shutil.copy(FOLDER / "0001_ledger.sql", tmp_path)
    asyncio.run(bring_over(dsn, tmp_path))


async def bring_over(dsn: str, first: Path) -> None:
    """Migrate to the first migration, fill, migrate on, and go on."""
    await migrate(dsn, folder=first)
    accounts: list[AccountTuple] = [
        (1, "platform", "gateway_receivable", "sim", "EUR", True),
        (2, "platform", "merchant_pending", "mer", "EUR", True),
        (3, "platform", "platform_fees", "platform", "EUR", True),
    ]
    moved: list[TransferTuple] = [
        (1, 1, 2, 100, "hold", "pending", 0, 0, "pay_1", 1, 0),
        (2, 1, 2, 70, "hold", "post_pending", 1, 0, "pay_1", 2, 0),
        (3, 1, 2, 30, "hold", "void_pending", 1, 0, "pay_1", 2, 0),
        (4, 2, 3, 3, "fee", "posted", 0, 2, "pay_1", 2, 0),
    ]
    one = seal(GENESIS, 1, "b-1", 1000, moved[:1], accounts=accounts[:2])
    two = seal(one, 2, "b-2", 2000, moved[1:], accounts=accounts[2:])
    hashes = {"genesis": GENESIS, "one": one, "two": two}
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        OLD.format(**{name: f"\\x{hash_.hex()}" for name, hash_ in hashes.items()})
    )
    await connection.close()

    applied = await migrate(dsn)
    assert applied[0].number == 2
    connection = await asyncpg.connect(dsn)
    epoch = await connection.fetchval("SELECT epoch FROM engine_epoch")
    assert epoch == 1 + len(applied), "each fences the old one"
    await connection.close()
    ledger = PostgresLedger(dsn)
    await ledger.take_over("test")
    found = await ledger.accounts(owner=None, livemode=True, after=0, limit=9)
    assert [(a.debits_posted, a.credits_posted, a.version) for a in found] == [
        (70, 0, 3), (3, 70, 4), (0, 3, 1),
    ]  # fmt: skip
    then = await ledger.account(2, 1500)
    assert then is not None
    assert (then.credits_pending, then.credits_posted, then.version) == (100, 0, 1)
    assert await ledger.project_totals() == 0
    make = Maker()
    transfer = make.transfer(id=5, merchant="mer", gateway="sim", amount=9)
    await ledger.commit(make.batch(Entry(transfers=(transfer,))))
    assert [t.id for t in await ledger.account_transfers(2, before=None, limit=9)] == [
        5,
        4,
        3,
        2,
        1,
    ]
    assert await ledger.project_totals() == 1
    report = await verify(dsn, witness=None, now_ms=NOW)
    problems = {check.name: check.problem_count for check in report.checks}
    assert problems["balances"] == problems["journal"] == 0
    await ledger.close()
