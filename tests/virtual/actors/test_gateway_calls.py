"""The tasks that make calls: used again and again, and each call with a deadline of its own."""

import pytest
import trio

from engine.messages import Perform
from tests.virtual.actors.rig import a_world, body


def takes(world, monkeypatch, *seconds):
    """The gateway takes so long for each of its next calls, and answers none of them at once."""
    times = iter(seconds)
    real = world.simulator.perform

    async def perform(call):
        news = await real(call)
        await trio.sleep(0 if call.look_up else next(times, 0))
        return news

    monkeypatch.setattr(world.simulator, "perform", perform)
    world.gateway.gate = trio.Event()
    world.gateway.gate.set()


def callers(world):
    """The tasks without a call."""
    return world.system._statistics["gateway-simulator"].__self__._free


@pytest.mark.trio
async def test_one_call_after_the_other_needs_one_task_and_has_its_own_deadline(
    autojump_clock, world, monkeypatch
):
    nearly_s = world.gateway.traits.deadline_ms / 1_000 * 0.9
    takes(world, monkeypatch, nearly_s, nearly_s, nearly_s)
    for _ in range(3):
        answer, _ = await world.open()
        assert (answer.status, body(answer)["status"]) == (201, "authorized")
        assert len(callers(world)) == 1
    await world.skip(10 * nearly_s)
    assert len(callers(world)) == 1, "no deadline runs where there is no call"
    assert (await world.open())[0].status == 201


@pytest.mark.trio
@pytest.mark.parametrize("over_s", [0, 0.001, 5])
async def test_a_task_that_ran_into_a_deadline_is_not_used_again(
    autojump_clock, world, monkeypatch, over_s
):
    deadline_s = world.gateway.traits.deadline_ms / 1_000
    takes(world, monkeypatch, deadline_s + over_s, 1, deadline_s + over_s, 1)
    for _ in range(2):
        await world.open()  # Either unknown, or just in time.
        assert (await world.open())[0].status == 201
    await world.until(lambda: all(p.status == "authorized" for p in world.payments()), 500)
    assert len(world.gateway.made("authorize")) == 4


@pytest.mark.trio
async def test_a_reply_that_came_with_the_deadline_counts_and_the_next_call_is_made(
    autojump_clock, world, monkeypatch
):
    deadline_s = world.gateway.traits.deadline_ms / 1_000
    takes(world, monkeypatch)
    real = world.simulator.perform
    slow = iter([True])

    async def perform(call):
        if next(slow, False):
            with trio.CancelScope(shield=True):
                await trio.sleep(deadline_s + 1)
        return await real(call)

    monkeypatch.setattr(world.simulator, "perform", perform)
    await world.open()
    await world.until(lambda: world.payments()[0].status == "authorized")
    answers = []

    async def ask():
        answers.append((await world.open())[0].status)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
    assert answers == [201] * 3, "none was given to the task that has ended"


@pytest.mark.trio
async def test_no_more_tasks_than_calls_at_a_time(autojump_clock, tmp_path, monkeypatch):
    async with a_world(tmp_path, autojump_clock, inflight_max=3, deadline_ms=60_000) as world:
        await world.start()
        takes(world, monkeypatch, *[1] * 20)
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(world.open)
        assert world.gateway.in_flight_most == 3
        assert len(callers(world)) <= 4, "whoever ends lets another one begin, then waits"
        assert {p.status for p in world.payments()} == {"authorized"}


@pytest.mark.trio
async def test_no_call_is_given_to_a_task_of_an_earlier_life(autojump_clock, world, monkeypatch):
    takes(world, monkeypatch, 1, 1, 30, 1, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.open)
        nursery.start_soon(world.open)
    assert len(callers(world)) == 2
    actor = world.system._statistics["gateway-simulator"].__self__
    real = actor._send
    broken = iter([True])

    def send(messages: list[Perform]) -> None:
        real(messages)
        if next(broken, False):
            raise RuntimeError("a bug")

    monkeypatch.setattr(actor, "_send", send)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.open)  # Its actor crashes with one task at it, and one free.
    for _ in range(2):
        assert (await world.open())[0].status == 201
    await world.until(lambda: not any(p.has_work for p in world.payments()), 500)
    assert actor.statistics().in_flight == 0
