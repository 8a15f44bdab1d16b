"""Webhooks of the gateway: only genuine ones count, each once, and in whatever order they come."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from engine.domain.news import Approved, Disputed, News, RefundedElsewhere, StillPending
from engine.gateways.signatures import secret_key, signed_headers
from engine.gateways.simulator_config import DEVELOPMENT_SECRET
from engine.gateways.simulator_webhooks import write_webhook
from tests.real.system.agreement import assert_accounts_follow_from
from tests.real.system.client import Answer, Client, client_of, new_key
from tests.real.system.process import EngineProcess

pytestmark = pytest.mark.anyio
PATH = "/v1/webhooks/simulator"
KEY = secret_key(DEVELOPMENT_SECRET)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def webhook(
    operation: str, news: News, *, event: str | None = None, key: bytes = KEY, age_s: int = 0
) -> tuple[dict[str, str], bytes]:
    return write_webhook(
        (key,),
        event_id=event or new_key("evt"),
        op_id=operation,
        livemode=False,
        news=news,
        now_ms=now_ms() - age_s * 1_000,
    )


async def deliver(client: Client, sent: tuple[dict[str, str], bytes], path: str = PATH) -> Answer:
    return await client.send("POST", path, body=sent[1], headers=sent[0])


async def test_what_is_not_genuine_is_refused_and_changes_nothing(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        payment = (await client.purchase(500)).json
        operation = f"{payment['id']}.1"
        news = Disputed("dp_forged", 500, "fraudulent")
        genuine = webhook(operation, news)
        broken = signed_headers((KEY,), "evt_b", now_ms() // 1_000, b'{"id":')
        cases = [
            (webhook(operation, news, key=b"another secret"), PATH, 401),
            ((genuine[0], genuine[1].replace(b"500", b"501")), PATH, 401),
            (({**genuine[0], "webhook-id": "evt_other"}, genuine[1]), PATH, 401),
            (({**genuine[0], "webhook-timestamp": "1"}, genuine[1]), PATH, 401),
            (({"content-type": "application/json"}, genuine[1]), PATH, 401),
            (({**genuine[0], "webhook-signature": "v1,\xe9"}, genuine[1]), PATH, 401),
            (webhook(operation, news, age_s=360), PATH, 400),
            (webhook(operation, news, age_s=-360), PATH, 400),
            ((broken, b'{"id":'), PATH, 400),
            (genuine, "/v1/webhooks/nobody", 404),
        ]
        for sent, path, status in cases:
            answer = await deliver(client, sent, path)
            assert (answer.status, answer.code is None) == (status, False), answer
        assert await client.payment(payment["id"]) == payment


async def test_one_event_delivered_twenty_times_counts_once(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        payment = (await client.purchase(500)).json["id"]
        sent = webhook(f"{payment}.1", Disputed("dp_one", 500, "fraudulent"))
        again = webhook(f"{payment}.1", Disputed("dp_one", 500, "fraudulent"))
        answers = await asyncio.gather(*(deliver(client, one) for one in (sent,) * 19 + (again,)))
        assert {answer.status for answer in answers} == {200}
        now = await client.wait_payment(payment, lambda now: now["disputed"], 10)
        assert now["amount_disputed"] == 500
        events = await client.list_all(f"/v1/events?object={payment}")
        assert [event["type"] for event in events] == ["dispute.opened", "payment.captured"]


async def test_news_in_the_wrong_order_ends_in_the_same_state(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        payment = (await client.purchase(500, "pm_card_pending")).json
        operation, reference = f"{payment['id']}.1", payment["gateway_reference"] or "ch_x"
        for news in (Approved(500, "USD", reference), StillPending(), Approved(500, "USD", "x")):
            assert (await deliver(client, webhook(operation, news))).status == 200
        now = await client.wait_payment(payment["id"], lambda now: now["status"] == "captured", 10)
        assert (now["amount_captured"], now["needs_review"]) == (500, False)
        events = await client.list_all(f"/v1/events?object={payment['id']}")
        assert [event["type"] for event in events] == ["payment.captured", "payment.pending"]


async def test_news_of_nobody_is_taken_and_kept(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        for operation in ("pay_06gztad5v4n6dp21aerrznwh.1", "pay_x.1", "nothing", ""):
            news = Disputed("dp_nobody", 5, "fraudulent")
            answer = await deliver(client, webhook(operation, news))
            assert (answer.status, answer.json) == (200, {"received": True}), answer
        assert (await client.send("GET", "/readyz")).status == 200
        assert '"event":"handler_failed"' not in engine.log()


async def test_refund_made_at_the_gateway_is_recorded_once(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        payment = (await client.purchase(500)).json["id"]
        news = RefundedElsewhere(120, "USD", "re_at_the_gateway")
        for _ in range(2):
            assert (await deliver(client, webhook(f"{payment}.1", news))).status == 200
        now = await client.wait_payment(payment, lambda now: now["amount_refunded"] == 120, 10)
        assert now["amount_refundable"] == 380
        refunds: list[Any] = await client.list_all(f"/v1/refunds?payment={payment}")
        assert [(refund["amount"], refund["status"]) for refund in refunds] == [(120, "succeeded")]
        await assert_accounts_follow_from(client, await client.list_all("/v1/payments"))


async def test_webhooks_that_were_answered_survive_a_kill(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        payments = [(await client.purchase(500)).json["id"] for _ in range(20)]
        answers = await asyncio.gather(
            *(
                deliver(client, webhook(f"{one}.1", Disputed(f"dp_{one}", 500, "fraudulent")))
                for one in payments
            )
        )
        assert {answer.status for answer in answers} == {200}
        engine.kill()
        engine.restart()
        for one in payments:
            now = await client.wait_payment(one, lambda now: now["disputed"], 15)
            assert now["amount_disputed"] == 500
