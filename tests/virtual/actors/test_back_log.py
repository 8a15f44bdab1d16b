"""Many timers that are due at once: as fast as the shards can, never more than they can hold."""

import pytest
import trio

from engine.actors import timers
from engine.actors.shard import ShardActor
from engine.domain.ids import new_id
from tests.virtual.actors.rig import a_world


@pytest.fixture
async def asleep(tmp_path, autojump_clock):
    """A world whose engine has yet to start."""
    async with a_world(tmp_path, autojump_clock) as world:
        yield world


def fill(world, count, slot=None, age_ms=0):
    """Timers, overdue at the start, of payments that are not there: their shards clear the rows."""
    due_ms = world.clock.now_ms() - age_ms - count
    ids = [new_id("pay_", due_ms + n, n % 4096 if slot is None else slot, n) for n in range(count)]
    world.store.timers.update({("expire", due_ms + n, id_): None for n, id_ in enumerate(ids)})
    return set(ids)


def left(world, ids):
    return sum(payment_id in ids for _, _, payment_id in world.store.timers)


def woken(world):
    return world.system.statistics()["expiry"].woken


@pytest.mark.trio
async def test_a_back_log_is_worked_off_at_once_and_in_bounded_portions(autojump_clock, asleep):
    ids = fill(asleep, 20_000)
    await asleep.start()
    await asleep.until(lambda: not left(asleep, ids), 10)
    most = max(mailbox.statistics().high_water for mailbox in asleep.system.directory.shards)
    assert most < timers.OUT_MAX + 50
    assert woken(asleep) == 20_000, "each once"


@pytest.mark.trio
async def test_lapsed_authorisations_are_released_however_small_the_portions(
    autojump_clock, world, monkeypatch
):
    monkeypatch.setattr(timers, "PAGE", 10)
    monkeypatch.setattr(timers, "OUT_MAX", 25)
    payments = [await world.authorized() for _ in range(100)]
    await world.skip(7 * 86_400)
    await world.until(lambda: all(world.status(id_) == "expired" for id_ in payments), 15)


@pytest.mark.trio
async def test_while_nothing_is_cleared_few_are_woken(autojump_clock, asleep, monkeypatch):
    monkeypatch.setattr(timers, "PAGE", 50)
    monkeypatch.setattr(timers, "OUT_MAX", 100)
    ids = fill(asleep, 1_000)
    await asleep.start()
    asleep.ledger.gate = gate = trio.Event()
    await trio.sleep(1)
    before = woken(asleep)
    await trio.sleep(65)
    after = woken(asleep)
    asleep.ledger.gate = None
    gate.set()
    assert 100 <= after - before <= 300, "every half minute as many as may be out"
    await asleep.until(lambda: not left(asleep, ids))


@pytest.mark.trio
async def test_those_of_a_parked_shard_do_not_hold_up_the_others(autojump_clock, asleep):
    parked = fill(asleep, 12_000, slot=0, age_ms=60_000)
    others = fill(asleep, 5_000, slot=4_095)
    await asleep.start()
    asleep.system.directory.shard_trouble[0] = "parked: for the test"
    await asleep.until(lambda: not left(asleep, others), 10)
    assert left(asleep, parked) >= 12_000 - 2 * timers.OUT_MAX
    asleep.system.directory.shard_trouble[0] = None
    await asleep.until(lambda: not left(asleep, parked), 15)


@pytest.mark.trio
async def test_those_that_do_not_go_away_do_not_hold_up_the_others(
    autojump_clock, asleep, monkeypatch
):
    monkeypatch.setattr(timers, "PAGE", 10)
    monkeypatch.setattr(timers, "OUT_MAX", 25)
    stuck = fill(asleep, 60, age_ms=60_000)
    others = fill(asleep, 200)
    wake, seen, mended = ShardActor._wake, [], []

    def ignore(self, message, payment):
        seen.append(message.payment_id)
        if message.payment_id not in stuck or mended:
            wake(self, message, payment)

    monkeypatch.setattr(ShardActor, "_wake", ignore)
    await asleep.start()
    await asleep.until(lambda: not left(asleep, others), 120)
    assert left(asleep, stuck) == 60
    await trio.sleep(120)
    assert min(seen.count(payment_id) for payment_id in stuck) >= 2, "they are sent again"
    mended.append(True)
    await asleep.until(lambda: not left(asleep, stuck), 240)
