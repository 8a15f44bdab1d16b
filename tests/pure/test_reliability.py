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
        "first_seed": 0,
        "took_s": 80.0,
        "seeds_per_s": 12.5,
        "processes": 2,
        "payments": 12_000,
        "requests": 90_000,
        "virtual_s": 86_400.0,
        "faults": {"kill": 3},
        "sometimes": {"fenced": 4, "parked": 0},
        "never": ["parked"],
        "failures": [{"seed": 7}],
    },
    "planted": {"from": [0, 10_000], "found": {"reply_before_commit": [3, None]}},
    "fuzz": {
        "minutes": 5.0,
        "seed": 1,
        "books_hold": True,
        "engine": {
            "after_warm_up": {"rss_bytes": 80 << 20},
            "at_the_end": {"rss_bytes": 90 << 20},
        },
        "properties": {"rounds": {"passed": 3, "failed": 0}},
        "counts": {"bodies": 10_000, "sweep": 12},
        "statuses": {"bodies": {"201": 95, "400": 3_070}},
        "slowest_s": {"bodies": 0.3},
        "findings": [],
        "findings_more": 0,
    },
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


def test_what_was_missed_is_said() -> None:
    assert "found something: 7. Of 2 things" in "\n".join(PARTS["simulate"](REPORTS["simulate"]))
    assert "| reply before commit | 3 | not found |" in PARTS["planted"](REPORTS["planted"])


def test_a_document_without_the_part_is_refused() -> None:
    with pytest.raises(ValueError, match="fuzz"):
        renewed("# Nothing\n", "fuzz", REPORTS["fuzz"])


def test_reports_are_merged_and_every_row_is_accounted_for() -> None:
    one = {**REPORTS["torture"], "not_run": [{"row": r, "why": w} for r, w in NOT_RUN.items()]}
    found = merged([one, one], 10.0)
    assert found["kills"] == 4
    assert set(found["failpoints"].values()) == {6}
    assert set(found["missing"]) == set(ROWS) - set(NOT_RUN) - {9}
