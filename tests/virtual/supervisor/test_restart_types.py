"""Restart type by kind of exit, for one child (OTP supervisor_SUITE: normal and abnormal exits)."""

from random import Random
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from engine.supervisor import ChildSpec, Supervisor, SupervisorSpec
from engine.supervisor.reports import ChildEnded, ChildState, EndingKind, RestartScheduled


@pytest.mark.trio
@pytest.mark.parametrize(
    ("restart", "starts", "states"),
    [
        ("permanent", 2, [ChildState.RUNNING]),
        ("transient", 1, [ChildState.STOPPED]),
        ("temporary", 1, []),
    ],
)
async def test_after_a_normal_exit_only_a_permanent_child_restarts(
    autojump_clock: MockClock, stage: Any, restart: Any, starts: int, states: list[ChildState]
) -> None:
    async with stage.running(stage.worker("a", restart=restart)) as run:
        await stage.finish("a")

        assert stage.starts["a"] == starts
        assert [child.state for child in run.supervisor.which_children()] == states
        assert [event.ending.kind for event in stage.seen(ChildEnded)] == [EndingKind.NORMAL]


@pytest.mark.trio
@pytest.mark.parametrize(
    ("restart", "starts", "states"),
    [
        ("permanent", 2, [ChildState.RUNNING]),
        ("transient", 2, [ChildState.RUNNING]),
        ("temporary", 1, []),
    ],
)
async def test_after_a_crash_only_a_temporary_child_stays_down(
    autojump_clock: MockClock, stage: Any, restart: Any, starts: int, states: list[ChildState]
) -> None:
    async with stage.running(stage.worker("a", restart=restart)) as run:
        await stage.crash("a")

        assert stage.starts["a"] == starts
        assert [child.state for child in run.supervisor.which_children()] == states
        (event,) = stage.seen(ChildEnded)
        assert (event.ending.kind, event.ending.reason) == (EndingKind.CRASHED, "ScriptedError: a")


@pytest.mark.trio
@pytest.mark.parametrize(
    ("restart", "starts"), [("permanent", 2), ("transient", 2), ("temporary", 1)]
)
async def test_a_cancellation_by_someone_else_counts_as_an_abnormal_exit(
    autojump_clock: MockClock, stage: Any, restart: Any, starts: int
) -> None:
    """A Cancelled that escapes a child, though neither its scope nor the host was cancelled."""
    lives = 0

    async def start(*, task_status: Any) -> None:
        nonlocal lives
        lives += 1
        task_status.started()
        if lives > 1:
            await trio.sleep_forever()
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.sleep_forever()
            except trio.Cancelled as cancelled:
                stray = cancelled
        raise stray

    async with stage.running(ChildSpec(id="a", start=start, restart=restart)):
        await trio.testing.wait_all_tasks_blocked()

        assert lives == starts
        assert [e.ending.kind for e in stage.seen(ChildEnded)] == [EndingKind.CANCELLED]


@pytest.mark.trio
async def test_a_child_that_someone_else_ends_through_a_scope_of_its_own_ended_normally(
    autojump_clock: MockClock,
    stage: Any,
) -> None:
    own_scope = trio.CancelScope()

    async def start(*, task_status: Any) -> None:
        task_status.started()
        with own_scope:
            await trio.sleep_forever()

    async with stage.running(ChildSpec(id="a", start=start, restart="transient")):
        own_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()

        assert [e.ending.kind for e in stage.seen(ChildEnded)] == [EndingKind.NORMAL]
        assert not stage.seen(RestartScheduled)


@pytest.mark.trio
async def test_children_start_in_order_and_stop_in_reverse(
    autojump_clock: MockClock, stage: Any
) -> None:
    async with stage.running(*(stage.worker(name) for name in "abc")) as run:
        assert stage.take_log() == ["start a", "start b", "start c"]
        await run.stop()

    assert stage.take_log() == ["stop c", "stop b", "stop a"]
    assert run.error is None


@pytest.mark.trio
async def test_a_child_starts_only_after_the_one_before_it_has_started(
    autojump_clock: MockClock, stage: Any
) -> None:
    stage.start_plans["a"] = ["slow"]
    async with stage.running(stage.worker("a"), stage.worker("b")):
        assert stage.times == [("start a", 0), ("start b", 2)]


@pytest.mark.trio
async def test_an_observer_that_raises_does_not_bring_the_supervisor_down(
    autojump_clock: MockClock, stage: Any
) -> None:
    def fail(event: object) -> None:
        raise RuntimeError("the log is full")

    def make(host: Any) -> Supervisor:
        spec = SupervisorSpec(id="top", children=(stage.worker("a"),))
        return Supervisor(spec, host=host, random=Random(1), on_event=fail)

    async with stage.performing(make) as run:
        await stage.crash("a")
        await trio.sleep(1)

        assert stage.starts["a"] == 2
        assert run.supervisor.statistics().observer_failures == 4
