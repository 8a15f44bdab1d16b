"""A row says what was wanted, what was measured, and whether it holds; and never more."""

from __future__ import annotations

import json
from typing import Literal

import pytest

from benchmarks.report import BEGIN, END, replaced
from benchmarks.table import (
    Row,
    encode_rows,
    margin,
    markdown,
    number,
    render,
    row_from,
    verdict,
)

HELD = Row("1", "rate", 0.5, 0.61, "128 connections")
MISSED = Row("5a", "latency", 3.0, 4.5, "", "at most", "ms")
ABSENT = Row("7", "batch", 3.0, None, "not measured: the server answered 404", unit="times")


@pytest.mark.parametrize(
    ("bound", "figure", "holds"),
    [
        ("at least", 3.0, True),
        ("at least", 2.9, False),
        ("at most", 3.0, True),
        ("at most", 3.1, False),
        ("at least", None, False),
        ("at most", None, False),
    ],
)
def test_a_row_holds_on_the_right_side_of_its_limit(
    bound: Literal["at least", "at most"], figure: float | None, holds: bool
) -> None:
    assert Row("1", "x", 3.0, figure, bound=bound).holds is holds


def test_what_was_not_measured_is_neither_held_nor_missed() -> None:
    assert [verdict(row) for row in (HELD, MISSED, ABSENT)] == ["holds", "MISSED", "not measured"]


def test_the_record_has_the_five_parts_and_no_other() -> None:
    assert MISSED.record() == {
        "row": "5a",
        "what": "latency",
        "target": "at most 3 ms",
        "figure": 4.5,
        "holds": False,
    }


def test_a_miss_is_not_rounded_away() -> None:
    narrow = Row("2c", "ledger", 20.0, 19.97, unit="times")
    assert (narrow.holds, narrow.shown) == (False, "19.97")
    assert Row("2c", "ledger", 20.0, 20.03, unit="times").shown == "20"


def test_a_row_survives_the_way_between_processes() -> None:
    rows = [HELD, MISSED, ABSENT]
    assert [row_from(values) for values in json.loads(encode_rows(rows))] == rows


def test_the_table_has_a_line_per_row_and_its_note_below() -> None:
    lines = render([HELD, MISSED]).splitlines()
    assert len(lines) == 2 + 3
    assert lines[2].endswith("holds")
    assert "128 connections" in lines[3]
    assert lines[4].endswith("MISSED")


def test_markdown_is_not_broken_by_what_stands_in_a_cell() -> None:
    table = markdown([Row("1", "a | b", 1.0, 2.0)])
    assert all(line.count("|") == 7 for line in table.splitlines())


@pytest.mark.parametrize(
    ("value", "text"),
    [(66.0, "66"), (12345.6, "12,346"), (0.1234, "0.123"), (123.45, "123.5"), (None, ABSENT)],
)
def test_numbers_are_written_for_people(value: float | None, text: object) -> None:
    assert number(value) == ("not measured" if value is None else text)


def test_the_margin_is_one_at_the_target_and_more_beyond_it() -> None:
    assert margin(Row("1", "x", 2.0, 2.0)) == 1.0
    assert margin(Row("1", "x", 2.0, 4.0)) == 2.0
    assert margin(Row("1", "x", 2.0, 4.0, bound="at most")) == 0.5
    assert margin(ABSENT) is None


def test_the_generated_part_of_a_document_is_replaced_and_the_rest_kept() -> None:
    document = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert replaced(document, "new") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"


def test_a_document_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="generated"):
        replaced("nothing of the kind", "new")
