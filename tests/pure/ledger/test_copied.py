"""A column out of COPY's binary format, in whatever pieces the network makes of it."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.ledger.copied import CopiedColumn

SIGNATURE = b"PGCOPY\n\xff\r\n\x00" + bytes(8)


def copied(values: list[bytes]) -> bytes:
    """What COPY (SELECT column ...) TO STDOUT (FORMAT binary) sends."""
    rows = [struct.pack(">hi", 1, len(value)) + value for value in values]
    return SIGNATURE + b"".join(rows) + b"\xff\xff"


@given(st.lists(st.binary(max_size=9), max_size=9), st.sets(st.integers(1, 200)))
def test_any_cut_of_the_stream_gives_the_same_values(values: list[bytes], cuts: set[int]) -> None:
    stream = copied(values)
    column, found = CopiedColumn(), []
    places = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    for start, end in pairwise(places):
        assert not column.is_whole
        found += column.feed(stream[start:end])
    assert found == values
    assert column.is_whole


def test_a_stream_that_was_cut_off_is_not_whole() -> None:
    stream = copied([b"one", b"two"])
    for end in range(len(stream)):
        column = CopiedColumn()
        column.feed(stream[:end])
        assert not column.is_whole, end


@pytest.mark.parametrize(
    ("row", "complaint"),
    [(struct.pack(">hiB", 2, 1, 0), "one column"), (struct.pack(">hi", 1, -1), "NULL")],
)
def test_rows_of_another_shape_are_noticed(row: bytes, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        CopiedColumn().feed(SIGNATURE + row)


def test_another_format_is_noticed() -> None:
    with pytest.raises(AssertionError, match="signature"):
        CopiedColumn().feed(b"some text, tabs and newlines")
