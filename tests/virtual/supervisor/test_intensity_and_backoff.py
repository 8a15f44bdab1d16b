"""When a supervisor gives up, how long it waits before, and what its parent makes of it."""

from random import Random
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from engine.supervisor import (
    Backoff,
    ChildSpec,
    MaxIntensityReached,
    SpecRefused,
    Supervisor,
    SupervisorSpec,
)
from engine.supervisor.reports import ChildState, Escalated, RestartScheduled


@pytest.mark.trio
async def test_more_restarts_than_the_intensity_stop_everything_and_escalate(
    autojump_clock: MockClock, stage: Any
) -> None:
    async with stage.running(stage.worker("a"), stage.worker("b"), intensity=2) as run:
        await stage.crash("a")
        await stage.crash("a")
        assert not run.has_ended
        stage.take_log()
        await stage.crash("a")

        assert isinstance(run.error, MaxIntensityReached)
        assert (run.error.supervisor_id, run.error.child_id) == ("top", "a")
        assert str(run.error.__cause__) == "a"
        assert stage.take_log() == ["stop b"]
        assert len(stage.seen(Escalated)) == 1
        assert not run.supervisor.statistics().is_running


@pytest.mark.trio
async def test_an_intensity_of_zero_escalates_at_the_first_crash(
    autojump_clock: MockClock, stage: Any
) -> None:
    async with stage.running(stage.worker("a"), intensity=0) as run:
        await stage.crash("a")

        assert isinstance(run.error, MaxIntensityReached)
        assert stage.starts["a"] == 1


@pytest.mark.trio
async def test_the_intensity_window_slides(autojump_clock: MockClock, stage: Any) -> None:
    """Two restarts in any 10 s are allowed: a crash every 6 s never escalates, every 4 s does."""
    async with stage.running(stage.worker("a"), intensity=2, period_s=10.0) as run:
        for _ in range(10):
            await stage.crash("a")
            await trio.sleep(6)
        assert run.error is None
        assert run.supervisor.statistics().restarts_in_period <= 2

        for _ in range(2):
            await stage.crash("a")
            await trio.sleep(4)
        assert run.has_ended


@pytest.mark.trio
async def test_temporary_children_never_count_against_the_intensity(
    autojump_clock: MockClock, stage: Any
) -> None:
    children = [stage.worker(f"t{number}", restart="temporary") for number in range(20)]
    async with stage.running(*children, intensity=0) as run:
        await stage.crash(*(child.id for child in children))

        assert run.error is None
        assert run.supervisor.count_children().specs == 0


@pytest.mark.trio
async def test_start_failures_during_a_restart_count_and_are_retried(
    autojump_clock: MockClock, stage: Any
) -> None:
    stage.start_plans["a"] = ["work", "fail", "return", "work"]
    async with stage.running(stage.worker("a"), intensity=3) as run:
        await stage.crash("a")

        assert stage.starts["a"] == 4
        assert run.supervisor.statistics().restarts == 3
        reasons = [event.reason for event in stage.seen(RestartScheduled)]
        assert reasons[1:] == [
            "ScriptedError: a can't start",
            "returned before task_status.started()",
        ]


@pytest.mark.trio
async def test_a_start_that_keeps_failing_escalates(autojump_clock: MockClock, stage: Any) -> None:
    stage.start_plans["a"] = ["work", "fail", "fail", "fail"]
    async with stage.running(stage.worker("a"), intensity=3) as run:
        await stage.crash("a")

        assert isinstance(run.error, MaxIntensityReached)
        assert "can't start" in run.error.reason


@pytest.mark.trio
async def test_restarts_wait_longer_each_time_up_to_the_maximum(
    autojump_clock: MockClock, stage: Any
) -> None:
    stage.start_plans["a"] = ["crash at once"] * 5
    backoff = Backoff(initial_s=1, max_s=4, jitter=0)
    async with stage.running(stage.worker("a"), intensity=6, period_s=60.0, backoff=backoff):
        await trio.sleep(30)

        assert [at_s for _, at_s in stage.times] == [0, 1, 3, 7, 11, 15]


@pytest.mark.trio
async def test_the_wait_starts_over_for_a_child_that_stayed_up_for_a_period(
    autojump_clock: MockClock, stage: Any
) -> None:
    stage.start_plans["a"] = ["crash at once"] * 2
    backoff = Backoff(initial_s=1, max_s=8, jitter=0)
    async with stage.running(stage.worker("a"), intensity=3, period_s=20.0, backoff=backoff):
        await trio.sleep(4)
        await stage.crash("a")
        await trio.sleep(30)
        await stage.crash("a")

        assert [event.delay_s for event in stage.seen(RestartScheduled)] == [1, 2, 4, 1]


@pytest.mark.trio
async def test_jitter_spreads_children_that_failed_together(
    autojump_clock: MockClock, stage: Any
) -> None:
    children = [stage.worker(f"w{number}") for number in range(20)]
    backoff = Backoff(initial_s=0.1, max_s=0.1, jitter=0.5)
    async with stage.running(*children, intensity=20, backoff=backoff):
        await stage.crash(*(child.id for child in children))

        delays = {event.delay_s for event in stage.seen(RestartScheduled)}
        assert len(delays) == 20
        assert all(0.05 <= delay_s <= 0.1 for delay_s in delays)


@pytest.mark.trio
async def test_a_cancelled_supervisor_does_not_finish_its_backoff(
    autojump_clock: MockClock, stage: Any
) -> None:
    backoff = Backoff(initial_s=3, max_s=3, jitter=0)
    async with stage.running(stage.worker("a"), backoff=backoff) as run:
        await stage.crash("a")
        await run.stop()

        assert trio.current_time() == 0
        assert stage.starts["a"] == 1


@pytest.mark.trio
async def test_a_child_supervisor_that_gives_up_is_restarted_by_its_parent(
    autojump_clock: MockClock, stage: Any
) -> None:
    def make(host: Any) -> Supervisor:
        inner = stage.supervisor(host, stage.worker("leaf"), id="inner", intensity=1)
        branch = ChildSpec(id="branch", start=inner.run, type="supervisor")
        return stage.supervisor(host, branch, stage.worker("b"), intensity=1)

    async with stage.performing(make) as run:
        stage.take_log()
        await stage.crash("leaf")
        await stage.crash("leaf")
        assert stage.take_log() == ["start leaf", "start leaf"]
        assert run.error is None
        counts = run.supervisor.count_children()
        assert (counts.supervisors, counts.workers, counts.active) == (1, 1, 2)

        # Intensities multiply: (1 + 1) * (1 + 1) crashes bring the root down.
        await stage.crash("leaf")
        await stage.crash("leaf")
        assert isinstance(run.error, MaxIntensityReached)
        assert run.error.child_id == "branch"
        assert "leaf" in run.error.reason
        assert stage.take_log() == ["start leaf", "stop b"]


@pytest.mark.trio
async def test_stopping_a_tree_stops_the_leaves_in_reverse(
    autojump_clock: MockClock, stage: Any
) -> None:
    def make(host: Any) -> Supervisor:
        inner = stage.supervisor(host, stage.worker("b1"), stage.worker("b2"), id="inner")
        branch = ChildSpec(id="b", start=inner.run, type="supervisor")
        return stage.supervisor(host, stage.worker("a"), branch, stage.worker("c"))

    async with stage.performing(make) as run:
        stage.take_log()
        await run.stop()

    assert stage.take_log() == ["stop c", "stop b2", "stop b1", "stop a"]


@pytest.mark.trio
async def test_a_supervisor_may_run_again_with_a_fresh_window(
    autojump_clock: MockClock, stage: Any
) -> None:
    def make(host: Any) -> Supervisor:
        return stage.supervisor(host, stage.worker("a"), intensity=0)

    async with stage.performing(make) as run:
        await stage.crash("a")
        assert run.error is not None

        async with stage.performing(lambda host: run.supervisor) as again:
            assert again.is_started
            (child,) = again.supervisor.which_children()
            assert child.state is ChildState.RUNNING


@pytest.mark.trio
async def test_statistics_tell_restarts_and_the_last_reason_of_each_child(
    autojump_clock: MockClock, stage: Any
) -> None:
    async with stage.running(stage.worker("a"), stage.worker("b")) as run:
        await stage.crash("b")
        statistics = run.supervisor.statistics()

    assert (statistics.id, statistics.strategy, statistics.is_running) == (
        "top",
        "one_for_one",
        True,
    )
    rows = [(row.id, row.state, row.restarts, row.last_reason) for row in statistics.children]
    assert rows == [
        ("a", ChildState.RUNNING, 0, ""),
        ("b", ChildState.RUNNING, 1, "ScriptedError: b"),
    ]


def test_an_invalid_spec_is_refused_before_anything_starts() -> None:
    spec = SupervisorSpec(id="top", intensity=-1)

    with pytest.raises(SpecRefused, match="intensity is -1"):
        Supervisor(spec, host=None, random=Random(1))  # type: ignore[arg-type]
