"""A batch made ready while the one before is under way is what it would be in its own turn."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.entry import Batch, Entry
from engine.domain.posting import books_of, leg
from engine.ledger import preparing, rows
from engine.ledger.ahead import Ahead
from engine.ledger.packing import PACKERS
from engine.ledger.preparing import Prepared, Preparer
from engine.ports import EntryInvalid, Receipt

BOOKS = [books_of(f"mer_{n}", "simulator", "EUR", True) for n in range(3)]
PHASES = ("pending", "posted", "post_pending", "void_pending")

Moves = list[tuple[int, str]]
"""Of a batch: whose, and which phase."""

some_batches = st.lists(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(PHASES)), max_size=7),
    min_size=2,
    max_size=5,
)


@pytest.fixture(autouse=True, scope="module")
def little_at_a_time() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "SLICE", 2)
        patch.setattr(preparing, "PAIRS_MAX", 1)  # forgotten again and again
        yield


def preparer() -> Preparer:
    made = Preparer()
    types = {name: number for number, name in enumerate(PACKERS)}
    made.begin(7, types, head=made.head, head_key="", opened=[], pending=[], largest_total=0)
    return made


def batches_of(all_moves: list[Moves]) -> list[Batch]:
    made, number = [], 0
    for n, moves in enumerate(all_moves):
        entries = []
        for owner, phase in moves:
            number += 1
            entries.append(
                Entry(
                    transfers=(
                        leg(BOOKS[owner], "hold", id=number, amount=5, payment_id="pay_1", op=1,
                            event_ms=n, phase=phase),  # type: ignore[arg-type]
                    )
                )
            )  # fmt: skip
        made.append(Batch(f"b_{n}", n, tuple(entries)))
    return made


def in_its_turn(known: Preparer, batch: Batch) -> Prepared | None:
    """None where it is refused."""
    try:
        made = known.rows_of(batch)
        return known.prepare(batch, made, known.check(made))
    except EntryInvalid:
        return None


def content(prepared: Prepared | None) -> object:
    if prepared is None:
        return None
    made = prepared.rows
    return (
        prepared.head, prepared.after, prepared.arguments, prepared.guarded, prepared.last_account,
        made.opened
    )  # fmt: skip


@given(some_batches, st.integers(0, 12))
def test_what_is_made_ahead_is_what_is_made_in_turn(all_moves: list[Moves], steps: int) -> None:
    """Wherever in between the batch before turns out to be durable."""
    known, other = preparer(), preparer()
    before: Prepared | None = None
    for batch in batches_of(all_moves):
        expected = in_its_turn(known, batch)
        if before is None:
            made = in_its_turn(other, batch)
        else:
            making, made = other.preparing(batch, before), None
            try:
                for _ in range(steps):
                    next(making)
                other.keep(before)
                before = None
                while True:
                    next(making)
            except StopIteration as end:
                made = end.value
            except EntryInvalid:
                pass
            if before is not None:  # It was ready earlier than that.
                other.keep(before)
        assert content(made) == content(expected)
        if expected is not None:
            known.keep(expected)
        before = made


def bookings(count: int) -> tuple[Preparer, Prepared, Batch]:
    """What is known, a batch that has been sent, and one that follows it."""
    known = preparer()
    batch, following = batches_of([[(0, "pending")], [(1, "posted")] * count])
    sent = in_its_turn(known, batch)
    assert sent is not None
    return known, sent, following


def test_it_is_made_ready_a_slice_at_a_time_and_the_rest_when_it_is_wanted() -> None:
    async def make() -> Prepared | None:
        known, sent, following = bookings(9)
        ahead = Ahead(known, following, sent)
        for _ in range(3):
            await asyncio.sleep(0)
        known.keep(sent)
        return ahead.take(following, known.head)

    made = asyncio.run(make())
    assert made is not None
    assert len(made.rows.transfers) == 9


@pytest.mark.parametrize("turns", [0, 3, 99])
def test_nothing_is_taken_where_something_else_has_happened(turns: int) -> None:
    async def make() -> None:
        known, sent, following = bookings(9)
        other = Batch("other", 9, ())
        for batch, head in (
            (other, sent.head),
            (following, known.head),
            (following, Receipt(number=sent.head.number, hash=bytes(32))),
        ):
            ahead = Ahead(known, following, sent)
            for _ in range(turns):
                await asyncio.sleep(0)
            assert ahead.take(batch, head) is None

    asyncio.run(make())


@pytest.mark.parametrize("turns", [0, 99])
def test_what_cannot_be_sent_is_left_to_its_own_turn(turns: int) -> None:
    async def make() -> None:
        known, sent, _ = bookings(1)
        (bad,) = batches_of([[(2, "posted"), (2, "void_pending")]])
        ahead = Ahead(known, bad, sent)
        for _ in range(turns):
            await asyncio.sleep(0)
        assert ahead.take(bad, sent.head) is None

    asyncio.run(make())
