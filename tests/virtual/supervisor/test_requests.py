"""Children added, stopped, restarted and deleted while the supervisor runs."""

from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from engine.supervisor import Backoff, ChildRefused, ChildSpec, Refusal, SupervisorNotRunning
from engine.supervisor.reports import (
    ChildAbandoned,
    ChildDeleted,
    ChildStarted,
    ChildState,
    ChildStopped,
)


def refusal(answer: object) -> Refusal:
    assert isinstance(answer, ChildRefused)
    return answer.refusal


@pytest.mark.trio
async def test_a_new_child_starts_last_and_stops_first(
    autojump_clock: MockClock, stage: Any
) -> None:
    async with stage.running(stage.worker("a")) as run:
        answer = await run.supervisor.start_child(stage.worker("b"))
        assert answer == ChildStarted(supervisor_id="top", child_id="b", value="b 1")
        await run.stop()

    assert stage.take_log() == ["start a", "start b", "stop b", "stop a"]


@pytest.mark.trio
async def test_a_new_child_that_fails_to_start_is_not_added(
    autojump_clock: MockClock, stage: Any
) -> None:
    stage.start_plans["b"] = ["fail"]
    async with stage.running(intensity=0) as run:
        answer = await run.supervisor.start_child(stage.worker("b"))

        assert refusal(answer) is Refusal.START_FAILED
        assert "b can't start" in answer.detail
        assert run.supervisor.which_children() == ()
        assert not run.has_ended


@pytest.mark.trio
async def test_an_invalid_new_child_is_refused_with_the_problem(
    autojump_clock: MockClock, stage: Any
) -> None:
    async with stage.running() as run:
        answer = await run.supervisor.start_child(stage.worker("b", restart="always"))

        assert refusal(answer) is Refusal.INVALID_SPEC
        assert "use one of permanent, transient, temporary" in answer.detail
        assert stage.starts["b"] == 0


@pytest.mark.trio
async def test_a_child_goes_through_its_whole_life_on_request(
    autojump_clock: MockClock, stage: Any
) -> None:
    child = stage.worker("a")
    async with stage.running(child) as run:
        supervisor = run.supervisor
        assert refusal(await supervisor.start_child(child)) is Refusal.ALREADY_STARTED
        assert refusal(await supervisor.restart_child("a")) is Refusal.RUNNING
        assert refusal(await supervisor.delete_child("a")) is Refusal.RUNNING

        assert isinstance(await supervisor.terminate_child("a"), ChildStopped)
        assert isinstance(await supervisor.terminate_child("a"), ChildStopped)
        assert supervisor.which_children()[0].state is ChildState.STOPPED
        assert refusal(await supervisor.start_child(child)) is Refusal.ALREADY_PRESENT

        assert isinstance(await supervisor.restart_child("a"), ChildStarted)
        assert stage.starts["a"] == 2
        await supervisor.terminate_child("a")
        assert isinstance(await supervisor.delete_child("a"), ChildDeleted)
        assert supervisor.count_children().specs == 0
        for request in ("terminate_child", "restart_child", "delete_child"):
            assert refusal(await getattr(supervisor, request)("a")) is Refusal.NOT_FOUND


@pytest.mark.trio
async def test_a_restart_on_request_that_fails_leaves_the_child_stopped(
    autojump_clock: MockClock, stage: Any
) -> None:
    stage.start_plans["a"] = ["work", "fail"]
    async with stage.running(stage.worker("a"), intensity=0) as run:
        await run.supervisor.terminate_child("a")
        answer = await run.supervisor.restart_child("a")

        assert refusal(answer) is Refusal.START_FAILED
        assert run.supervisor.which_children()[0].state is ChildState.STOPPED
        assert not run.has_ended


@pytest.mark.trio
async def test_a_terminated_temporary_child_is_forgotten(
    autojump_clock: MockClock, stage: Any
) -> None:
    async with stage.running(stage.worker("a", restart="temporary")) as run:
        await run.supervisor.terminate_child("a")

        assert run.supervisor.which_children() == ()


@pytest.mark.trio
async def test_a_child_that_waits_for_its_restart_can_only_be_terminated(
    autojump_clock: MockClock, stage: Any
) -> None:
    backoff = Backoff(initial_s=5, max_s=5, jitter=0)
    child = stage.worker("a")
    async with stage.running(child, backoff=backoff) as run:
        await stage.crash("a")
        supervisor = run.supervisor
        assert refusal(await supervisor.start_child(child)) is Refusal.ALREADY_PRESENT
        assert refusal(await supervisor.restart_child("a")) is Refusal.RESTARTING
        assert refusal(await supervisor.delete_child("a")) is Refusal.RESTARTING

        await supervisor.terminate_child("a")
        await trio.sleep(10)
        assert stage.starts["a"] == 1
        assert supervisor.which_children()[0].state is ChildState.STOPPED


@pytest.mark.trio
async def test_calling_off_one_restart_of_a_group_leaves_the_others_due(
    autojump_clock: MockClock, stage: Any
) -> None:
    backoff = Backoff(initial_s=5, max_s=5, jitter=0)
    children = [stage.worker(name) for name in "abc"]
    async with stage.running(*children, strategy="one_for_all", backoff=backoff) as run:
        await stage.crash("b")
        await run.supervisor.terminate_child("b")
        await trio.sleep(10)

        assert [stage.starts[name] for name in "abc"] == [2, 1, 2]


@pytest.mark.trio
async def test_terminating_a_child_that_does_not_go_says_so(
    autojump_clock: MockClock, stage: Any
) -> None:
    async with stage.running(stage.worker("a", on_cancel="ignore", shutdown_s=1.0)) as run:
        answer = await run.supervisor.terminate_child("a")

        assert isinstance(answer, ChildAbandoned)
        assert run.supervisor.which_children()[0].state is ChildState.ABANDONED
        assert isinstance(await run.supervisor.restart_child("a"), ChildStarted)


@pytest.mark.trio
async def test_a_request_is_carried_out_though_its_caller_stopped_waiting(
    autojump_clock: MockClock, stage: Any
) -> None:
    stage.start_plans["b"] = ["slow"]
    async with stage.running() as run:
        with trio.move_on_after(1):
            await run.supervisor.start_child(stage.worker("b"))
        await trio.sleep(5)

        assert run.supervisor.count_children().active == 1


@pytest.mark.trio
async def test_requests_fail_when_the_supervisor_is_not_running_or_ends_first(
    autojump_clock: MockClock, stage: Any
) -> None:
    stage.start_plans["b"] = ["hang"]
    stopped_while = []

    async def ask(supervisor: Any, child_id: str) -> None:
        with pytest.raises(SupervisorNotRunning):
            await supervisor.start_child(stage.worker(child_id))
        stopped_while.append(child_id)

    async with trio.open_nursery() as nursery, stage.running() as run:
        nursery.start_soon(ask, run.supervisor, "b")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, run.supervisor, "c")
        await trio.testing.wait_all_tasks_blocked()
        await run.stop()
        await ask(run.supervisor, "d")

    assert sorted(stopped_while) == ["b", "c", "d"]
    assert stage.starts["c"] == 0


@pytest.mark.trio
async def test_a_running_child_may_ask_its_own_supervisor_for_another(
    autojump_clock: MockClock, stage: Any
) -> None:
    """A terminate of itself arrives as a cancellation; the supervisor carries on."""
    async with stage.running(stage.worker("a")) as run:

        async def start(*, task_status: Any) -> None:
            task_status.started()
            await run.supervisor.start_child(stage.worker("made"))
            await run.supervisor.terminate_child("maker")

        maker = ChildSpec(id="maker", start=start, restart="temporary")
        await run.supervisor.start_child(maker)
        await trio.testing.wait_all_tasks_blocked()

        assert [child.id for child in run.supervisor.which_children()] == ["a", "made"]


@pytest.mark.trio
async def test_a_thousand_temporary_children_come_and_go(
    autojump_clock: MockClock, stage: Any
) -> None:
    async with stage.running(stage.worker("a"), intensity=0) as run:
        for number in range(1_000):
            await run.supervisor.start_child(stage.worker(f"t{number}", restart="temporary"))
        assert run.supervisor.count_children().active == 1_001

        await stage.crash(*(f"t{number}" for number in range(500)))
        assert run.supervisor.count_children().specs == 501
        stage.take_log()
        await run.stop()

    stopped = stage.take_log()
    assert stopped == [*(f"stop t{number}" for number in reversed(range(500, 1_000))), "stop a"]
    assert run.error is None
