"""From entries to rows: totals per account, one row per payment, and what is refused early."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.document import to_document
from engine.domain.entry import Batch, Entry
from engine.domain.operation import Operation
from engine.domain.payment import Payment
from engine.domain.posting import books_of, leg
from engine.ledger.queries import QUERIES, parse
from engine.ledger.rows import SIGNS, build, check_text
from engine.ports import EntryInvalid

BOOKS = books_of("mer_1", "simulator", "EUR", True)
ASKED = Operation(n=1, type="authorize", amount=5, created_ms=1, sent_ms=1)
DOC = 22  # its place in `payment_input`


@given(st.lists(st.tuples(st.sampled_from(sorted(SIGNS)), st.integers(1, 10**12)), max_size=30))
def test_what_is_pending_on_both_sides_is_the_fold_of_the_transfers(
    moves: list[tuple[str, int]],
) -> None:
    transfers = tuple(
        leg(BOOKS, "hold", id=n, amount=amount, payment_id="p", op=1, event_ms=0, phase=phase)  # type: ignore[arg-type]
        for n, (phase, amount) in enumerate(moves, 1)
    )
    rows = build(Batch("k", 0, (Entry(transfers=transfers),)), {}, 7)
    pending = sum(SIGNS[phase][0] * amount for phase, amount in moves)
    assert rows.moved == sum(amount for _, amount in moves)
    if not moves:
        assert rows.opened == {}
        return
    assert [rows.pending.get(side, 0) for side in (2 * 7, 2 * 8 + 1)] == [pending, pending]
    assert rows.pending.keys() <= {2 * 7, 2 * 8 + 1}
    assert rows.opened == {BOOKS.receivable: 7, BOOKS.merchant: 8}


def test_known_accounts_are_not_opened_again_and_not_changed() -> None:
    known = {BOOKS.receivable: 3}
    transfer = leg(BOOKS, "hold", id=1, amount=5, payment_id="p", op=1, event_ms=0)
    rows = build(Batch("k", 0, (Entry(transfers=(transfer,)),)), known, 9)
    assert rows.opened == {BOOKS.merchant: 9}
    assert known == {BOOKS.receivable: 3}


def test_transfers_are_ordered_by_id_over_all_entries() -> None:
    entries = tuple(
        Entry(transfers=(leg(BOOKS, "hold", id=n, amount=5, payment_id="p", op=1, event_ms=0),))
        for n in (3, 1, 2)
    )
    assert [row[0] for row in build(Batch("k", 0, entries), {}, 1).transfers] == [1, 2, 3]


def test_a_row_has_the_document_of_its_own_version_made_before_or_not() -> None:
    first = Payment("pay_" + "0" * 24, "mer_1", True, 1, 5, "EUR", "simulator", "pm", (ASKED,))
    second = msgspec.structs.replace(first, version=2, needs_review=True)
    third = msgspec.structs.replace(first, version=3)
    made = [Entry(payment=payment, document=to_document(payment)) for payment in (first, second)]
    rows = build(Batch("k", 0, (made[0],)), {}, 1)
    assert rows.payments[0][DOC] == to_document(first)
    rows = build(Batch("k", 0, (*made, Entry(payment=third))), {}, 1)
    assert [row[DOC] for row in rows.payments] == [to_document(third)]
    rows = build(Batch("k", 0, (made[1],)), {}, 1)
    assert [row[-3] for row in rows.payment_changes] == [to_document(second)]


@pytest.mark.parametrize("document", [rb'"\u0000"', rb'"a\\\u0000"', rb'"\\\\\u0000b"'])
def test_nul_in_a_document_is_refused(document: bytes) -> None:
    with pytest.raises(EntryInvalid, match="NUL"):
        check_text(document)


@pytest.mark.parametrize("document", [rb'"\\u0000"', rb'"\\\\u0000"', rb'"u0000"', b"{}"])
def test_text_that_looks_like_nul_is_not(document: bytes) -> None:
    check_text(document)


def test_queries_have_one_name_each() -> None:
    assert QUERIES["head"].startswith("-- Where the journal ends")
    with pytest.raises(ValueError, match="twice"):
        parse("-- name: a\nSELECT 1\n-- name: a\nSELECT 2")
