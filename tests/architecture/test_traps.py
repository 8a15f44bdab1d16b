"""Private names of other projects that the tests rely on. They break here first, with a reason."""

from __future__ import annotations

import random

import pytest
import trio
from trio._core import _run as trio_run


def _order(seed: int) -> list[int]:
    """The order in which twenty tasks that are ready at once get their turn."""
    order: list[int] = []

    async def note(number: int) -> None:
        await trio.lowlevel.checkpoint()
        order.append(number)

    async def main() -> None:
        trio_run._r.seed(seed)
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(note, number)

    trio.run(main)
    return order


def test_trio_still_has_what_a_seeded_scheduler_needs() -> None:
    assert isinstance(trio_run._r, random.Random)
    assert isinstance(trio_run._ALLOW_DETERMINISTIC_SCHEDULING, bool)


def test_a_seed_decides_the_order_of_trios_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    state = trio_run._r.getstate()
    try:
        assert _order(1) == _order(1)
        assert len({tuple(_order(seed)) for seed in range(10)}) > 5
    finally:
        trio_run._r.setstate(state)
