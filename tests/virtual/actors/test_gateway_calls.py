"""The tasks that make calls: used again and again, and each call with a deadline of its own."""

import math

import msgspec
import pytest
import trio
import trio.testing

from engine.domain.news import NotFound
from engine.messages import Perform
from tests.virtual.actors.rig import a_world, body


def takes(world, monkeypatch, *seconds):
    """The gateway takes so long for each of its next calls, and answers none of them at once."""
    times = iter(seconds)
    real = world.simulator.perform

    async def perform(call, in_time_s=math.inf):
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

    async def perform(call, in_time_s=math.inf):
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


@pytest.mark.trio
async def test_a_late_call_is_not_made_behind_others_of_its_turn_either(
    autojump_clock, world, monkeypatch
):
    await world.open()
    (call,) = world.gateway.made("authorize")
    made = []

    async def perform(call, in_time_s):
        made.append(call)
        return NotFound()

    monkeypatch.setattr(world.gateway, "perform", perform)
    (payment,) = world.payments()
    now_ms = world.clock.now_ms()
    late_ms = now_ms - world.gateway.traits.deadline_ms - 1
    actor = world.system._statistics["gateway-simulator"].__self__
    look_up = msgspec.structs.replace(call, look_up=True)
    actor._send([Perform(look_up, payment.id, 1, late_ms), Perform(call, payment.id, 1, late_ms)])
    await trio.testing.wait_all_tasks_blocked()
    assert (made, world.gateway.made("authorize")) == ([look_up], [call])


@pytest.mark.trio
async def test_what_is_left_of_the_deadline_bounds_when_a_call_leaves(
    autojump_clock, world, monkeypatch
):
    """Counted from its step: its commit takes two seconds here. A look-up may leave at any time."""
    left = []
    performed = type(world.gateway).perform

    async def perform(self, call, in_time_s):
        left.append((call.look_up, in_time_s))
        return await performed(self, call, in_time_s)

    monkeypatch.setattr(type(world.gateway), "perform", perform)
    monkeypatch.setattr(world.gateway, "perform_now", lambda calls: [None for _ in calls])
    world.ledger.faults.commit_delay_s = 2.0
    await world.open("pm_card_timeout_after_charge")
    await world.until(lambda: world.payments()[0].status == "authorized", 100)
    deadline_s = world.gateway.traits.deadline_ms / 1_000
    (sent, *looked_up) = left
    assert sent == (False, pytest.approx(deadline_s - 2, abs=0.01))
    assert looked_up
    assert set(looked_up) == {(True, math.inf)}
