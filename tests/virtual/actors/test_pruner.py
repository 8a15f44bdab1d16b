"""Keys are forgotten when their time is over, and trouble with that is told once."""

import pytest
import trio

from engine.actors.pruner import CATCH_UP, KEYS_AT_ONCE, PAUSE_S, PrunerActor, PrunerStatistics
from engine.domain.news import Unknown
from engine.ports import LedgerUnavailable
from tests.virtual.actors.rig import body
from tests.virtual.actors.surroundings import EPOCH_MS, Lines, VirtualClock

DAY_S = 24 * 3_600


class Keys:
    """So many old keys, unless something is wrong."""

    def __init__(self, old, oldest_ms):
        self.old = old
        self.oldest_ms = oldest_ms
        self.wrong = None
        self.asked = []

    async def oldest_key_ms(self):
        if self.wrong is not None:
            raise self.wrong
        return self.oldest_ms

    async def prune_keys(self, before_ms, at_most):
        self.asked.append((trio.current_time(), before_ms))
        if self.wrong is not None:
            raise self.wrong
        pruned = min(self.old, at_most)
        self.old -= pruned
        return pruned


@pytest.mark.trio
async def test_it_forgets_some_at_a_time_until_there_are_no_more(autojump_clock):
    keys, lines = Keys(2 * KEYS_AT_ONCE + 5, EPOCH_MS), Lines()
    actor = PrunerActor(keys, VirtualClock(), lines, keys_kept_ms=10_000, every_s=60.0)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: actor.run(task_status=task_status))
        await trio.sleep(125)
        asked = [(round(at - began, 2), before - EPOCH_MS) for at, before in keys.asked]
        start = 60_000 - 10_000 + round(began * 1_000)
        assert asked == [
            (60, start),
            (60 + PAUSE_S, start),
            (60 + 2 * PAUSE_S, start),
            (120 + 2 * PAUSE_S, start + 60_000 + round(2_000 * PAUSE_S)),
        ]
        assert actor.statistics() == PrunerStatistics(2 * KEYS_AT_ONCE + 5, failed=0)
        nursery.cancel_scope.cancel()
    assert lines.lines == []


@pytest.mark.trio
async def test_a_clock_that_is_a_month_ahead_reaches_recent_keys_after_a_day_only(autojump_clock):
    class Ahead(VirtualClock):
        def now_ms(self):
            return super().now_ms() + 40 * DAY_S * 1_000

    began = trio.current_time()
    # Keys of the last thirty days, by the right clock.
    oldest_ms = VirtualClock().now_ms() - 30 * DAY_S * 1_000
    keys = Keys(0, oldest_ms)
    actor = PrunerActor(keys, Ahead(), Lines(), keys_kept_ms=30 * DAY_S * 1_000, every_s=60.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: actor.run(task_status=task_status))
        await trio.sleep(125)
        assert [before - oldest_ms for _, before in keys.asked] == [
            CATCH_UP * 60_000,
            CATCH_UP * 120_000,
        ]
        await trio.sleep(30 * 3_600)
        recent_ms = oldest_ms + 29 * DAY_S * 1_000
        at, _ = next(asked for asked in keys.asked if asked[1] > recent_ms)
        assert at - began > DAY_S
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_where_there_are_no_keys_there_is_nothing_to_forget(autojump_clock):
    keys = Keys(0, None)
    actor = PrunerActor(keys, VirtualClock(), Lines(), keys_kept_ms=10_000, every_s=60.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: actor.run(task_status=task_status))
        await trio.sleep(125)
        assert keys.asked == []
        keys.oldest_ms = VirtualClock().now_ms()
        await trio.sleep(60)
        assert len(keys.asked) == 1
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_trouble_is_told_once_and_nothing_is_counted(autojump_clock):
    keys, lines = Keys(3, EPOCH_MS), Lines()
    keys.wrong = LedgerUnavailable("gone")
    actor = PrunerActor(keys, VirtualClock(), lines, keys_kept_ms=10_000, every_s=60.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: actor.run(task_status=task_status))
        await trio.sleep(130)
        assert actor.statistics() == PrunerStatistics(0, failed=2)
        keys.wrong = None
        await trio.sleep(60)
        assert actor.statistics() == PrunerStatistics(3, failed=0)
        nursery.cancel_scope.cancel()
    assert lines.lines == [
        ("keys_not_pruned", {"reason": "gone"}),
        ("keys_pruned_again", {"failed": 2}),
    ]


@pytest.mark.trio
async def test_a_key_is_kept_for_thirty_days(autojump_clock, world):
    first, _ = await world.open(key="k", purchase=True)
    await world.skip(30 * DAY_S - 120)
    await world.restart()
    again, replayed = await world.open(key="k", purchase=True)
    assert (again.body, replayed) == (first.body, True)

    # It is forgotten with the first look after that.
    await world.skip(180)
    await world.restart()
    await trio.sleep(61)
    other, replayed = await world.open(key="k", purchase=True)
    assert (other.status, replayed) == (201, False)
    assert body(other)["id"] != body(first)["id"]
    assert len(world.store.payments) == 2
    assert len(world.store.claims) == 1


@pytest.mark.trio
async def test_a_key_is_not_old_while_it_waits_for_its_answer_nor_soon_after(autojump_clock, world):
    world.gateway.answer = lambda call: Unknown("no answer for a month")
    first, _ = await world.open(key="k", purchase=True)
    assert (first.status, body(first)["status"]) == (202, "unknown")
    await world.skip(31 * DAY_S)
    await trio.sleep(61)
    assert len(world.store.claims) == 1

    world.gateway.answer = lambda call: None
    payment_id = body(first)["id"]
    await world.until(lambda: world.status(payment_id) != "unknown", within_s=DAY_S)
    await trio.sleep(121)
    again, replayed = await world.open(key="k", purchase=True)
    # The gateway never heard of it.
    assert (again.status, replayed) == (502, True)
    assert body(again)["payment"]["id"] == payment_id
    assert len(world.store.payments) == 1
