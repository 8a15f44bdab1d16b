"""What waits in a payment's line outlives a crash of its shard."""

import pytest
import trio

from engine.actors.shard import ShardActor
from engine.domain.commands import Capture
from engine.domain.ids import op_id
from engine.domain.news import RefundedElsewhere
from engine.messages import Tick
from tests.virtual.actors.rig import body
from tests.virtual.actors.test_webhooks import outcome, send


def crash_at_next_tick(world, payment_id, monkeypatch):
    """Arrange for a crash that has nothing to do with the payment. Returns how to set it off."""
    handlers = world.system._shards[world.system.directory.shard_index(payment_id)]._handlers
    real = handlers[Tick]
    due = []

    def tick(message):
        if due:
            due.clear()
            raise RuntimeError("a bug that has nothing to do with it")
        return real(message)

    monkeypatch.setitem(handlers, Tick, tick)
    return lambda: due.append(True)


@pytest.mark.trio
async def test_requests_in_line_are_done_after_a_crash_in_their_order(
    autojump_clock, world, monkeypatch
):
    payment_id = await world.authorized()
    crash = crash_at_next_tick(world, payment_id, monkeypatch)
    world.ledger.gate = gate = trio.Event()
    answers = {}

    async def capture(key, amount):
        answers[key] = await world.capture(payment_id, amount, final=False, key=key)

    async with trio.open_nursery() as nursery:
        for key, amount in (("a", 100), ("b", 200), ("c", 300)):
            nursery.start_soon(capture, key, amount)
            await trio.testing.wait_all_tasks_blocked()
        crash()
        await trio.sleep(2)
        world.ledger.gate = None
        gate.set()
    assert answers["b"].status == answers["c"].status == 200
    # The first one's intent was durable and its call was not made: it is looked up, and abandoned.
    amounts = [(op.amount, op.status) for op in world.payment(payment_id).operations[1:]]
    await world.until(lambda: not world.payment(payment_id).has_work)
    assert [amount for amount, _ in amounts] == [100, 200, 300]
    assert world.payment(payment_id).captured == 500


@pytest.mark.trio
async def test_a_request_that_nothing_is_durable_of_is_not_told_202(
    autojump_clock, world, monkeypatch
):
    payment_id = await world.authorized()
    world.ledger.gate = gate = trio.Event()
    answers = {}

    async def capture(key, amount):
        answers[key] = await world.capture(payment_id, amount, final=False, key=key)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(capture, "a", 100)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(capture, "b", 200)
        await trio.sleep(15)
        world.ledger.gate = None
        gate.set()
    assert (answers["b"].status, answers["b"].code) == (409, "idempotency_in_progress")
    await world.until(lambda: world.payment(payment_id).captured >= 200)
    assert (await world.capture(payment_id, 200, final=False, key="b")).status == 200


@pytest.mark.trio
async def test_a_webhook_that_crashes_its_shard_from_the_line_is_parked(
    autojump_clock, world, monkeypatch
):
    payment_id = await world.authorized(purchase=True)  # Settled, so it is fetched and lined up.
    real = ShardActor._hear
    crashes = []

    def hear(self, message, payment):
        if message.via == "webhook":
            crashes.append(message)
            raise RuntimeError("poison")
        return real(self, message, payment)

    monkeypatch.setattr(ShardActor, "_hear", hear)
    await send(world, "evt_1", op_id(payment_id, 1), RefundedElsewhere(300, "USD", "rf"))
    await world.until(world.letters)
    await world.skip(120)
    assert len(crashes) == 2
    assert "RuntimeError: poison" in world.letters()[0]
    assert outcome(world, "evt_1") == "unmatched"
    assert world.system.not_ready_because() == []


@pytest.mark.trio
async def test_a_poison_request_in_line_is_answered_and_those_behind_it_are_done(
    autojump_clock, world, monkeypatch
):
    payment_id = await world.authorized()
    real = ShardActor._command

    def command(self, message, payment):
        if isinstance(message.command, Capture) and message.command.amount == 13:
            raise RuntimeError("poison")
        return real(self, message, payment)

    monkeypatch.setattr(ShardActor, "_command", command)
    answers = {}

    async def capture(key, amount):
        answers[key] = await world.capture(payment_id, amount, final=False, key=key)

    async with trio.open_nursery() as nursery:
        for key, amount in (("a", 100), ("b", 13), ("c", 300)):
            nursery.start_soon(capture, key, amount)
            await trio.testing.wait_all_tasks_blocked()
    assert answers["b"].status == 500
    assert body(answers["b"])["retryable"]
    assert answers["c"].status == 200
    assert "RuntimeError: poison" in world.letters()[0]
