"""Time: what is due while the engine is killed, gateways that time out, clocks that jump."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.domain.news import Approved
from engine.gateways.signatures import secret_key
from engine.gateways.simulator_config import DEVELOPMENT_SECRET
from engine.gateways.simulator_webhooks import write_webhook
from tests.real.system.client import Client, client_of, new_key
from tests.real.system.load import wait_all_resolved
from tests.torture.checks import assert_all_holds, ensure_running, more_answers, under_load
from tests.torture.conftest import Scenario
from tests.torture.plant import Engine, Plant, plant

pytestmark = [pytest.mark.anyio, pytest.mark.torture]
LIBFAKETIME = [*Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")]


@pytest.fixture(scope="module")
def hasty() -> Iterator[Plant]:
    """Authorisations last four seconds, retries come after three."""
    with plant(module="tests.torture.short_lives", webhooks=False) as made:
        yield made


@pytest.fixture(scope="module")
def works() -> Iterator[Plant]:
    with plant() as made:
        yield made


async def killed_by(engine: Engine, scenario: Scenario, point: str) -> None:
    async with asyncio.timeout(30):
        while not engine.has_died():
            await asyncio.sleep(0.05)
    assert f"failpoint {point}: kill" in engine.log()
    scenario.killed()
    scenario.hit(point)


async def test_row_38_killed_at_expiry(hasty: Plant, scenario: Scenario) -> None:
    engine = hasty.engine
    engine.spawn("expiry:2")
    async with asyncio.timeout(30):
        while await asyncio.to_thread(engine.probe, "/readyz") != 200:
            await asyncio.sleep(0.05)
    async with client_of(engine) as client:
        payments = [(await client.authorize(1_000)).json["id"] for _ in range(5)]
        await killed_by(engine, scenario, "expiry")
        await asyncio.to_thread(engine.start)
        for payment in payments:
            now = await client.wait_payment(payment, lambda now: now["status"] == "expired", 20)
            assert (now["amount_capturable"], now["amount_released"]) == (0, 1_000)
        accounts = await client.list_all("/v1/accounts")
        assert all(a["debits_pending"] == a["credits_pending"] == 0 for a in accounts)


async def test_row_21_killed_at_the_retry_of_a_reversal(hasty: Plant, scenario: Scenario) -> None:
    """A success after "failed" is undone at the gateway, however often that has to be begun."""
    engine = hasty.engine
    if engine.is_running:
        await asyncio.to_thread(engine.terminate)
    engine.spawn("retry:1")
    async with asyncio.timeout(30):
        while await asyncio.to_thread(engine.probe, "/readyz") != 200:
            await asyncio.sleep(0.05)
    async with client_of(engine) as client:
        # Charged without a reply, and hidden from look-ups for longer than is waited for.
        payment = (await client.purchase(900, "pm_card_settles_late")).json["id"]
        now = await client.wait_payment(payment, settled, 20)
        assert now["status"] == "failed", now
        charge = next(e for e in engine.books() if e.op_id == f"{payment}.1")
        # Nothing can be sent, so what is to undo it fails for certain.
        hasty.kill_simulator()
        await tell_approved(client, f"{payment}.1", charge.amount, charge.reference)
        await killed_by(engine, scenario, "retry")
        await asyncio.to_thread(hasty.start_simulator)
        await asyncio.to_thread(engine.start)
        now = await client.wait_payment(payment, undone, 25)
        assert now["status"] == "failed", "what was told as failed never comes to life again"
        undoing = [e for e in engine.books() if e.op_id.startswith(f"{payment}.") and e != charge]
        assert [(e.action, e.outcome) for e in undoing] == [("refund", "done")]


def settled(payment: Any) -> bool:
    return payment["status"] not in ("processing", "unknown", "pending")


def undone(payment: Any) -> bool:
    return any(
        op["type"] == "reversal" and op["status"] == "succeeded" for op in payment["operations"]
    )


async def tell_approved(client: Client, operation: str, amount: int, reference: str) -> None:
    """What the gateway's own webhook would say, had it not been lost."""
    headers, raw = write_webhook(
        (secret_key(DEVELOPMENT_SECRET),),
        event_id=new_key("evt"),
        op_id=operation,
        livemode=False,
        news=Approved(amount, "USD", reference),
        now_ms=time.time_ns() // 1_000_000,
    )
    sent = await client.send("POST", "/v1/webhooks/simulator", body=raw, headers=headers)
    assert sent.status == 200, sent


async def test_row_21_gateway_times_out_after_charging(works: Plant, scenario: Scenario) -> None:
    engine = works.engine
    await ensure_running(engine)
    async with client_of(engine) as client:
        answers = await asyncio.gather(
            *(client.purchase(800, "pm_card_timeout_after_charge") for _ in range(12)),
            *(client.purchase(800, "pm_card_timeout_before_charge") for _ in range(12)),
        )
        # With the outcomes in the air, and again with the look-ups in the air.
        for pause_s in (0.0, 0.5):
            await asyncio.sleep(pause_s)
            engine.kill()
            scenario.killed()
            await asyncio.to_thread(engine.start)
        await wait_all_resolved(client)
        ends = [(await client.payment(answer.json["id"]))["status"] for answer in answers]
        assert ends == ["captured"] * 12 + ["failed"] * 12
        await assert_all_holds(client)
        scenario.note(payments=24)


async def test_row_21_gateway_killed_under_load(works: Plant, scenario: Scenario) -> None:
    async with under_load(works.engine, scenario, seed=21) as (_, load):
        for _ in range(3):
            works.kill_simulator()
            await asyncio.sleep(0.3)
            await asyncio.to_thread(works.start_simulator)
            await more_answers(load, 10)


async def test_row_38_wall_clock_jumps(works: Plant, scenario: Scenario) -> None:
    if not LIBFAKETIME:
        pytest.skip("libfaketime is not installed")
    engine = works.engine
    if engine.is_running:
        await asyncio.to_thread(engine.terminate)
    clock = works.folder / "clock"
    clock.write_text("+0")
    engine.environ = {
        "LD_PRELOAD": str(LIBFAKETIME[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    try:
        async with under_load(engine, scenario, seed=38) as (_, load):
            for offset in ("+2h", "-2h", "+0", "+30d", "+0"):
                clock.write_text(offset)
                await more_answers(load, 15)
            engine.kill()
            scenario.killed()
            await asyncio.to_thread(engine.start)
            await more_answers(load, 5)
    finally:
        engine.environ = {}
        if engine.is_running:
            await asyncio.to_thread(engine.terminate)
