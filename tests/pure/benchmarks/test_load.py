"""Only what was done counts as done, and what was not done was not quick."""

from __future__ import annotations

from typing import Any

from benchmarks.load import TIME_OUT_S, Tally
from benchmarks.processes import good_per_s


def tally(*statuses: str) -> Tally:
    """Each answered after 2 ms, in a second without warming up."""
    found = Tally(lambda: b"", 0.0, 1.0)
    began = found.begin()
    for status in statuses:
        found.count(status, began, began, began + 0.002, b"")
    return found


def test_an_outcome_that_is_not_known_yet_is_no_good_one() -> None:
    result: Any = tally("201", "201", "202", "503").result()
    assert good_per_s(result) == 2


def test_what_was_refused_at_once_was_not_quick() -> None:
    result: Any = tally("201", "503").result()
    assert (result["latency"]["count"], result["latency"]["max_ms"]) == (2, TIME_OUT_S * 1_000)
    assert result["by_status"]["503"]["max_ms"] < 10


def test_what_was_never_answered_counts_as_well() -> None:
    found = tally("201")
    found.lost = 1
    result: Any = found.result(unanswered=2)
    assert (result["latency"]["count"], result["latency"]["max_ms"]) == (4, TIME_OUT_S * 1_000)
