"""The breaker around pybreaker: one trial, no wall clock, late results ignored."""

import time

import pytest

from engine.domain.breaker import BreakerSettings
from engine.gateways.breaker import GatewayBreaker

SETTINGS = BreakerSettings(consecutive_failures=3, open_s=2.0, jitter_ratio=0.0)


def make(settings=SETTINGS):
    return GatewayBreaker(settings, name="test", now_s=0.0, jitter=lambda: 0.0)


def opened(now_s=1.0):
    breaker = make()
    for _ in range(3):
        assert breaker.admits()
        breaker.record("unknown", now_s)
    assert breaker.state == "open"
    return breaker


def test_consecutive_failures_open_it_and_it_refuses():
    breaker = opened(now_s=1.0)
    assert not breaker.admits()
    assert breaker.retry_in_s(1.5) == 1.5
    assert breaker.retry_in_s(10.0) == 0.0
    statistics = breaker.statistics()
    assert (statistics.openings, statistics.refused) == (1, 1)


def test_declines_never_open_it_and_unknowns_do():
    breaker = make()
    for _ in range(100):
        breaker.record("declined", 1.0)
    assert breaker.state == "closed"
    for _ in range(60):
        breaker.record("unknown", 1.0)
    assert breaker.state == "open"


def test_what_was_never_sent_says_nothing():
    breaker = make()
    for _ in range(100):
        breaker.record("not_sent", 1.0)
    assert breaker.state == "closed"
    assert breaker.statistics().window_calls == 0


def test_a_gateway_that_finds_nothing_works():
    breaker = opened()
    breaker.half_open()
    assert breaker.admits()
    breaker.record("not_found", 3.0)
    assert breaker.state == "closed"


def test_half_open_lets_exactly_one_trial_through():
    breaker = opened()
    breaker.half_open()
    assert breaker.state == "half-open"
    assert [breaker.admits() for _ in range(5)] == [True, False, False, False, False]
    breaker.record("approved", 3.0)
    assert breaker.state == "closed"
    assert all(breaker.admits() for _ in range(5))


def test_a_failed_trial_opens_it_for_longer():
    breaker = opened(now_s=1.0)
    breaker.half_open()
    assert breaker.admits()
    breaker.record("failed_technical", 3.0)
    assert breaker.state == "open"
    assert breaker.retry_in_s(3.0) == 4.0
    assert breaker.statistics().openings_in_a_row == 2


def test_a_trial_that_was_not_sent_makes_room_for_another():
    breaker = opened()
    breaker.half_open()
    assert breaker.admits()
    breaker.record("not_sent", 3.0)
    assert breaker.state == "half-open"
    assert breaker.admits()


def test_a_lost_trial_does_not_keep_it_half_open_for_ever():
    breaker = opened()
    breaker.half_open()
    assert breaker.admits()
    assert not breaker.admits()
    breaker.half_open()
    assert breaker.admits()


@pytest.mark.parametrize("outcome", ["approved", "unknown"])
def test_results_that_arrive_while_it_is_open_are_ignored(outcome):
    breaker = opened()
    before = breaker.retry_in_s(1.0)
    breaker.record(outcome, 1.5)
    assert breaker.state == "open"
    assert breaker.retry_in_s(1.0) == before
    assert breaker.statistics().ignored == 1


def test_a_late_result_is_not_taken_for_the_trials():
    breaker = opened()
    breaker.half_open()
    breaker.record("approved", 3.0)
    assert breaker.state == "half-open", "no trial is out yet"
    assert breaker.admits()
    breaker.record("unknown", 3.0, is_trial=False)
    assert breaker.state == "half-open"
    breaker.record("approved", 3.1)
    assert breaker.state == "closed"


def test_half_open_does_nothing_to_a_closed_one():
    breaker = make()
    breaker.half_open()
    assert breaker.state == "closed"


def test_a_closed_one_forgets_what_was_before():
    breaker = opened()
    breaker.half_open()
    assert breaker.admits()
    breaker.record("approved", 3.0)
    breaker.record("unknown", 3.0)
    breaker.record("unknown", 3.0)
    assert breaker.state == "closed"
    assert breaker.statistics().consecutive_failures == 2


def test_the_wall_clock_opens_nothing(monkeypatch):
    breaker = opened()
    monkeypatch.setattr(time, "time", lambda: 4e9)
    monkeypatch.setattr(time, "monotonic", lambda: 4e9)
    assert breaker.state == "open"
    assert not breaker.admits()


def test_an_outcome_nobody_knows_is_our_bug():
    with pytest.raises(KeyError):
        make().record("splendid", 1.0)
