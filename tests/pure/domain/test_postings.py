"""Transfers of any payment, folded: every book of every currency balances, and the chain holds."""

from __future__ import annotations

from collections import Counter

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.entry import Batch, Entry
from engine.domain.journal import GENESIS, AccountTuple, TransferTuple, seal
from engine.domain.posting import RULES, Books, Transfer, books_of, leg
from engine.ledger.rows import SIGNS, build

MERCHANTS = st.sampled_from(["m_a", "m_b", "größe"])
CURRENCIES = st.sampled_from(["EUR", "JPY", "KWD"])
PHASES = st.sampled_from(["posted", "pending", "post_pending", "void_pending", "expire_pending"])
NUMBERS = st.integers(0, 2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def transfers(draw: st.DrawFn) -> Transfer:
    """One leg of any kind, in any phase, of any payment."""
    books = books_of(draw(MERCHANTS), "simulator", draw(CURRENCIES), draw(st.booleans()))
    return leg(
        books,
        draw(st.sampled_from(sorted(RULES))),
        id=draw(st.integers(1, 10**9)),
        amount=draw(st.integers(1, 10**12)),
        payment_id="pay_1",
        op=1,
        event_ms=0,
        phase=draw(PHASES),
    )


@given(transfers())
def test_row_36_a_transfer_stays_in_one_currency_and_mode(transfer: Transfer) -> None:
    debit, credit = transfer.debit, transfer.credit
    assert (debit.book, debit.currency, debit.livemode) == (
        credit.book,
        credit.currency,
        credit.livemode,
    )
    assert debit != credit


@given(st.lists(transfers(), max_size=20, unique_by=lambda transfer: transfer.id))
def test_the_rows_of_a_batch_balance_in_every_currency_and_mode(made: list[Transfer]) -> None:
    entries = tuple(Entry(transfers=(one,)) for one in made)
    rows = build(Batch("k", 0, entries), {}, 1)
    keys = {number: key for key, number in rows.opened.items()}
    moved: Counter[tuple[str, bool]] = Counter()
    for _id, debit, credit, amount, _kind, phase, *_ in rows.transfers:
        books = {(key.book, key.currency, key.livemode) for key in (keys[debit], keys[credit])}
        assert len(books) == 1, "what is moved stays in one book, currency and mode"
        moved[keys[debit].currency, keys[debit].livemode] += sum(SIGNS[phase]) * amount
    expected: Counter[tuple[str, bool]] = Counter()
    for one in made:
        expected[one.debit.currency, one.debit.livemode] += sum(SIGNS[one.phase]) * one.amount
    assert moved == expected
    assert len(rows.transfers) == len(made)
    assert sorted(keys) == list(range(1, len(keys) + 1))


@given(st.sampled_from(sorted(RULES)))
def test_a_rule_names_two_accounts_of_the_books(kind: str) -> None:
    assert set(RULES[kind]) <= {field.name for field in msgspec.structs.fields(Books)}
    assert len(set(RULES[kind])) == 2


ROWS: st.SearchStrategy[TransferTuple] = st.tuples(
    *(NUMBERS, NUMBERS, NUMBERS, NUMBERS, TEXTS, TEXTS, NUMBERS, NUMBERS, TEXTS, NUMBERS, NUMBERS)
)
ACCOUNTS: st.SearchStrategy[AccountTuple] = st.tuples(
    *(NUMBERS, TEXTS, TEXTS, TEXTS, TEXTS, st.booleans())
)
BATCHES = st.tuples(TEXTS, NUMBERS, st.lists(ROWS, max_size=3), st.lists(ACCOUNTS, max_size=2))


def _chain(batches: list[tuple[str, int, list[TransferTuple], list[AccountTuple]]]) -> list[bytes]:
    hashes = [GENESIS]
    for number, (key, recorded_ms, made, opened) in enumerate(batches, 1):
        hashes.append(seal(hashes[-1], number, key, recorded_ms, made, accounts=opened))
    return hashes[1:]


@given(st.lists(BATCHES, min_size=1, max_size=4), st.data())
def test_a_batch_that_was_changed_changes_every_hash_from_there_on(
    batches: list[tuple[str, int, list[TransferTuple], list[AccountTuple]]], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(batches) - 1))
    changed = list(batches)
    changed[at] = data.draw(BATCHES)
    before, after = _chain(batches), _chain(changed)
    assert before[:at] == after[:at]
    differs = changed[at] != batches[at]
    assert [one != other for one, other in zip(before[at:], after[at:], strict=True)] == [
        differs
    ] * (len(batches) - at)
    assert len(set(before)) == len(before)
