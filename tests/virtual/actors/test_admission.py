"""Who waits for a gateway is in nobody's way; who waits for the engine is, and not for long."""

import pytest
import trio

from engine.domain.commands import Open
from tests.virtual.actors.rig import a_world, body

OPEN = Open("m_a", False, False, 1_000, "USD", "pm_card_visa", "simulator")
LEAST = 4


@pytest.fixture
async def world(autojump_clock, tmp_path):
    async with a_world(tmp_path, autojump_clock) as made:
        made.settings |= {"shards": 1, "queue_least": LEAST}
        await made.start()
        yield made


async def asked(world, nursery, count):
    """Requests that are not waited for; their answers, when there are any."""
    answers = []

    async def ask():
        answers.append((await world.ask(OPEN))[0])

    for _ in range(count):
        nursery.start_soon(ask)
    await trio.testing.wait_all_tasks_blocked()
    return answers


@pytest.mark.trio
async def test_whoever_waits_for_a_gateway_is_in_no_queue(world):
    world.gateway.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        first = await asked(world, nursery, 20)
        await world.until(lambda: len(world.gateway.asked) == 20)
        assert world.system.router.statistics().queue == 0
        await trio.sleep(3)
        second = await asked(world, nursery, 20)
        await world.until(lambda: len(world.gateway.asked) == 40)
        world.gateway.gate.set()
    assert {answer.status for answer in first + second} == {201}


@pytest.mark.trio
async def test_a_queue_for_the_ledger_that_stands_takes_nobody_else(world):
    world.ledger.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        first = await asked(world, nursery, 20)  # A burst.
        assert world.system.router.statistics().queue == 20
        await trio.sleep(2)
        found = world.system.router.statistics()
        assert (found.queue, found.queue_max) == (20, LEAST)
        assert found.credits_free == 30
        refused, _ = await world.open()
        assert (refused.status, body(refused)["code"]) == (503, "overloaded")
        world.ledger.gate.set()
        world.ledger.gate = None
    assert {answer.status for answer in first} == {201}
    await trio.sleep(1)
    assert world.system.router.statistics().queue_max == 50
    assert (await world.open())[0].status == 201


@pytest.mark.trio
async def test_a_request_that_is_refused_by_its_shard_leaves_the_queue(world):
    payment_id = await world.authorized()
    assert (await world.capture(payment_id)).status == 200
    assert (await world.capture(payment_id)).status == 409
    assert (await world.capture("pay_" + payment_id[4:-1] + "x")).status in (404, 400)
    assert world.system.router.statistics().queue == 0
