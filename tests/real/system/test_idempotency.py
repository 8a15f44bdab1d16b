"""One key, one effect, one answer: at once, again, with something else, and after a crash."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.real.system.agreement import effects_by_operation
from tests.real.system.client import Answer, Client, client_of, new_key, order
from tests.real.system.process import EngineProcess, engine_folder

pytestmark = pytest.mark.anyio
AUTHORIZE = "/v1/payments/authorize"


def assert_same(answers: list[Answer]) -> None:
    assert len({(answer.status, answer.body) for answer in answers}) == 1, answers[:2]


async def test_fifty_requests_with_one_key_make_one_payment_and_equal_answers(
    engine: EngineProcess,
) -> None:
    async with client_of(engine) as client:
        reference, key = new_key("order"), new_key()
        answers = await asyncio.gather(
            *(client.authorize(key=key, reference=reference) for _ in range(50))
        )
        assert_same(answers)
        assert answers[0].status == 201
        assert sum(not answer.is_replayed for answer in answers) == 1
        assert len({answer.headers["Request-Id"] for answer in answers}) == 50
        found = await client.list_all(f"/v1/payments?reference={reference}")
        assert [payment["id"] for payment in found] == [answers[0].json["id"]]
    assert f"{found[0]['id']}.1" in effects_by_operation(engine)


async def test_of_two_refunds_of_60_out_of_100_one_is_refused(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        payment = (await client.purchase(100)).json["id"]
        answers = await asyncio.gather(
            *(client.command(payment, "refund", {"amount": 60}) for _ in range(2))
        )
        won, lost = sorted(answers, key=lambda answer: answer.status)
        assert won.status == 201
        lost.assert_problem(422, "amount_exceeds_refundable")
        assert lost.json["payment"]["id"] == payment
        assert (await client.payment(payment))["amount_refunded"] == 60


@pytest.mark.parametrize("command", ["capture", "refund", "cancel"])
async def test_many_commands_at_once_keep_the_bounds(engine: EngineProcess, command: str) -> None:
    body = None if command == "cancel" else {"amount": 30}
    if command == "capture":
        body = {"amount": 30, "final": False}
    async with client_of(engine) as client:
        opened = await (client.purchase(100) if command == "refund" else client.authorize(100))
        payment = opened.json["id"]
        answers = await asyncio.gather(*(client.command(payment, command, body) for _ in range(12)))
        assert {answer.status for answer in answers} <= {200, 201, 409, 422}, answers
        done = [answer for answer in answers if answer.status < 300]
        assert len(done) == (1 if command == "cancel" else 3), answers
        now = await client.payment(payment)
        assert now["amount_captured"] + now["amount_released"] <= 100
        assert now["amount_refunded"] <= now["amount_captured"]
        assert 30 * len(done) in (now["amount_captured"], now["amount_refunded"], 30)


async def test_final_answers_are_replayed_byte_for_byte(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        for send in requests_with_final_answers(await captured(client)):
            key = new_key()
            first = await client.post(*send, key=key)
            again = await client.post(*send, key=key)
            assert_same([first, again])
            assert (first.is_replayed, again.is_replayed) == (False, True), again
            assert first.headers["Request-Id"] != again.headers["Request-Id"]
            assert first.headers.get("Location") == again.headers.get("Location")


async def captured(client: Client) -> str:
    return str((await client.purchase(500)).json["id"])


def requests_with_final_answers(payment: str) -> list[tuple[str, Any]]:
    """201, 402, 502, and a business refusal of either kind."""
    return [
        (AUTHORIZE, order(700, "pm_card_visa")),
        (AUTHORIZE, order(700, "pm_card_declined")),
        (AUTHORIZE, order(700, "pm_card_unreachable")),
        (f"/v1/payments/{payment}/refund", {"amount": 20}),
        (f"/v1/payments/{payment}/refund", {"amount": 100_000}),
        (f"/v1/payments/{payment}/capture", {}),
    ]


async def test_equal_requests_are_equal_however_they_are_written(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        key = new_key()
        first = await client.post(AUTHORIZE, order(10, "pm_card_visa"), key=key)
        other = b' {"payment_method":"pm_card_visa",\n"currency":"USD", "amount":10, "metadata":{}}'
        again = await client.post(AUTHORIZE, other, key=f'"{key}"')
        assert_same([first, again])
        assert again.is_replayed


async def test_key_of_another_request_is_refused_also_across_endpoints(
    engine: EngineProcess,
) -> None:
    async with client_of(engine) as client:
        key = new_key()
        first = await client.authorize(100, key=key)
        payment = first.json["id"]
        others = [
            client.authorize(101, key=key),
            client.purchase(100, key=key),
            client.command(payment, "capture", key=key),
            client.command(payment, "cancel", key=key),
            client.command(payment, "refund", key=key),
        ]
        for answer in await asyncio.gather(*others):
            answer.assert_problem(422, "idempotency_key_reused")
        assert await client.payment(payment) == first.json


async def test_two_requests_that_race_for_one_key_do_not_both_happen(
    engine: EngineProcess,
) -> None:
    async with client_of(engine) as client:
        payments = [(await client.authorize(100)).json["id"] for _ in range(8)]
        key = new_key()
        answers = await asyncio.gather(
            *(client.command(payment, "capture", key=key) for payment in payments)
        )
        assert [answer.status for answer in answers].count(200) == 1, answers
        for answer in answers:
            if answer.status != 200:
                answer.assert_problem(422, "idempotency_key_reused")
        now = [await client.payment(payment) for payment in payments]
        assert [payment["status"] for payment in now].count("captured") == 1


async def test_refusal_of_the_shape_leaves_the_key_free(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        key = new_key()
        for body in (b"{", {"amount": 1.5}, order(0, "pm_card_visa"), order(5, "pm_card_nobody")):
            answer = await client.post(AUTHORIZE, body, key=key)
            assert answer.status in (400, 422), answer
        assert (await client.authorize(5, key=key)).status == 201


async def test_answers_survive_kill_and_restart_byte_for_byte(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        sent = [(*send, new_key()) for send in requests_with_final_answers(await captured(client))]
        before = [await client.post(path, body, key=key) for path, body, key in sent]
        engine.kill()
        engine.restart()
        for (path, body, key), first in zip(sent, before, strict=True):
            again = await client.post(path, body, key=key)
            assert_same([first, again])
            assert again.is_replayed, again
            other = await client.post(path, {**body, "metadata": {"a": "b"}}, key=key)
            if "capture" in path:
                other.assert_problem(400, "unknown_field")
            else:
                other.assert_problem(422, "idempotency_key_reused")


async def test_key_of_a_request_that_outlasts_the_wait_tells_the_state_of_now() -> None:
    with engine_folder({"ENGINE_WAIT_MS": "300"}) as impatient:
        async with client_of(impatient.start()) as client:
            key = new_key()
            first = await client.authorize(100, "pm_card_slow", key=key)
            assert (first.status, first.json["status"]) == (202, "processing"), first
            assert first.headers["Location"] == f"/v1/payments/{first.json['id']}"
            assert int(first.headers["Retry-After"]) >= 1
            again = await client.authorize(100, "pm_card_slow", key=key)
            assert again.status in (202, 409), again
            if again.status == 409:
                again.assert_problem(409, "idempotency_in_progress")
                assert int(again.headers["Retry-After"]) >= 1
            body = order(100, "pm_card_slow")
            final = await client.until_final(AUTHORIZE, body, key)
            assert (final.status, final.json["status"]) == (201, "authorized")
            assert final.json["id"] == first.json["id"]
