"""Facts that nobody asked for: wrong amounts, late successes, contradictions, news from outside."""

import pytest

from engine.domain.news import (
    ActionRequired,
    Approved,
    Declined,
    Disputed,
    Expired,
    Failed,
    NextAction,
    NotFound,
    RefundedElsewhere,
    ReversedByGateway,
    StillPending,
    Unknown,
)
from engine.domain.outcomes import is_early
from tests.pure.domain.one_payment import OnePayment

DECLINED = Declined("do_not_honor", "try_again_later")
MINUTE_MS = 60_000


def captured(**more):
    one = OnePayment(purchase=True, **more)
    one.approve(1)
    return one


def refunded(amount=1_000):
    one = captured()
    one.refund(amount)
    one.approve(2)
    return one


# --- another amount, another currency -----------------------------------------------------------


@pytest.mark.parametrize("amount", [999, 1_001, 0, -5])
@pytest.mark.parametrize("purchase", [False, True])
def test_a_reply_with_another_amount_is_doubted(purchase, amount):
    one = OnePayment(purchase=purchase)
    one.approve(1, amount)
    assert (one.status, one.op(1).code, one.held) == ("unknown", "wrong_amount", 1_000)
    one.approve(1, via="look_up")
    assert one.status == ("captured" if purchase else "authorized")
    assert not one.payment.needs_review


@pytest.mark.parametrize(("amount", "excess"), [(700, 0), (1_300, 300)])
def test_another_amount_that_is_confirmed_for_a_purchase_is_a_fact(amount, excess):
    one = OnePayment(purchase=True)
    one.hear(1, Unknown("timeout"))
    one.approve(1, amount, "look_up")
    assert (one.status, one.payment.captured) == ("captured", min(amount, 1_000))
    assert one.payment.excess_captured == excess
    assert one.letters == ["wrong amount confirmed by the gateway"]


@pytest.mark.parametrize(("amount", "excess"), [(300, 0), (700, 300)])
def test_another_amount_that_is_confirmed_for_a_capture(amount, excess):
    one = OnePayment()
    one.approve(1)
    one.capture(400, final=False)
    one.approve(2, amount, "webhook")
    assert (one.payment.captured, one.payment.excess_captured) == (min(amount, 400), excess)
    assert one.payment.capturable == 1_000 - min(amount, 400)
    assert one.payment.needs_review


@pytest.mark.parametrize(
    "news", [Approved(1_000, "EUR", "x"), Approved(900, "USD", "x")], ids=["currency", "amount"]
)
def test_a_confirmed_authorisation_of_something_else_is_never_adopted(news):
    one = OnePayment()
    one.hear(1, Unknown("timeout"))
    for _ in range(3):
        one.look_up(1, news)
    assert (one.status, one.payment.needs_review, len(one.letters)) == ("unknown", True, 1)
    assert one.op(1).next_check_ms is not None


def test_a_refund_confirmed_for_less_gives_the_rest_back():
    one = captured()
    one.refund(1_000)
    one.approve(2, 600, "look_up")
    assert (one.payment.refunded, one.payment.refundable) == (600, 400)


# --- late successes -----------------------------------------------------------------------------


@pytest.mark.parametrize("purchase", [False, True])
@pytest.mark.parametrize(
    ("news", "status"), [(DECLINED, "declined"), (Failed("down"), "failed"), (Expired(), "expired")]
)
def test_a_late_success_is_undone_and_the_status_stays(purchase, news, status):
    one = OnePayment(purchase=purchase)
    one.hear(1, news)
    one.approve(1, via="webhook")
    ((n, call),) = one.calls
    assert (n, call.action, call.amount, call.target) == (
        2,
        "refund" if purchase else "void",
        1_000,
        "ref_1",
    )
    assert one.kinds["suspended", "posted"] == (1_000 if purchase else 0)
    assert not one.approve(1, via="webhook"), "heard again"
    one.approve(2)
    assert (one.status, one.events) == (status, ["payment.late_success_reversed"])
    assert not one.payment.is_open


@pytest.mark.parametrize("purchase", [False, True])
def test_a_late_success_of_another_amount_is_undone_too_and_a_person_sees_it(purchase):
    one = OnePayment(purchase=purchase)
    one.hear(1, DECLINED)
    one.approve(1, 900, "webhook")
    ((n, call),) = one.calls
    assert (n, call.action, call.amount) == (2, "refund" if purchase else "void", 900)
    assert one.letters == ["wrong amount confirmed by the gateway"]
    assert not one.approve(1, 900, "webhook"), "heard again"
    one.approve(2)
    assert one.kinds["suspended", "posted"] == one.kinds["sent_back", "posted"]
    assert (one.status, one.payment.is_open, len(one.letters)) == ("declined", False, 1)


@pytest.mark.parametrize("purchase", [False, True])
def test_a_late_success_in_another_currency_is_a_persons(purchase):
    one = OnePayment(purchase=purchase)
    one.hear(1, DECLINED)
    one.approve(1, via="webhook", currency="EUR")
    name = one.op(1).type
    assert one.letters == [f"the {name} had failed, and was done in EUR after all"]
    assert (one.calls, one.status) == ((), "declined")
    assert not one.approve(1, via="webhook", currency="EUR"), "heard again"
    assert one.approve(1, via="webhook"), "and this is another fact"
    assert len(one.calls) == 1


def test_what_a_person_looks_at_already_hides_no_other_fact():
    one = captured()
    one.refund(400)
    one.approve(2, 350, "look_up")
    assert one.payment.needs_review
    one.hear(1, DECLINED, "webhook")
    one.hear(1, DECLINED, "webhook")
    assert len(one.letters) == 2
    for reference in ("rf_1", "rf_2", "rf_1"):
        one.hear(0, RefundedElsewhere(100, "EUR", reference), "webhook")
    assert len(one.letters) == 4
    one.hear(0, RefundedElsewhere(650, "USD", "rf_3"), "webhook")
    assert one.payment.refunded == 1_000
    for _ in range(2):
        one.hear(0, ReversedByGateway(1_000, "return"), "webhook")
    assert one.letters[4:] == ["reversed at the gateway after it was refunded in full"]


def test_a_reversal_takes_no_more_than_it_says():
    """A refund of 300 is under way, done or not: only 700 came back from the gateway."""
    one = captured()
    one.refund(300)
    one.hear(0, ReversedByGateway(700, "return"), "webhook")
    assert (one.status, one.payment.reversed, one.letters) == ("reversed", 700, [])
    one.approve(2)
    assert one.kinds["reversal", "posted"] + one.payment.refunded == 1_000


def test_a_reversal_of_less_than_was_left_is_for_a_person():
    one = captured()
    one.hear(0, ReversedByGateway(400, "return"), "webhook")
    assert (one.status, one.payment.reversed) == ("reversed", 400)
    assert one.letters == ["less was reversed at the gateway than was left"]


@pytest.mark.parametrize("purchase", [False, True])
@pytest.mark.parametrize(
    "news",
    [ReversedByGateway(1_000, "return"), RefundedElsewhere(1_000, "USD", "rf_1")],
    ids=["reversed", "refunded"],
)
def test_news_of_money_that_is_not_known_to_be_captured_yet_is_early(purchase, news):
    one = OnePayment(purchase=purchase)
    assert is_early(one.payment, news) is purchase
    if not purchase:
        one.approve(1)
        one.capture()
        one.hear(2, Unknown("timeout"))
        assert is_early(one.payment, news)
    assert not is_early(one.payment, Declined("x", "y"))
    one.approve(len(one.payment.operations), via="look_up")
    assert not is_early(one.payment, news)
    one.hear(0, news, "webhook")
    assert one.payment.refundable == 0
    assert not one.payment.needs_review


def test_a_late_success_of_a_canceled_payment():
    one = OnePayment()
    one.hear(1, StillPending("ch"))
    one.cancel()
    one.approve(2)
    one.approve(1, via="webhook")
    one.approve(3)
    assert one.status == "canceled"


@pytest.mark.parametrize("news", [Failed("down"), Declined("already_voided", "x")])
def test_the_reversal_is_tried_again_after_5_15_and_30_minutes(news):
    one = OnePayment(purchase=True)
    one.hear(1, DECLINED)
    one.approve(1, via="webhook")
    for minutes in (5, 15, 30):
        one.hear(2, news)
        assert one.payment.is_open
        assert not one.letters
        one.wait(minutes * MINUTE_MS - 1)
        assert not one.retry()
        one.wait(1)
        assert one.retry()
        ((n, call),) = one.calls
        assert (n, call.key) == (2, call.key)
    one.hear(2, news)
    assert one.op(2).attempts == 4
    assert (one.payment.is_open, one.payment.needs_review, len(one.letters)) == (False, True, 1)
    assert one.revive()
    assert one.op(2).attempts == 1
    one.approve(2)
    assert one.events == ["payment.late_success_reversed"]
    assert not one.payment.needs_review


def test_every_attempt_has_the_same_gateway_key():
    one = OnePayment(purchase=True)
    one.hear(1, DECLINED)
    one.approve(1, via="webhook")
    keys = {one.calls[0][1].key}
    one.hear(2, Failed("down"))
    one.wait(5 * MINUTE_MS)
    one.retry()
    assert {one.calls[0][1].key} == keys


def test_a_reversal_that_was_done_after_all():
    one = OnePayment(purchase=True)
    one.hear(1, DECLINED)
    one.approve(1, via="webhook")
    one.hear(2, Failed("down"))
    one.approve(2, via="webhook")
    assert one.op(2).status == "succeeded"
    assert not one.payment.is_open, "and it is not tried again"


def test_a_late_capture_within_the_hold_is_adopted():
    one = OnePayment()
    one.approve(1)
    one.capture(400, final=False)
    one.hear(2, Failed("down"))
    one.approve(2, via="webhook")
    assert (one.status, one.payment.captured) == ("partially_captured", 400)


def test_a_late_final_capture_has_given_the_rest_back():
    one = OnePayment()
    one.approve(1)
    one.capture(400)
    one.hear(2, Failed("down"))
    one.approve(2, via="webhook")
    assert (one.status, one.payment.captured, one.payment.released) == ("captured", 400, 600)
    assert not one.payment.is_open


def test_a_late_capture_without_a_hold_goes_to_suspense():
    one = OnePayment()
    one.approve(1)
    one.capture()
    one.hear(2, Failed("down"))
    one.cancel()
    one.approve(3)
    one.approve(2, via="webhook")
    assert (one.status, one.payment.excess_captured) == ("canceled", 1_000)
    assert one.letters == ["a capture that had failed was made after all, without a hold"]


def test_a_late_cancel_releases_what_is_left():
    one = OnePayment()
    one.approve(1)
    one.cancel()
    one.hear(2, Failed("down"))
    one.approve(2, via="webhook")
    assert (one.status, one.held) == ("canceled", 0)


def test_a_late_cancel_with_nothing_left_changes_nothing():
    one = OnePayment()
    one.approve(1)
    one.cancel()
    one.hear(2, Failed("down"))
    one.capture()
    one.approve(3)
    assert not one.approve(2, via="webhook")


@pytest.mark.parametrize("other", [0, 800])
def test_a_late_refund_is_adopted_or_flagged(other):
    one = captured()
    one.refund(600)
    one.hear(2, Failed("down"))
    if other:
        one.refund(other)
        one.approve(3)
    one.approve(2, via="webhook")
    assert one.op(2).status == "succeeded"
    assert (one.payment.refunded, one.payment.excess_refunded) == (
        (800, 600) if other else (600, 0)
    )


# --- refunds that come back ---------------------------------------------------------------------


@pytest.mark.parametrize("news", [Failed("refund_failed"), DECLINED, Expired()])
def test_a_refund_that_had_succeeded_comes_back_once(news):
    one = refunded(400)
    one.hear(2, news, "webhook")
    assert (one.payment.refunded, one.payment.refundable) == (0, 1_000)
    assert one.events == ["refund.failed"]
    assert not one.hear(2, news, "webhook")
    assert not one.approve(2, via="webhook"), "that it had succeeded is old news"


@pytest.mark.parametrize("amount", [600, 1_300])
def test_what_comes_back_is_what_was_counted(amount):
    """Confirmed for another amount than was asked, and then returned."""
    one = captured()
    one.refund(1_000)
    one.approve(2, amount, "look_up")
    one.hear(2, Failed("refund_failed"), "webhook")
    assert one.payment.refunded == 0
    assert one.payment.excess_refunded == max(0, amount - 1_000)


def test_a_refund_from_outside_beyond_the_captured_comes_back():
    one = captured()
    one.hear(0, RefundedElsewhere(1_500, "USD", "out"), "webhook")
    assert (one.payment.refunded, one.payment.excess_refunded) == (1_000, 500)
    one.hear(2, Failed("refund_failed"), "webhook")
    assert one.payment.refunded == 0


# --- contradictions and stale news --------------------------------------------------------------


@pytest.mark.parametrize("news", [DECLINED, Failed("x"), Expired()])
def test_a_refusal_after_success_is_flagged_once_and_changes_no_money(news):
    one = captured()
    assert one.hear(1, news, "webhook")
    assert (one.status, one.payment.captured, one.payment.needs_review) == ("captured", 1_000, True)
    assert one.entry.transfers == ()
    assert len(one.letters) == 1
    assert not one.hear(1, news, "webhook")


@pytest.mark.parametrize("via", ["reply", "look_up", "webhook"])
@pytest.mark.parametrize(
    "news",
    [
        NotFound(),
        StillPending(),
        Unknown("timeout"),
        ActionRequired("x", NextAction("redirect", "u"), 0),
        Approved(1_000, "USD", "again"),
    ],
    ids=lambda news: type(news).__name__,
)
def test_vague_or_repeated_news_after_success_changes_nothing(news, via):
    assert not captured().hear(1, news, via)


@pytest.mark.parametrize("news", [DECLINED, Failed("x"), Expired(), NotFound(), StillPending()])
def test_news_after_a_decline_changes_nothing(news):
    one = OnePayment()
    one.hear(1, DECLINED)
    assert not one.hear(1, news, "webhook")


def test_news_of_an_operation_that_is_not_there_changes_nothing():
    one = OnePayment()
    assert not one.hear(2, Approved(1_000, "USD", "x"), "webhook")
    assert not one.hear(0, Approved(1_000, "USD", "x"), "webhook")


def test_only_the_first_operation_can_make_the_payment_wait_for_the_customer():
    one = OnePayment()
    one.approve(1)
    one.capture()
    one.hear(2, ActionRequired("odd", NextAction("redirect", "u"), 0))
    assert (one.events, one.payment.next_action) == ([], None)
    assert one.payment.gateway_reference == "ref_1"


# --- the payment as a whole ---------------------------------------------------------------------


@pytest.mark.parametrize("via", ["webhook", "look_up"])
def test_a_refund_that_came_back_is_not_made_again_by_the_older_news(via):
    one = captured()
    one.refund(600)
    one.hear(2, Unknown("timeout"))
    one.hear(2, Failed("refund_failed"), via)
    assert not one.approve(2, via="webhook")
    assert (one.payment.refunded, one.op(2).status) == (0, "failed")


def test_a_refund_from_outside():
    one = captured()
    news = RefundedElsewhere(300, "USD", "out")
    one.hear(0, news, "webhook")
    assert (one.payment.refunded, one.op(2).status) == (300, "succeeded")
    assert one.events == ["refund.created", "refund.succeeded"]
    assert not one.hear(0, news, "webhook")


def test_a_refund_from_outside_beside_one_in_flight():
    one = captured()
    one.refund(800)
    one.hear(0, RefundedElsewhere(300, "USD", "out"), "webhook")
    assert (one.payment.refunded, one.payment.excess_refunded) == (200, 100)
    one.approve(2)
    assert one.payment.refunded == 1_000


def test_a_refund_from_outside_in_another_currency_is_flagged_and_not_posted():
    one = captured()
    news = RefundedElsewhere(300, "EUR", "out")
    assert one.hear(0, news, "webhook")
    assert (one.payment.refunded, one.payment.needs_review) == (0, True)
    assert one.entry.transfers == ()
    assert not one.hear(0, news, "webhook")


def test_reversed_by_the_bank():
    one = refunded(300)
    one.hear(0, ReversedByGateway(700, "return"), "webhook")
    assert (one.status, one.payment.reversed, one.payment.refundable) == ("reversed", 700, 0)
    assert not one.hear(0, ReversedByGateway(700, "return"), "webhook")
    assert one.refund().code == "invalid_state_transition"


def test_what_is_reversed_beyond_what_was_left_is_a_fact():
    one = refunded(300)
    one.hear(0, ReversedByGateway(1_000, "return"), "webhook")
    assert (one.payment.reversed, one.payment.excess_refunded) == (700, 300)
    assert one.payment.needs_review


def test_a_reversal_of_what_was_refunded_in_full_is_flagged_once():
    one = refunded()
    assert one.hear(0, ReversedByGateway(1_000, "return"), "webhook")
    assert (one.status, one.events, one.payment.needs_review) == ("captured", [], True)
    assert not one.hear(0, ReversedByGateway(1_000, "return"), "webhook")


def test_the_hold_of_a_reversed_payment_expires():
    one = OnePayment()
    one.approve(1)
    one.capture(400, final=False)
    one.approve(2)
    one.hear(0, ReversedByGateway(400, "return"), "webhook")
    one.now_ms = one.payment.expires_ms
    assert one.expire()
    assert (one.status, one.payment.is_open) == ("reversed", False)


def test_disputes_add_up_and_are_known_by_their_id():
    one = captured()
    one.hear(0, Disputed("dp_1", 400, "fraud"), "webhook")
    one.hear(0, Disputed("dp_2", 100, "fraud"), "webhook")
    assert (one.payment.disputed, one.all_events.count("dispute.opened")) == (500, 2)
    assert not one.hear(0, Disputed("dp_1", 400, "fraud"), "webhook")
