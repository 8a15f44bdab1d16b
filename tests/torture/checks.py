"""What must hold after every scenario, whatever it was."""

from __future__ import annotations

import asyncio

from tests.real.system.agreement import assert_books_agree, assert_verified
from tests.real.system.client import Client, client_of
from tests.real.system.load import Load, assert_told_holds, wait_all_resolved
from tests.torture.conftest import Scenario
from tests.torture.plant import Engine

BROKEN = ("handler_failed", "message_parked", "step_refused", "request_refused", "entry_refused")


async def settle(client: Client, load: Load, running: asyncio.Task[None]) -> None:
    """End the load, and wait until everything that it began has an outcome."""
    load.stop()
    await running
    await wait_all_resolved(client)


async def assert_all_holds(client: Client, *loads: Load) -> None:
    """Answers stand, books agree, journal and accounts prove, and nothing of the engine broke."""
    for load in loads:
        await assert_told_holds(load)
    await assert_books_agree(client)
    assert_nothing_broke(client.engine)
    await asyncio.to_thread(assert_verified, client.engine)


def assert_nothing_broke(engine: object) -> None:
    """No handler failed and no message or step was given up."""
    assert isinstance(engine, Engine)
    logs = engine.logs()
    found = [line for line in logs.splitlines() if any(f'"event":"{w}"' in line for w in BROKEN)]
    assert found == []


async def finish(
    client: Client, load: Load, running: asyncio.Task[None], scenario: Scenario
) -> None:
    """The end of a scenario with load: settle, check, and say how much was checked."""
    await settle(client, load, running)
    await assert_all_holds(client, load)
    scenario.note(acknowledged=len(load.told))


__all__ = ["assert_all_holds", "assert_nothing_broke", "client_of", "finish", "settle"]
