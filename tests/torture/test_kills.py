"""`kill -9` at every failpoint, one after the other, and at random moments, always under load."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Iterator

import aiohttp
import pytest

from engine.failpoints import POINTS
from tests.real.system.client import Client, client_of
from tests.real.system.load import Load, Told, assert_told_holds
from tests.torture.checks import FINAL_S, finish
from tests.torture.conftest import Scenario
from tests.torture.plant import Engine, Plant, plant

pytestmark = [pytest.mark.anyio, pytest.mark.torture]
CLIENTS = 6
HIT_S = 40.0

# Point -> (row, the passages at which it kills).
AIMS: dict[str, tuple[int, tuple[int, ...]]] = {
    "before_intent": (1, (1, 4, 9)),
    "after_intent": (2, (1, 3, 8)),
    "gateway_sent": (3, (1, 3, 8)),
    "after_gateway": (4, (1, 4, 9)),
    "before_commit": (5, (1, 3, 8)),
    "in_commit": (5, (1, 3, 8)),
    "commit_open": (5, (1, 1)),
    "after_commit": (5, (1, 4, 9)),
    "refusal_stored": (5, (1, 2)),
    "recovery_started": (7, (1, 2, 1)),
    "recovery_asked": (7, (1, 3, 1)),
    "looked_up": (7, (1, 2, 3)),
    "webhook_stored": (6, (1, 3, 8)),
    "webhook_applied": (6, (1, 2)),
    "epoch_raised": (57, (1, 1)),
    "took_over": (57, (1, 1)),
    "draining": (43, (1, 1)),
}
# The same where commits are small: `in_commit` is passed with the next batch made ready, or not.
AIMS_AHEAD: dict[str, tuple[int, ...]] = {"made_ahead": (1, 5, 12), "in_commit": (4, 9)}
told_by_all: list[Told] = []
ELSEWHERE = {"expiry": "test_time.py", "retry": "test_time.py"}


def test_every_failpoint_is_aimed_at() -> None:
    assert set(AIMS) | set(AIMS_AHEAD) | set(ELSEWHERE) == set(POINTS)


@pytest.fixture(scope="module")
def works() -> Iterator[Plant]:
    """The plant that most scenarios of this module share, so that the data grows old."""
    with plant() as made:
        yield made


@pytest.fixture(scope="module")
def hurried() -> Iterator[Plant]:
    """Commits are so small that the next one often waits already."""
    with plant(module="tests.torture.small_commits") as made:
        yield made


IN_THE_AIR = "SELECT 1 FROM payments WHERE open AND amount = 701 AND status = 'processing'"


async def leave_open(client: Client, works: Plant, name: str) -> None:
    """Leave something to be looked up by the next life of the engine."""
    if name != "recovery_asked":
        return
    for _ in range(10):
        # Charged at once, answered much later.
        tasks = [asyncio.create_task(client.purchase(701, "pm_card_slow")) for _ in range(3)]
        try:
            while not any(task.done() for task in tasks):
                if len(await asyncio.to_thread(works.rows, IN_THE_AIR)) >= len(tasks):
                    return
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    raise AssertionError("nothing was left in the air")


async def ask_for_look_ups(client: Client) -> None:
    """Payments that are done after five seconds, of which no webhook tells."""
    while True:
        with contextlib.suppress(aiohttp.ClientError, OSError):
            await client.purchase(700, "pm_card_webhook_lost")
        await asyncio.sleep(1)


def end_backends(works: Plant, application: str) -> None:
    """Have the server end the connections of one kind."""
    for pid in works.backends(application):
        works.rows("SELECT pg_terminate_backend($1::integer)", pid)


def provoke(name: str, engine: Engine) -> None:
    """Do what leads to points that load alone does not lead to."""
    if name == "commit_open" and engine.probe("/readyz", 0.5) == 200:
        end_backends(engine.plant, "engine-writer")
    elif name == "draining" and engine.probe("/readyz", 0.5) == 200:
        engine.signal(signal.SIGTERM)


async def kill_at(engine: Engine, client: Client, name: str, passage: int) -> None:
    """Start armed, and wait until the point has killed the engine."""
    engine.spawn(f"{name}:{passage}")
    deadline = asyncio.get_running_loop().time() + HIT_S
    asking = asyncio.create_task(ask_for_look_ups(client)) if name == "looked_up" else None
    while not engine.has_died():
        assert asyncio.get_running_loop().time() < deadline, f"{name} was not reached"
        await asyncio.to_thread(provoke, name, engine)
        await asyncio.sleep(0.02)
    if asking is not None:
        asking.cancel()
    assert f"failpoint {name}: kill" in engine.log()


@pytest.mark.parametrize(
    "name", [pytest.param(name, id=f"row_{row:02}_{name}") for name, (row, _) in AIMS.items()]
)
async def test_killed_at(works: Plant, scenario: Scenario, name: str) -> None:
    told_by_all.extend(await killed_at(works, scenario, name, AIMS[name][1]))


@pytest.mark.parametrize("name", AIMS_AHEAD)
async def test_row_05_where_batches_are_made_ahead(
    hurried: Plant, scenario: Scenario, name: str
) -> None:
    await killed_at(hurried, scenario, name, AIMS_AHEAD[name])


async def killed_at(
    works: Plant, scenario: Scenario, name: str, passages: tuple[int, ...]
) -> list[Told]:
    """Kill at each passage under load, then prove it all; returns what clients were told."""
    engine = works.engine
    if not engine.is_running:
        await asyncio.to_thread(engine.start)
    async with client_of(engine) as client:
        load = Load(client, seed=sum(name.encode()), final_s=FINAL_S)
        running = asyncio.create_task(load.run(CLIENTS))
        for passage in passages:
            if engine.is_running:
                await leave_open(client, works, name)
                engine.kill()
                scenario.killed()
            await kill_at(engine, client, name, passage)
            scenario.killed()
            scenario.hit(name)
        await asyncio.to_thread(engine.start)
        await finish(client, load, running, scenario)
        return load.told


async def test_row_06_random_kills_under_load(works: Plant, scenario: Scenario) -> None:
    engine = works.engine
    pick = random.Random(6)
    if not engine.is_running:
        await asyncio.to_thread(engine.start)
    async with client_of(engine) as client:
        load = Load(client, seed=6, final_s=FINAL_S)
        running = asyncio.create_task(load.run(12))
        for _ in range(32):
            told = len(load.told)
            while len(load.told) < told + 15:
                assert not running.done(), running.exception()
                await asyncio.sleep(0.01)
            await asyncio.sleep(pick.random() / 5)
            engine.kill()
            scenario.killed()
            await asyncio.to_thread(engine.start)
        await finish(client, load, running, scenario)
        # All that any scenario on this plant was told, however many kills ago.
        load.told = told_by_all
        await assert_told_holds(load)
        scenario.note(acknowledged_in_all=len(told_by_all))
