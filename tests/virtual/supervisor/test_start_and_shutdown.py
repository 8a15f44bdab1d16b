"""Starts that fail or hang, and children that do not go when told to."""

from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from engine.supervisor import ChildSpec, ChildStartFailed, Mailbox, MailboxRevoked, Supervisor
from engine.supervisor.reports import (
    AbandonedChildEnded,
    ChildAbandoned,
    ChildDidNotStart,
    ChildState,
    ChildStopped,
    EndingKind,
    ShutDownBySignificantChild,
)


@pytest.mark.trio
@pytest.mark.parametrize(
    ("plan", "reason"),
    [("fail", "ScriptedError: c can't start"), ("return", "returned before task_status.started()")],
)
async def test_a_failed_start_at_boot_stops_the_earlier_children_and_names_the_child(
    autojump_clock: MockClock, stage: Any, plan: str, reason: str
) -> None:
    stage.start_plans["c"] = [plan]
    async with stage.running(*(stage.worker(name) for name in "abcd"), intensity=9) as run:
        assert isinstance(run.error, ChildStartFailed)
        assert (run.error.child_id, run.error.reason) == ("c", reason)
        assert not run.is_started

    assert stage.take_log() == ["start a", "start b", "start c", "stop b", "stop a"]


@pytest.mark.trio
async def test_a_hanging_start_at_boot_is_bounded(autojump_clock: MockClock, stage: Any) -> None:
    stage.start_plans["a"] = ["hang"]
    async with stage.running(stage.worker("a", start_timeout_s=3)) as run:
        assert trio.current_time() == 3
        assert isinstance(run.error, ChildStartFailed)
        assert run.error.reason == "did not start within 3 s"
        assert not stage.seen(ChildAbandoned)


@pytest.mark.trio
async def test_a_hanging_start_during_a_restart_is_bounded_and_retried(
    autojump_clock: MockClock, stage: Any
) -> None:
    stage.start_plans["a"] = ["work", "hang", "work"]
    async with stage.running(stage.worker("a", start_timeout_s=3), intensity=2) as run:
        await stage.crash("a")
        await trio.sleep(3.5)

        assert stage.times == [("start a", 0), ("start a", 0), ("start a", 3)]
        assert [e.ending.kind for e in stage.seen(ChildDidNotStart)] == [EndingKind.START_TIMED_OUT]
        assert run.supervisor.count_children().active == 1


@pytest.mark.trio
async def test_a_hanging_start_that_ignores_its_cancellation_is_abandoned(
    autojump_clock: MockClock, stage: Any
) -> None:
    stage.start_plans["a"] = ["hang and ignore"]
    child = stage.worker("a", start_timeout_s=3, shutdown_s=2.0)
    async with stage.running(child) as run:
        assert trio.current_time() == 5
        assert isinstance(run.error, ChildStartFailed)
        assert run.supervisor.statistics().abandoned == 1
        assert [child.state for child in run.supervisor.which_children()] == [ChildState.ABANDONED]


@pytest.mark.trio
async def test_a_cancelled_boot_stops_what_it_had_started(
    autojump_clock: MockClock, stage: Any
) -> None:
    stage.start_plans["b"] = ["hang"]
    async with trio.open_nursery() as host:
        supervisor = stage.supervisor(host, stage.worker("a"), stage.worker("b"))
        with trio.move_on_after(1):
            await supervisor.run()

        assert stage.take_log() == ["start a", "start b", "stop a"]
        assert not host.child_tasks


@pytest.mark.trio
async def test_a_child_gets_its_shutdown_time_to_clean_up(
    autojump_clock: MockClock, stage: Any
) -> None:
    child = stage.worker("a", on_cancel="4", shutdown_s=5.0)
    async with stage.running(child) as run:
        await run.stop()

        assert trio.current_time() == 4
        assert not stage.seen(ChildAbandoned)
        (event,) = stage.seen(ChildStopped)
        assert event.ending.kind is EndingKind.STOPPED


@pytest.mark.trio
async def test_a_child_that_ignores_shutdown_is_abandoned_and_the_others_still_stop(
    autojump_clock: MockClock,
    stage: Any,
) -> None:
    mailbox: Mailbox[str] = Mailbox(capacity=1, reserved_capacity=0)
    stubborn = stage.worker("b", on_cancel="ignore", shutdown_s=5.0, mailbox=mailbox)
    async with stage.running(stage.worker("a"), stubborn, stage.worker("c")) as run:
        stage.take_log()
        await run.stop()

        assert trio.current_time() == 5
        assert stage.take_log() == ["stop c", "stop a"]
        (event,) = stage.seen(ChildAbandoned)
        assert (event.child_id, event.reason) == ("b", "ignored its cancellation (shutdown: 5 s)")
        assert run.supervisor.statistics().abandoned == 1
        with pytest.raises(MailboxRevoked):
            mailbox.put_nowait("new work")

        stage.release.set()
        await trio.testing.wait_all_tasks_blocked()
        assert [event.child_id for event in stage.seen(AbandonedChildEnded)] == ["b"]
        assert run.supervisor.statistics().abandoned == 0


@pytest.mark.trio
async def test_an_abandoned_child_in_a_group_restart_is_replaced(
    autojump_clock: MockClock, stage: Any
) -> None:
    stubborn = stage.worker("a", on_cancel="ignore", shutdown_s=2.0)
    children = [stubborn, stage.worker("b")]
    async with stage.running(*children, strategy="one_for_all") as run:
        await stage.crash("b")
        await trio.sleep(3)

        assert stage.times[2:] == [("start a", 2), ("start b", 2)]
        assert run.supervisor.count_children().active == 2
        assert run.supervisor.statistics().abandoned == 1


@pytest.mark.trio
async def test_a_brutal_stop_takes_no_time_and_grants_no_clean_up(
    autojump_clock: MockClock, stage: Any
) -> None:
    obedient = stage.worker("a", shutdown_s="brutal")
    tidy = stage.worker("b", on_cancel="1", shutdown_s="brutal")
    async with stage.running(obedient, tidy) as run:
        stage.take_log()
        await run.stop()

        assert trio.current_time() == 0
        assert [event.child_id for event in stage.seen(ChildAbandoned)] == ["b"]
        assert stage.take_log() == ["stop a"]


@pytest.mark.trio
async def test_infinity_waits_for_as_long_as_the_child_needs(
    autojump_clock: MockClock, stage: Any
) -> None:
    child = stage.worker("a", on_cancel="86400", shutdown_s="infinity")
    async with stage.running(child) as run:
        await run.stop()

    assert trio.current_time() == 86_400
    assert not stage.seen(ChildAbandoned)


@pytest.mark.trio
async def test_a_clean_up_that_crashes_is_reported_and_stops_nobody(
    autojump_clock: MockClock, stage: Any
) -> None:
    children = [stage.worker("a"), stage.worker("b", on_cancel="crash")]
    async with stage.running(*children) as run:
        await run.stop()

        assert run.error is None
        endings = [(event.child_id, event.ending.kind) for event in stage.seen(ChildStopped)]
        assert endings == [("b", EndingKind.CRASHED), ("a", EndingKind.STOPPED)]


@pytest.mark.trio
async def test_a_cancelled_host_ends_the_supervisor_too(
    autojump_clock: MockClock, stage: Any
) -> None:
    """The host should outlive its supervisors; if it does not, nothing hangs or is left over."""
    async with trio.open_nursery() as host:
        supervisor = stage.supervisor(host, stage.worker("a"), intensity=5)
        await host.start(supervisor.run)
        host.cancel_scope.cancel()

    assert stage.take_log() == ["start a", "stop a"]
    assert not supervisor.statistics().is_running


@pytest.mark.trio
async def test_a_child_that_signals_twice_crashes(autojump_clock: MockClock, stage: Any) -> None:
    async def start(*, task_status: Any) -> None:
        task_status.started()
        task_status.started()

    async with stage.running(ChildSpec(id="a", start=start), intensity=0) as run:
        await trio.testing.wait_all_tasks_blocked()

        assert "called task_status.started() twice" in str(run.error)


@pytest.mark.trio
@pytest.mark.parametrize("restart", ["transient", "temporary"])
async def test_any_significant_child_shuts_its_supervisor_down(
    autojump_clock: MockClock, stage: Any, restart: str
) -> None:
    children = [
        stage.worker("a"),
        stage.worker("b", restart=restart, significant=True),
        stage.worker("c", restart=restart, significant=True),
    ]
    async with stage.running(*children, auto_shutdown="any_significant") as run:
        stage.take_log()
        await stage.finish("b")

        assert run.has_ended
        assert run.error is None
        assert stage.take_log() == ["stop c", "stop a"]
        assert len(stage.seen(ShutDownBySignificantChild)) == 1


@pytest.mark.trio
async def test_all_significant_waits_for_the_last_one(
    autojump_clock: MockClock, stage: Any
) -> None:
    children = [
        stage.worker("a"),
        stage.worker("b", restart="transient", significant=True),
        stage.worker("c", restart="temporary", significant=True),
    ]
    async with stage.running(*children, auto_shutdown="all_significant") as run:
        await stage.crash("c")
        assert not run.has_ended
        await stage.crash("b")
        assert not run.has_ended  # A transient child that crashed restarts.
        await stage.finish("b")
        assert run.has_ended


@pytest.mark.trio
async def test_stopping_a_significant_child_on_request_does_not_shut_down(
    autojump_clock: MockClock, stage: Any
) -> None:
    child = stage.worker("a", restart="transient", significant=True)
    async with stage.running(child, auto_shutdown="any_significant") as run:
        supervisor: Supervisor = run.supervisor
        await supervisor.terminate_child("a")
        await trio.testing.wait_all_tasks_blocked()

        assert not run.has_ended
