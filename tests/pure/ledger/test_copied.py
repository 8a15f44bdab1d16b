"""Open payments out of COPY's binary format, in whatever pieces the network makes of them."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.ledger.copied import CopiedPayments

SIGNATURE = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
Rows = list[tuple[bool, str, bytes]]
ROWS = st.lists(
    st.tuples(st.booleans(), st.text(max_size=4), st.binary(max_size=9)),
    max_size=9,
    unique_by=lambda row: row[1],
)


def field(value: bytes) -> bytes:
    """A column's length and value."""
    return struct.pack(">i", len(value)) + value


def row_of(has_work: bool, id_: str, document: bytes) -> bytes:
    """A row as COPY sends it."""
    return struct.pack(">h", 3) + field(bytes([has_work])) + field(id_.encode()) + field(document)


def copied(rows: Rows) -> bytes:
    """What COPY (SELECT has_work, id, doc ...) TO STDOUT (FORMAT binary) sends."""
    return SIGNATURE + b"".join(row_of(*row) for row in rows) + b"\xff\xff"


@given(ROWS, st.sets(st.integers(1, 300)))
def test_any_cut_of_the_stream_gives_the_same_payments(rows: Rows, cuts: set[int]) -> None:
    stream = copied(rows)
    payments = CopiedPayments()
    quiet: dict[str, bytes] = {}
    working: list[bytes] = []
    places = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    for start, end in pairwise(places):
        assert not payments.is_whole
        some, others = payments.feed(stream[start:end])
        quiet |= some
        working += others
    assert quiet == {id_: document for has_work, id_, document in rows if not has_work}
    assert working == [document for has_work, _, document in rows if has_work]
    assert payments.is_whole


def test_a_stream_that_was_cut_off_is_not_whole() -> None:
    stream = copied([(True, "one", b"1"), (False, "two", b"2")])
    for end in range(len(stream)):
        payments = CopiedPayments()
        payments.feed(stream[:end])
        assert not payments.is_whole, end


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (struct.pack(">h", 2) + field(b"\x01") + field(b"pay_1"), "three columns"),
        (struct.pack(">h", 3) + field(b"pay_1") + field(b"\x01") + field(b"{}"), "has_work comes"),
        (struct.pack(">hi?i", 3, 1, True, -1) + field(b"{}"), "an id is never NULL"),
        (struct.pack(">h", 3) + field(b"\x01") + field(b"p") + b"\xff" * 4, "a document is never"),
    ],
)
def test_rows_of_another_shape_are_noticed(row: bytes, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        CopiedPayments().feed(SIGNATURE + row)


def test_another_format_is_noticed() -> None:
    with pytest.raises(AssertionError, match="signature"):
        CopiedPayments().feed(b"some text, tabs and newlines")
