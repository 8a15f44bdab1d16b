"""What the engine owes: tried again after 5, 15 and 30 minutes, then a person's, then revived."""

import pytest

from engine.domain.news import (
    ActionRequired,
    Approved,
    Declined,
    Failed,
    NextAction,
    NotFound,
    ReversedByGateway,
    StillPending,
    Unknown,
)
from engine.domain.representation import payment_view, refund_view
from tests.pure.domain.one_payment import DAY_MS, START_MS, OnePayment

MINUTE_MS = 60_000
DOWN = Failed("gateway_unreachable")
ACTION = ActionRequired("ch_1", NextAction("redirect", "https://bank"), START_MS + 900_000)


def canceled_purchase():
    """A purchase that was unknown when it was canceled, and had been charged: 3 is its refund."""
    one = OnePayment(purchase=True)
    one.hear(1, Unknown("timeout"))
    one.cancel()
    one.approve(1, via="look_up")
    return one, 3


def canceled_authorisation():
    """An authorisation that was unknown when it was canceled, and approved: 2 is the cancel."""
    one = OnePayment()
    one.hear(1, Unknown("timeout"))
    one.cancel()
    one.approve(1, via="look_up")
    return one, 2


def late_authorisation():
    """An authorisation that was approved after it had failed: 2 is its void."""
    one = OnePayment()
    one.hear(1, DOWN)
    one.approve(1, via="webhook")
    return one, 2


def late_purchase():
    one = OnePayment(purchase=True)
    one.hear(1, DOWN)
    one.approve(1, via="webhook")
    return one, 2


OWED = [canceled_purchase, canceled_authorisation, late_authorisation, late_purchase]


def fail_until_given_up(one, n, news=DOWN):
    for minutes in (5, 15, 30):
        one.hear(n, news)
        one.wait(minutes * MINUTE_MS)
        assert one.retry()
    one.hear(n, news)


@pytest.mark.parametrize("owed", OWED)
@pytest.mark.parametrize("news", [DOWN, Declined("do_not_honor", "x")], ids=["failed", "declined"])
def test_it_is_tried_again_with_its_key_and_keeps_what_it_reserved(owed, news):
    one, n = owed()
    key = one.calls[0][1].key
    reserved = one.held, one.payment.refunding, one.payment.releasing
    for minutes in (5, 15, 30):
        one.hear(n, news)
        assert (one.held, one.payment.refunding, one.payment.releasing) == reserved
        assert payment_view(one.payment).operations[n - 1].status == "pending"
        assert (one.payment.is_open, one.letters, one.events) == (True, [], [])
        one.wait(minutes * MINUTE_MS - 1)
        assert not one.retry()
        one.wait(1)
        assert one.retry()
        assert [(m, call.key, call.look_up) for m, call in one.calls] == [(n, key, False)]
    one.approve(n)
    assert (one.payment.is_open, one.payment.needs_review) == (False, False)


@pytest.mark.parametrize("owed", OWED)
def test_after_the_fourth_failure_it_is_a_persons_who_can_revive_it(owed):
    one, n = owed()
    fail_until_given_up(one, n)
    name = one.op(n).type
    assert one.letters == [f"the {name} failed 4 times: gateway_unreachable"]
    assert (one.op(n).retry_ms, one.payment.refunding, one.payment.releasing) == (None, 0, 0)
    assert one.revive()
    assert [m for m, _ in one.calls] == [n]
    assert not one.payment.needs_review
    one.hear(n, DOWN)
    assert one.op(n).retry_ms == one.now_ms + 5 * MINUTE_MS, "from the first attempt"
    assert one.revive(), "and before its time"
    one.approve(n)
    assert (one.payment.is_open, one.held) == (False, 0)


@pytest.mark.parametrize("owed", OWED)
def test_what_is_due_again_after_its_key_may_be_forgotten_is_only_looked_up(owed):
    """The engine was down for a day, and the gateway would take the key for a new one."""
    one, n = owed()
    one.hear(n, DOWN)
    one.wait(DAY_MS)
    assert one.retry()
    assert (one.calls, one.op(n).status, one.op(n).next_check_ms) == ((), "unknown", one.now_ms)
    one.approve(n, via="look_up")
    assert (one.payment.is_open, one.payment.needs_review, one.held) == (False, False, 0)


@pytest.mark.parametrize("owed", OWED)
def test_what_is_too_old_and_not_there_is_a_persons_also_when_it_is_revived(owed):
    one, n = owed()
    one.hear(n, DOWN)
    one.wait(DAY_MS)
    one.retry()
    for _ in range(2):
        one.letters.clear()
        one.look_up(n, NotFound())
        assert (one.op(n).status, one.letters) == ("unknown", []), "it concludes nothing yet"
        one.wait(10_000)
        one.look_up(n, NotFound())
        name, times = one.op(n).type, one.op(n).attempts
        assert one.letters == [
            f"the {name} failed {times} times: not_processed; it is too old to be sent again, "
            "so it has to be made at the gateway itself"
        ]
        assert (one.op(n).retry_ms, one.payment.refunding, one.payment.releasing) == (None, 0, 0)
        assert not one.retry()
        assert one.revive()
        assert one.calls == ()


@pytest.mark.parametrize("owed", OWED)
def test_no_retry_is_put_behind_the_time_in_which_a_key_is_known(owed):
    one, n = owed()
    one.wait(DAY_MS - 5 * MINUTE_MS)
    one.hear(n, DOWN)
    assert one.op(n).retry_ms is None
    assert one.payment.needs_review


@pytest.mark.parametrize("owed", OWED)
def test_what_a_crash_cut_off_before_it_was_sent_is_tried_again(owed):
    one, n = owed()
    for _ in range(2):
        one.wait(20_000)
        one.look_up(n, NotFound())
    assert (one.op(n).code, one.released_keys) == ("abandoned", [])
    one.wait(5 * MINUTE_MS)
    assert one.retry()
    one.approve(n)
    assert not one.payment.is_open


@pytest.mark.parametrize("owed", OWED)
def test_it_was_done_after_all_while_it_waited(owed):
    one, n = owed()
    one.hear(n, DOWN)
    one.approve(n, via="webhook")
    assert (one.op(n).status, one.op(n).retry_ms) == ("succeeded", None)
    assert (one.payment.is_open, one.payment.needs_review, one.held) == (False, False, 0)


def test_each_attempt_that_ends_is_an_outcome():
    one, n = canceled_purchase()
    one.hear(n, DOWN)
    assert list(one.answers) == [n]
    one.wait(5 * MINUTE_MS)
    one.retry()
    assert one.answers == {}
    one.approve(n)
    assert list(one.answers) == [n]


def test_the_refund_is_pending_until_it_is_given_up():
    one, n = canceled_purchase()
    one.hear(n, DOWN)
    shown = refund_view(one.payment, one.op(n))
    assert (shown.status, shown.failure_code, one.entry.refunds[0].status) == (
        "pending",
        None,
        "pending",
    )
    assert one.refund().code == "amount_exceeds_refundable"
    one.wait(5 * MINUTE_MS)
    one.retry()
    fail_until_given_up_from_the_second(one, n)
    assert one.events == ["refund.failed"]
    assert refund_view(one.payment, one.op(n)).status == "failed"
    assert one.payment.refundable == 1_000


def fail_until_given_up_from_the_second(one, n):
    for minutes in (15, 30):
        one.hear(n, DOWN)
        one.wait(minutes * MINUTE_MS)
        assert one.retry()
    one.hear(n, DOWN)


def test_a_refund_that_the_merchant_made_instead_is_not_made_twice():
    one, n = canceled_purchase()
    fail_until_given_up(one, n)
    one.refund(400)
    one.approve(4)
    assert not one.revive()
    assert one.payment.refunded == 400


def test_a_refund_is_not_tried_again_when_the_bank_has_taken_the_money_back():
    one, n = canceled_purchase()
    one.hear(n, DOWN)
    one.hear(0, ReversedByGateway(1_000, "return"), "webhook")
    assert (one.op(n).retry_ms, one.held, one.status) == (None, 0, "reversed")
    assert not one.revive()


def test_the_refund_that_came_back_is_a_persons():
    one, n = canceled_purchase()
    one.approve(n)
    one.hear(n, Declined("account_closed", "x"), "webhook")
    assert one.letters == ["the refund of a canceled purchase came back: it has to be made anew"]
    assert not one.revive(), "its key would only tell of the one that came back"
    assert one.refund() is None


def test_the_client_of_a_promised_cancel_hears_202_until_it_is_done():
    one, n = canceled_authorisation()
    one.hear(n, DOWN)
    assert (one.answers[n].status, one.payment.cancel_requested) == (202, True)
    assert one.capture().code == "invalid_state_transition"
    one.wait(5 * MINUTE_MS)
    one.retry()
    one.approve(n)
    assert (one.answers[n].status, one.status) == (200, "canceled")


def test_a_promised_cancel_that_is_given_up_gives_the_hold_back():
    one, n = canceled_authorisation()
    fail_until_given_up(one, n)
    assert (one.answers[n].status, one.payment.capturable) == (502, 1_000)
    assert not one.payment.cancel_requested
    one.capture(400)
    assert not one.revive(), "not while the capture is in the air"


def test_a_cancel_that_a_client_waits_for_is_for_the_client_to_repeat():
    one = OnePayment()
    one.approve(1)
    one.cancel()
    one.hear(2, DOWN)
    assert (one.answers[2].status, one.op(2).retry_ms) == (502, None)


@pytest.mark.parametrize("told", [ACTION, StillPending("ch_1")])
@pytest.mark.parametrize(
    ("news", "ends"),
    [(Approved(1_000, "USD", "ref_1"), "canceled"), (Declined("do_not_honor", "x"), "declined")],
)
def test_what_becomes_of_the_payment_while_its_cancel_waits_for_a_retry(told, news, ends):
    one = OnePayment()
    one.hear(1, Unknown("timeout"))
    one.cancel()
    one.hear(1, told, "look_up")
    one.hear(2, DOWN)
    assert one.cancel().code == "operation_unresolved"
    one.hear(1, news, "webhook")
    assert one.payment.capturable == 0
    if ends == "canceled":
        one.wait(5 * MINUTE_MS)
        assert one.retry()
        one.approve(2)
    assert (one.status, one.op(2).status, one.payment.is_open) == (ends, "succeeded", False)


def test_a_purchase_that_succeeds_while_its_cancel_waits_for_a_retry_is_refunded():
    one = OnePayment(purchase=True)
    one.hear(1, Unknown("timeout"))
    one.cancel()
    one.hear(1, StillPending("ch_1"), "look_up")
    one.hear(2, DOWN)
    one.approve(1, via="webhook")
    assert [(n, call.action) for n, call in one.calls] == [(3, "refund")]
    assert (one.op(2).status, one.op(2).retry_ms) == ("succeeded", None)
