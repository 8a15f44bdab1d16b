"""What one step writes: one entry with the answer, the events, the timers and the work queue."""

import msgspec

from engine.domain.document import to_document
from engine.domain.entry import Claim, InboxRef, KeyRef
from engine.domain.news import Declined, Failed, NotFound, StillPending, Unknown
from engine.domain.recording import record
from engine.domain.representation import payment_bytes, refund_bytes
from tests.pure.domain.one_payment import OnePayment

REF = KeyRef("m_a", False, "key-1")


def steps_of(one):
    return [step.step for step in one.entry.timeline]


def test_the_claim_and_the_webhook_go_with_the_step():
    one = OnePayment()
    claim = Claim(REF, b"f", 1)
    inbox = InboxRef("simulator", "evt", "applied")
    entry = record(one.step, one.env(), claim, inbox).entry
    assert (entry.claim, entry.inbox_done) == (claim, inbox)
    assert entry.answers == ()


def test_the_final_answer_is_stored_with_the_outcome_under_its_key():
    one = OnePayment()
    one.approve(1)
    (stored,) = one.entry.answers
    assert stored.ref == REF
    assert stored.answer == one.answers[1]
    assert stored.answer.body == payment_bytes(one.payment)


def test_the_document_is_made_where_nothing_more_is_under_way():
    one = OnePayment()
    assert one.entry.document is None
    one.hear(1, Unknown("timeout"))
    assert one.entry.document is None
    one.approve(1, via="look_up")
    assert one.entry.document == to_document(one.payment)
    assert one.entry.payment == one.payment


def test_an_unknown_outcome_is_answered_and_not_stored():
    one = OnePayment()
    one.hear(1, Unknown("timeout"))
    assert (one.answers[1].status, one.answers[1].final) == (202, False)
    assert one.entry.answers == ()


def test_a_look_up_that_finds_nothing_new_answers_nobody():
    one = OnePayment()
    one.hear(1, Unknown("timeout"))
    assert steps_of(one)[-1] == "answered"
    for nothing_new in (NotFound(), Unknown("timeout"), NotFound()):
        one.wait(1_000)
        assert one.look_up(1, nothing_new)
        assert (one.answers, steps_of(one)) == ({}, ["looked_up"])
    one.approve(1, via="look_up")
    assert (one.answers[1].status, steps_of(one)) == (201, ["looked_up", "answered"])


def test_a_cancel_that_waits_is_answered_when_it_is_noted_and_when_it_is_done():
    one = OnePayment()
    one.hear(1, Unknown("timeout"))
    one.cancel()
    assert one.answers[2].status == 202
    one.look_up(1, Unknown("timeout"))
    assert one.answers == {}
    one.approve(1, via="look_up")
    assert list(one.answers) == [1], "it is sent now, and has no outcome yet"
    one.approve(2)
    assert one.answers[2].status == 200


def test_an_answer_is_never_written_twice():
    one = OnePayment()
    one.hear(1, StillPending("ch"))
    assert one.entry.answers[0].answer.status == 201
    one.approve(1, via="look_up")
    assert (one.status, one.entry.answers) == ("authorized", ())


def test_a_decline_tells_its_code_its_advice_and_the_payment():
    one = OnePayment()
    one.hear(1, Declined("expired_card", "confirm_card_data"))
    problem = msgspec.json.decode(one.answers[1].body)
    assert (problem["code"], problem["decline_code"], problem["advice"]) == (
        "payment_declined",
        "expired_card",
        "confirm_card_data",
    )
    assert (problem["request_id"], problem["instance"]) == ("req_1", "/p")
    assert problem["payment"]["status"] == "declined"
    assert not problem["retryable"]


def test_events_of_a_refund_carry_the_refund_and_what_it_was():
    one = OnePayment(purchase=True)
    one.approve(1)
    one.refund(400)
    created = msgspec.json.decode(one.entry.events[0].body)
    assert created["data"]["previous_attributes"] == {}
    one.hear(2, Unknown("timeout"))
    unknown = msgspec.json.decode(one.entry.events[0].body)
    assert (unknown["type"], unknown["data"]["object"]["status"]) == ("refund.unknown", "unknown")
    assert unknown["data"]["previous_attributes"] == {"status": "pending"}
    one.approve(2, via="look_up")
    done = msgspec.json.decode(one.entry.events[0].body)
    assert done["data"]["previous_attributes"] == {"status": "unknown"}
    assert [event["sequence"] for event in (created, unknown, done)] == [1, 2, 3]
    (row,) = one.entry.refunds
    assert (row.status, row.body) == ("succeeded", refund_bytes(one.payment, one.op(2)))


def test_timers_are_set_and_cleared_as_exact_rows():
    one = OnePayment()
    assert one.timers == {}
    one.hear(1, Unknown("timeout"))
    assert list(one.timers) == ["look_up"]
    one.approve(1, via="look_up")
    assert list(one.timers) == ["expire"]
    assert [row.kind for row in one.entry.timers_cleared] == ["look_up"]
    one.capture()
    one.approve(2)
    assert one.timers == {}


def test_the_timeline_tells_the_story_in_order():
    one = OnePayment()
    assert steps_of(one) == ["requested", "intent"]
    one.hear(1, Unknown("timeout"))
    assert steps_of(one) == ["gateway_replied", "answered"]
    one.hear(1, Failed("x"), "webhook")
    assert steps_of(one) == ["webhook_received", "answered"]


def test_work_of_the_engines_own_answers_nobody():
    one = OnePayment(purchase=True)
    one.hear(1, Failed("down"))
    one.approve(1, via="webhook")
    one.approve(2)
    assert "answered" not in steps_of(one)
    assert one.entry.answers == ()


def test_what_only_a_person_can_decide_is_a_dead_letter_in_the_same_commit():
    one = OnePayment(purchase=True)
    one.approve(1)
    one.hear(1, Failed("x"), "webhook")
    letter = one.entry.dead_letter
    assert (letter.kind, letter.subject) == ("payment_review", one.payment.id)
    assert letter.reason == "failed_technical was reported after the purchase had succeeded"
