"""What must hold after every scenario, whatever it was."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from tests.real.system.agreement import assert_books_agree, assert_verified
from tests.real.system.client import Client
from tests.real.system.load import Load, assert_told_holds, wait_all_resolved
from tests.torture.conftest import Scenario
from tests.torture.plant import Engine

FINAL_S = 150.0
"""Several starts of an engine, on a machine that has other things to do as well."""

BROKEN = ("handler_failed", "message_parked", "step_refused", "request_refused", "entry_refused")


async def ensure_running(engine: Engine) -> None:
    """Start the engine unless an earlier scenario left it running."""
    if not engine.is_running:
        await asyncio.to_thread(engine.start)


@contextlib.asynccontextmanager
async def under_load(
    engine: Engine, scenario: Scenario, *, seed: int, clients: int = 6, patience_s: float = 30
) -> AsyncIterator[tuple[Client, Load]]:
    """A running engine under load; at the end of the block everything is settled and checked."""
    await ensure_running(engine)
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=patience_s)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        client = Client(engine, session)
        load = Load(client, seed, final_s=FINAL_S)
        running = asyncio.create_task(load.run(clients))
        try:
            await progress(load, running, 10)
            yield client, load
            await finish(client, load, running, scenario)
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await running


async def progress(load: Load, running: asyncio.Task[None], answers: int) -> None:
    """Wait until so many more requests have been answered finally."""
    told = len(load.told)
    while len(load.told) < told + answers:
        assert not running.done(), running.exception()
        await asyncio.sleep(0.01)


async def more_answers(load: Load, answers: int, within_s: float = 40.0) -> None:
    """Wait until the load gets on again."""
    told = len(load.told)
    async with asyncio.timeout(within_s):
        while len(load.told) < told + answers:
            await asyncio.sleep(0.02)


async def finish(
    client: Client, load: Load, running: asyncio.Task[None], scenario: Scenario
) -> None:
    """The end of a scenario with load: settle, check, and say how much was checked."""
    load.stop()
    await running
    await wait_all_resolved(client)
    await wait_nothing_pending(client)
    await assert_all_holds(client, load)
    scenario.note(acknowledged=len(load.told))


async def wait_nothing_pending(client: Client, within_s: float = 30.0) -> None:
    """Wait for what the gateway itself settles later."""
    async with asyncio.timeout(within_s):
        while await client.list_all("/v1/payments?status=pending"):
            await asyncio.sleep(0.5)


async def assert_all_holds(client: Client, *loads: Load) -> None:
    """Answers stand, books agree, journal and accounts prove, and nothing of the engine broke."""
    for load in loads:
        await assert_told_holds(load)
    await assert_books_agree(client)
    assert isinstance(client.engine, Engine)
    assert_nothing_broke(client.engine)
    await asyncio.to_thread(assert_verified, client.engine)


def assert_nothing_broke(engine: Engine) -> None:
    """No handler failed and no message or step was given up."""
    lines = engine.logs().splitlines()
    assert [line for line in lines if any(f'"event":"{word}"' in line for word in BROKEN)] == []


async def writer_statistics(client: Client) -> dict[str, Any]:
    """What the ledger's writing half knows of itself."""
    found = await client.get("/v1/statistics")
    return dict(found.json["parts"]["ledger"]["writer"])


async def wait_status(engine: Engine, path: str, status: int, within_s: float = 30.0) -> float:
    """Wait until a path answers with this status; returns how long that took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while await asyncio.to_thread(engine.probe, path) != status:
        assert loop.time() < began + within_s, f"{path} does not answer {status}: {engine.log()}"
        await asyncio.sleep(0.05)
    return loop.time() - began
