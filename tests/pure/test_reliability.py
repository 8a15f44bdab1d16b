"""The tables of RELIABILITY.md follow from reports, and nothing else of it is touched."""

from __future__ import annotations

import pytest

from engine.failpoints import POINTS
from tests.reliability import DOCUMENT, PARTS, renewed
from tests.torture.everything import merged
from tests.torture.rows import NOT_RUN, ROWS

SCENARIO = {"row": 9, "name": "test_row_09", "passed": True, "kills": 2, "seconds": 1.0}
REPORTS = {
    "torture": {
        "made": "2026-01-01",
        "scenarios": [{**SCENARIO, "detail": {"acknowledged": 7}}],
        "not_run": [{"row": 44, "why": "no Redis"}],
        "failpoints": dict.fromkeys(POINTS, 3),
        "kills": 2,
        "seconds": 60.0,
    },
    "simulate": {
        "seeds": 1_000,
        "seeds_per_s": 12.5,
        "faults": {"kill": 3},
        "sometimes": {"fenced": 4},
        "failing_seeds": [],
    },
    "planted": {"answers before the commit": 3},
    "fuzz": {"requests": 10_000},
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_made_anew_and_the_rest_stays(name: str) -> None:
    document = DOCUMENT.read_text("utf-8")
    text = renewed(document, name, REPORTS[name])
    assert renewed(text, name, REPORTS[name]) == text
    begin, end = f"<!-- made from {name}.json -->", f"<!-- end of {name}.json -->"
    assert text.split(begin)[0] == document.split(begin)[0]
    assert text.split(end)[1] == document.split(end)[1]
    assert "\n".join(PARTS[name](REPORTS[name])) in text


def test_a_document_without_the_part_is_refused() -> None:
    with pytest.raises(ValueError, match="fuzz"):
        renewed("# Nothing\n", "fuzz", REPORTS["fuzz"])


def test_reports_are_merged_and_every_row_is_accounted_for() -> None:
    one = {**REPORTS["torture"], "not_run": [{"row": r, "why": w} for r, w in NOT_RUN.items()]}
    found = merged([one, one], 10.0)
    assert found["kills"] == 4
    assert set(found["failpoints"].values()) == {6}
    assert set(found["missing"]) == set(ROWS) - set(NOT_RUN) - {9}
