"""Taking over, and standing by, while the database comes and goes."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from engine.app.run import _take_over
from engine.ledger.lock import LockTaken
from engine.ports import LedgerUnavailable
from tests.virtual.actors.surroundings import Lines


class Ledger:
    """Says what it is told to, one answer per call."""

    def __init__(self, *answers: int | Exception) -> None:
        self._answers: Iterator[int | Exception] = iter(answers)
        self.asked: list[str] = []

    def _next(self, name: str) -> int:
        self.asked.append(name)
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def take_over(self, owner: str) -> int:
        return self._next("take_over")

    async def stand_by(self, owner: str) -> int:
        return self._next("stand_by")

    async def last_transfer(self) -> int:
        return self._next("last_transfer")


def engine_on(ledger: Ledger) -> Any:
    return SimpleNamespace(ledger=ledger, telemetry=Lines(), standing_by=None)


@pytest.mark.trio
async def test_an_engine_that_stands_by_outlives_a_restart_of_the_database(autojump_clock):
    gone = LedgerUnavailable("terminating connection due to administrator command")
    ledger = Ledger(LockTaken("it is another's"), gone, gone, 7, 41)
    engine = engine_on(ledger)
    assert await _take_over(engine) == (7, 41)
    assert ledger.asked == ["take_over", "stand_by", "stand_by", "stand_by", "last_transfer"]
    assert len(engine.telemetry.said("waiting_for_database")) == 2


@pytest.mark.trio
async def test_a_take_over_that_the_database_interrupts_begins_again(autojump_clock):
    ledger = Ledger(3, LedgerUnavailable("gone"), 4, 9)
    assert await _take_over(engine_on(ledger)) == (4, 9)
