"""Who restarts with whom, and in which order (OTP supervisor_SUITE: one_for_one, ...)."""

from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from engine.supervisor import Backoff
from engine.supervisor.reports import ChildState, RestartScheduled


@pytest.mark.trio
async def test_one_for_one_restarts_only_the_failed_child(
    autojump_clock: MockClock, stage: Any
) -> None:
    async with stage.running(*(stage.worker(name) for name in "abc")):
        stage.take_log()
        await stage.crash("b")

        assert stage.take_log() == ["start b"]


@pytest.mark.trio
async def test_one_for_all_stops_the_others_in_reverse_and_starts_all_in_order(
    autojump_clock: MockClock, stage: Any
) -> None:
    children = [stage.worker(name) for name in "abc"]
    async with stage.running(*children, strategy="one_for_all"):
        stage.take_log()
        await stage.crash("b")

        assert stage.take_log() == ["stop c", "stop a", "start a", "start b", "start c"]


@pytest.mark.trio
async def test_rest_for_one_restarts_the_failed_child_and_those_after_it(
    autojump_clock: MockClock, stage: Any
) -> None:
    children = [stage.worker(name) for name in "abcd"]
    async with stage.running(*children, strategy="rest_for_one"):
        stage.take_log()
        await stage.crash("b")

        assert stage.take_log() == ["stop d", "stop c", "start b", "start c", "start d"]


@pytest.mark.trio
@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
async def test_temporary_siblings_are_stopped_with_the_group_and_not_started_again(
    autojump_clock: MockClock, stage: Any, strategy: str
) -> None:
    children = [stage.worker("a"), stage.worker("b", restart="temporary"), stage.worker("c")]
    async with stage.running(*children, strategy=strategy) as run:
        stage.take_log()
        await stage.crash("a")

        assert stage.take_log() == ["stop c", "stop b", "start a", "start c"]
        assert [child.id for child in run.supervisor.which_children()] == ["a", "c"]


@pytest.mark.trio
@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
async def test_a_normal_exit_of_a_transient_child_leaves_the_group_alone(
    autojump_clock: MockClock, stage: Any, strategy: str
) -> None:
    children = [stage.worker("a", restart="transient"), stage.worker("b")]
    async with stage.running(*children, strategy=strategy):
        stage.take_log()
        await stage.finish("a")

        assert stage.take_log() == []


@pytest.mark.trio
async def test_a_group_restart_counts_once_against_the_intensity(
    autojump_clock: MockClock, stage: Any
) -> None:
    children = [stage.worker(name) for name in "abc"]
    async with stage.running(*children, strategy="one_for_all", intensity=1) as run:
        await stage.crash("a", "b", "c")

        assert run.error is None
        assert run.supervisor.statistics().restarts == 1
        assert [child.restarts for child in run.supervisor.statistics().children] == [1, 1, 1]


@pytest.mark.trio
async def test_siblings_that_fail_together_under_one_for_one_count_one_each(
    autojump_clock: MockClock, stage: Any
) -> None:
    async with stage.running(stage.worker("a"), stage.worker("b"), intensity=1) as run:
        await stage.crash("a", "b")

        assert "more than 1 restarts" in str(run.error)


@pytest.mark.trio
async def test_a_sibling_failing_while_another_starts_again_restarts_after_it(
    autojump_clock: MockClock, stage: Any
) -> None:
    stage.start_plans["a"] = ["work", "slow"]
    async with stage.running(stage.worker("a"), stage.worker("b"), intensity=5):
        await stage.crash("a")
        await trio.sleep(1)
        await stage.crash("b")
        await trio.sleep(5)

        assert stage.times[2:] == [("start a", 0), ("start b", 2)]


@pytest.mark.trio
async def test_a_sibling_failing_during_the_backoff_of_another_does_not_wait_for_it(
    autojump_clock: MockClock,
    stage: Any,
) -> None:
    backoff = Backoff(initial_s=2, max_s=2, jitter=0)
    async with stage.running(stage.worker("a"), stage.worker("b"), intensity=2, backoff=backoff):
        await stage.crash("a")
        await trio.sleep(0.5)
        await stage.crash("b")
        await trio.sleep(5)

        assert stage.times[2:] == [("start a", 2), ("start b", 2.5)]


@pytest.mark.trio
async def test_an_earlier_sibling_failing_during_a_group_backoff_takes_the_group_over(
    autojump_clock: MockClock,
    stage: Any,
) -> None:
    """Nobody is started twice, and the order holds."""
    backoff = Backoff(initial_s=1, max_s=1, jitter=0)
    children = [stage.worker(name) for name in "abc"]
    async with stage.running(*children, strategy="rest_for_one", intensity=2, backoff=backoff):
        await stage.crash("b")
        await trio.sleep(0.5)
        await stage.crash("a")
        stage.times.clear()
        await trio.sleep(5)

        assert stage.times == [("start a", 1.5), ("start b", 1.5), ("start c", 1.5)]


@pytest.mark.trio
async def test_a_start_that_fails_in_a_one_for_all_restart_stops_and_retries_everything(
    autojump_clock: MockClock,
    stage: Any,
) -> None:
    stage.start_plans["b"] = ["work", "fail"]
    children = [stage.worker(name) for name in "abc"]
    async with stage.running(*children, strategy="one_for_all", intensity=2) as run:
        stage.take_log()
        await stage.crash("c")

        expected = ["stop b", "stop a", "start a", "start b", "stop a"]
        assert stage.take_log() == [*expected, "start a", "start b", "start c"]
        assert run.supervisor.statistics().restarts == 2


@pytest.mark.trio
async def test_a_start_that_fails_in_a_rest_for_one_restart_leaves_the_earlier_ones_alone(
    autojump_clock: MockClock,
    stage: Any,
) -> None:
    stage.start_plans["b"] = ["work", "fail"]
    children = [stage.worker(name) for name in "abc"]
    async with stage.running(*children, strategy="rest_for_one", intensity=2):
        stage.take_log()
        await stage.crash("a")

        expected = ["stop c", "stop b", "start a", "start b"]
        assert stage.take_log() == [*expected, "start b", "start c"]


@pytest.mark.trio
async def test_a_sibling_that_crashes_right_after_its_restart_causes_one_more(
    autojump_clock: MockClock, stage: Any
) -> None:
    stage.start_plans["a"] = ["work", "crash at once"]
    children = [stage.worker("a"), stage.worker("b")]
    async with stage.running(*children, strategy="one_for_all", intensity=2) as run:
        await stage.crash("b")

        assert [event.child_id for event in stage.seen(RestartScheduled)] == ["b", "a"]
        assert all(c.state is ChildState.RUNNING for c in run.supervisor.which_children())


@pytest.mark.trio
async def test_no_child_of_a_group_is_ever_running_twice(
    autojump_clock: MockClock, stage: Any
) -> None:
    children = [stage.worker(name) for name in "abc"]
    async with stage.running(*children, strategy="one_for_all", intensity=50):
        for name in "abcabcab":
            await stage.crash(name)

    for name in "abc":
        crashes = "abcabcab".count(name)
        assert stage.log.count(f"start {name}") == stage.log.count(f"stop {name}") + crashes
