"""Every payment method of the simulator ends as the contract's table says, charged once.

All run at once on one engine, so that the whole table takes as long as its slowest row. What
settles after a minute is left to a virtual clock, and to the campaign.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from engine.gateways.simulator_methods import METHODS
from tests.real.system.agreement import assert_books_agree, effects_by_operation
from tests.real.system.client import Answer, Client, client_of, new_key, order
from tests.real.system.process import EngineProcess

pytestmark = pytest.mark.anyio


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What is answered first, and how it ends; `charged` is what the simulator's books say."""

    status: int = 201
    first: str = "done"
    code: str | None = None
    ends: str = "done"
    charged: bool = True


def declined(code: str) -> Row:
    return Row(status=402, first="declined", code=code, ends="declined", charged=False)


UNKNOWN_THEN_DONE = Row(status=202, first="unknown")

TABLE = {
    "pm_card_visa": Row(),
    "pm_card_mastercard": Row(),
    "pm_card_declined": declined("do_not_honor"),
    "pm_card_declined_insufficient_funds": declined("insufficient_funds"),
    "pm_card_declined_expired": declined("expired_card"),
    "pm_card_declined_fraud": declined("fraud_suspected"),
    "pm_card_insufficient_funds": declined("insufficient_funds"),
    "pm_card_expired": declined("expired_card"),
    "pm_card_fraud": declined("fraud_suspected"),
    "pm_card_timeout_after_charge": UNKNOWN_THEN_DONE,
    "pm_card_5xx_after_charge": UNKNOWN_THEN_DONE,
    "pm_card_garbage_reply": UNKNOWN_THEN_DONE,
    "pm_card_timeout_before_charge": Row(status=202, first="unknown", ends="failed", charged=False),
    "pm_card_unreachable": Row(status=502, first="failed", ends="failed", charged=False),
    "pm_card_settles_late": UNKNOWN_THEN_DONE,
    "pm_card_wrong_amount": UNKNOWN_THEN_DONE,
    "pm_card_slow": Row(),
    "pm_card_webhook_twice": Row(),
    "pm_card_webhook_early": Row(),
    "pm_card_webhook_lost": Row(first="pending"),
    "pm_card_refund_fails": Row(),
    "pm_card_refund_fails_late": Row(),
    "pm_card_dispute": Row(),
}
# These have a test each: a customer must act, a minute must pass, or the order counts.
ELSEWHERE = {"pm_card_3ds", "pm_card_pending", "pm_card_decline_on_renewal"}
DONE = {"authorize": "authorized", "purchase": "captured"}


def test_table_has_every_payment_method() -> None:
    assert TABLE.keys() | ELSEWHERE == METHODS.keys()


def named(word: str, kind: str) -> str:
    return DONE[kind] if word == "done" else word


async def test_every_card_ends_as_its_row_says_and_is_charged_once(
    engine: EngineProcess,
) -> None:
    async with client_of(engine) as client:
        cases = [(method, kind) for method in TABLE for kind in DONE]
        results = await asyncio.gather(*(run(client, *case) for case in cases))
        assert [wrong for wrong in results if wrong] == []
        await assert_books_agree(client)
        events = await client.list_all("/v1/events")
        told = [(event["object_id"], event["sequence"]) for event in events]
        assert len(set(told)) == len(told), "an event was published twice"


async def run(client: Client, method: str, kind: str) -> str | None:
    """One row; returns what is wrong with it."""
    row = TABLE[method]
    path, body, key = f"/v1/payments/{kind}", order(1_000, method), new_key(method)
    answer = await client.post(path, body, key=key)
    payment = answer.json["payment"] if answer.code else answer.json
    told = (answer.status, payment["status"], payment["decline_code"])
    if told != (row.status, named(row.first, kind), row.code):
        return f"{method} {kind}: answered {answer}"
    trouble = details(row, answer)
    if trouble:
        return f"{method} {kind}: {trouble}: {answer}"
    allowed = {"processing", named(row.first, kind), named(row.ends, kind)}
    seen: list[Any] = [payment]
    while seen[-1]["status"] != named(row.ends, kind):
        seen.append(await client.payment(payment["id"]))
        if seen[-1]["status"] not in allowed or len(seen) > 400:
            return f"{method} {kind}: is {seen[-1]['status']}"
        await asyncio.sleep(0.1)
    effect = effects_by_operation(client.engine).get(f"{payment['id']}.1")
    if row.charged != (effect is not None and effect.outcome in ("done", "pending")):
        return f"{method} {kind}: books say {effect}"
    return await replay(client, path, body, key, answer, row)


def details(row: Row, answer: Answer) -> str | None:
    document = answer.json
    if row.status == 402:
        agrees = document["decline_code"] == row.code and document["advice"]
        return None if agrees and answer.code == "payment_declined" else "code or advice"
    if row.status == 502:
        return None if answer.code == "gateway_failed" else "code"
    if row.status == 202:
        has_hints = int(answer.headers.get("Retry-After", "0")) >= 1 and document["next_check_at"]
        is_named = answer.headers.get("Location") == f"/v1/payments/{document['id']}"
        return None if has_hints and is_named else "Retry-After, Location or next_check_at"
    return None


async def replay(
    client: Client, path: str, body: Any, key: str, first: Answer, row: Row
) -> str | None:
    """The key tells the final answer, and it tells the same ever after."""
    final = await client.post(path, body, key=key)
    if row.status != 202 and final.body != first.body:
        return f"{body}: replayed as {final}"
    if final.status != (502 if row.ends == "failed" else row.status if row.status != 202 else 201):
        return f"{body}: ended as {final}"
    again = await client.post(path, body, key=key)
    return None if again.body == final.body and again.is_replayed else f"{body}: again {again}"


@pytest.mark.parametrize(("kind", "ends"), DONE.items())
async def test_3ds_goes_on_when_the_customer_has_acted(
    engine: EngineProcess, kind: str, ends: str
) -> None:
    async with client_of(engine) as client:
        key, path, body = new_key(), f"/v1/payments/{kind}", order(900, "pm_card_3ds")
        opened = await client.post(path, body, key=key)
        assert (opened.status, opened.json["status"]) == (201, "requires_action")
        payment = opened.json["id"]
        assert opened.json["amount_capturable"] == 0
        (await client.command(payment, "capture")).assert_problem(409, "operation_unresolved")
        url = opened.json["next_action"]["url"]
        assert url.startswith(f"{engine.address}/"), url
        async with client.session.post(url) as completed:
            assert completed.status == 200, await completed.text()
        done = await client.wait_payment(payment, lambda now: now["status"] == ends, 10)
        assert done["next_action"] is None
        again = await client.post(path, body, key=key)
        assert (again.body, again.is_replayed) == (opened.body, True)
        effect = effects_by_operation(engine)[f"{payment}.1"]
        assert (effect.outcome, effect.amount) == ("done", 900)


async def test_3ds_that_is_canceled_cannot_be_completed(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        opened = (await client.authorize(900, "pm_card_3ds")).json
        canceled = await client.command(opened["id"], "cancel")
        assert (canceled.status, canceled.json["status"]) == (200, "canceled")
        assert canceled.json["next_action"] is None
        path = opened["next_action"]["url"].split("/", 3)[3]
        await client.send("POST", f"/{path}")
        assert (await client.payment(opened["id"]))["status"] == "canceled"
        assert not effects_by_operation(engine)[f"{opened['id']}.1"].is_done(2**62)


async def test_refund_that_fails_gives_its_money_back(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        at_once = (await client.purchase(1_000, "pm_card_refund_fails")).json["id"]
        refused = await client.command(at_once, "refund", {"amount": 400})
        assert (refused.status, refused.json["status"]) == (201, "failed")
        assert refused.json["failure_code"]
        now = await client.payment(at_once)
        assert (now["amount_refunded"], now["amount_refundable"]) == (0, 1_000)

        later = (await client.purchase(1_000, "pm_card_refund_fails_late")).json["id"]
        made = await client.command(later, "refund", {"amount": 400})
        assert (made.status, made.json["status"]) == (201, "succeeded")
        now = await client.wait_payment(later, lambda now: now["amount_refunded"] == 0, 15)
        assert (now["amount_refundable"], now["refund_status"]) == (1_000, "none")
        refund = (await client.get(f"/v1/refunds/{made.json['id']}")).json
        assert (refund["status"], refund["amount"]) == ("failed", 400)


async def test_dispute_opens_after_the_capture(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        payment = (await client.authorize(800, "pm_card_dispute")).json["id"]
        assert (await client.command(payment, "capture")).json["disputed"] is False
        now = await client.wait_payment(payment, lambda now: now["disputed"], 15)
        assert (now["amount_disputed"], now["status"]) == (800, "captured")
        opened = await client.list_all("/v1/events?type=dispute.opened")
        assert payment in {event["data"]["object"]["id"] for event in opened}


async def test_renewal_card_is_approved_once_and_then_declined_twice(
    engine: EngineProcess,
) -> None:
    async with client_of(engine) as client:
        statuses = [
            (await client.purchase(100, "pm_card_decline_on_renewal")).status for _ in range(4)
        ]
        assert statuses == [201, 402, 402, 201]


@pytest.mark.campaign
@pytest.mark.parametrize(("kind", "ends"), DONE.items())
async def test_pending_card_settles_after_a_minute(
    engine: EngineProcess, kind: str, ends: str
) -> None:
    async with client_of(engine) as client:
        path, body = f"/v1/payments/{kind}", order(700, "pm_card_pending")
        opened = await client.post(path, body)
        assert (opened.status, opened.json["status"]) == (201, "pending")
        now = await client.wait_payment(
            opened.json["id"], lambda now: now["status"] != "pending", 150
        )
        assert now["status"] == ends
