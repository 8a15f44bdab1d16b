"""The breaker's decisions: what opens it, what never does, and for how long it stays open."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.breaker import (
    OUTCOME_IS_OK,
    BreakerSettings,
    counts_as_failure,
    counts_of,
    new_window,
    open_duration_s,
    record,
    should_open,
)

RATIO = BreakerSettings(
    window_s=10, calls_min=10, last_calls=20, failure_ratio=0.5, consecutive_failures=1_000
)


def filled(settings: BreakerSettings, outcomes: list[tuple[float, bool]]):
    window = new_window(settings, outcomes[0][0] if outcomes else 0.0)
    for now_s, ok in outcomes:
        record(window, now_s, ok)
    return window


def test_a_decline_never_counts_as_failure_and_an_unknown_outcome_does():
    failures = {kind for kind in OUTCOME_IS_OK if counts_as_failure(kind)}
    assert failures == {"failed_technical", "unknown"}
    assert {kind for kind, ok in OUTCOME_IS_OK.items() if ok is None} == {"not_sent"}
    assert OUTCOME_IS_OK["declined"] is True


def test_a_kind_nobody_classified_is_a_bug():
    with pytest.raises(KeyError):
        counts_as_failure("maybe")


def test_an_empty_window_stays_closed():
    assert not should_open(new_window(RATIO, 0.0), RATIO)


def test_a_ratio_says_nothing_below_the_minimum_of_calls():
    calls = [(0.0, False)] * (RATIO.calls_min - 1)
    assert not should_open(filled(RATIO, calls), RATIO)
    assert should_open(filled(RATIO, [*calls, (0.0, False)]), RATIO)


def test_it_opens_exactly_at_the_ratio():
    below = [(0.0, True)] * 6 + [(0.5, False)] * 5
    assert not should_open(filled(RATIO, below), RATIO)
    assert should_open(filled(RATIO, [*below, (0.6, False)]), RATIO)


def test_consecutive_failures_open_it_long_before_the_minimum():
    settings = BreakerSettings(consecutive_failures=3)
    assert not should_open(filled(settings, [(0.0, False), (40.0, False)]), settings)
    assert should_open(filled(settings, [(t, False) for t in (0.0, 40.0, 80.0)]), settings)


def test_one_success_ends_a_run_of_failures():
    settings = BreakerSettings(consecutive_failures=3)
    calls = [(0.0, False), (0.1, False), (0.2, True), (0.3, False), (0.4, False)]
    assert not should_open(filled(settings, calls), settings)


def test_an_outage_under_load_is_seen_although_successes_were_many():
    settings = BreakerSettings(
        window_s=5, last_calls=50, calls_min=20, failure_ratio=0.5, consecutive_failures=1_000
    )
    window = filled(settings, [(t / 100, True) for t in range(100)])
    # Every second call fails: the last calls show it long before the seconds do.
    for n in range(100):
        record(window, 1.0 + n / 100, n % 2 == 0)
    assert should_open(window, settings)


def test_an_outage_after_a_quiet_time_waits_for_the_minimum_of_calls_too():
    settings = BreakerSettings(
        window_s=10, last_calls=20, calls_min=10, failure_ratio=0.8, consecutive_failures=1_000
    )
    calls = [(0.0, True)] * 20 + [(60.0, False)] * 9
    assert not should_open(filled(settings, calls), settings)
    assert should_open(filled(settings, [*calls, (60.0, False)]), settings)


def test_few_calls_are_judged_by_the_last_ones_however_old():
    calls = [(60.0 * n, n % 2 == 0) for n in range(20)]
    assert should_open(filled(RATIO, calls), RATIO)


def test_what_is_older_than_the_window_is_forgotten():
    window = filled(RATIO, [(0.9, False)] * 3)
    record(window, 9.9, True)
    assert (counts_of(window).calls, counts_of(window).failures) == (4, 3)
    record(window, 10.0, True)
    assert (counts_of(window).calls, counts_of(window).failures) == (2, 0)
    record(window, 1e9, True)
    assert counts_of(window).calls == 1


def test_a_clock_that_steps_back_loses_nothing():
    window = filled(RATIO, [(100.0, True), (40.0, False), (101.0, True)])
    assert (counts_of(window).calls, counts_of(window).failures) == (3, 1)


@given(
    st.lists(st.tuples(st.floats(0, 20), st.booleans()), max_size=150),
    st.integers(1, 12),
    st.integers(1, 40),
)
def test_both_windows_count_what_a_plain_list_would(steps, window_s, last_calls):
    settings = BreakerSettings(window_s=window_s, calls_min=1, last_calls=last_calls)
    now, calls = 1_000.0, []
    window = new_window(settings, now)
    for step, ok in steps:
        now += step
        calls.append((int(now), ok))
        record(window, now, ok)
    inside = [ok for second, ok in calls if second > int(now) - window_s]
    last = [ok for _, ok in calls][-last_calls:]
    counts = counts_of(window)
    assert (counts.calls, counts.failures) == (len(inside), inside.count(False))
    assert (counts.last_calls, counts.last_failures) == (len(last), last.count(False))


def test_the_open_time_grows_to_its_maximum():
    settings = BreakerSettings(open_s=2, open_growth=2, open_max_s=15, jitter_ratio=0.5)
    assert [open_duration_s(settings, n, 0.0) for n in (1, 2, 3, 4, 5)] == [2, 4, 8, 15, 15]
    assert open_duration_s(settings, 10**6, 0.0) == 15
    assert open_duration_s(settings, 1, 1.0) == 3


@given(st.integers(1, 100), st.floats(0, 1))
def test_the_open_time_is_bounded_and_never_shrinks(openings, jitter):
    settings = BreakerSettings()
    longest = settings.open_max_s * (1 + settings.jitter_ratio)
    now, later = (open_duration_s(settings, n, jitter) for n in (openings, openings + 1))
    assert settings.open_s <= now <= later <= longest


@pytest.mark.parametrize(
    "fields",
    [
        {"window_s": 0},
        {"calls_min": 0},
        {"calls_min": 100, "last_calls": 50},
        {"failure_ratio": 0.0},
        {"failure_ratio": 1.5},
        {"consecutive_failures": 0},
        {"open_s": 0.0},
        {"open_s": 10.0, "open_max_s": 5.0},
        {"open_growth": 0.5},
        {"jitter_ratio": 2.0},
    ],
)
def test_settings_that_cannot_work_are_refused_where_they_are_read(fields):
    with pytest.raises(ValueError, match="must"):
        BreakerSettings(**fields)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(fields, BreakerSettings)
