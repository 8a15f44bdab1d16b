"""A payment goes through, and nobody hears of it before it is durable."""

import pytest
import trio

from tests.virtual.actors.rig import body


@pytest.mark.trio
async def test_an_authorisation_is_answered_with_what_was_committed(autojump_clock, world):
    answer, replayed = await world.open()
    assert (answer.status, replayed) == (201, False)
    assert body(answer)["status"] == "authorized"
    assert answer.location == f"/v1/payments/{body(answer)['id']}"
    assert world.status(body(answer)["id"]) == "authorized"
    assert world.events() == ["payment.authorized"]


@pytest.mark.trio
async def test_a_payment_is_captured_in_parts_and_refunded(autojump_clock, world):
    payment_id = await world.authorized()
    assert (await world.capture(payment_id, 300, final=False)).status == 200
    last = await world.capture(payment_id, 500)
    assert (last.status, body(last)["status"]) == (200, "captured")
    assert body(last)["amount_released"] == 200
    refund = await world.refund(payment_id, 100)
    assert (refund.status, body(refund)["status"]) == (201, "succeeded")
    payment = world.payment(payment_id)
    assert (payment.captured, payment.refunded, payment.released) == (800, 100, 200)
    assert not payment.is_open
    assert world.system.open_payments() == 0


@pytest.mark.trio
async def test_the_answer_waits_for_both_commits(autojump_clock, world):
    """One commit before the gateway is called, one before the client is told."""
    world.ledger.gate = trio.Event()
    answers = []

    async def ask():
        answers.append(await world.open())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await world.until(lambda: "before commit" in world.points)
        assert world.gateway.asked == []
        gate, world.ledger.gate = world.ledger.gate, trio.Event()
        gate.set()
        await world.until(lambda: world.gateway.asked)
        assert not answers
        world.ledger.gate.set()
        world.ledger.gate = None
    assert answers[0][0].status == 201
