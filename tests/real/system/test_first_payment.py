"""The first minute: the printed line, then a payment through all of its life, to the last unit."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.real.system.agreement import assert_books_agree, assert_verified
from tests.real.system.client import client_of
from tests.real.system.process import EngineProcess

pytestmark = pytest.mark.anyio


def printed_line(engine: EngineProcess) -> str:
    """The curl command of the banner, as somebody would paste it."""
    _, _, rest = engine.log().partition("Authorise a payment:\n\n")
    return rest.partition("\n\n")[0]


async def test_printed_line_authorises_a_payment(engine: EngineProcess) -> None:
    shell = await asyncio.create_subprocess_exec(
        "bash", "-c", printed_line(engine), stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await shell.communicate()
    payment = json.loads(printed)
    assert payment["status"] == "authorized", payment
    assert payment["amount_capturable"] == 1099
    async with client_of(engine) as client:
        assert await client.payment(payment["id"]) == payment


async def test_payment_captured_and_refunded_in_parts_leaves_every_balance_right(
    own_engine: EngineProcess,
) -> None:
    async with client_of(own_engine) as client:
        payment = (await client.authorize(1_000)).json["id"]
        part = await client.command(payment, "capture", {"amount": 600, "final": False})
        assert (part.status, part.json["status"]) == (200, "partially_captured")
        assert part.json["amount_capturable"] == 400
        rest = await client.command(payment, "capture")
        assert (rest.status, rest.json["status"]) == (200, "captured")

        first = await client.command(payment, "refund", {"amount": 250})
        assert (first.status, first.json["status"]) == (201, "succeeded")
        half = await client.payment(payment)
        assert (half["refund_status"], half["amount_refundable"]) == ("partial", 750)
        second = await client.command(payment, "refund")
        assert second.json["amount"] == 750
        full = await client.payment(payment)
        assert (full["refund_status"], full["amount_refunded"]) == ("full", 1_000)
        # 2.9 % and 0.30 on each capture, half a unit going to the even one: 47 + 42.
        assert full["fees"] == {"platform_fee": 89, "tax": 0}

        accounts = {
            account["kind"]: account
            for account in await client.list_all("/v1/accounts")
            if account["currency"] == "USD"
        }
        assert totals(accounts["gateway_receivable"]) == (0, 1_000, 0, 1_000)
        assert totals(accounts["merchant_pending"]) == (0, 1_089, 0, 1_000)
        assert totals(accounts["platform_fees"]) == (0, 0, 0, 89)
        assert accounts["merchant_pending"]["balance"] == -89
        assert accounts["platform_fees"]["balance"] == 89
        assert all(sum_of(accounts, side) == 1_089 + 1_000 for side in ("debits", "credits"))

        await assert_events_in_order(client, payment)
        await assert_timeline_is_whole(client, payment)
        await assert_books_agree(client)

    assert_verified(own_engine)
    assert own_engine.terminate() == 0
    own_engine.wait_nothing_left()
    assert_verified(own_engine)


def totals(account: Any) -> tuple[int, ...]:
    names = ("debits_pending", "debits_posted", "credits_pending", "credits_posted")
    return tuple(account[name] for name in names)


def sum_of(accounts: dict[str, Any], side: str) -> int:
    return sum(account[f"{side}_posted"] for account in accounts.values())


async def assert_events_in_order(client: Any, payment: str) -> None:
    refunds = [refund["id"] for refund in await client.list_all(f"/v1/refunds?payment={payment}")]
    events = [
        event
        for event in reversed(await client.list_all("/v1/events"))
        if event["object_id"] in {payment, *refunds}
    ]
    assert [event["type"] for event in events] == [
        "payment.authorized",
        "payment.partially_captured",
        "payment.captured",
        "refund.created",
        "refund.succeeded",
        "refund.created",
        "refund.succeeded",
    ]
    numbers: dict[str, int] = {}
    for event in events:
        subject = event["data"]["object"]["id"]
        numbers[subject] = numbers.get(subject, 0) + 1
        assert event["sequence"] == numbers[subject], event
    captured = events[2]["data"]
    assert captured["object"]["amount_captured"] == 1_000
    assert captured["previous_attributes"]["amount_captured"] == 600


async def assert_timeline_is_whole(client: Any, payment: str) -> None:
    answer = await client.get(f"/v1/payments/{payment}/timeline")
    assert answer.status == 200, answer
    steps = answer.json["data"]
    assert [step["at"] for step in steps] == sorted(step["at"] for step in steps)
    for n in range(1, 6):
        told = [step["step"] for step in steps if step.get("operation") == f"{payment}.{n}"]
        life = [step for step in told if step != "transfer"]
        assert life == ["requested", "intent", "gateway_replied", "answered"], f"{n}: {told}"
        assert "transfer" in told[: told.index("answered")], f"{n}: {told}"
    moved = [step["transfer"] for step in steps if step["step"] == "transfer"]
    assert len({transfer["id"] for transfer in moved}) == len(moved)
    posted = [transfer for transfer in moved if transfer["kind"] == "hold"]
    assert [(one["phase"], one["amount"]) for one in posted] == [
        ("pending", 1_000),
        ("post_pending", 600),
        ("post_pending", 400),
    ]


async def test_events_of_each_object_are_numbered_without_gaps(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        payment = (await client.purchase(100)).json["id"]
        refund = (await client.command(payment, "refund", {"amount": 40})).json["id"]
        await client.command(payment, "refund")
        for subject in (payment, refund):
            events = await client.list_all(f"/v1/events?object={subject}")
            numbers = [event["sequence"] for event in reversed(events)]
            assert numbers == list(range(1, len(numbers) + 1)), subject
        succeeded = (await client.list_all(f"/v1/events?object={refund}"))[0]
        assert succeeded["data"]["previous_attributes"] == {"status": "pending"}
