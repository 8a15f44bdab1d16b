"""Expiry, look-ups and the deadline for a person: what time alone does to a payment."""

import pytest

from engine.domain.machine import look_ups_due
from engine.domain.news import Failed, NotFound, Unknown
from tests.pure.domain.one_payment import DAY_MS, OnePayment


def authorized():
    one = OnePayment()
    one.approve(1)
    return one


def test_an_authorisation_expires():
    one = authorized()
    assert not one.expire()
    one.wait(7 * DAY_MS)
    assert one.expire()
    assert (one.status, one.held, one.events) == ("expired", 0, ["payment.expired"])
    assert one.kinds["hold", "expire_pending"] == 1_000


def test_the_rest_expires_after_a_part_was_captured():
    one = authorized()
    one.capture(400, final=False)
    one.approve(2)
    one.wait(7 * DAY_MS)
    one.expire()
    assert (one.status, one.payment.released, one.events) == ("captured", 600, ["payment.captured"])


@pytest.mark.parametrize("done", [False, True])
def test_expiry_waits_for_a_capture_whose_outcome_is_not_known(done):
    one = authorized()
    one.capture(400, final=False)
    one.hear(2, Unknown("timeout"))
    one.wait(7 * DAY_MS)
    assert one.expire()
    assert (one.status, one.held) == ("authorized", 1_000)
    one.hear(2, one.approval(2) if done else Failed("down"), "look_up")
    one.wait(60_000)
    one.expire()
    assert one.status == ("captured" if done else "expired")
    assert one.payment.captured == (400 if done else 0)


def test_look_ups_come_less_often_and_never_end():
    one = OnePayment()
    one.hear(1, Unknown("timeout"))
    gaps = []
    for _ in range(20):
        due = one.op(1).next_check_ms
        gaps.append(due - one.now_ms)
        one.now_ms = due
        assert look_ups_due(one.payment, one.env()) == [one.op(1)]
        one.look_up(1, Unknown("timeout"))
    assert gaps == sorted(gaps)
    assert gaps[0] == 1_050
    assert gaps[-1] == 945_000


def test_unresolved_for_a_day_is_a_persons_and_stays_open():
    one = OnePayment()
    one.hear(1, Unknown("timeout"))
    one.wait(DAY_MS - 1)
    assert not one.review()
    one.wait(6_001)
    assert one.review()
    assert not one.review(), "it is said once"
    assert (one.status, one.payment.needs_review, len(one.letters)) == ("unknown", True, 1)
    one.approve(1, via="look_up")
    assert one.status == "authorized"


def test_not_found_counts_only_after_deadline_and_lag():
    """A call that was cut off at its deadline may have left right before."""
    one = OnePayment()
    one.wait(6_000)
    one.hear(1, Unknown("timeout"))
    one.wait(9_999)
    one.look_up(1, NotFound())
    assert one.status == "unknown"
    one.wait(1)
    one.look_up(1, NotFound())
    assert (one.status, one.stored[1].status) == ("failed", 502)
    assert one.payment.failure_code == "not_processed"
    assert one.released_keys == []


def test_no_call_leaves_later_than_a_deadline_after_its_step():
    """It was cut off after 9 s, since the process stood still: it left within the first six."""
    one = OnePayment()
    one.wait(9_000)
    one.hear(1, Unknown("timeout"))
    one.wait(1_000)
    one.look_up(1, NotFound())
    one.wait(5_999)
    one.look_up(1, NotFound())
    assert one.status == "unknown"
    one.wait(1)
    one.look_up(1, NotFound())
    assert one.status == "failed"


def test_a_new_engine_waits_for_the_lag_itself():
    """The clock may have been set while nobody watched: the time before proves nothing."""
    one = OnePayment()
    one.wait(6_000)
    one.hear(1, Unknown("timeout"))
    one.wait(1_000)
    one.look_up(1, NotFound())
    one.wait(7_200_000)
    one.since_ms = one.now_ms
    one.look_up(1, NotFound())
    one.wait(9_999)
    one.look_up(1, NotFound())
    assert one.status == "unknown"
    one.wait(1)
    one.look_up(1, NotFound())
    assert one.status == "failed"


def test_what_a_crash_cut_off_is_abandoned_and_its_key_is_free():
    one = OnePayment()
    one.wait(2_000)
    one.look_up(1, NotFound())
    assert (one.status, one.calls) == ("processing", ())
    one.wait(13_999)
    one.look_up(1, NotFound())
    assert one.status == "processing", "it may have waited in a queue for the whole deadline"
    one.wait(1)
    one.look_up(1, NotFound())
    assert (one.status, one.payment.failure_code) == ("failed", "abandoned")
    assert one.released_keys == ["key-1"]
    assert 1 not in one.stored


def test_the_first_look_up_after_a_long_outage_concludes_nothing():
    """It may have been sent just before the crash, long after its intent."""
    one = OnePayment()
    one.wait(3_600_000)
    one.look_up(1, NotFound())
    assert one.status == "processing"
    one.wait(9_999)
    one.look_up(1, NotFound())
    assert one.status == "processing"
    one.wait(1)
    one.look_up(1, NotFound())
    assert one.status == "failed"


def test_what_was_sent_by_a_clock_that_was_ahead_is_waited_for_from_now():
    """Put right by a month over a restart: nobody waits for a month."""
    one = OnePayment()
    one.wait(-30 * 86_400_000)
    one.since_ms = one.now_ms
    one.look_up(1, NotFound())
    assert one.status == "processing"
    one.wait(15_999)
    one.look_up(1, NotFound())
    assert one.status == "processing"
    one.wait(1)
    one.look_up(1, NotFound())
    assert (one.status, one.payment.failure_code) == ("failed", "abandoned")


def test_what_comes_back_of_a_capture_in_flight_still_expires():
    one = authorized()
    one.capture(400, final=False)
    one.capture(600, final=False)
    one.approve(2)
    one.hear(3, Failed("down"))
    assert one.payment.capturable == 600
    one.wait(7 * DAY_MS)
    assert one.expire()
    assert (one.status, one.held) == ("captured", 0)


def test_restarts_do_not_put_the_answer_off():
    """Each engine asks when it starts, and again when "not found" would count."""
    one = OnePayment()
    for _ in range(30):
        one.wait(3_000)
        one.since_ms = one.now_ms
        one.look_up(1, NotFound())
    assert one.op(1).next_check_ms == one.now_ms + 10_000


def test_a_call_that_broke_may_have_left_just_before():
    """Its step was taken at 0, it left at 5 s and broke at 5.1 s: it counts from there."""
    one = OnePayment()
    one.wait(5_100)
    one.hear(1, Unknown("reply_lost"))
    one.wait(1_000)
    one.look_up(1, NotFound())
    one.wait(8_999)
    one.look_up(1, NotFound())
    assert one.status == "unknown"
    one.wait(1)
    one.look_up(1, NotFound())
    assert one.status == "failed"


def test_not_found_says_nothing_of_what_came_after_the_asking():
    one = OnePayment()
    one.wait(6_000)
    one.hear(1, Unknown("timeout"))
    one.wait(1_000)
    one.look_up(1, NotFound())
    asked_ms = one.now_ms + 8_999
    one.wait(60_000)
    one.look_up(1, NotFound(asked_ms))
    assert (one.status, one.op(1).next_check_ms) == ("unknown", one.now_ms)
    one.look_up(1, NotFound(asked_ms + 1))
    assert one.status == "failed"
