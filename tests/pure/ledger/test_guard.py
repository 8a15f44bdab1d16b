"""What no batch may do to the totals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.ledger.guard import Guarded, TotalsGuard
from engine.ledger.rows import INT64_MAX
from engine.ports import EntryInvalid

Move = tuple[int, int, int]
"""Debit account, credit account, what is added to the pending total of both."""


def check(guard: TotalsGuard, *moves: Move, before: Guarded | None = None) -> Guarded:
    added: dict[int, int] = {}
    for debit, credit, pending in moves:
        for side in (debit * 2, credit * 2 + 1):
            added[side] = added.get(side, 0) + pending
    return guard.check(added, sum(abs(move[2]) for move in moves), before)


def test_no_more_is_taken_than_is_pending_on_either_side() -> None:
    guard = TotalsGuard()
    guard.reset([(1, 10, 0), (2, 0, 10), (3, 0, 4)], 10)
    guard.keep(check(guard, (1, 2, -6)))
    with pytest.raises(EntryInvalid, match="pending_not_negative"):
        check(guard, (1, 2, -5))
    with pytest.raises(EntryInvalid, match="pending_not_negative"):
        check(guard, (1, 3, -5))  # enough on the debit side, not on the credit side
    guard.keep(check(guard, (1, 2, -4)))
    with pytest.raises(EntryInvalid, match="pending_not_negative"):
        check(guard, (1, 2, -1))


def test_what_is_checked_and_not_kept_never_happened() -> None:
    guard = TotalsGuard()
    guard.reset([(1, 10, 0), (2, 0, 10)], 10)
    for _ in range(3):
        check(guard, (1, 2, -10))


def test_moves_of_one_batch_count_together() -> None:
    guard = TotalsGuard()
    check(guard, (1, 2, 10), (1, 3, 5), (1, 2, -10))
    with pytest.raises(EntryInvalid, match="pending_not_negative"):
        check(guard, (1, 2, 10), (1, 3, -5))


def test_a_total_that_might_not_fit_is_refused() -> None:
    guard = TotalsGuard()
    guard.reset([], INT64_MAX - 10)
    guard.keep(guard.check({}, 10))
    with pytest.raises(EntryInvalid, match="NumericValueOutOfRange"):
        guard.check({}, 1)
    guard.measure(INT64_MAX - 1)
    guard.keep(guard.check({}, 1))


moves = st.lists(
    st.tuples(st.integers(1, 3), st.integers(4, 6), st.integers(-20, 40)),
    max_size=4,
)


@given(st.lists(moves, max_size=12), st.booleans())
def test_it_refuses_exactly_what_would_go_below_zero(batches: list[list[Move]], late: bool) -> None:
    """Also where a batch is checked before the one that comes first is kept."""
    guard = TotalsGuard()
    totals = dict.fromkeys((1, 2, 3, 4, 5, 6), 0)
    before: Guarded | None = None
    for batch in batches:
        after = dict(totals)
        for debit, credit, pending in batch:
            after[debit] += pending
            after[credit] += pending
        if min(after.values()) < 0:
            with pytest.raises(EntryInvalid):
                check(guard, *batch, before=before)
            continue
        guarded = check(guard, *batch, before=before)
        if before is not None:
            guard.keep(before)
        before, totals = guarded, after
        if not late:
            guard.keep(guarded)
            before = None
