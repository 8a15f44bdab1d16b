"""Who waits is told once, whether by the reply or by the end of the wait."""

from __future__ import annotations

from engine.actors.waiting import Gathering, Waiter
from engine.domain.commands import Open
from engine.ports import Ask

COMMAND = Open("m_a", False, False, 1_000, "USD", "pm_card_visa", "simulator")


class Flag:
    """An event that nobody has to wait for."""

    def __init__(self) -> None:
        self.is_on = False

    def set(self) -> None:
        self.is_on = True

    async def wait(self) -> None:
        raise AssertionError("nobody waits here")


def waiter(request_id: str) -> Waiter:
    return Waiter(request_id, "pay_1", None, bytes(32), 10.0)


def gathering(items: int) -> tuple[Gathering, Flag]:
    asks = [Ask(f"req_{n}", COMMAND, None, f"k{n}", bytes(32), "/") for n in range(items)]
    done = Flag()
    return Gathering(asks, 10.0, done), done


def test_an_item_that_was_told_at_the_end_of_its_wait_does_not_count_again_at_its_reply() -> None:
    batch, done = gathering(2)
    older, own = waiter("older"), waiter("own")
    batch.wait_for(0, older)
    batch.wait_for(1, own)
    older.wake()
    older.wake()
    assert not done.is_on, "the other item still runs"
    own.wake()
    assert done.is_on


def test_who_joins_after_the_end_of_the_wait_is_told_at_the_reply() -> None:
    older = waiter("older")
    older.wake()
    batch, done = gathering(1)
    batch.wait_for(0, older)
    assert not done.is_on
    older.wake()
    assert done.is_on
