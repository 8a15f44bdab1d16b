"""What no batch may do to the totals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.ledger.guard import TotalsGuard
from engine.ledger.rows import INT64_MAX
from engine.ports import EntryInvalid


def test_no_more_is_taken_than_is_pending_on_either_side() -> None:
    guard = TotalsGuard()
    guard.reset([(1, 10, 0), (2, 0, 10), (3, 0, 4)], 10)
    guard.keep(guard.check([[1, 2, -6, 6, 1]]))
    with pytest.raises(EntryInvalid, match="pending_not_negative"):
        guard.check([[1, 2, -5, 5, 1]])
    with pytest.raises(EntryInvalid, match="pending_not_negative"):
        guard.check([[1, 3, -5, 0, 1]])  # enough on the debit side, not on the credit side
    guard.keep(guard.check([[1, 2, -4, 0, 1]]))
    with pytest.raises(EntryInvalid, match="pending_not_negative"):
        guard.check([[1, 2, -1, 0, 1]])


def test_what_is_checked_and_not_kept_never_happened() -> None:
    guard = TotalsGuard()
    guard.reset([(1, 10, 0), (2, 0, 10)], 10)
    for _ in range(3):
        guard.check([[1, 2, -10, 10, 1]])


def test_moves_of_one_batch_count_together() -> None:
    guard = TotalsGuard()
    guard.check([[1, 2, 10, 0, 1], [1, 3, 5, 0, 1], [1, 2, -10, 10, 1]])
    with pytest.raises(EntryInvalid, match="pending_not_negative"):
        guard.check([[1, 2, 10, 0, 1], [1, 3, -5, 0, 1]])


def test_a_total_that_might_not_fit_is_refused() -> None:
    guard = TotalsGuard()
    guard.reset([], INT64_MAX - 10)
    guard.keep(guard.check([[1, 2, 0, 10, 1]]))
    with pytest.raises(EntryInvalid, match="NumericValueOutOfRange"):
        guard.check([[1, 2, 0, 1, 1]])


moves = st.lists(
    st.tuples(st.integers(1, 3), st.integers(4, 6), st.integers(-20, 40), st.integers(0, 40)),
    max_size=4,
)


@given(st.lists(moves, max_size=12))
def test_it_refuses_exactly_what_would_go_below_zero(
    batches: list[list[tuple[int, int, int, int]]],
) -> None:
    guard = TotalsGuard()
    totals = dict.fromkeys((1, 2, 3, 4, 5, 6), 0)
    for batch in batches:
        after = dict(totals)
        for debit, credit, pending, _posted in batch:
            after[debit] += pending
            after[credit] += pending
        rows = [[debit, credit, pending, posted, 1] for debit, credit, pending, posted in batch]
        if min(after.values()) < 0:
            with pytest.raises(EntryInvalid):
                guard.check(rows)
        else:
            guard.keep(guard.check(rows))
            totals = after
