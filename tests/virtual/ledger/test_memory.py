"""The ledger in memory keeps the contract, on asyncio and on trio, and fails as it is told."""

from __future__ import annotations

import anyio
import pytest

pytest.register_assert_rewrite("tests.contracts.ledger")

from engine.domain.entry import Entry  # noqa: E402
from engine.ledger.memory import MemoryLedger  # noqa: E402
from engine.ledger.memory_store import MemoryStore  # noqa: E402
from engine.ports import Fenced, LedgerUnavailable  # noqa: E402
from tests.contracts.ledger import Ledger, LedgerContract, Maker  # noqa: E402


@pytest.fixture
def make() -> Maker:
    return Maker()


class MemoryBench:
    """Ledgers on one store; opening the next one breaks the lock of the one before."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.last: MemoryLedger | None = None

    async def open(self) -> MemoryLedger:
        if self.last is not None:
            self.last.lose_lock()
        self.last = MemoryLedger(self.store)
        await self.last.open()
        await self.last.take_over("test")
        return self.last

    def lose_reply(self, ledger: Ledger) -> None:
        assert isinstance(ledger, MemoryLedger)
        ledger.faults.outcomes.append("applied")

    def lose_batch(self, ledger: Ledger) -> None:
        assert isinstance(ledger, MemoryLedger)
        ledger.faults.outcomes.append("not_applied")

    def take_a_while(self, ledger: Ledger) -> None:
        assert isinstance(ledger, MemoryLedger)
        ledger.faults.commit_delay_s = 1e-3


@pytest.fixture
def bench() -> MemoryBench:
    return MemoryBench()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
class TestMemoryLedger(LedgerContract):
    """The contract, under trio."""


pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


async def test_read_only_refuses_commits_and_goes_on_reading(make: Maker) -> None:
    ledger = await MemoryBench().open()
    ledger.faults.read_only = True
    batch = make.batch(Entry(payment=make.payment()))
    with pytest.raises(LedgerUnavailable):
        await ledger.commit(batch)
    assert await ledger.payments([]) == {}
    ledger.faults.read_only = False
    assert not (await ledger.commit(batch)).resolved


async def test_a_database_that_is_down_answers_nothing(make: Maker) -> None:
    ledger = await MemoryBench().open()
    ledger.faults.down = True
    with pytest.raises(LedgerUnavailable):
        await ledger.commit(make.batch())
    with pytest.raises(LedgerUnavailable):
        await ledger.payments([])


async def test_another_batch_may_not_overtake_one_whose_outcome_is_open(
    make: Maker,
) -> None:
    ledger = await MemoryBench().open()
    ledger.faults.outcomes.append("applied")
    with pytest.raises(LedgerUnavailable):
        await ledger.commit(make.batch())
    with pytest.raises(Fenced, match="is open"):
        await ledger.commit(make.batch())


async def test_a_second_engine_stands_by_until_the_lock_is_lost(make: Maker) -> None:
    bench = MemoryBench()
    first = await bench.open()
    second = MemoryLedger(bench.store)
    took_over = anyio.Event()

    async def stand_by() -> None:
        await second.stand_by("second")
        took_over.set()

    async with anyio.create_task_group() as group:
        group.start_soon(stand_by)
        await anyio.lowlevel.checkpoint()
        assert not took_over.is_set()
        first.lose_lock()
        await first.wait_lock_lost()
        await took_over.wait()
    with pytest.raises(Fenced):
        await first.commit(make.batch())
    with pytest.raises(LedgerUnavailable):
        await first.retake()
    second.lose_lock()
    with pytest.raises(Fenced):
        await first.retake()
    await second.retake()
    await second.commit(make.batch())
