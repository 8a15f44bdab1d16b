"""`kill -9` in the middle of load: what was answered is there, and both books agree."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.real.system.agreement import assert_books_agree, assert_verified
from tests.real.system.client import client_of
from tests.real.system.load import Load, assert_told_holds, wait_all_resolved
from tests.real.system.process import EngineProcess

pytestmark = pytest.mark.anyio


async def kill_and_compare(engine: EngineProcess, *, kills: int, clients: int, seed: int) -> None:
    pick = random.Random(seed)
    async with client_of(engine) as client:
        load = Load(client, seed)
        running = asyncio.create_task(load.run(clients))
        for _ in range(kills):
            told = len(load.told)
            # At some moment of the load that no request of it chose.
            while len(load.told) < told + 40:
                assert not running.done(), running.exception()
                await asyncio.sleep(0.01)
            await asyncio.sleep(pick.random() / 5)
            engine.kill()
            await asyncio.to_thread(engine.restart)
            assert_no_failures(engine)
        load.stop()
        await running
        await wait_all_resolved(client)
        await assert_told_holds(load)
        await assert_books_agree(client)
    assert_no_failures(engine)
    assert_verified(engine)
    assert engine.terminate() == 0
    engine.wait_nothing_left()


def assert_no_failures(engine: EngineProcess) -> None:
    """No handler failed, no message was parked, no step of the engine's own was refused."""
    for event in ("handler_failed", "message_parked", "step_refused", "request_refused"):
        assert f'"event":"{event}"' not in engine.logs()


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.campaign) for seed in (1, 2))]
)
async def test_five_kills_under_load_lose_nothing_and_charge_nothing_twice(
    own_engine: EngineProcess, seed: int
) -> None:
    await kill_and_compare(own_engine, kills=5, clients=16, seed=seed)
