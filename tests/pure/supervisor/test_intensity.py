"""Restart accounting and backoff: arithmetic on given times and chances."""

import pytest

from engine.supervisor.intensity import (
    add_restart,
    crash_loop_span_s,
    delay_s,
    is_exceeded,
    longest_delay_s,
)


def test_restarts_within_the_period_add_up_until_they_exceed_the_intensity() -> None:
    restarts: tuple[float, ...] = ()
    verdicts = []
    for now_s in (10.0, 11.0, 12.0):
        restarts = add_restart(restarts, now_s=now_s, period_s=5)
        verdicts.append(is_exceeded(restarts, intensity=2))

    assert verdicts == [False, False, True]


def test_restarts_older_than_the_period_no_longer_count() -> None:
    assert add_restart((1.0, 4.0), now_s=7.0, period_s=5) == (4.0, 7.0)


def test_a_restart_exactly_one_period_ago_still_counts() -> None:
    assert add_restart((2.0,), now_s=7.0, period_s=5) == (2.0, 7.0)


def test_an_intensity_of_zero_allows_no_restart() -> None:
    assert is_exceeded(add_restart((), now_s=0, period_s=5), intensity=0)


def test_the_wait_doubles_up_to_its_maximum() -> None:
    waits = [longest_delay_s(attempt, initial_s=0.5, max_s=3) for attempt in range(5)]

    assert waits == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_the_wait_stays_at_its_maximum_after_any_number_of_failures() -> None:
    assert longest_delay_s(10**9, initial_s=0.5, max_s=3) == 3


@pytest.mark.parametrize(
    ("jitter", "chance", "expected_s"),
    [(0, 0.9, 4), (0.5, 0, 4), (0.5, 0.5, 3), (1, 0.75, 1)],
)
def test_jitter_takes_away_at_most_its_share(
    jitter: float, chance: float, expected_s: float
) -> None:
    wait_s = delay_s(2, initial_s=1, max_s=10, jitter=jitter, chance=chance)

    assert wait_s == pytest.approx(expected_s)


@pytest.mark.parametrize("intensity", [0, 1, 5, 63, 64, 65, 200])
def test_the_span_of_a_crash_loop_is_the_sum_of_its_waits(intensity: int) -> None:
    waits = (longest_delay_s(attempt, initial_s=0.1, max_s=5) for attempt in range(intensity))

    assert crash_loop_span_s(intensity, initial_s=0.1, max_s=5) == pytest.approx(sum(waits))
