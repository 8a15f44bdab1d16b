"""Every row of the table of payment methods, under a virtual clock."""

import pytest
import trio

from engine.domain.news import (
    ActionRequired,
    Approved,
    Declined,
    Disputed,
    Expired,
    Failed,
    NotFound,
    StillPending,
    Unknown,
)
from engine.gateways.simulator_methods import METHODS, card_of, knows

CHARGING = ["authorize", "purchase"]


def test_the_table_has_every_method_that_is_promised():
    assert set(METHODS) == {
        "pm_card_visa",
        "pm_card_mastercard",
        "pm_card_declined",
        "pm_card_declined_insufficient_funds",
        "pm_card_declined_expired",
        "pm_card_declined_fraud",
        "pm_card_insufficient_funds",
        "pm_card_expired",
        "pm_card_fraud",
        "pm_card_3ds",
        "pm_card_pending",
        "pm_card_timeout_after_charge",
        "pm_card_5xx_after_charge",
        "pm_card_garbage_reply",
        "pm_card_timeout_before_charge",
        "pm_card_unreachable",
        "pm_card_settles_late",
        "pm_card_wrong_amount",
        "pm_card_slow",
        "pm_card_webhook_twice",
        "pm_card_webhook_early",
        "pm_card_webhook_lost",
        "pm_card_refund_fails",
        "pm_card_refund_fails_late",
        "pm_card_dispute",
        "pm_card_decline_on_renewal",
    }
    assert knows("pm_card_visa")
    assert not knows("pm_card_unheard_of")
    assert card_of("pm_card_mastercard").brand == "mastercard"
    assert card_of("pm_card_unheard_of") is None


@pytest.mark.trio
@pytest.mark.parametrize("action", CHARGING)
@pytest.mark.parametrize("method", ["pm_card_visa", "pm_card_mastercard"])
async def test_approved(rig, autojump_clock, action, method):
    rig.start()
    call = rig.call(action, method)
    news = await rig.ask(call)
    assert isinstance(news, Approved)
    assert (news.amount, news.currency, news.card) == (1_000, "USD", card_of(method))
    assert (news.expires_ms is not None) == (action == "authorize")
    assert await rig.look_up(call) == news
    assert trio.current_time() == 0
    assert rig.totals()[call.op_id].times == 1


@pytest.mark.trio
@pytest.mark.parametrize("action", CHARGING)
@pytest.mark.parametrize(
    ("method", "code"),
    [
        ("pm_card_declined", "do_not_honor"),
        ("pm_card_declined_insufficient_funds", "insufficient_funds"),
        ("pm_card_declined_expired", "expired_card"),
        ("pm_card_declined_fraud", "fraud_suspected"),
    ],
)
async def test_declined(rig, autojump_clock, action, method, code):
    rig.start()
    call = rig.call(action, method)
    news = await rig.ask(call)
    assert isinstance(news, Declined)
    assert news.code == code
    assert news.advice
    assert await rig.look_up(call) == news
    assert rig.totals()[call.op_id].times == 0


@pytest.mark.trio
@pytest.mark.parametrize("action", CHARGING)
async def test_3ds_is_open_until_it_is_completed(rig, autojump_clock, action):
    simulator = rig.start(base_url="http://engine.test")
    call = rig.call(action, "pm_card_3ds")
    news = await rig.ask(call)
    assert isinstance(news, ActionRequired)
    assert news.expires_ms == rig.clock.now_ms() + 15 * 60_000
    assert news.next_action.url == (
        f"http://engine.test/simulator/authentications/{news.reference}/complete"
    )
    assert isinstance(await rig.look_up(call), StillPending)
    assert await rig.ask(call) == news, "the same key hears the same again"
    await trio.sleep(60)
    completed = simulator.complete(news.reference)
    assert isinstance(completed, Approved)
    assert completed.reference == news.reference
    assert await rig.look_up(call) == completed
    assert simulator.complete(news.reference, approve=False) == completed
    assert rig.totals()[call.op_id].times == 1


@pytest.mark.trio
async def test_3ds_can_be_declined_by_the_customer(rig, autojump_clock):
    simulator = rig.start()
    call = rig.call("purchase", "pm_card_3ds")
    news = await rig.ask(call)
    declined = simulator.complete(news.reference, approve=False)
    assert isinstance(declined, Declined)
    assert declined.code == "authentication_failed"
    assert await rig.look_up(call) == declined


@pytest.mark.trio
async def test_3ds_expires_after_a_quarter_of_an_hour(rig, autojump_clock):
    simulator = rig.start()
    call = rig.call("authorize", "pm_card_3ds")
    news = await rig.ask(call)
    await trio.sleep(15 * 60 - 1)
    assert isinstance(await rig.look_up(call), StillPending)
    await trio.sleep(1)
    assert await rig.look_up(call) == Expired()
    assert simulator.complete(news.reference) == Expired()
    assert rig.totals()[call.op_id].times == 0


@pytest.mark.trio
async def test_an_unknown_reference_cannot_be_completed(rig, autojump_clock):
    assert rig.start().complete("ch_nobody") == NotFound()
    assert rig.simulator.complete("") == NotFound()


@pytest.mark.trio
@pytest.mark.parametrize("action", CHARGING)
@pytest.mark.parametrize(
    ("method", "seconds"), [("pm_card_pending", 60), ("pm_card_webhook_lost", 5)]
)
async def test_pending_is_done_later(rig, autojump_clock, action, method, seconds):
    rig.start(send_webhooks=method == "pm_card_webhook_lost")
    call = rig.call(action, method)
    async with trio.open_nursery() as nursery:
        await nursery.start(run, rig.simulator)
        assert isinstance(await rig.ask(call), StillPending)
        await trio.sleep(seconds - 0.001)
        assert isinstance(await rig.look_up(call), StillPending)
        assert rig.totals()[call.op_id].waiting == 1
        await trio.sleep(0.001)
        assert isinstance(await rig.look_up(call), Approved)
        assert rig.totals()[call.op_id].times == 1
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert rig.events == [], "no webhook ever comes"


@pytest.mark.trio
@pytest.mark.parametrize("action", CHARGING)
async def test_timeout_after_charge(rig, autojump_clock, action):
    rig.start()
    call = rig.call(action, "pm_card_timeout_after_charge")
    assert await rig.ask(call) is None
    assert trio.current_time() == 6
    assert isinstance(await rig.look_up(call), Approved)
    assert rig.totals()[call.op_id].times == 1


@pytest.mark.trio
@pytest.mark.parametrize("action", CHARGING)
@pytest.mark.parametrize("method", ["pm_card_5xx_after_charge", "pm_card_garbage_reply"])
async def test_unreadable_replies_after_doing_it(rig, autojump_clock, action, method):
    rig.start()
    call = rig.call(action, method)
    assert isinstance(await rig.ask(call), Unknown)
    assert isinstance(await rig.look_up(call), Approved)
    assert isinstance(await rig.ask(call), Approved), "resent, it is not done twice"
    assert rig.totals()[call.op_id].times == 1


@pytest.mark.trio
async def test_timeout_before_charge(rig, autojump_clock):
    rig.start()
    call = rig.call("purchase", "pm_card_timeout_before_charge")
    assert await rig.ask(call) is None
    await trio.sleep(60)
    assert await rig.look_up(call) == NotFound()
    assert rig.effects() == []


@pytest.mark.trio
async def test_unreachable(rig, autojump_clock):
    rig.start()
    call = rig.call("purchase", "pm_card_unreachable")
    assert await rig.ask(call) == Failed("gateway_unreachable", sent=False)
    assert await rig.look_up(call) == NotFound()
    assert rig.effects() == []


@pytest.mark.trio
@pytest.mark.parametrize("action", CHARGING)
async def test_settles_late(rig, autojump_clock, action):
    simulator = rig.start()
    call = rig.call(action, "pm_card_settles_late")
    with trio.move_on_after(2):
        await simulator.perform(call)
    assert await rig.look_up(call) == NotFound()
    assert rig.totals()[call.op_id].times == 1, "it was done all the time"
    await trio.sleep(1)
    assert isinstance(await rig.look_up(call), Approved)
    assert simulator.traits.lookup_lag_ms > 3_000, "so nobody may have concluded anything before"


@pytest.mark.trio
@pytest.mark.parametrize("action", CHARGING)
async def test_wrong_amount(rig, autojump_clock, action):
    rig.start()
    call = rig.call(action, "pm_card_wrong_amount")
    news = await rig.ask(call)
    assert isinstance(news, Approved)
    assert news.amount == 1_001
    looked_up = await rig.look_up(call)
    assert looked_up.amount == 1_000
    assert rig.totals()[call.op_id].amount == 1_000


@pytest.mark.trio
async def test_slow(rig, autojump_clock):
    rig.start()
    call = rig.call("purchase", "pm_card_slow")
    assert isinstance(await rig.ask(call), Approved)
    assert trio.current_time() == 5


@pytest.mark.trio
async def test_webhook_twice_with_one_event_id(rig, autojump_clock):
    rig.start()
    call = rig.call("purchase", "pm_card_webhook_twice")
    async with trio.open_nursery() as nursery:
        await nursery.start(run, rig.simulator)
        news = await rig.ask(call)
        assert isinstance(news, Approved)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    first, second = rig.events
    assert first == second
    assert (first.op_id, first.news) == (call.op_id, news)


@pytest.mark.trio
async def test_webhook_early_comes_before_the_reply(rig, autojump_clock):
    simulator = rig.start()
    call = rig.call("purchase", "pm_card_webhook_early")
    assert simulator.perform_now([call]) == [None]
    seen = []
    rig.accepts = lambda event: seen.append(len(rig.effects())) or True
    news = await simulator.perform(call)
    (event,) = rig.events
    assert (event.op_id, event.news) == (call.op_id, news)
    assert seen == [1], "it was in the books when the webhook came"
    assert simulator.statistics().webhooks_waiting == 0


@pytest.mark.trio
async def test_an_early_webhook_that_is_refused_comes_again(rig, autojump_clock):
    simulator = rig.start()
    answers = [False, True]
    rig.accepts = lambda event: answers.pop(0)
    assert isinstance(await simulator.perform(rig.call(method="pm_card_webhook_early")), Approved)
    async with trio.open_nursery() as nursery:
        await nursery.start(run, simulator)
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    first, second = rig.events
    assert first == second


@pytest.mark.trio
async def test_refund_fails(rig, autojump_clock):
    rig.start()
    purchase = rig.call("purchase", "pm_card_refund_fails")
    paid = await rig.ask(purchase)
    refund = rig.call("refund", "pm_card_refund_fails", target=paid.reference)
    news = await rig.ask(refund)
    assert isinstance(news, Declined)
    assert news.code == "refund_failed"
    assert await rig.look_up(refund) == news
    assert rig.charges()[paid.reference].refunded == 0


@pytest.mark.trio
async def test_refund_fails_after_it_succeeded(rig, autojump_clock):
    rig.start()
    paid = await rig.ask(rig.call("purchase", "pm_card_refund_fails_late"))
    refund = rig.call("refund", "pm_card_refund_fails_late", target=paid.reference)
    async with trio.open_nursery() as nursery:
        await nursery.start(run, rig.simulator)
        assert isinstance(await rig.ask(refund), Approved)
        assert isinstance(await rig.look_up(refund), Approved)
        assert rig.charges()[paid.reference].refunded == 1_000
        await trio.sleep(2)
        nursery.cancel_scope.cancel()
    ((when, event),) = rig.webhooks
    assert when == 1
    assert (event.op_id, event.news) == (refund.op_id, Failed("refund_failed"))
    assert await rig.look_up(refund) == Failed("refund_failed")
    assert rig.charges()[paid.reference].refunded == 0
    again = rig.call("refund", "pm_card_refund_fails_late", target=paid.reference)
    assert isinstance(await rig.ask(again), Approved), "the money is back, to be refunded again"


@pytest.mark.trio
@pytest.mark.parametrize("action", ["purchase", "capture"])
async def test_dispute_opens_a_second_after_the_money_was_taken(rig, autojump_clock, action):
    rig.start()
    async with trio.open_nursery() as nursery:
        await nursery.start(run, rig.simulator)
        taken = rig.call("authorize" if action == "capture" else "purchase", "pm_card_dispute")
        paid = await rig.ask(taken)
        if action == "capture":
            await trio.sleep(10)
            taken = rig.call("capture", "pm_card_dispute", 600, target=paid.reference, final=False)
            await rig.ask(taken)
            more = rig.call("capture", "pm_card_dispute", 400, target=paid.reference)
            await rig.ask(more)
        taken_at = trio.current_time()
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    ((when, event),) = rig.webhooks
    assert when == taken_at + 1
    assert event.op_id == taken.op_id
    assert isinstance(event.news, Disputed)
    assert event.news.amount == taken.amount


@pytest.mark.trio
async def test_decline_on_renewal(rig, autojump_clock):
    rig.start()
    method = "pm_card_decline_on_renewal"
    expected = [Approved, Declined, Declined, Approved]
    first = rig.call("purchase", method)
    assert isinstance(await rig.ask(first), Approved)
    assert isinstance(await rig.ask(first), Approved), "a resend is no use of the card"
    for kind in expected[1:3]:
        assert isinstance(await rig.ask(rig.call("purchase", method)), kind)
    await rig.restart()
    assert isinstance(await rig.ask(rig.call("purchase", method)), expected[3])
    live = await rig.ask(rig.call("purchase", method, livemode=True))
    assert isinstance(live, Approved), "live and test data are counted apart"


@pytest.mark.trio
async def test_a_method_nobody_knows_is_refused(rig, autojump_clock):
    rig.start()
    news = await rig.ask(rig.call("purchase", "pm_card_unheard_of"))
    assert news == Failed("payment_method_unknown")


@pytest.mark.trio
@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("pm_card_timeout_after_charge", None),
        ("pm_card_5xx_after_charge", Unknown),
        ("pm_card_declined", Declined),
        ("pm_card_pending", StillPending),
        ("pm_card_unreachable", Failed),
        ("pm_card_wrong_amount", Approved),
    ],
)
async def test_captures_and_refunds_can_meet_the_fault(rig, autojump_clock, method, kind):
    rig.start(faults_on=("capture", "refund"))
    made = await rig.ask(rig.call("authorize", method))
    assert isinstance(made, Approved)
    capture = rig.call("capture", method, target=made.reference)
    news = await rig.ask(capture)
    assert (news is None) if kind is None else isinstance(news, kind)
    await trio.sleep(60)
    looked_up = await rig.look_up(capture)
    expected = {Declined: Declined, Failed: NotFound}.get(kind, Approved)
    assert isinstance(looked_up, expected)


async def run(simulator, *, task_status):
    await simulator.run(task_status=task_status)
