"""Two engines on one database: take-over by death, by signal and from one that stands still."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.real.system.agreement import effects_by_operation
from tests.real.system.client import Answer, Client, client_of, new_key, order
from tests.torture.checks import (
    assert_all_holds,
    ensure_running,
    more_answers,
    under_load,
    wait_status,
)
from tests.torture.conftest import Scenario
from tests.torture.plant import Engine, Plant, plant

pytestmark = [pytest.mark.anyio, pytest.mark.torture]


@pytest.fixture(scope="module")
def works() -> Iterator[Plant]:
    with plant() as made:
        made.second_engine()
        yield made


async def pair(works: Plant) -> tuple[Engine, Engine]:
    """The engine that writes, and one that stands by."""
    first, second = works.engines
    if second.is_running and not first.is_running:
        first, second = second, first
    await ensure_running(first)
    if not second.is_running:
        second.spawn()
    await wait_status(second, "/livez", 200)
    if second.probe("/readyz") == 200:
        first, second = second, first
    assert second.probe("/readyz") == 503, "one of the two stands by"
    return first, second


async def test_row_57_take_over_after_a_kill(works: Plant, scenario: Scenario) -> None:
    writes, _ = await pair(works)
    took = []
    async with under_load(writes, scenario, seed=57) as (client, load):
        for _ in range(3):
            writes, waits = await pair(works)
            writes.kill()
            scenario.killed()
            client.engine = waits
            took.append(await wait_status(waits, "/readyz", 200))
            await more_answers(load, 5)
    scenario.note(take_overs=3, slowest_take_over_s=round(max(took), 1))


async def test_row_57_take_over_after_sigterm(works: Plant, scenario: Scenario) -> None:
    writes, waits = await pair(works)
    async with under_load(writes, scenario, seed=571) as (client, load):
        writes.send_sigterm()
        client.engine = waits
        took = await wait_status(waits, "/readyz", 200)
        assert await asyncio.to_thread(writes.wait_ended) == 0
        await more_answers(load, 5)
    scenario.note(take_over_s=round(took, 1))


async def test_row_57_both_live_through_a_restart_of_the_database(
    works: Plant, scenario: Scenario
) -> None:
    writes, waits = await pair(works)
    async with under_load(writes, scenario, seed=572) as (client, load):
        await asyncio.to_thread(works.end_database, signal.SIGINT)
        await asyncio.to_thread(works.database.start)
        # Whoever had the database may be ready for a moment, until it finds that it has lost it.
        told, deadline = len(load.told), time.monotonic() + 60
        while len(load.told) < told + 5:
            assert time.monotonic() < deadline
            ready = [engine for engine in (writes, waits) if is_ready(engine)]
            if ready and client.engine not in ready:
                client.engine = ready[0]
            await asyncio.sleep(0.1)
        assert waits.is_running, "whoever stands by must still be there"
        scenario.note(who_writes="the same" if client.engine is writes else "the other")
    reap(works)


def is_ready(engine: Engine) -> bool:
    return engine.is_running and engine.probe("/readyz") == 200


def reap(works: Plant) -> None:
    """An engine that was fenced has ended by itself, with status 1."""
    for engine in works.engines:
        if engine._process is not None and engine._process.poll() is not None:
            assert engine.wait_ended() == 1
            assert "epoch" in engine.log()


async def stopped(engine: Engine) -> None:
    async with asyncio.timeout(25):
        while psutil.Process(engine.pid).status() != psutil.STATUS_STOPPED:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("point", ["before_commit", "after_intent", "after_gateway"])
async def test_row_39_stands_still_while_another_takes_over(
    works: Plant, scenario: Scenario, point: str
) -> None:
    """What wakes up late finds that its turn is over: it writes nothing and charges nothing."""
    for engine in works.engines:
        if engine.is_running:
            await asyncio.to_thread(engine.kill)
    zombie, heir = works.engines
    # Late enough that the load gets its first answers, however small the group commits are.
    zombie.spawn(f"{point}:40:stop")
    await wait_status(zombie, "/readyz", 200)
    async with under_load(zombie, scenario, seed=39, patience_s=4) as (client, load):
        heir.spawn()
        await stopped(zombie)
        scenario.hit(point)
        # The kernel keeps the connection of a stopped process, so an operator ends its session.
        for pid in await asyncio.to_thread(works.backends, "engine-lock"):
            await asyncio.to_thread(works.rows, "SELECT pg_terminate_backend($1::integer)", pid)
        client.engine = heir
        await wait_status(heir, "/readyz", 200)
        await more_answers(load, 10)
        # Long enough that the heir has given up what the other had begun and never sent.
        await asyncio.sleep(6)
        zombie.signal(signal.SIGCONT)
        assert await asyncio.to_thread(zombie.wait_ended) == 1
        assert "epoch" in zombie.log()
        await more_answers(load, 5)


async def test_row_32_one_key_many_requests_during_a_take_over(
    works: Plant, scenario: Scenario
) -> None:
    writes, waits = await pair(works)
    async with client_of(writes) as one, client_of(waits) as other:
        key, body = new_key("once"), order(4_200, "pm_card_visa")

        async def ask(client: Client) -> Answer:
            return await client.until_final("/v1/payments/purchase", body, key)

        asked = [asyncio.create_task(ask(client)) for client in (one, other) for _ in range(25)]
        await asyncio.sleep(0.02)
        writes.kill()
        scenario.killed()
        one.engine = waits
        answers = await asyncio.gather(*asked)
        assert {answer.status for answer in answers} == {201}
        assert len({answer.body for answer in answers}) == 1
        payment = answers[0].json["id"]
        done = effects_by_operation(waits)
        assert done[f"{payment}.1"].outcome == "done"
        assert sum(effect.amount == 4_200 for effect in done.values()) == 1
        await assert_all_holds(other)
        scenario.note(requests=50)


async def test_row_34_refunds_and_captures_race_during_a_take_over(
    works: Plant, scenario: Scenario
) -> None:
    writes, waits = await pair(works)
    async with client_of(writes) as client:
        payments = [(await client.authorize(1_000)).json["id"] for _ in range(4)]
        sold = [(await client.purchase(1_000)).json["id"] for _ in range(4)]
        asked = []
        for payment in payments:
            path = f"/v1/payments/{payment}"
            for _ in range(3):
                body = {"amount": 400, "final": False}
                asked.append(client.until_final(f"{path}/capture", body, new_key("race")))
            asked.append(client.until_final(f"{path}/cancel", {}, new_key("race")))
        for payment in sold:
            path = f"/v1/payments/{payment}/refund"
            asked += [client.until_final(path, {"amount": 400}, new_key("race")) for _ in range(4)]
        running = [asyncio.create_task(one) for one in asked]
        await asyncio.sleep(0.03)
        writes.kill()
        scenario.killed()
        client.engine = waits
        answers = await asyncio.gather(*running)
        assert {answer.status for answer in answers} <= {200, 201, 409, 422, 502}
        for payment in payments + sold:
            now = await client.payment(payment)
            assert now["amount_captured"] + now["amount_released"] <= now["amount_authorized"], now
            assert now["amount_refunded"] <= now["amount_captured"], now
        await assert_all_holds(client)
        scenario.note(requests=len(answers))


async def test_row_43_sigterm_under_load(works: Plant, scenario: Scenario) -> None:
    for engine in works.engines:
        if engine.is_running:
            await asyncio.to_thread(engine.terminate)
    engine = works.engine
    took = []
    async with under_load(engine, scenario, seed=43, clients=16) as (_, load):
        for _ in range(3):
            await more_answers(load, 10)
            began = time.monotonic()
            assert await asyncio.to_thread(engine.terminate) == 0
            took.append(time.monotonic() - began)
            await asyncio.to_thread(engine.start)
        # And with a hand that is not patient: SIGTERM, then SIGKILL in the middle of the drain.
        for pause_s in (0.0, 0.02, 0.1):
            await more_answers(load, 10)
            engine.send_sigterm()
            await asyncio.sleep(pause_s)
            engine.kill()
            scenario.killed()
            await asyncio.to_thread(engine.start)
    assert max(took) < 15
    scenario.note(slowest_drain_s=round(max(took), 1))


async def test_row_43_sigterm_while_the_database_is_gone(works: Plant, scenario: Scenario) -> None:
    for engine in works.engines[1:]:
        if engine.is_running:
            await asyncio.to_thread(engine.terminate)
    engine = works.engine
    async with under_load(engine, scenario, seed=430) as (_, load):
        await asyncio.to_thread(works.end_database, signal.SIGQUIT)
        await asyncio.sleep(1)
        began = time.monotonic()
        engine.send_sigterm()
        code = await asyncio.to_thread(engine.wait_ended)
        took = time.monotonic() - began
        await asyncio.to_thread(works.database.start)
        await asyncio.to_thread(engine.start)
        await more_answers(load, 5)
    assert took < 25
    scenario.note(exit_status=code, took_s=round(took, 1))
