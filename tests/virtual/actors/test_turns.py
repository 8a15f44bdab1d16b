"""A shard does so much at a time: what it has handed over is committed while it goes on."""

import pytest

from engine.domain.commands import Open
from tests.virtual.actors.rig import a_world

OPEN = Open("m_a", False, False, 1_000, "USD", "pm_card_visa", "simulator")


async def commits(path, clock, turn_messages):
    """How many payments each commit held while one shard took twenty of them at once."""
    async with a_world(path, clock) as world:
        world.settings |= {"shards": 1, "turn_messages": turn_messages}
        await world.start()
        answers = await world.ask_many([world.asking(OPEN) for _ in range(20)])
        assert {answer.status for answer, _ in answers} == {201}
        sizes = [sum(e.payment is not None for e in b.entries) for b in world.ledger.batches]
        return [size for size in sizes if size]


@pytest.mark.trio
async def test_the_first_turn_is_committed_while_the_rest_is_handled(autojump_clock, tmp_path):
    assert await commits(tmp_path, autojump_clock, 100) == [20, 20]
    several = await commits(tmp_path / "again", autojump_clock, 5)
    assert sum(several) == 40
    assert several[0] < 20
