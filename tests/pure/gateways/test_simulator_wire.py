"""The two pure functions of the remote adapter: what is sent, and what an answer means."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.news import (
    ActionRequired,
    Approved,
    Declined,
    Expired,
    Failed,
    GatewayCall,
    NextAction,
    NotFound,
    StillPending,
    Unknown,
)
from engine.gateways.http_client import Lost, NotSent, Response
from engine.gateways.simulator_wire import build, completion_page, parse, read_request, write_reply

CALL = GatewayCall(
    gateway="simulator",
    op_id="pay_1.1",
    key="op_1",
    action="purchase",
    amount=1_000,
    currency="USD",
    payment_method="pm_card_visa",
    livemode=False,
)
LOOK_UP = msgspec.structs.replace(CALL, look_up=True)
APPROVED = Approved(1_000, "USD", "ch_op_1")


def answer(result, call=CALL, status=None):
    right_status, body = write_reply(call, result)
    return Response(status or right_status, {}, body)


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        msgspec.structs.replace(
            CALL, action="capture", final=False, target="ch_op_1", target_key="op_0", reference="r"
        ),
    ],
)
def test_a_call_arrives_as_it_was_made(call):
    request = build("http://sim.test", call)
    assert (request.method, request.url) == ("POST", "http://sim.test/v1/operations")
    assert read_request(request.headers["idempotency-key"], request.body) == call


def test_a_look_up_names_key_action_and_mode():
    call = msgspec.structs.replace(LOOK_UP, key="a key/with?all", livemode=True)
    request = build("http://sim.test", call)
    assert request.method == "GET"
    assert request.url == (
        "http://sim.test/v1/operations/a%20key%2Fwith%3Fall?action=purchase&livemode=true"
    )


def test_the_unreachable_method_dials_where_nobody_listens():
    call = msgspec.structs.replace(CALL, payment_method="pm_card_unreachable")
    assert build("http://sim.test", call).url.startswith("http://127.0.0.1:1/")
    look_up = msgspec.structs.replace(call, look_up=True)
    assert build("http://sim.test", look_up).url.startswith("http://sim.test/")


@pytest.mark.parametrize(
    "result",
    [
        APPROVED,
        Declined("do_not_honor", "try_again_later", "ch_op_1"),
        ActionRequired("ch_op_1", NextAction("redirect", "http://sim.test/"), 1),
        StillPending("ch_op_1"),
        Expired(),
        Failed("charge_not_found"),
    ],
)
def test_what_is_said_outright_is_believed(result):
    assert parse(CALL, answer(result)) == result
    assert parse(LOOK_UP, answer(result, LOOK_UP)) == result


def test_not_found_answers_only_a_look_up():
    assert parse(LOOK_UP, answer(NotFound(), LOOK_UP)) == NotFound()
    assert isinstance(parse(CALL, answer(NotFound())), Unknown)


def test_a_look_up_may_tell_of_another_amount():
    other = Approved(1_001, "USD", "ch_op_1")
    assert parse(CALL, answer(other)) == Unknown("wrong_amount")
    assert parse(LOOK_UP, answer(other, LOOK_UP)) == other


def test_what_was_never_sent_is_definite_for_a_request_and_nothing_for_a_look_up():
    refused = NotSent("ClientConnectorError")
    assert parse(CALL, refused) == Failed("gateway_unreachable", sent=False)
    assert isinstance(parse(LOOK_UP, refused), Unknown)


@pytest.mark.parametrize(
    "response",
    [
        Lost("ServerDisconnectedError"),
        answer(APPROVED, status=500),
        answer(APPROVED, status=402),
        answer(APPROVED, status=404),
        answer(Declined("x", "y"), status=200),
        answer(Failed("x"), status=404),
        answer(APPROVED, msgspec.structs.replace(CALL, key="op_2")),
        answer(APPROVED, msgspec.structs.replace(CALL, action="refund")),
        answer(APPROVED, msgspec.structs.replace(CALL, livemode=True)),
        answer(Approved(1_000, "EUR", "ch_op_1")),
        Response(404, {}, b"<html>not found</html>"),
        Response(404, {}, b""),
        Response(200, {}, b"[" * 60_000),
        Response(200, {}, b'{"key":"op_1","action":"purchase","livemode":false,'
                 b'"result":{"type":"unknown","reason":"x"}}'),
        Response(200, {}, b'{"key":"op_1","action":"purchase","livemode":false,'
                 b'"result":{"type":"approved","amount":1000.0,"currency":"USD"}}'),
    ],
)  # fmt: skip
def test_everything_else_is_unknown(response):
    assert isinstance(parse(CALL, response), Unknown)


@given(cut=st.integers(0, 200))
def test_a_truncated_answer_is_unknown(cut):
    whole = answer(APPROVED)
    if cut < len(whole.body):
        assert isinstance(parse(CALL, Response(200, {}, whole.body[:cut])), Unknown)


@given(status=st.integers(100, 599), body=st.binary(max_size=60))
def test_noise_is_unknown(status, body):
    assert isinstance(parse(CALL, Response(status, {}, body)), Unknown)


@pytest.mark.parametrize(
    ("key", "raw"),
    [
        ("", build("", CALL).body),
        ("k" * 256, build("", CALL).body),
        ("op_1", b"{}"),
        ("op_1", b"\xff"),
        ("op_1", build("", CALL).body[:-1] + b',"surprise":1}'),
        ("op_1", build("", msgspec.structs.replace(CALL, amount=0)).body),
    ],
)
def test_requests_that_make_no_sense_are_refused(key, raw):
    assert isinstance(read_request(key, raw), str)


def test_the_page_shows_a_reference_as_text():
    page = completion_page("<script>")
    assert "<script>" not in page
    assert "?outcome=approved" in page
