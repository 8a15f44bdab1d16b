"""Keys are forgotten when their time is over, and trouble with that is told once."""

import pytest
import trio

from engine.actors.pruner import CATCH_UP, KEYS_AT_ONCE, PAUSE_S, PrunerActor, PrunerStatistics
from engine.domain.news import Unknown
from engine.ledger.memory_store import MemoryStore
from engine.ports import LedgerUnavailable
from tests.virtual.actors.rig import body
from tests.virtual.actors.surroundings import EPOCH_MS, Lines, VirtualClock

DAY_S = 24 * 3_600


class Keys:
    """So many old keys, unless something is wrong."""

    def __init__(self, old, store=None):
        self.old = old
        self.store = MemoryStore() if store is None else store
        self.wrong = None
        self.asked = []

    async def believe_time(self, now_ms, at_most_ms):
        if self.wrong is not None:
            raise self.wrong
        return self.store.believe_time(now_ms, at_most_ms)

    async def prune_keys(self, before_ms, at_most):
        self.asked.append((trio.current_time(), before_ms))
        if self.wrong is not None:
            raise self.wrong
        pruned = min(self.old, at_most)
        self.old -= pruned
        return pruned


@pytest.mark.trio
async def test_it_forgets_some_at_a_time_until_there_are_no_more(autojump_clock):
    keys, lines = Keys(2 * KEYS_AT_ONCE + 5), Lines()
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


class Shifted(VirtualClock):
    """A clock that is wrong by so many seconds."""

    def __init__(self, seconds):
        self.seconds = seconds

    def now_ms(self):
        return super().now_ms() + self.seconds * 1_000


async def prune_for(seconds, store, clock):
    """Let a process live for so long; returns what it took for old at its end, by which time."""
    keys = Keys(0, store)
    actor = PrunerActor(keys, clock, Lines(), keys_kept_ms=30 * DAY_S * 1_000, every_s=60.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: actor.run(task_status=task_status))
        await trio.sleep(seconds)
        nursery.cancel_scope.cancel()
    return keys.asked[-1][1] + 30 * DAY_S * 1_000


@pytest.mark.trio
async def test_a_clock_that_is_a_month_ahead_reaches_recent_keys_after_a_day_only(autojump_clock):
    store, ahead = MemoryStore(), Shifted(40 * DAY_S)
    await prune_for(61, store, VirtualClock())
    began_ms = VirtualClock().now_ms()
    # However often it is started.
    for _ in range(3):
        believed_ms = await prune_for(61, store, ahead)
    assert believed_ms - began_ms == pytest.approx(3 * 60_000 * CATCH_UP, abs=1_000)
    believed_ms = await prune_for(29 * 3_600, store, ahead)
    assert believed_ms - began_ms < 30 * DAY_S * 1_000
    believed_ms = await prune_for(2 * 3_600, store, ahead)
    assert believed_ms - began_ms > 30 * DAY_S * 1_000


@pytest.mark.trio
async def test_a_clock_that_is_right_again_is_believed_at_once(autojump_clock):
    store = MemoryStore()
    await prune_for(61, store, VirtualClock())
    await prune_for(3_601, store, Shifted(40 * DAY_S))
    now_ms = VirtualClock().now_ms()
    believed_ms = await prune_for(61, store, VirtualClock())
    assert believed_ms == pytest.approx(now_ms + 60_000, abs=2)


@pytest.mark.trio
async def test_a_clock_that_was_behind_for_a_minute_is_made_up_for_in_one(autojump_clock):
    store = MemoryStore()
    await prune_for(61, store, VirtualClock())
    began_ms = VirtualClock().now_ms()
    assert await prune_for(61, store, Shifted(-60 * 365 * DAY_S)) < began_ms
    await prune_for(61, store, VirtualClock())
    believed_ms = await prune_for(61, store, VirtualClock())
    assert believed_ms == pytest.approx(VirtualClock().now_ms(), abs=2_000)


@pytest.mark.trio
async def test_a_lead_from_a_wrong_clock_is_given_up_again(autojump_clock):
    store, ahead = MemoryStore(), Shifted(3_650 * DAY_S)
    await prune_for(61, store, VirtualClock())
    began_ms = VirtualClock().now_ms()
    for clock in (ahead, VirtualClock(), ahead):
        believed_ms = await prune_for(3_601, store, clock)
    assert believed_ms - began_ms < 1.5 * DAY_S * 1_000


@pytest.mark.trio
async def test_what_an_engine_was_down_for_is_caught_up_with(autojump_clock):
    store = MemoryStore()
    await prune_for(61, store, VirtualClock())
    await trio.sleep(10 * DAY_S)
    began_ms = VirtualClock().now_ms()
    assert await prune_for(3_601, store, VirtualClock()) < began_ms - 8 * DAY_S * 1_000
    believed_ms = await prune_for(11 * 3_600, store, VirtualClock())
    assert believed_ms == pytest.approx(VirtualClock().now_ms(), abs=62_000)


@pytest.mark.trio
async def test_trouble_is_told_once_and_nothing_is_counted(autojump_clock):
    keys, lines = Keys(3), Lines()
    keys.wrong = LedgerUnavailable("gone")
    actor = PrunerActor(keys, Shifted(DAY_S), lines, keys_kept_ms=10_000, every_s=60.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: actor.run(task_status=task_status))
        await trio.sleep(130)
        assert actor.statistics() == PrunerStatistics(0, failed=2)
        keys.wrong = None
        believed_ms = keys.store.believe_time(EPOCH_MS, 0)
        await trio.sleep(60)
        assert actor.statistics() == PrunerStatistics(3, failed=0)
        # The minutes in which nobody could be asked do not count.
        assert believed_ms == keys.store.believe_time(EPOCH_MS, 0) - 60_000 * CATCH_UP
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
