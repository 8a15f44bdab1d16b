"""What a merchant may ask of a payment in which status, and what becomes of it."""

import pytest

from engine.domain.machine import recovered
from engine.domain.news import (
    ActionRequired,
    Declined,
    Expired,
    Failed,
    NextAction,
    StillPending,
    Unknown,
)
from engine.domain.payment import COMMANDS, STATUS_TRANSITIONS
from tests.pure.domain.one_payment import DAY_MS, START_MS, OnePayment

ACTION = ActionRequired("ch_1", NextAction("redirect", "https://bank"), START_MS + 900_000)
DECLINED = Declined("do_not_honor", "try_again_later")


def authorized(**more):
    one = OnePayment(**more)
    one.approve(1)
    return one


def captured(**more):
    one = OnePayment(purchase=True, **more)
    one.approve(1)
    return one


def answered(one, n):
    return one.stored[n].status


# --- authorize and purchase ---------------------------------------------------------------------


@pytest.mark.parametrize("purchase", [False, True])
def test_the_intent_reserves_the_money_before_the_call(purchase):
    one = OnePayment(purchase=purchase)
    assert one.status == "processing"
    assert one.held == 1_000
    ((n, call),) = one.calls
    assert (n, call.action, call.amount) == (1, "purchase" if purchase else "authorize", 1_000)
    assert one.answers == {}
    assert recovered(one.payment) == [one.op(1)]


def test_authorized():
    one = authorized()
    assert (one.status, one.payment.capturable, answered(one, 1)) == ("authorized", 1_000, 201)
    assert one.payment.expires_ms == START_MS + 7 * DAY_MS
    assert one.events == ["payment.authorized"]


def test_purchased_with_its_fee_linked_to_it():
    one = captured(fees=True)
    assert (one.status, answered(one, 1)) == ("captured", 201)
    assert (one.payment.fee, one.payment.fee_tax) == (59, 12)
    capture, *fees = one.entry.transfers
    assert [t.kind for t in fees] == ["fee", "fee_tax"]
    assert {t.link for t in fees} == {capture.id}


@pytest.mark.parametrize(
    ("news", "status", "answer"),
    [
        (DECLINED, "declined", 402),
        (Expired(), "expired", 402),
        (Failed("gateway_unreachable", sent=False), "failed", 502),
        (ACTION, "requires_action", 201),
        (StillPending("ch_1"), "pending", 201),
    ],
)
def test_other_replies(news, status, answer):
    one = OnePayment()
    one.hear(1, news)
    assert (one.status, answered(one, 1)) == (status, answer)
    assert one.events == [f"payment.{status}"]
    assert one.held == (1_000 if one.payment.is_open else 0)


def test_requires_action_then_done():
    one = OnePayment()
    one.hear(1, ACTION)
    assert one.payment.next_action == ACTION.next_action
    one.approve(1, via="webhook")
    assert (one.status, one.payment.next_action) == ("authorized", None)


@pytest.mark.parametrize(("news", "status"), [(Expired(), "expired"), (DECLINED, "declined")])
def test_requires_action_then_not_done(news, status):
    one = OnePayment()
    one.hear(1, ACTION)
    one.hear(1, news, "look_up")
    assert (one.status, one.held) == (status, 0)


# --- capture ------------------------------------------------------------------------------------


def test_captures_in_parts_keep_the_rest_until_the_final_one():
    one = authorized()
    one.capture(300, final=False)
    assert one.payment.capturable == 700, "what is in flight is reserved"
    one.approve(2)
    assert (one.status, one.events) == ("partially_captured", ["payment.partially_captured"])
    one.capture(500)
    assert one.payment.capturable == 0, "and so is what it will release"
    one.approve(3)
    assert (one.status, one.payment.captured, one.payment.released) == ("captured", 800, 200)
    assert not one.payment.is_open


def test_capture_of_all_by_default():
    one = authorized()
    one.capture()
    ((_, call),) = one.calls
    assert (call.action, call.amount, call.final, call.target) == ("capture", 1_000, True, "ref_1")
    one.approve(2)
    assert (one.status, answered(one, 2)) == ("captured", 200)


@pytest.mark.parametrize(("news", "answer"), [(DECLINED, 402), (Failed("down"), 502)])
def test_a_capture_that_is_not_done_gives_all_back(news, answer):
    one = authorized()
    one.capture(400)
    one.hear(2, news)
    assert (one.status, one.payment.capturable, answered(one, 2)) == ("authorized", 1_000, answer)
    assert one.events == ["payment.capture_failed"]


def test_a_capture_in_parts_needs_a_gateway_that_can():
    one = authorized(multiple_capture=False)
    assert one.capture(1, final=False).code == "multiple_capture_unsupported"
    assert one.capture(1) is None


def test_more_than_is_capturable_is_refused():
    one = authorized()
    assert one.capture(1_001).code == "amount_exceeds_capturable"
    one.capture(600, final=False)
    assert one.capture(401, final=False).code == "amount_exceeds_capturable"
    one.capture(400)
    refusal = one.capture(1)
    assert (refusal.code, refusal.retry_after_s) == ("operation_unresolved", 1)


def test_an_unknown_capture_leaves_the_status_and_reserves_its_money():
    one = authorized()
    one.capture(400, final=False)
    one.hear(2, Unknown("timeout"))
    assert (one.status, one.payment.capturable) == ("authorized", 600)
    assert one.answers[2].status == 202
    one.approve(2, via="look_up")
    assert (one.status, answered(one, 2)) == ("partially_captured", 200)


# --- cancel -------------------------------------------------------------------------------------


def test_cancel_releases_all():
    one = authorized()
    one.cancel()
    assert (one.payment.capturable, one.payment.cancel_requested) == (0, True)
    assert one.capture().code == "invalid_state_transition"
    one.approve(2)
    assert (one.status, one.held, answered(one, 2)) == ("canceled", 0, 200)


def test_cancel_after_a_part_was_captured_releases_the_rest():
    one = authorized()
    one.capture(400, final=False)
    one.approve(2)
    one.cancel()
    one.approve(3)
    assert (one.status, one.payment.captured, one.payment.released) == ("captured", 400, 600)


@pytest.mark.parametrize("news", [DECLINED, Failed("down"), Expired()])
def test_a_cancel_that_is_not_done_leaves_the_authorisation(news):
    one = authorized()
    one.cancel()
    one.hear(2, news)
    assert (one.status, one.payment.capturable) == ("authorized", 1_000)
    assert not one.payment.cancel_requested
    assert answered(one, 2) == 502


@pytest.mark.parametrize("purchase", [False, True])
@pytest.mark.parametrize("told", [ACTION, StillPending("ch_1")])
def test_what_the_gateway_has_told_us_of_is_voided_at_once(purchase, told):
    one = OnePayment(purchase=purchase)
    one.hear(1, told)
    one.cancel()
    ((_, call),) = one.calls
    assert (call.action, call.amount, call.target) == ("void", 1_000, "ch_1")
    one.approve(2)
    assert (one.status, one.held, one.op(1).status) == ("canceled", 0, "canceled")


@pytest.mark.parametrize("unknown", [False, True])
def test_the_cancel_of_an_unresolved_authorisation_waits_for_it(unknown):
    one = OnePayment()
    if unknown:
        one.hear(1, Unknown("timeout"))
    one.cancel()
    assert (one.calls, one.answers[2].status) == ((), 202)
    assert one.cancel().code == "operation_unresolved"
    one.approve(1, via="look_up")
    ((n, call),) = one.calls
    assert (n, call.action, one.payment.capturable) == (2, "void", 0)
    one.approve(2)
    assert (one.status, answered(one, 2)) == ("canceled", 200)


@pytest.mark.parametrize("told", [ACTION, StillPending("ch_1")])
def test_a_cancel_that_waits_is_sent_when_the_gateway_says_not_yet(told):
    one = OnePayment()
    one.hear(1, Unknown("timeout"))
    one.cancel()
    one.hear(1, told, "look_up")
    ((n, call),) = one.calls
    assert (n, call.action) == (2, "void")
    one.approve(2)
    assert one.status == "canceled"


def test_a_cancel_that_waits_is_done_when_nothing_was_charged():
    one = OnePayment()
    one.hear(1, Unknown("timeout"))
    one.cancel()
    one.hear(1, DECLINED, "look_up")
    assert (one.status, one.op(2).status, answered(one, 2)) == ("declined", "succeeded", 200)


def test_nothing_can_be_known_of_a_cancel_that_was_not_sent():
    one = OnePayment()
    one.cancel()
    assert not one.approve(2, via="webhook")


def test_the_cancel_of_an_unknown_purchase_refunds_it():
    one = OnePayment(purchase=True)
    one.hear(1, Unknown("timeout"))
    one.cancel()
    one.approve(1, via="look_up")
    ((n, call),) = one.calls
    assert (n, call.action, call.amount) == (3, "refund", 1_000)
    one.approve(3)
    assert (one.status, one.payment.refunded) == ("captured", 1_000)


def test_an_authorisation_that_is_approved_while_it_is_voided_can_be_used_by_nothing_else():
    one = OnePayment()
    one.hear(1, StillPending("ch_1"))
    one.cancel()
    one.approve(1, via="webhook")
    assert (one.status, one.payment.capturable) == ("authorized", 0)
    assert one.cancel().code == "operation_unresolved"
    one.approve(2)
    assert one.status == "canceled"


# --- refund -------------------------------------------------------------------------------------


def test_refunds_in_parts_up_to_what_was_captured():
    one = captured()
    one.refund(600)
    assert one.payment.refundable == 400, "what is in flight is reserved"
    assert one.refund(401).code == "amount_exceeds_refundable"
    one.approve(2)
    one.refund()
    assert one.op(3).amount == 400
    one.approve(3)
    assert (one.payment.refunded, answered(one, 3)) == (1_000, 201)
    assert one.refund().code == "amount_exceeds_refundable"


@pytest.mark.parametrize("news", [DECLINED, Failed("refund_failed")])
def test_a_refund_that_fails_at_once_is_a_failed_refund(news):
    one = captured()
    one.refund(600)
    one.hear(2, news)
    assert (one.payment.refundable, answered(one, 2)) == (1_000, 201)
    assert one.events == ["refund.failed"]


def test_a_refund_that_never_left_is_502():
    one = captured()
    one.refund()
    one.hear(2, Failed("gateway_unavailable", sent=False))
    assert answered(one, 2) == 502


# --- every status -------------------------------------------------------------------------------


def in_status(status):
    one = OnePayment()
    told = {"requires_action": ACTION, "pending": StillPending("x"), "unknown": Unknown("timeout"),
            "declined": DECLINED, "failed": Failed("down"), "expired": Expired()}  # fmt: skip
    if status in told:
        one.hear(1, told[status])
    elif status != "processing":
        one.approve(1)
        if status == "canceled":
            one.cancel()
        elif status == "partially_captured":
            one.capture(400, final=False)
        elif status == "captured":
            one.capture()
        if len(one.payment.operations) == 2:
            one.approve(2)
    assert one.status == status
    return one


@pytest.mark.parametrize("status", sorted(set(COMMANDS) - {"reversed"}))
@pytest.mark.parametrize("command", ["capture", "cancel", "refund"])
def test_each_status_accepts_what_the_table_says(status, command):
    one = in_status(status)
    refusal = getattr(one, command)()
    expected = {"yes": None, "no": "invalid_state_transition", "unresolved": "operation_unresolved"}
    assert (refusal and refusal.code) == expected[COMMANDS[status][command]]


def test_no_status_but_unresolved_ones_and_the_authorised_goes_anywhere():
    final = {"canceled", "declined", "failed", "expired", "reversed"}
    assert not {a for a, _ in STATUS_TRANSITIONS} & final
