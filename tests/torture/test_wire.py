"""Faults on the wire between the engine and Postgres, put there by a proxy that knows commits."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import asyncpg
import pytest

from tests.real.system.client import Client, new_key
from tests.real.system.load import Load
from tests.torture.checks import more_answers, under_load, wait_status, writer_statistics
from tests.torture.conftest import Scenario
from tests.torture.plant import Plant, plant
from tests.torture.proxy import Fault, Proxy

pytestmark = [pytest.mark.anyio, pytest.mark.torture]


@pytest.fixture(scope="module")
def works() -> Iterator[Plant]:
    with plant(proxied=True) as made:
        yield made


async def resolved(client: Client) -> int:
    """How many commits were found to have been done already."""
    return int((await writer_statistics(client))["resolved"])


async def cut_commits(proxy: Proxy, load: Load, fault: Fault, times: int) -> None:
    for _ in range(times):
        done = len(proxy.done)
        proxy.faults.append(fault)
        async with asyncio.timeout(20):
            while len(proxy.done) == done:
                await asyncio.sleep(0.01)
        await more_answers(load, 5)


async def test_row_09_commit_reply_lost(works: Plant, scenario: Scenario) -> None:
    async with under_load(works.engine, scenario, seed=9) as (client, load):
        assert works.proxy is not None
        before = await resolved(client)
        await cut_commits(works.proxy, load, "lost_after", 6)
        found = await resolved(client) - before
        # Not each of the six: a commit that was refused, for a key that is taken, left nothing.
        assert 3 <= found <= 6, "a commit whose answer was lost is found, not done again"
        scenario.note(replies_lost=6, found_done=found)


async def test_row_10_commit_lost_before_the_server(works: Plant, scenario: Scenario) -> None:
    async with under_load(works.engine, scenario, seed=10) as (client, load):
        assert works.proxy is not None
        before = await resolved(client)
        await cut_commits(works.proxy, load, "lost_before", 6)
        assert await resolved(client) == before, "nothing had been done, so nothing is found"
        scenario.note(commits_lost=6)


async def test_row_05_killed_while_the_answer_to_a_commit_is_under_way(
    works: Plant, scenario: Scenario
) -> None:
    async with under_load(works.engine, scenario, seed=5) as (_, load):
        proxy = works.proxy
        assert proxy is not None
        for _ in range(3):
            proxy.is_held.clear()
            proxy.faults.append("held")
            assert await asyncio.to_thread(proxy.is_held.wait, 20)
            works.engine.kill()
            scenario.killed()
            await asyncio.to_thread(works.engine.start)
            await more_answers(load, 5)


async def test_row_19_slow_database(works: Plant, scenario: Scenario) -> None:
    async with under_load(works.engine, scenario, seed=19) as (client, load):
        proxy = works.proxy
        assert proxy is not None
        proxy.delay_s = 2.0
        try:
            began = time.monotonic()
            slowest = 0.0
            while time.monotonic() < began + 8:
                asked = time.monotonic()
                answer = await client.authorize(500)
                # 502: its commit took longer than the call may take, so it was never sent.
                assert answer.status in (201, 202, 502, 503), answer
                slowest = max(slowest, time.monotonic() - asked)
                assert await asyncio.to_thread(works.engine.probe, "/livez") == 200
        finally:
            proxy.delay_s = 0.0
        # `wait_ms` is ten seconds, and then the state is read, also slowly.
        assert slowest < 20
        await more_answers(load, 5)
        scenario.note(reply_delay_s=2.0, slowest_answer_s=round(slowest, 1))


async def test_row_19_back_end_of_the_writer_stopped(works: Plant, scenario: Scenario) -> None:
    async with under_load(works.engine, scenario, seed=190) as (client, load):
        backend = (await asyncio.to_thread(works.backends, "engine-writer"))[0]
        os.kill(backend, signal.SIGSTOP)
        try:
            key = new_key("stopped")
            asked = time.monotonic()
            answer = await client.authorize(500, key=key)
            took = time.monotonic() - asked
            assert answer.status == 202, answer
            assert took < 12
            assert await asyncio.to_thread(works.engine.probe, "/livez") == 200
        finally:
            os.kill(backend, signal.SIGCONT)
        final = await client.until_final(
            "/v1/payments/authorize",
            {"amount": 500, "currency": "USD", "payment_method": "pm_card_visa"},
            key,
        )
        # The commit took longer than the call may take, so it was never sent.
        assert (final.status, final.json["payment"]["status"]) == (502, "failed")
        await more_answers(load, 5)
        scenario.note(accepted_after_s=round(took, 1))


async def test_row_16_connections_exhausted(works: Plant, scenario: Scenario) -> None:
    async with under_load(works.engine, scenario, seed=16) as (_, load):
        taken: list[asyncpg.Connection] = []
        try:
            await take_all(works, taken)
            for _ in range(20):
                # The engine loses its connections, and what becomes free is taken at once.
                await taken[0].execute(END_ENGINES)
                await take_all(works, taken)
                if await asyncio.to_thread(works.engine.probe, "/readyz") == 503:
                    break
            assert await asyncio.to_thread(works.engine.probe, "/readyz") == 503
            assert await asyncio.to_thread(works.engine.probe, "/livez") == 200
        finally:
            for connection in taken:
                await connection.close()
        back_s = await wait_status(works.engine, "/readyz", 200)
        await more_answers(load, 5)
        scenario.note(connections_taken=len(taken), ready_again_s=round(back_s, 1))


END_ENGINES = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'engine-%'
"""


async def take_all(works: Plant, taken: list[asyncpg.Connection]) -> None:
    """Take every connection that the server has to give."""
    while len(taken) < 100:
        try:
            taken.append(await asyncpg.connect(works.database.dsn, timeout=5))
        except asyncpg.TooManyConnectionsError:
            return
