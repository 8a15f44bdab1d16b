"""While an outcome is unknown: what is refused, what is kept for later, and what is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.real.system.agreement import assert_books_agree, effects_by_operation
from tests.real.system.client import Client, client_of, new_key
from tests.real.system.process import EngineProcess, engine_folder

pytestmark = pytest.mark.anyio
UNKNOWN = "pm_card_5xx_after_charge"
"""Unknown at once, and for the second until its first look-up."""


@pytest.fixture(scope="module")
def faulty_engine() -> Iterator[EngineProcess]:
    """Authorises every card at once; the card's fault meets what comes after."""
    with engine_folder(module="tests.real.system.faults_after_authorizing") as made:
        yield made.start()


async def unknown_authorization(client: Client, method: str = UNKNOWN) -> dict[str, Any]:
    answer = await client.authorize(1_000, method)
    assert (answer.status, answer.json["status"]) == (202, "unknown"), answer
    return dict(answer.json)


async def test_client_that_goes_away_stops_nothing(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        reference = new_key("order")
        asked = asyncio.create_task(client.authorize(1_000, "pm_card_slow", reference=reference))
        listed: list[Any] = []
        while not listed:
            listed = await client.list_all(f"/v1/payments?reference={reference}")
        asked.cancel()
        assert listed[0]["status"] == "processing"
        assert (listed[0]["amount_capturable"], listed[0]["amount_authorized"]) == (0, 0)
        now = await client.wait_payment(
            listed[0]["id"], lambda now: now["status"] != "processing", 10
        )
        assert (now["status"], now["amount_capturable"]) == ("authorized", 1_000)


async def test_unknown_outcome_is_shown_with_its_next_look_up(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        answer = await unknown_authorization(client)
        now = await client.payment(answer["id"])
        assert now == answer
        assert now["next_check_at"] == now["operations"][0]["next_check_at"] is not None
        assert (now["amount_capturable"], now["operations"][0]["status"]) == (0, "unknown")
        done = await client.wait_payment(answer["id"], lambda now: now["status"] == "authorized")
        assert (done["next_check_at"], done["amount_capturable"]) == (None, 1_000)
        steps = (await client.get(f"/v1/payments/{answer['id']}/timeline")).json["data"]
        told = [step["step"] for step in steps]
        assert told[-4:] == ["gateway_replied", "answered", "looked_up", "answered"], told


async def test_capture_and_refund_wait_for_an_unknown_authorisation(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        payment = (await unknown_authorization(client))["id"]
        key = new_key()
        for command in ("refund", "capture"):
            answer = await client.command(payment, command, key=key)
            answer.assert_problem(409, "operation_unresolved")
            assert answer.json["retryable"] is True
            assert int(answer.headers["Retry-After"]) >= 1
            assert answer.json["payment"]["id"] == payment
        await client.wait_payment(payment, lambda now: now["status"] == "authorized")
        done = await client.command(payment, "capture", key=key)
        assert (done.status, done.json["status"], done.is_replayed) == (200, "captured", False)


@pytest.mark.parametrize(
    "method",
    [UNKNOWN, pytest.param("pm_card_timeout_before_charge", marks=pytest.mark.campaign)],
)
async def test_cancel_of_an_unknown_authorisation_is_carried_out_when_it_is_known(
    engine: EngineProcess, method: str
) -> None:
    async with client_of(engine) as client:
        payment = (await unknown_authorization(client, method))["id"]
        key = new_key()
        asked = await client.command(payment, "cancel", {"reason": "sold out"}, key=key)
        assert (asked.status, asked.json["status"]) == (202, "unknown"), asked
        assert asked.json["cancel_requested"] is True
        assert asked.headers["Location"] == f"/v1/payments/{payment}"
        assert int(asked.headers["Retry-After"]) >= 1
        other = await client.command(payment, "cancel")
        other.assert_problem(409, "operation_unresolved")

        ends = "canceled" if method == UNKNOWN else "failed"
        now = await client.wait_payment(payment, lambda now: now["status"] == ends)
        assert now["amount_capturable"] == 0
        final = await client.until_final(
            f"/v1/payments/{payment}/cancel", {"reason": "sold out"}, key, 5
        )
        again = await client.command(payment, "cancel", {"reason": "sold out"}, key=key)
        assert (again.status, again.body, again.is_replayed) == (final.status, final.body, True)
        if method == UNKNOWN:
            assert (final.status, final.json["status"]) == (200, "canceled"), final
            assert now["amount_released"] == 1_000
            void = effects_by_operation(engine)[f"{payment}.2"]
            assert (void.action, void.outcome) == ("void", "done")
        else:
            assert final.status == 200 or final.code is not None, final
            assert final.status < 500, final


async def test_purchase_canceled_while_unknown_is_given_back(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        payment = (await client.purchase(1_000, UNKNOWN)).json["id"]
        asked = await client.command(payment, "cancel")
        assert (asked.status, asked.json["cancel_requested"]) == (202, True)
        now = await client.wait_payment(payment, lambda now: now["amount_refunded"] == 1_000)
        assert (now["status"], now["refund_status"]) == ("captured", "full")


async def test_unknown_capture_and_refund_reserve_their_amounts(
    faulty_engine: EngineProcess,
) -> None:
    async with client_of(faulty_engine) as client:
        payment = (await client.authorize(1_000, UNKNOWN)).json["id"]
        key, body = new_key(), {"amount": 600, "final": False}
        asked = await client.command(payment, "capture", body, key=key)
        assert (asked.status, asked.json["status"]) == (202, "authorized"), asked
        assert (asked.json["amount_capturable"], asked.json["amount_captured"]) == (400, 0)
        assert asked.json["operations"][1]["status"] == "unknown"
        (await client.command(payment, "capture", {"amount": 401})).assert_problem(
            422, "amount_exceeds_capturable"
        )
        (await client.command(payment, "refund")).assert_problem(409, "operation_unresolved")
        (await client.command(payment, "cancel")).assert_problem(409, "operation_unresolved")
        now = await client.wait_payment(payment, lambda now: now["amount_captured"] == 600)
        assert now["status"] == "partially_captured"
        final = await client.command(payment, "capture", body, key=key)
        assert (final.status, final.json["amount_captured"]) == (200, 600)

        key = new_key()
        refund = await client.command(payment, "refund", {"amount": 250}, key=key)
        assert (refund.status, refund.json["status"]) == (202, "unknown"), refund
        assert refund.headers["Location"] == f"/v1/refunds/{refund.json['id']}"
        now = await client.payment(payment)
        assert (now["amount_refundable"], now["amount_refunded"]) == (350, 0)
        (await client.command(payment, "refund", {"amount": 351})).assert_problem(
            422, "amount_exceeds_refundable"
        )
        now = await client.wait_payment(payment, lambda now: now["amount_refunded"] == 250)
        assert (now["amount_refundable"], now["refund_status"]) == (350, "partial")
        final = await client.command(payment, "refund", {"amount": 250}, key=key)
        assert (final.status, final.json["status"]) == (201, "succeeded")
        assert final.json["id"] == refund.json["id"]
        read = await client.get(f"/v1/refunds/{refund.json['id']}")
        assert read.body == final.body

        rest = await client.command(payment, "cancel")
        assert (rest.status, rest.json["amount_capturable"]) == (202, 0), rest
        now = await client.wait_payment(payment, lambda now: now["amount_released"] == 400)
        assert now["status"] == "captured"
        await assert_books_agree(client)
