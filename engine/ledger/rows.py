"""From the entries of a group commit to rows: pure, and the same for Postgres and memory.

Every list holds plain tuples in the column order of the input types in `schema.sql`. This is the
hot path of the engine, about a dozen microseconds an entry, so it is one loop over the entries
with few calls in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec

from engine.domain.document import to_document
from engine.domain.entry import Batch, Entry
from engine.domain.ids import slot_of
from engine.domain.journal import AccountTuple, TransferTuple
from engine.domain.payment import Payment
from engine.domain.posting import AccountKey, Transfer
from engine.ports import EntryInvalid

INT64_MAX: Final = 2**63 - 1

SLICE: Final = 128
"""Entries, payments or transfers from which rows are made at once: about a millisecond."""

T = TypeVar("T")
Row = tuple[Any, ...]
Pair = tuple[AccountKey, AccountKey]
Numbers = tuple[int, int]
"""Of the debit account and of the credit account."""
Key = tuple[str, bool, str]
Latest = tuple[Payment, bytes | None, int]
"""A payment, its document where that has been made, and the version that the database has."""

NO_PAIRS: Final[Mapping[Pair, Numbers]] = {}

# (pending, posted): what one unit of a transfer's amount adds to either side's totals.
SIGNS: Final[dict[str, tuple[int, int]]] = {
    "posted": (0, 1),
    "pending": (1, 0),
    "post_pending": (-1, 1),
    "void_pending": (-1, 0),
    "expire_pending": (-1, 0),
}

_encode = msgspec.json.Encoder().encode
# An escaped NUL, and not an escaped backslash followed by "u0000".
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class Rows:
    """The rows of one group commit. An empty list has nothing to write."""

    __slots__ = (
        "accounts",
        "answers",
        "claims",
        "dead_letters",
        "dead_letters_done",
        "events",
        "inbox",
        "inbox_done",
        "inbox_reopened",
        "moved",
        "numbered",
        "opened",
        "payment_changes",
        "payments",
        "pending",
        "refunds",
        "released",
        "second_phases",
        "timeline",
        "timers_cleared",
        "timers_set",
        "transfers",
    )

    def __init__(self) -> None:
        self.opened: dict[AccountKey, int] = {}
        self.numbered: dict[Pair, Numbers] = {}
        self.accounts: list[AccountTuple] = []
        self.pending: dict[int, int] = {}
        """What is added to it, by side: twice an account's number, plus one on the credit side."""
        self.moved = 0
        """The sum of all amounts: where these are positive, as the database checks, no total grows
        by more."""
        self.transfers: list[TransferTuple] = []
        self.second_phases = False
        self.payments: list[Row] = []
        self.payment_changes: list[Row] = []
        self.claims: list[Row] = []
        self.answers: list[Row] = []
        self.released: list[Key] = []
        self.events: list[Row] = []
        self.refunds: list[Row] = []
        self.timeline: list[Row] = []
        self.timers_cleared: list[Row] = []
        self.timers_set: list[Row] = []
        self.inbox: list[Row] = []
        self.inbox_reopened: list[Row] = []
        self.inbox_done: list[Row] = []
        self.dead_letters: list[Row] = []
        self.dead_letters_done: list[str] = []


def build(
    batch: Batch,
    known: Mapping[AccountKey, int],
    next_account: int,
    pairs: Mapping[Pair, Numbers] = NO_PAIRS,
) -> Rows:
    """The rows of a batch: `building` in one go."""
    rows = Rows()
    for _ in building(rows, batch, known, next_account, pairs):
        pass
    return rows


def building(
    rows: Rows,
    batch: Batch,
    known: Mapping[AccountKey, int],
    next_account: int,
    pairs: Mapping[Pair, Numbers],
) -> Iterator[None]:
    """Add the rows of a batch, a slice at a time. New accounts are numbered from `next_account`.

    `pairs` are some between which money has moved before. What the batch opens is in `opened`, and
    pairs that are new in `numbered`, for when it has been committed.
    Raises EntryInvalid for what no database needs to be asked about.
    """
    latest: dict[str, Latest] = {}
    transfers: list[Transfer] = []
    try:
        for entries in _slices(batch.entries):
            _add_entries(rows, entries, latest, transfers)
            yield
        for payments in _slices(list(latest.values())):
            _add_payments(rows, payments)
            yield
    except UnicodeEncodeError as error:
        raise EntryInvalid("invalid: text has no UTF-8 form") from error
    transfers.sort(key=_id_of)
    for some in _slices(transfers):
        _add_transfers(rows, some, known, next_account, pairs)
        yield
    rows.accounts = [
        (number, key.book, key.kind, key.owner, key.currency, key.livemode)
        for key, number in rows.opened.items()
    ]
    _settle_order(rows, batch)


def _slices(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[at : at + SLICE] for at in range(0, len(items), SLICE))


def _add_entries(
    rows: Rows,
    entries: Sequence[Entry],
    latest: dict[str, Latest],
    transfers: list[Transfer],
) -> None:
    """All but the rows of payments and transfers, of which it gathers what they are made from."""
    for entry in entries:
        payment = entry.payment
        if payment is not None:
            earlier = latest.get(payment.id)
            if earlier is None:
                latest[payment.id] = (payment, entry.document, payment.version - 1)
            elif payment.version == earlier[0].version + 1:
                latest[payment.id] = (payment, entry.document, earlier[2])
            else:
                raise EntryInvalid("invalid: stale_version")
            if entry.timeline:
                steps = _encode(entry.timeline)
                check_text(steps)
                rows.timeline.append((payment.id, payment.version, steps))
        elif entry.timeline:
            raise EntryInvalid("invalid: a timeline without its payment")
        if entry.transfers:
            transfers += entry.transfers
        claim = entry.claim
        if claim is not None:
            ref, answer = claim.ref, claim.answer
            end = (
                (None, None, None, None)
                if answer is None
                else (answer.status, answer.body, answer.code, answer.location)
            )
            rows.claims.append(
                (ref.merchant_id, ref.livemode, ref.key, claim.fingerprint, claim.created_ms,
                 claim.payment_id, claim.op, *end)
            )  # fmt: skip
        for event in entry.events:
            check_text(event.body)
            rows.events.append(
                (event.merchant_id, event.livemode, event.sequence, event.created_ms,
                 event.id, event.type, event.object_id, event.body)
            )  # fmt: skip
        for key_answer in entry.answers:
            ref, answer = key_answer.ref, key_answer.answer
            rows.answers.append(
                (ref.merchant_id, ref.livemode, ref.key, answer.status, answer.body,
                 answer.code, answer.location)
            )  # fmt: skip
        for timer in entry.timers_cleared:
            rows.timers_cleared.append((timer.kind, timer.due_ms, timer.payment_id))
        for timer in entry.timers_set:
            rows.timers_set.append((timer.kind, timer.due_ms, timer.payment_id))
        _add_rare(rows, entry)


def check_text(document: bytes) -> None:
    """Refuse JSON with a NUL in a text: Postgres could store its bytes, but never read them."""
    # One byte is found several times as fast as six, and most documents have no backslash.
    if b"\\" in document and b"\\u0000" in document and _NUL.search(document):
        raise EntryInvalid("invalid: NUL in text")


def _add_rare(rows: Rows, entry: Entry) -> None:
    """What most entries of the hot path do not have."""
    for ref in entry.claims_released:
        rows.released.append((ref.merchant_id, ref.livemode, ref.key))
    for refund in entry.refunds:
        rows.refunds.append(
            (refund.id, refund.payment_id, refund.merchant_id, refund.livemode,
             refund.created_ms, refund.status, refund.body)
        )  # fmt: skip
    inbox = entry.inbox
    if inbox is not None:
        headers = _encode(inbox.headers)
        rows.inbox.append((inbox.gateway, inbox.event_id, inbox.received_ms, headers, inbox.raw))
        letter_id = entry.dead_letter_done
        if letter_id is not None:
            # A webhook that is stored along with the end of its letter is to be tried anew.
            rows.inbox_reopened.append((inbox.gateway, inbox.event_id, letter_id))
    done = entry.inbox_done
    if done is not None:
        rows.inbox_done.append((done.gateway, done.event_id, done.outcome))
    letter = entry.dead_letter
    if letter is not None:
        rows.dead_letters.append(
            (letter.id, letter.kind, letter.subject, letter.reason, letter.created_ms, letter.body)
        )
    if entry.dead_letter_done is not None:
        rows.dead_letters_done.append(entry.dead_letter_done)


def _add_payments(rows: Rows, latest: Sequence[Latest]) -> None:
    """One row per payment: the last of its versions in the batch, after the one `expected`."""
    for p, made, expected in latest:
        doc = made or to_document(p)
        check_text(doc)
        if expected == 0:
            try:
                slot = slot_of(p.id)
            except ValueError as error:
                raise EntryInvalid("invalid: the payment's id carries no slot") from error
            rows.payments.append(
                (p.id, p.merchant_id, p.livemode, p.is_open, slot, p.version, p.created_ms,
                 p.amount, p.authorized, p.capturing, p.captured, p.releasing, p.released,
                 p.refunding, p.refunded, p.excess_captured, p.excess_refunded, p.status,
                 p.currency, p.customer, p.subscription, p.reference, doc, p.reference_held,
                 p.has_work)
            )  # fmt: skip
        else:
            rows.payment_changes.append(
                (p.id, expected, p.version, p.is_open, p.authorized, p.capturing, p.captured,
                 p.releasing, p.released, p.refunding, p.refunded, p.excess_captured,
                 p.excess_refunded, p.status, doc, p.reference_held, p.has_work)
            )  # fmt: skip


def _add_transfers(
    rows: Rows,
    transfers: Sequence[Transfer],
    known: Mapping[AccountKey, int],
    next_account: int,
    pairs: Mapping[Pair, Numbers],
) -> None:
    """Transfers, the accounts they open, and what they change."""
    numbered, pending = rows.numbered, rows.pending
    find, find_new, find_pending = pairs.get, numbered.get, pending.get
    add = rows.transfers.append
    moved = 0
    for t in transfers:
        # What is looked up and checked of accounts, is so once per pair of them.
        between = (t.debit, t.credit)
        numbers = find(between) or find_new(between)
        if numbers is None:
            numbers = _number(rows.opened, t.debit, t.credit, known, next_account)
            numbered[between] = numbers
        debit, credit = numbers
        amount, phase = t.amount, t.phase
        add(
            (t.id, debit, credit, amount, t.kind, phase, t.resolves, t.link, t.payment_id, t.op,
             t.event_ms)
        )  # fmt: skip
        moved += amount
        if phase == "posted":
            continue
        if phase != "pending":
            rows.second_phases = True
        change = SIGNS[phase][0] * amount
        side = debit * 2
        pending[side] = find_pending(side, 0) + change
        side = credit * 2 + 1
        pending[side] = find_pending(side, 0) + change
    rows.moved += moved


def _number(
    opened: dict[AccountKey, int],
    debit: AccountKey,
    credit: AccountKey,
    known: Mapping[AccountKey, int],
    next_account: int,
) -> Numbers:
    """The numbers of two accounts between which money may move; new ones are opened."""
    if debit.currency != credit.currency or debit.livemode != credit.livemode:
        raise EntryInvalid("invalid: a transfer between two currencies or modes")
    if debit.book != credit.book:
        raise EntryInvalid("invalid: a transfer between two books")
    numbers = []
    for account in (debit, credit):
        number = known.get(account) or opened.get(account)
        if number is None:
            number = opened[account] = next_account + len(opened)
        numbers.append(number)
    return numbers[0], numbers[1]


def _settle_order(rows: Rows, batch: Batch) -> None:
    """Where entries of one batch act on the same row, keep what holds in the end.

    The database clears timers before it sets any, and may touch a row only once per statement.
    """
    if rows.timers_cleared and rows.timers_set:
        wanted: dict[tuple[str, int, str], bool] = {}
        for entry in batch.entries:
            for timer in entry.timers_cleared:
                wanted[timer.kind, timer.due_ms, timer.payment_id] = False
            for timer in entry.timers_set:
                wanted[timer.kind, timer.due_ms, timer.payment_id] = True
        rows.timers_set = [timer for timer, on in wanted.items() if on]
        rows.timers_cleared = [timer for timer, on in wanted.items() if not on]
    if len(rows.answers) > 1:
        # The first one: a final answer is never replaced.
        rows.answers = list({row[:3]: row for row in reversed(rows.answers)}.values())
    if len(rows.refunds) > 1:
        rows.refunds = list({row[0]: row for row in rows.refunds}.values())
    if len(rows.claims) > 1 and len({row[:3] for row in rows.claims}) < len(rows.claims):
        # Bisecting the batch parts the two, and then the second one finds the key taken.
        raise EntryInvalid("invalid: two claims of one key in a batch")


def _id_of(transfer: Transfer) -> int:
    return transfer.id
