"""An open loop's times are fixed beforehand, and as many as the rate says."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.schedule import arrivals


def test_times_ascend_and_lie_within_the_duration() -> None:
    times = arrivals(500.0, 4.0, seed=1)
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 4.0


def test_the_rate_is_met_on_average() -> None:
    assert len(arrivals(1_000.0, 20.0, seed=3)) == pytest.approx(20_000, rel=0.03)


def test_gaps_are_as_uneven_as_those_of_customers_who_do_not_know_of_one_another() -> None:
    times = arrivals(100.0, 100.0, seed=5)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.1)


def test_the_same_seed_gives_the_same_times() -> None:
    assert arrivals(50.0, 2.0, seed=7) == arrivals(50.0, 2.0, seed=7)
    assert arrivals(50.0, 2.0, seed=7) != arrivals(50.0, 2.0, seed=8)


@pytest.mark.parametrize(("rate", "seconds"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_a_schedule_of_nothing_is_refused(rate: float, seconds: float) -> None:
    with pytest.raises(ValueError, match="above zero"):
        arrivals(rate, seconds, seed=1)
