"""So much at a time: others run in between, and commits are none the smaller for it."""

from itertools import pairwise

import pytest
import trio
import trio.testing

from engine.domain.commands import Open
from engine.domain.entry import Batch
from engine.ports import EntryInvalid, LedgerUnavailable
from engine.supervisor.mailbox import Mailbox
from tests.virtual.actors.rig import a_world

OPEN = Open("m_a", False, False, 1_000, "USD", "pm_card_visa", "simulator")
COUNT = 20


async def commits(path, clock, **settings):
    """How many payments each commit held while one shard took twenty of them at once."""
    async with a_world(path, clock) as world:
        world.settings |= {"shards": 1, **settings}
        await world.start()
        answers = await world.ask_many([world.asking(OPEN) for _ in range(COUNT)])
        assert {answer.status for answer, _ in answers} == {201}
        sizes = [sum(e.payment is not None for e in b.entries) for b in world.ledger.batches]
        return [size for size in sizes if size]


@pytest.mark.trio
async def test_what_is_enough_is_committed_while_the_rest_is_handled(autojump_clock, tmp_path):
    several = await commits(tmp_path, autojump_clock, turn_steps=3, gather_entries=6)
    assert sum(several) == 2 * COUNT
    assert 6 <= several[0] <= 9


@pytest.mark.trio
async def test_a_commit_waits_for_what_is_about_to_come(autojump_clock, tmp_path):
    # Twenty intents take the shard seven turns.
    sizes = await commits(tmp_path, autojump_clock, turn_steps=3)
    assert sum(sizes) == 2 * COUNT
    assert sizes[0] == COUNT


@pytest.mark.trio
async def test_a_commit_does_not_wait_for_a_shard_that_never_comes_to_an_end(
    autojump_clock, tmp_path
):
    async with a_world(tmp_path, autojump_clock) as world:
        await world.start()
        world.system.directory.gave_way.add("somebody")  # As if it gave way again and again.
        assert (await world.open())[0].status == 201
        world.system.directory.gave_way.clear()


@pytest.mark.trio
async def test_nobody_does_more_at_a_time_than_a_turn(autojump_clock, tmp_path):
    turn, count = 4, 40
    most = {"calls": 0, "replies": 0, "entries": 0}
    async with a_world(tmp_path, autojump_clock) as world:
        world.settings |= {"shards": 1, "turn_steps": turn}
        await world.start()
        directory = world.system.directory
        replied: list[str] = []
        reply, writer = directory.reply, directory.mailboxes["ledger-writer"]

        def note(told):
            replied.append(told.request_id)
            reply(told)

        directory.reply = note

        async def watch():
            """Trio runs every task that can run once, and then this one again."""
            before = dict.fromkeys(most, 0)
            while True:
                await trio.lowlevel.checkpoint()
                now = {
                    "calls": len(world.gateway.asked),
                    "replies": len(replied),
                    "entries": writer.statistics().received,
                }
                for name, number in now.items():
                    most[name] = max(most[name], number - before[name])
                before = now

        world.nursery.start_soon(watch)
        await world.ask_many([world.asking(OPEN) for _ in range(count)])
        assert len(replied) == count
    assert min(most.values()) > 0
    # What was committed comes in parts that are not taken apart, and between two looks there may
    # be two turns.
    assert max(most.values()) <= 2 * (2 * turn - 1), most


@pytest.mark.trio
async def test_a_gateway_gives_way_between_calls(autojump_clock, tmp_path):
    turn = 4
    async with a_world(tmp_path, autojump_clock) as world:
        world.settings |= {"shards": 1, "turn_steps": turn}
        await world.start()
        gateways = world.system.directory.gateways
        mailbox = gateways["simulator"]
        waiting = gateways["simulator"] = Mailbox(capacity=1, reserved_capacity=100)
        seen = []

        async def watch():
            while True:
                await trio.lowlevel.checkpoint()
                seen.append(len(world.gateway.asked))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.ask_many, [world.asking(OPEN) for _ in range(COUNT)])
            await trio.testing.wait_all_tasks_blocked()
            assert waiting.statistics().depth == COUNT
            gateways["simulator"] = mailbox
            world.nursery.start_soon(watch)
            for message in waiting.attach().take_all():  # All of them at once.
                mailbox.put_reserved_nowait(message)
        steps = [after - before for before, after in pairwise(seen)]
        assert sum(steps) + seen[0] == COUNT
        assert max(seen[0], *steps) <= 2 * turn, steps


@pytest.mark.trio
async def test_a_writer_that_dies_between_two_commits_makes_neither_twice(autojump_clock, tmp_path):
    async with a_world(tmp_path, autojump_clock) as world:
        world.settings |= {"shards": 1, "batch_entries_max": 5}
        await world.start()
        of_payments = []

        def poison(batch):
            if any(entry.payment is not None for entry in batch.entries):
                of_payments.append(batch)
                if len(of_payments) == 2:
                    raise RuntimeError("a bug")

        world.poison = poison
        answers = await world.ask_many([world.asking(OPEN) for _ in range(COUNT)])
        assert [answer.status for answer, _ in answers] == [201] * COUNT


@pytest.mark.trio
@pytest.mark.parametrize(
    "trouble", [None, EntryInvalid("invalid: some_constraint"), LedgerUnavailable("gone")]
)
async def test_what_a_commit_has_no_room_for_is_told_with_it_and_comes_next(
    autojump_clock, tmp_path, trouble
):
    async with a_world(tmp_path, autojump_clock) as world:
        world.settings |= {"shards": 1, "batch_entries_max": 5}
        await world.start()
        told: list[tuple[Batch, Batch | None]] = []
        troubles = [trouble] if trouble else []
        commit = world.ledger.commit

        async def note(batch, following=None):
            told.append((batch, following))
            if following is not None and troubles:
                raise troubles.pop()
            return await commit(batch, following)

        world.ledger.commit = note
        answers = await world.ask_many([world.asking(OPEN) for _ in range(COUNT)])
        assert [answer.status for answer, _ in answers] == [201] * COUNT
        if isinstance(trouble, EntryInvalid):
            # What was refused comes first, in two halves; what follows these is made anew.
            (refused, old), *told = told
            assert refused.entries == told[0][0].entries + told[1][0].entries
            assert told[1][1] is not old
        elif trouble is not None:
            # What follows a commit that takes for ever is not to have the time of its beginning.
            (lost, old), (again, then), *told = told
            assert lost is again
            assert then is None
            assert told[0][0] is not old
        followed = [(then, came) for (_, then), (came, _) in pairwise(told) if then is not None]
        assert len(followed) >= 5
        assert all(then is came for then, came in followed)
        times = [batch.recorded_ms for batch in world.ledger.batches]
        assert times == sorted(times)
