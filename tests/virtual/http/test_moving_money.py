"""Authorize, purchase, capture, cancel and refund through the API."""

import pytest

from engine.domain.commands import Capture, Open, Refund
from engine.http.routes import ROUTES
from tests.virtual.http.world import ALICE, AUTHORIZE, LIVE, World, header, read

pytestmark = pytest.mark.trio


async def test_an_authorize_becomes_a_command_of_the_keys_merchant_and_mode() -> None:
    world = await World().start()
    answer = await world.send(
        "POST",
        "/v1/payments/authorize",
        {**AUTHORIZE, "reference": "r1", "metadata": {"a": "1"}},
        idempotency_key='"k1"',
    )
    assert answer.status == 201
    assert read(answer)["status"] == "authorized"
    assert read(answer)["currency"] == "USD"
    assert header(answer, "Location") == f"/v1/payments/{read(answer)['id']}"
    [ask] = world.asked
    assert ask.key == "k1"
    assert ask.payment_id is None
    assert ask.command == Open(
        merchant_id="m_alice",
        livemode=False,
        purchase=False,
        amount=1099,
        currency="USD",
        payment_method="pm_card_visa",
        gateway="simulator",
        reference="r1",
        metadata={"a": "1"},
    )


async def test_a_live_key_makes_live_payments() -> None:
    world = await World().start()
    answer = await world.send("POST", "/v1/payments/purchase", AUTHORIZE, key=LIVE)
    assert read(answer)["livemode"] is True
    command = world.asked[0].command
    assert isinstance(command, Open)
    assert command.purchase


async def test_a_capture_a_refund_and_a_cancel_go_to_the_payment() -> None:
    world = await World().start()
    opened = await world.send("POST", "/v1/payments/authorize", AUTHORIZE)
    path = f"/v1/payments/{read(opened)['id']}"
    captured = await world.send("POST", f"{path}/capture", {"amount": 600, "final": False})
    assert (captured.status, read(captured)["amount_captured"]) == (200, 600)
    canceled = await world.send("POST", f"{path}/cancel", {"reason": "out of stock"})
    assert (canceled.status, read(canceled)["amount_released"]) == (200, 499)
    refunded = await world.send("POST", f"{path}/refund", {"reason": "returned"})
    assert (refunded.status, read(refunded)["amount"]) == (201, 600)
    assert header(refunded, "Location") == f"/v1/refunds/{read(refunded)['id']}"
    assert isinstance(world.asked[1].command, Capture)
    assert isinstance(world.asked[3].command, Refund)


@pytest.mark.parametrize("body", [None, b"", {}])
async def test_a_body_of_options_may_be_left_out(body: object) -> None:
    world = await World().start()
    opened = await world.send("POST", "/v1/payments/authorize", AUTHORIZE)
    answer = await world.send("POST", f"/v1/payments/{read(opened)['id']}/capture", body)
    assert (answer.status, read(answer)["amount_captured"]) == (200, 1099)


@pytest.mark.parametrize(
    ("method", "status", "code"),
    [
        ("pm_card_declined", 402, "payment_declined"),
        ("pm_card_unreachable", 502, "gateway_failed"),
        ("pm_card_timeout_after_charge", 202, ""),
    ],
)
async def test_answers_of_the_engine_are_passed_on(method: str, status: int, code: str) -> None:
    world = await World().start()
    answer = await world.send(
        "POST", "/v1/payments/authorize", {**AUTHORIZE, "payment_method": method}
    )
    assert answer.status == status
    is_problem = answer.content_type == "application/problem+json"
    assert is_problem is (status >= 400)
    line = world.lines[-1]
    assert (line["status"], line["code"]) == (status, code)
    assert line["payment"].startswith("pay_")
    if status == 202:
        assert header(answer, "Retry-After") == "1"


async def test_a_replay_is_the_same_bytes_and_says_so() -> None:
    world = await World().start()
    first = await world.send("POST", "/v1/payments/purchase", AUTHORIZE, idempotency_key="k1")
    again = await world.send(
        "POST",
        "/v1/payments/purchase",
        b'{"payment_method":"pm_card_visa", "currency":"usd",\n "amount":1099, "metadata": {}}',
        idempotency_key='"k1"',
    )
    assert (again.status, again.body) == (first.status, first.body)
    assert header(first, "Idempotent-Replayed") is None
    assert header(again, "Idempotent-Replayed") == "true"
    assert world.lines[-1]["replayed"] is True


@pytest.mark.parametrize(
    ("path", "changed"),
    [
        ("/v1/payments/purchase", {"amount": 1100}),
        ("/v1/payments/authorize", {}),
        ("/v1/payments/purchase", {"metadata": {"a": "1"}}),
    ],
)
async def test_another_request_under_a_used_key_is_refused(
    path: str, changed: dict[str, object]
) -> None:
    world = await World().start()
    await world.send("POST", "/v1/payments/purchase", AUTHORIZE, idempotency_key="k1")
    answer = await world.send("POST", path, {**AUTHORIZE, **changed}, idempotency_key="k1")
    assert (answer.status, read(answer)["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize(
    ("changed", "status", "code"),
    [
        ({"amount": 0}, 422, "amount_invalid"),
        ({"amount": 10**12}, 422, "amount_too_large"),
        ({"amount": 1.0}, 400, "wrong_type"),
        ({"currency": "XXX"}, 422, "currency_unsupported"),
        ({"payment_method": "pm_nobody"}, 422, "payment_method_unknown"),
        ({"gateway": "stripe"}, 422, "gateway_unknown"),
        ({"customer": "bob"}, 422, "parameter_invalid"),
        ({"return_url": "javascript:1"}, 422, "parameter_invalid"),
        ({"payment_method": "4242424242424242"}, 422, "pan_not_allowed"),
        ({"sum": 1}, 400, "unknown_field"),
    ],
)
async def test_a_refused_value_reaches_no_actor(
    changed: dict[str, object], status: int, code: str
) -> None:
    world = await World().start()
    answer = await world.send("POST", "/v1/payments/authorize", {**AUTHORIZE, **changed})
    assert (answer.status, read(answer)["code"]) == (status, code)
    assert not world.asked
    assert world.lines[-1]["code"] == code


@pytest.mark.parametrize(
    ("command", "body", "code"),
    [
        ("capture", {"amount": 1100}, "amount_exceeds_capturable"),
        ("capture", {"amount": 0}, "amount_invalid"),
        ("refund", {}, "invalid_state_transition"),
        ("refund", {"metadata": {"n": "4242424242424242"}}, "pan_not_allowed"),
        ("cancel", {"reason": "4242424242424242"}, "pan_not_allowed"),
        ("cancel", {"reason": "x" * 501}, "parameter_invalid"),
    ],
)
async def test_what_a_payment_cannot_do_is_refused(
    command: str, body: dict[str, object], code: str
) -> None:
    world = await World().start()
    opened = await world.send("POST", "/v1/payments/authorize", AUTHORIZE)
    answer = await world.send("POST", f"/v1/payments/{read(opened)['id']}/{command}", body)
    assert read(answer)["code"] == code


MONEY = [route for route in ROUTES if route.key == "required"]


@pytest.mark.parametrize("route", MONEY, ids=lambda route: route.name)
async def test_money_moves_only_with_an_idempotency_key(route) -> None:
    world = await World().start()
    path = route.template.replace("{id}", await world.paid())
    world.asked.clear()
    body = dict(route.example)
    missing = await world.send("POST", path, body, idempotency_key=None)
    assert (missing.status, read(missing)["code"]) == (400, "idempotency_key_missing")
    invalid = await world.send("POST", path, body, idempotency_key="two words")
    assert (invalid.status, read(invalid)["code"]) == (400, "idempotency_key_invalid")
    assert not world.asked


@pytest.mark.parametrize("route", MONEY, ids=lambda route: route.name)
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "malformed_json"),
        (b"[]", "wrong_type"),
        (b'{"amount": 1, "amount": 1}', "duplicate_key"),
        (b'{"reason": "\\u0000"}', "nul_not_allowed"),
        (b"[" * 40, "depth_exceeded"),
        (b'{"\xff": 1}', "bad_utf8"),
    ],
)
async def test_a_malformed_body_is_a_400_everywhere(route, body: bytes, code: str) -> None:
    world = await World().start()
    path = route.template.replace("{id}", "pay_06dqdpn80m09xq7w3ntk2vzr")
    answer = await world.send("POST", path, body)
    assert answer.status == 400
    # Where the name is not a field there, or others are missing, that is just as true.
    assert read(answer)["code"] in (code, "unknown_field", "field_missing")
    assert not world.asked


@pytest.mark.parametrize("payment_id", ["pay_1", "4242424242424242", "re_06dqdpn80m09xq7w3ntk2vzr"])
async def test_what_is_no_payment_id_is_404_and_not_repeated(payment_id: str) -> None:
    world = await World().start()
    for command in ("capture", "cancel", "refund"):
        answer = await world.send("POST", f"/v1/payments/{payment_id}/{command}", {})
        assert (answer.status, read(answer)["code"]) == (404, "payment_not_found")
        assert b"4242424242424242" not in answer.body
    assert not world.asked


async def test_the_examples_of_the_document_work() -> None:
    world = await World().start()
    for route in ROUTES:
        if route.name in ("authorizePayment", "purchasePayment"):
            answer = await world.send("POST", route.template, dict(route.example or {}))
            assert answer.status == 201
    payment_id = read(await world.send("GET", "/v1/payments"))["data"][0]["id"]
    refund = next(route for route in ROUTES if route.name == "refundPayment")
    answer = await world.send(
        "POST", f"/v1/payments/{payment_id}/refund", dict(refund.example or {})
    )
    assert answer.status == 201


async def test_a_ledger_that_does_not_answer_is_503() -> None:
    world = await World().start()
    world.ledger.faults.down = True
    answer = await world.send("POST", "/v1/payments/purchase", AUTHORIZE)
    assert (answer.status, read(answer)["code"]) == (503, "ledger_unavailable")
    assert read(answer)["retryable"] is True
    assert header(answer, "Retry-After") == "1"


async def test_a_failure_nobody_foresaw_is_logged_and_left_to_the_shell() -> None:
    class Broken:
        async def ask(self, ask: object) -> None:
            raise RuntimeError("a bug")

    world = World(front=Broken())
    with pytest.raises(RuntimeError, match="a bug"):
        await world.send("POST", "/v1/payments/purchase", AUTHORIZE)
    assert (world.lines[-1]["status"], world.lines[-1]["code"]) == (500, "internal_error")


async def test_one_line_is_logged_for_each_request_and_holds_no_body() -> None:
    world = await World().start()
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    await world.send(
        "POST",
        "/v1/payments/purchase",
        {**AUTHORIZE, "description": "a secret wish"},
        headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"},
    )
    [line] = world.lines
    assert line["route"] == "/v1/payments/purchase"
    assert line["merchant"] == "m_alice"
    assert line["trace_id"] == trace
    assert line["took_s"] > 0
    assert "secret wish" not in str(line)
    assert ALICE not in str(line)
