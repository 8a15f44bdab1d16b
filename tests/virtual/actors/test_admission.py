"""Who waits for a gateway is in nobody's way; who waits for the engine is, and not for long."""

import pytest
import trio

from engine.domain.commands import Capture, Open
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
async def test_whoever_waits_for_a_gateway_is_in_no_queue(autojump_clock, world):
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
async def test_a_queue_for_the_ledger_that_stands_takes_nobody_else(autojump_clock, world):
    world.ledger.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        first = await asked(world, nursery, 20)  # A burst.
        assert world.system.router.statistics().queue == 20
        await trio.sleep(2)
        found = world.system.router.statistics()
        assert (found.queue, found.limited_shards) == (20, 1)
        assert found.credits_free == 30
        refused, _ = await world.open()
        assert (refused.status, body(refused)["code"]) == (503, "overloaded")
        world.ledger.gate.set()
        world.ledger.gate = None
    assert {answer.status for answer in first} == {201}
    await trio.sleep(1)
    assert world.system.router.statistics().limited_shards == 0
    assert (await world.open())[0].status == 201


@pytest.mark.trio
async def test_a_request_that_is_refused_by_its_shard_leaves_the_queue(autojump_clock, world):
    payment_id = await world.authorized()
    assert (await world.capture(payment_id)).status == 200
    assert (await world.capture(payment_id)).status == 409
    assert (await world.capture("pay_" + payment_id[4:-1] + "x")).status in (404, 400)
    assert world.system.router.statistics().queue == 0


@pytest.mark.trio
async def test_what_a_shard_forgot_when_it_crashed_stands_in_no_queue(autojump_clock, world):
    world.ledger.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        answers = await asked(world, nursery, 20)
        world.system.directory.shards[0].put_reserved_nowait("no such message")
        await trio.sleep(0.01)
        assert world.system.directory.shard_crashes[0] == 1
        gate, world.ledger.gate = world.ledger.gate, None
        gate.set()
        await trio.sleep(1)
        assert world.system.router.statistics().queue == 0
        for _ in range(30):
            await trio.sleep(0.2)
            assert (await world.open())[0].status == 201
    assert {answer.status for answer in answers} <= {201, 202}


@pytest.mark.trio
async def test_a_ledger_that_is_gone_is_the_reason_and_not_the_queue_it_leaves(
    autojump_clock, world
):
    world.ledger.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        await asked(world, nursery, 20)
        await trio.sleep(2)
        assert world.system.router.is_full()
        world.ledger.faults.down = True
        gate, world.ledger.gate = world.ledger.gate, None
        gate.set()
        await trio.sleep(0.01)
        assert world.system.directory.ledger_trouble
        assert not world.system.router.is_full()  # The server would say overloaded by itself.
        began = trio.current_time()
        alone, _ = await world.open()
        [(item, _)] = await world.ask_many([world.asking(OPEN)])
        assert body(alone)["code"] == body(item)["code"] == "ledger_unavailable"
        assert trio.current_time() == began
        world.ledger.faults.down = False


def slowly(perform):
    """The same, three seconds later."""

    async def performed(*given):
        await trio.sleep(3)
        return await perform(*given)

    return performed


class TwoShards:
    """An engine whose first shard has a queue that takes nobody."""

    def __init__(self, world):
        self.world = world
        self.directory = world.system.directory
        self.queue = world.system.router._admission.queues[0]

    async def payments_of(self, shard, count):
        found = []
        while len(found) < count:
            payment_id = await self.world.authorized()
            if self.directory.shard_index(payment_id) == shard:
                found.append(payment_id)
        return found

    def fill(self):
        self.queue._most = self.queue.limit = 0


@pytest.fixture
async def two(autojump_clock, tmp_path):
    async with a_world(tmp_path, autojump_clock) as made:
        made.settings |= {"shards": 2, "credits": 2_000, "shard_capacity": 2_000}
        await made.start()
        yield TwoShards(made)


@pytest.mark.trio
async def test_new_payments_go_where_there_is_room_and_old_ones_cannot(autojump_clock, two):
    [first], [second] = await two.payments_of(0, 1), await two.payments_of(1, 1)
    two.fill()
    refused = await two.world.capture(first)
    assert (refused.status, body(refused)["code"]) == (503, "overloaded")
    assert (await two.world.capture(second)).status == 200
    for _ in range(10):
        answer, _ = await two.world.open()
        assert answer.status == 201
        assert two.directory.shard_index(body(answer)["id"]) == 1


@pytest.mark.trio
async def test_a_batch_that_waits_for_a_full_shard_keeps_no_other_one_out(autojump_clock, two):
    world = two.world
    stuck, free = await two.payments_of(0, 40), await two.payments_of(1, 20)
    two.fill()
    done = []

    async def many(asks):
        answers = await world.ask_many(asks)
        done.append([answer.status for answer, _ in answers])

    # A gateway that takes its time, so that it is the sweep that lets more items in.
    world.gateway.perform = slowly(world.gateway.perform)
    world.gateway.perform_now = lambda calls: [None for _ in calls]
    captures = [world.asking(Capture("m_a", False, None), payment) for payment in stuck + free]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(many, captures)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(many, [world.asking(OPEN) for _ in range(300)])
    opened, captured = done
    assert opened == [201] * 300
    assert captured == [503] * 40 + [200] * 20
