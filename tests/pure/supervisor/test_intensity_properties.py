"""Restart accounting against a plain count, and backoff within its bounds, for any times."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engine.supervisor import Backoff, ChildSpec, SupervisorSpec
from engine.supervisor.intensity import add_restart, delay_s, is_exceeded, longest_delay_s
from engine.supervisor.spec import supervisor_problems

GAPS = st.lists(st.integers(0, 20), max_size=30)
CHANCES = st.floats(0, 1, exclude_max=True)


@given(GAPS, st.integers(0, 5), st.integers(1, 30))
def test_the_limit_is_exceeded_when_a_plain_count_says_so(
    gaps: list[int], intensity: int, period: int
) -> None:
    restarts: tuple[float, ...] = ()
    times: list[int] = []
    now = 0
    for gap in gaps:
        now += gap
        times.append(now)
        restarts = add_restart(restarts, now_s=now, period_s=period)
        within = [at for at in times if now - at <= period]
        assert list(restarts) == within
        assert is_exceeded(restarts, intensity=intensity) == (len(within) > intensity)


@given(
    st.integers(0, 10**6),
    st.floats(0, 10),
    st.floats(10, 1_000),
    st.floats(0, 1),
    CHANCES,
)
def test_a_wait_is_within_its_bounds_and_never_shrinks_with_the_attempts(
    attempt: int, initial_s: float, max_s: float, jitter: float, chance: float
) -> None:
    longest = longest_delay_s(attempt, initial_s=initial_s, max_s=max_s)
    assert longest <= longest_delay_s(attempt + 1, initial_s=initial_s, max_s=max_s) <= max_s
    wait = delay_s(attempt, initial_s=initial_s, max_s=max_s, jitter=jitter, chance=chance)
    assert 0 <= wait <= longest
    assert wait >= longest * (1 - jitter) - 1e-9


async def start(*, task_status: Any) -> None:
    task_status.started()


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 99), st.floats(), st.text(max_size=4)
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "id": ANYTHING,
            "strategy": ANYTHING,
            "intensity": ANYTHING,
            "period_s": ANYTHING,
            "auto_shutdown": ANYTHING,
            "backoff": st.builds(Backoff, initial_s=ANYTHING, max_s=ANYTHING, jitter=ANYTHING),
        },
    )
)
def test_any_spec_is_judged_and_every_problem_has_a_remedy(changes: dict[str, Any]) -> None:
    sound = SupervisorSpec(id="top", children=(ChildSpec(id="a", start=start),))
    problems = list(supervisor_problems(msgspec.structs.replace(sound, **changes)))
    assert all(problem.remedy for problem in problems)
    if not changes:
        assert problems == []
