"""When retries and look-ups are due."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.retry import (
    LOOKUPS,
    LookupSchedule,
    lookup_due_ms,
    retry_due_ms,
    review_due_ms,
)

T0 = 1_790_000_000_000


def lookups(jitter: float, count: int) -> list[int]:
    times = [T0]
    for done in range(count):
        times.append(lookup_due_ms(done, times[-1], jitter))
    return [time - T0 for time in times[1:]]


def test_work_is_tried_again_after_5_15_and_30_minutes_then_it_is_a_dead_letter():
    waits = [retry_due_ms(failed, T0) for failed in (1, 2, 3, 4, 5)]
    assert waits == [T0 + 300_000, T0 + 900_000, T0 + 1_800_000, None, None]


def test_a_retry_before_the_first_attempt_is_a_bug():
    with pytest.raises(AssertionError):
        retry_due_ms(0, T0)


def test_the_first_look_up_comes_after_a_second():
    assert lookups(0.0, 4) == [1_000, 3_000, 7_000, 12_000]


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_an_outcome_that_settles_within_five_seconds_is_seen_within_ten(jitter):
    for settles_ms in (3_000, 4_000, 5_000):
        assert min(t for t in lookups(jitter, 20) if t >= settles_ms) <= 10_000


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_what_a_crash_left_is_seen_within_thirty_seconds_even_where_the_gateway_lags(jitter):
    for lags_ms in (0, 5_000, 10_000, 15_000, 20_000):
        assert min(t for t in lookups(jitter, 20) if t >= lags_ms) <= 30_000


def test_after_hours_the_gap_is_a_quarter_of_an_hour_for_ever():
    times = lookups(0.0, 400)
    assert {b - a for a, b in pairwise(times[20:])} == {900_000}
    assert lookup_due_ms(10**6, T0, 0.0) == T0 + 900_000


@given(st.integers(0, 60), st.floats(0, 1), st.floats(0, 1))
def test_gaps_are_integers_that_never_shrink_and_jitter_only_adds(done, low, high):
    low, high = sorted((low, high))
    due = lookup_due_ms(done, T0, low)
    assert isinstance(due, int)
    assert T0 < due <= lookup_due_ms(done, T0, high) <= T0 + 990_000
    assert due <= lookup_due_ms(done + 1, T0, low)


@pytest.mark.parametrize("jitter", [-0.1, 1.1])
def test_jitter_outside_0_to_1_is_a_bug(jitter):
    with pytest.raises(AssertionError):
        lookup_due_ms(0, T0, jitter)


def test_a_person_is_asked_after_the_deadline_and_the_look_ups_go_on():
    assert review_due_ms(T0) == T0 + 24 * 3_600_000
    assert lookups(0.0, 400)[-1] > LOOKUPS.review_after_ms


def test_a_gateway_can_have_its_own_schedule():
    own = LookupSchedule(delays_ms=(60_000, 600_000), jitter_ratio=0.0, review_after_ms=7)
    assert [lookup_due_ms(n, 0, 1.0, own) for n in (0, 1, 2)] == [60_000, 600_000, 600_000]
    assert review_due_ms(1, own) == 8


@pytest.mark.parametrize(
    "fields",
    [
        {"delays_ms": ()},
        {"delays_ms": (0, 5)},
        {"delays_ms": (5, 1)},
        {"jitter_ratio": 1.5},
        {"review_after_ms": 0},
    ],
)
def test_a_schedule_that_cannot_run_is_refused_where_it_is_read(fields):
    with pytest.raises(ValueError, match="must"):
        LookupSchedule(**fields)
