"""A load test is judged by its thresholds, and by nothing that was not seen."""

from __future__ import annotations

from typing import Any

import pytest

from loadtests.judging import growth_of, in_words, recovery, troubles_of
from loadtests.scenarios import SCENARIOS, SOAK, Scenario, Thresholds

SCENARIO = Scenario(
    name="x", what="x", seconds=10,
    thresholds=Thresholds(put_off_max=0.2, p50_ms=50, p99_ms=100, memory_growth_max=1.1),
)  # fmt: skip


def seen(**changes: Any) -> dict[str, Any]:
    """Ten good seconds, as locust's process leaves them; JSON has made texts of the seconds."""
    return {
        "seconds": {str(second): {"good": 10} for second in range(10)},
        "statuses": {"201": 100},
        "latencies_ms": [20.0] * 100,
        "failures": {},
        "payments": 100,
        "under_way": 0,
        **changes,
    }


def test_what_went_well_holds() -> None:
    assert troubles_of(SCENARIO, seen(), [100] * 30, verified=True) == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"failures": {"authorize no final answer": 1}}, "failed"),
        ({"seconds": {"1": {"good": 1, "put_off": 1}, "9": {"good": 1}}}, "put off"),
        ({"latencies_ms": [60.0] * 100}, "p50"),
        ({"latencies_ms": [20.0] * 90 + [200.0] * 10}, "p99"),
        ({"seconds": {"1": {"good": 90}, "9": {"good": 1, "put_off": 5}}}, "good at the end"),
        ({"latencies_ms": []}, "nothing was answered"),
        ({"under_way": 1}, "without an end"),
    ],
)
def test_what_did_not_is_named(changes: dict[str, Any], word: str) -> None:
    troubles = troubles_of(SCENARIO, seen(**changes), [100] * 30, verified=True)
    assert len(troubles) == 1
    assert troubles[0].startswith(word)


def test_books_that_do_not_verify_are_a_trouble_however_fast_they_were() -> None:
    assert troubles_of(SCENARIO, seen(), [], verified=False) == ["engine verify does not hold"]


def test_memory_is_judged_where_a_limit_is_named() -> None:
    growing = [100] * 20 + [150] * 10
    troubles = troubles_of(SCENARIO, seen(), growing, verified=True)
    assert troubles == ["memory grew to 1.50 times, at most 1.1"]

    assert growth_of([100] * 10 + [100] * 10 + [150] * 10) == 1.5
    assert growth_of([1, 2, 3]) is None


def test_what_is_asked_after_the_end_does_not_count_as_recovery() -> None:
    late = seen(seconds={"9": {"good": 5}, "12": {"put_off": 50}})
    assert recovery(late, 10, 0.8) == 1.0


def test_who_answers_nothing_in_the_end_has_not_recovered() -> None:
    early = seen(seconds={"6": {"good": 5}})
    assert recovery(early, 10, 0.8) == 0.0
    assert recovery(early, 10, 0.6) == 1.0


def test_what_was_to_go_wrong_and_did_not_is_named() -> None:
    limits = Thresholds(put_off_min=0.05, put_off_max=0.9)
    disturbed = Scenario(name="x", what="x", seconds=10, thresholds=limits)
    (trouble,) = troubles_of(disturbed, seen(), [], verified=True)
    assert trouble == "put off 0.0%, at least 5.0%: nothing went wrong"


def test_a_run_is_told_in_one_line() -> None:
    assert "100 payments, 100 good, 0 put off, p50 20 ms" in in_words(seen())


def test_scenarios_are_known_by_their_names_and_end_within_five_minutes() -> None:
    names = [scenario.name for scenario in (*SCENARIOS, SOAK)]
    assert len(set(names)) == len(names)
    assert sum(scenario.seconds for scenario in SCENARIOS) < 150
