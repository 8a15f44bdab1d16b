"""Every payment method of the simulator ends as it is said to; minutes pass at once."""

import pytest
import trio

from engine.domain.news import Failed
from tests.virtual.actors.rig import a_world, body
from tests.virtual.actors.surroundings import EPOCH_MS

DECLINED = {
    "pm_card_declined": "do_not_honor",
    "pm_card_declined_insufficient_funds": "insufficient_funds",
    "pm_card_declined_expired": "expired_card",
    "pm_card_declined_fraud": "fraud_suspected",
}
UNKNOWN_THEN_DONE = [
    "pm_card_timeout_after_charge",
    "pm_card_5xx_after_charge",
    "pm_card_garbage_reply",
    "pm_card_settles_late",
    "pm_card_wrong_amount",
]
purchase_or_not = pytest.mark.parametrize(
    ("purchase", "ends"), [(False, "authorized"), (True, "captured")]
)


@pytest.mark.trio
@purchase_or_not
@pytest.mark.parametrize(
    "method",
    ["pm_card_visa", "pm_card_mastercard", "pm_card_slow", "pm_card_webhook_twice",
     "pm_card_webhook_early"],
)  # fmt: skip
async def test_approved_is_201(autojump_clock, world, method, purchase, ends):
    answer, _ = await world.open(method, purchase=purchase)
    assert (answer.status, body(answer)["status"]) == (201, ends)
    await world.until(lambda: all(done for _, done in world.store.inbox.values()))
    assert world.events() == [f"payment.{ends}"]


@pytest.mark.trio
@pytest.mark.parametrize("method", DECLINED)
async def test_declined_is_402_and_final(autojump_clock, world, method):
    answer, _ = await world.open(method, key="k")
    assert (answer.status, answer.final) == (402, True)
    assert body(answer)["decline_code"] == DECLINED[method]
    assert body(answer)["payment"]["status"] == "declined"
    again, replayed = await world.open(method, key="k")
    assert replayed
    assert again.body == answer.body
    assert len(world.store.payments) == 1


@pytest.mark.trio
@purchase_or_not
@pytest.mark.parametrize("method", UNKNOWN_THEN_DONE)
async def test_an_unknown_outcome_is_202_and_is_looked_up_until_it_is_known(
    autojump_clock, world, method, purchase, ends
):
    answer, _ = await world.open(method, purchase=purchase, key="k")
    assert (answer.status, answer.final) == (202, False)
    assert body(answer)["status"] == "unknown"
    assert body(answer)["next_check_at"] is not None
    payment_id = body(answer)["id"]
    await world.until(lambda: world.status(payment_id) == ends, within_s=10)
    assert world.events() == ["payment.unknown", f"payment.{ends}"]
    final, replayed = await world.open(method, purchase=purchase, key="k")
    assert (final.status, replayed) == (201, True)
    assert body(final)["status"] == ends
    assert len(world.gateway.made("purchase" if purchase else "authorize")) == 1


@pytest.mark.trio
async def test_what_was_never_done_fails_only_after_the_lag(autojump_clock, world):
    answer, _ = await world.open("pm_card_timeout_before_charge", key="k")
    assert answer.status == 202
    payment_id = body(answer)["id"]
    await world.until(lambda: world.status(payment_id) == "failed")
    sent_s = world.gateway.asked[0][0]
    traits = world.gateway.traits
    assert world.clock.now_ms() >= (
        world.payment(payment_id).created_ms + traits.deadline_ms + traits.lookup_lag_ms
    )
    looked_up = [at for at, call in world.gateway.asked if call.look_up]
    assert looked_up[0] < sent_s + 10, "the first look-up came before the lag had passed"
    final, replayed = await world.open("pm_card_timeout_before_charge", key="k")
    assert (final.status, final.code, replayed) == (502, "gateway_failed", True)
    assert [told for _, _, told in world.telemetry.outcomes] == ["unknown", "failed"]


@pytest.mark.trio
async def test_what_a_slow_commit_held_up_past_the_deadline_is_never_sent(autojump_clock, world):
    """The customer has waited for long, and "not found" must mean something after all."""
    world.ledger.faults.commit_delay_s = 20.0
    await world.open("pm_card_visa", key="k")
    world.ledger.faults.commit_delay_s = 0.0
    await world.until(lambda: world.payments() and not world.payments()[0].origin.is_open)
    assert world.payments()[0].status == "failed"
    assert world.gateway.made() == []
    answer, _ = await world.open("pm_card_visa", key="k")
    assert (answer.status, answer.code) == (502, "gateway_failed")


@pytest.mark.trio
async def test_the_lag_counts_from_when_it_was_sent_however_slow_the_commit_was(
    autojump_clock, world
):
    """The intent is 5 s older than the request: "not found" means nothing until later."""
    world.ledger.faults.commit_delay_s = 5.0
    await world.open("pm_card_settles_late")
    world.ledger.faults.commit_delay_s = 0.0
    await world.until(lambda: world.payments() and not world.payments()[0].origin.is_open)
    assert world.payments()[0].status == "authorized"
    assert "payment.failed" not in world.events()


@pytest.mark.trio
async def test_a_held_up_request_that_is_not_found_has_its_lag(autojump_clock, world):
    """Seconds in the queue before it is sent, and then no reply."""
    world.ledger.faults.commit_delay_s = 5.0
    await world.open("pm_card_timeout_before_charge")
    world.ledger.faults.commit_delay_s = 0.0
    await world.until(lambda: world.payments() and world.payments()[0].status == "failed")
    sent_s = world.gateway.asked[0][0]
    traits = world.gateway.traits
    failed_s = (world.clock.now_ms() - EPOCH_MS) / 1_000
    assert failed_s >= sent_s + (traits.deadline_ms + traits.lookup_lag_ms) / 1_000


@pytest.mark.trio
async def test_unreachable_is_502_and_nothing_was_done(autojump_clock, world):
    answer, _ = await world.open("pm_card_unreachable")
    assert (answer.status, answer.code) == (502, "gateway_failed")
    assert body(answer)["payment"]["status"] == "failed"


@pytest.mark.trio
@purchase_or_not
async def test_3ds_waits_for_the_customer(autojump_clock, world, purchase, ends):
    answer, _ = await world.open("pm_card_3ds", purchase=purchase)
    shown = body(answer)
    assert (answer.status, shown["status"]) == (201, "requires_action")
    assert shown["next_action"]["url"].endswith(f"{shown['gateway_reference']}/complete")
    world.simulator.complete(shown["gateway_reference"])
    await world.until(lambda: world.status(shown["id"]) == ends)


@pytest.mark.trio
async def test_3ds_that_nobody_completes_expires(autojump_clock, world):
    answer, _ = await world.open("pm_card_3ds")
    await world.skip(16 * 60)
    await world.until(lambda: world.status(body(answer)["id"]) == "expired", within_s=1_800)


@pytest.mark.trio
async def test_3ds_that_is_canceled_is_voided(autojump_clock, world):
    answer, _ = await world.open("pm_card_3ds")
    payment_id = body(answer)["id"]
    canceled = await world.cancel(payment_id)
    assert (canceled.status, body(canceled)["status"]) == (200, "canceled")
    assert (await world.capture(payment_id)).code == "invalid_state_transition"


@pytest.mark.trio
@pytest.mark.parametrize("method", ["pm_card_pending", "pm_card_webhook_lost"])
@purchase_or_not
async def test_pending_is_201_and_settles(autojump_clock, world, method, purchase, ends):
    answer, _ = await world.open(method, purchase=purchase)
    assert (answer.status, body(answer)["status"]) == (201, "pending")
    payment_id = body(answer)["id"]
    await world.until(lambda: world.status(payment_id) == ends, within_s=120)
    assert world.events() == ["payment.pending", f"payment.{ends}"]


@pytest.mark.trio
async def test_a_refund_fails_at_once(autojump_clock, world):
    payment_id = await world.authorized("pm_card_refund_fails", purchase=True)
    answer = await world.refund(payment_id)
    assert (answer.status, body(answer)["status"]) == (201, "failed")
    payment = world.payment(payment_id)
    assert (payment.refunded, payment.refunding, payment.refundable) == (0, 0, 1_000)


@pytest.mark.trio
async def test_a_refund_fails_after_it_succeeded(autojump_clock, world):
    payment_id = await world.authorized("pm_card_refund_fails_late", purchase=True)
    answer = await world.refund(payment_id, 400)
    assert (answer.status, body(answer)["status"]) == (201, "succeeded")
    await world.until(lambda: "refund.failed" in world.events())
    assert world.payment(payment_id).refundable == 1_000
    assert not world.payment(payment_id).is_open


@pytest.mark.trio
async def test_a_dispute_opens_after_the_capture(autojump_clock, world):
    payment_id = await world.authorized("pm_card_dispute", purchase=True)
    await world.until(lambda: "dispute.opened" in world.events())
    assert world.payment(payment_id).disputed == 1_000


@pytest.mark.trio
async def test_renewals_are_declined_twice(autojump_clock, world):
    answers = [(await world.open("pm_card_decline_on_renewal"))[0] for _ in range(4)]
    assert [answer.status for answer in answers] == [201, 402, 402, 201]


@pytest.mark.trio
async def test_cancel_of_an_unknown_authorisation_waits_and_then_voids(autojump_clock, world):
    answer, _ = await world.open("pm_card_settles_late")
    payment_id = body(answer)["id"]
    canceled = await world.cancel(payment_id)
    assert (canceled.status, body(canceled)["cancel_requested"]) == (202, True)
    await world.until(lambda: world.status(payment_id) == "canceled")
    assert world.events() == ["payment.unknown", "payment.authorized", "payment.canceled"]
    assert not world.payment(payment_id).is_open


@pytest.mark.trio
async def test_cancel_of_an_unknown_purchase_refunds_it(autojump_clock, world):
    answer, _ = await world.open("pm_card_settles_late", purchase=True)
    payment_id = body(answer)["id"]
    assert (await world.cancel(payment_id)).status == 202
    await world.until(lambda: world.payment(payment_id).refunded == 1_000)


@pytest.mark.trio
async def test_capture_of_an_unknown_authorisation_is_refused_and_may_be_tried_again(
    autojump_clock, world
):
    answer, _ = await world.open("pm_card_settles_late")
    payment_id = body(answer)["id"]
    refused = await world.capture(payment_id, key="c")
    assert (refused.status, refused.code, refused.final) == (409, "operation_unresolved", False)
    await world.until(lambda: world.status(payment_id) == "authorized")
    assert (await world.capture(payment_id, key="c")).status == 200


@pytest.mark.trio
async def test_a_reply_after_the_deadline_is_unknown(autojump_clock, world):
    """The gateway hangs: the client is told after the deadline of 6 s, not after its own wait."""
    began_ms = world.clock.now_ms()
    answer, _ = await world.open("pm_card_timeout_after_charge")
    assert world.clock.now_ms() - began_ms == 6_000
    assert world.payment(body(answer)["id"]).origin.code == "timeout"
    await world.until(lambda: world.payments()[0].status == "authorized")


@pytest.mark.trio
async def test_a_failure_of_a_capture_gives_the_money_back(autojump_clock, world):
    payment_id = await world.authorized()
    world.gateway.answer = lambda call: Failed("server_down") if call.action == "capture" else None
    answer = await world.capture(payment_id)
    assert (answer.status, answer.code) == (502, "gateway_failed")
    assert world.payment(payment_id).capturable == 1_000


@pytest.mark.trio
@pytest.mark.parametrize(("slow", "late", "slots"), [(20, 1, 2), (40, 5, 2), (42, 7, 4)])
async def test_a_long_queue_for_a_slow_gateway_fails_nothing_that_was_charged(
    autojump_clock, tmp_path, slow, late, slots
):
    async with a_world(tmp_path, autojump_clock, inflight_max=slots) as world:
        await world.start()
        async with trio.open_nursery() as nursery:
            for _ in range(slow):
                nursery.start_soon(world.open, "pm_card_slow")
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(late):
                nursery.start_soon(world.open, "pm_card_settles_late")
        await world.skip(3_600)
        assert len(world.payments()) == slow + late
        for payment in world.payments():
            charged = world.charges(f"{payment.id}.1")
            assert (payment.status, charged) in {("authorized", 1), ("failed", 0)}
