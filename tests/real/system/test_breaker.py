"""A gateway that keeps failing is given a rest, and what was promised before still holds."""

from __future__ import annotations

import time

import pytest

from tests.real.system.agreement import assert_books_agree
from tests.real.system.client import Client, client_of, new_key
from tests.real.system.process import EngineProcess

pytestmark = pytest.mark.anyio
FAILURES_MAX = 100
CLOSED_AGAIN_S = 20.0


async def open_breaker(client: Client) -> None:
    """Fail until the gateway is no longer asked."""
    for _ in range(FAILURES_MAX):
        answer = await client.authorize(100, "pm_card_unreachable")
        if answer.code == "gateway_unavailable":
            assert int(answer.headers["Retry-After"]) >= 1
            answer.assert_problem(503, "gateway_unavailable")
            return
        answer.assert_problem(502, "gateway_failed")
    raise AssertionError(f"open after {FAILURES_MAX} failures: never")


async def wait_closed(client: Client) -> None:
    """Ask until the gateway is tried again."""
    deadline = time.monotonic() + CLOSED_AGAIN_S
    while (answer := await client.authorize(100)).status == 503:
        assert time.monotonic() < deadline, answer


async def test_open_breaker_does_nothing_and_closes_by_itself(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        await open_breaker(client)
        payments = len(await client.list_all("/v1/payments"))
        key = new_key()
        refused = await client.authorize(100, key=key)
        refused.assert_problem(503, "gateway_unavailable")
        assert refused.json["retryable"] is True
        assert len(await client.list_all("/v1/payments")) == payments
        assert (await client.get("/v1/health")).json["status"] == "degraded"
        deadline = time.monotonic() + CLOSED_AGAIN_S
        while (answer := await client.authorize(100, key=key)).status == 503:
            assert time.monotonic() < deadline, answer
        assert (answer.status, answer.is_replayed) == (201, False)
        assert (await client.get("/v1/health")).json["status"] == "ok"
        await assert_books_agree(client)


async def test_keys_are_answered_while_the_breaker_is_open(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        await wait_closed(client)
        done, unknown = new_key(), new_key()
        first = await client.authorize(100, key=done)
        asked = await client.authorize(100, "pm_card_5xx_after_charge", key=unknown)
        assert asked.status == 202
        await open_breaker(client)
        again = await client.authorize(100, key=done)
        assert (again.body, again.is_replayed) == (first.body, True)
        again = await client.authorize(100, "pm_card_5xx_after_charge", key=unknown)
        assert again.status in (201, 202), again
        assert again.json["id"] == asked.json["id"]

        engine.kill()
        engine.restart()
        await open_breaker(client)
        again = await client.authorize(100, key=done)
        assert (again.status, again.body) == (first.status, first.body), again


async def test_commands_are_refused_before_any_intent_while_the_breaker_is_open(
    engine: EngineProcess,
) -> None:
    async with client_of(engine) as client:
        await wait_closed(client)
        held = (await client.authorize(100)).json
        taken = (await client.purchase(100)).json
        await open_breaker(client)
        for payment, command in ((held, "capture"), (held, "cancel"), (taken, "refund")):
            answer = await client.command(payment["id"], command)
            answer.assert_problem(503, "gateway_unavailable")
            assert await client.payment(payment["id"]) == payment
