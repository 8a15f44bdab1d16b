"""Specs are checked as a whole before anything starts; every problem says what to do."""

import math
from typing import Any

import msgspec
import pytest

from engine.supervisor import Backoff, ChildSpec, SpecRefused, SupervisorSpec, check_supervisor
from engine.supervisor.spec import must_restart


async def start(*, task_status: Any) -> None:
    task_status.started()


GOOD_CHILD = ChildSpec(id="a", start=start)
GOOD = SupervisorSpec(id="top", children=(GOOD_CHILD,))


def problems_of(spec: SupervisorSpec) -> list[str]:
    with pytest.raises(SpecRefused) as refused:
        check_supervisor(spec)
    assert all(problem.remedy for problem in refused.value.problems)
    return [str(problem) for problem in refused.value.problems]


def test_the_defaults_are_valid() -> None:
    check_supervisor(GOOD)
    check_supervisor(SupervisorSpec(id="empty"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"id": ""}, "the id is not a non-empty string"),
        ({"strategy": "simple_one_for_one"}, "strategy is 'simple_one_for_one'"),
        ({"intensity": -1}, "intensity is -1"),
        ({"intensity": 1.5}, "intensity is 1.5"),
        ({"intensity": True}, "intensity is True"),
        ({"period_s": 0}, "period_s is 0"),
        ({"period_s": math.inf}, "period_s is inf"),
        ({"period_s": math.nan}, "period_s is nan"),
        ({"auto_shutdown": "sometimes"}, "auto_shutdown is 'sometimes'"),
        ({"backoff": Backoff(initial_s=-1)}, "backoff.initial_s is -1"),
        ({"backoff": Backoff(initial_s=2, max_s=1)}, "backoff.max_s is 1"),
        ({"backoff": Backoff(jitter=1.1)}, "backoff.jitter is 1.1"),
        ({"children": (GOOD_CHILD, GOOD_CHILD)}, "'a' is used by more than one child"),
    ],
)
def test_a_supervisor_problem_is_named(changes: dict[str, Any], expected: str) -> None:
    (problem,) = problems_of(msgspec.structs.replace(GOOD, **changes))

    assert expected in problem


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"id": " "}, "the id is not a non-empty string"),
        ({"start": None}, "start can't be called"),
        ({"restart": "always"}, "restart is 'always'"),
        ({"type": "dynamic"}, "type is 'dynamic'"),
        ({"shutdown_s": 0}, "shutdown_s is 0"),
        ({"shutdown_s": -1}, "shutdown_s is -1"),
        ({"shutdown_s": math.inf}, "shutdown_s is inf"),
        ({"shutdown_s": "kill"}, "shutdown_s is 'kill'"),
        ({"start_timeout_s": 0}, "start_timeout_s is 0"),
        ({"start_timeout_s": "long"}, "start_timeout_s is 'long'"),
        ({"significant": True, "restart": "transient"}, "never shuts down by itself"),
    ],
)
def test_a_child_problem_is_named(changes: dict[str, Any], expected: str) -> None:
    child = msgspec.structs.replace(GOOD_CHILD, **changes)
    (problem,) = problems_of(msgspec.structs.replace(GOOD, children=(child,)))

    assert expected in problem


def test_a_permanent_child_cannot_be_significant() -> None:
    child = msgspec.structs.replace(GOOD_CHILD, significant=True)
    spec = SupervisorSpec(id="top", auto_shutdown="any_significant", children=(child,))

    (problem,) = problems_of(spec)

    assert "permanent child can't be significant" in problem


def test_all_problems_are_reported_at_once() -> None:
    child = ChildSpec(id="", start=start, restart="never")  # type: ignore[arg-type]
    spec = SupervisorSpec(id="top", intensity=-1, period_s=-1, children=(child,))

    assert len(problems_of(spec)) == 4


def test_a_backoff_that_would_hide_a_crash_loop_is_refused() -> None:
    """Restarts 1 s, 2 s and 4 s apart never put four of them within 5 s."""
    backoff = Backoff(initial_s=1, max_s=8, jitter=0)
    slow = SupervisorSpec(id="top", intensity=3, period_s=5, backoff=backoff)

    (problem,) = problems_of(slow)

    assert "would never escalate" in problem
    assert "period_s to at least 7" in problem
    check_supervisor(msgspec.structs.replace(slow, period_s=7.0))


def test_the_shutdown_limit_depends_on_the_type_like_in_otp() -> None:
    supervisor = msgspec.structs.replace(GOOD_CHILD, type="supervisor")
    given = msgspec.structs.replace(supervisor, shutdown_s=2.0)

    assert (GOOD_CHILD.shutdown, supervisor.shutdown, given.shutdown) == (5.0, "infinity", 2.0)


@pytest.mark.parametrize(
    ("restart", "after_normal_exit", "after_crash"),
    [("permanent", True, True), ("transient", False, True), ("temporary", False, False)],
)
def test_restart_types(restart: Any, after_normal_exit: bool, after_crash: bool) -> None:
    assert must_restart(restart, is_normal_exit=True) is after_normal_exit
    assert must_restart(restart, is_normal_exit=False) is after_crash
