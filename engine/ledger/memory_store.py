"""The tables of the in-memory ledger, and what they refuse: a model of `schema.sql`.

It keeps what matters of Postgres: primary keys, unique and check constraints, versions, epochs,
the chain, all or nothing. It takes the same rows (`rows.py`), and refuses with the same reasons.
"""

from __future__ import annotations

from collections.abc import Iterable, KeysView
from typing import Any, Final

import anyio
import msgspec

from engine.domain.entry import Batch, KeyRef
from engine.domain.journal import GENESIS, TransferTuple, seal
from engine.domain.posting import AccountKey
from engine.ledger.rows import INT64_MAX, SIGNS, Key, Row, Rows, build
from engine.ports import Balance, EntryInvalid, Fenced, KeysTaken, Receipt, TransferRow

FIRST_PHASES: Final = frozenset({"posted", "pending"})


class BatchRow:
    """One row of the journal."""

    __slots__ = ("accounts", "epoch", "key", "prev_hash", "receipt", "recorded_ms", "transfers")

    def __init__(
        self, batch: Batch, rows: Rows, receipt: Receipt, prev_hash: bytes, epoch: int
    ) -> None:
        self.key = batch.key
        self.recorded_ms = batch.recorded_ms
        self.receipt = receipt
        self.prev_hash = prev_hash
        self.epoch = epoch
        self.accounts = rows.accounts
        self.transfers = rows.transfers


class MemoryStore:
    """What would be the database. It outlives the ledgers that are opened on it."""

    def __init__(self) -> None:
        self.epoch = 0
        self.owner = ""
        self.lock_holder: object | None = None
        self.lock_changed = anyio.Event()
        self.batches: list[BatchRow] = []
        self.batch_keys: dict[str, int] = {}
        self.account_ids: dict[AccountKey, int] = {}
        self.accounts: dict[int, Balance] = {}
        self.history: dict[int, list[tuple[int, int, Balance]]] = {}
        self.transfers: dict[int, TransferRow] = {}
        self.of_account: dict[int, list[int]] = {}
        self.payments: dict[str, Row] = {}
        self.references: dict[Key, str] = {}
        self.claims: dict[Key, Row] = {}
        self.answered_ms: dict[Key, int] = {}
        """Of claims whose answer came later."""
        self.believed_ms: int | None = None
        self.events: dict[Key, Row] = {}
        self.refunds: dict[str, Row] = {}
        self.timeline: dict[str, dict[int, tuple[int, int, bytes]]] = {}
        self.timers: dict[Row, None] = {}
        self.inbox: dict[tuple[str, str], tuple[Row, str | None]] = {}
        self.dead_letters: dict[str, tuple[Row, bool]] = {}

    def apply(self, batch: Batch, epoch: int) -> Receipt:
        """One group commit, whole or not at all: first everything is checked, then written."""
        number = self.batch_keys.get(batch.key)
        if number is not None:
            met = self.batches[number - 1].receipt
            return Receipt(number=met.number, hash=met.hash, resolved=True)
        if epoch != self.epoch:
            raise Fenced(f"epoch {epoch} is over, this is epoch {self.epoch}")
        rows = build(batch, self.account_ids, len(self.accounts) + 1)
        _check_rows(rows)
        taken = [key for (*key,) in (row[:3] for row in rows.claims) if tuple(key) in self.claims]
        if taken:
            raise KeysTaken(frozenset(KeyRef(*key) for key in taken))
        number = len(self.batches) + 1
        balances = self._balances(batch, rows)
        self._check_transfers(rows)
        payments = self._payments(rows)
        self._check_unique(rows)

        prev_hash = self.batches[-1].receipt.hash if self.batches else GENESIS
        hash_ = seal(
            prev_hash, number, batch.key, batch.recorded_ms, rows.transfers, accounts=rows.accounts
        )
        receipt = Receipt(number=number, hash=hash_)
        self.batches.append(BatchRow(batch, rows, receipt, prev_hash, epoch))
        self.batch_keys[batch.key] = number
        self._write_journal(batch, rows, number, balances)
        self._write_payments(batch, rows, number, payments)
        self._write_promises(batch, rows)
        self._write_work(rows)
        return receipt

    def believe_time(self, now_ms: int, at_most_ms: int) -> int:
        """Follow a clock, by so much at most; returns where it is then."""
        believed_ms = now_ms if self.believed_ms is None else self.believed_ms
        self.believed_ms = believed_ms + max(-at_most_ms, min(at_most_ms, now_ms - believed_ms))
        return self.believed_ms

    def prune_keys(self, before_ms: int, at_most: int) -> int:
        """Forget keys claimed and answered before a time, the oldest first; returns how many."""
        old = sorted(
            (row[4], key)
            for key, row in self.claims.items()
            if row[7] is not None and max(row[4], self.answered_ms.get(key, 0)) < before_ms
        )
        for _, key in old[:at_most]:
            del self.claims[key]
            self.answered_ms.pop(key, None)
        return len(old[:at_most])

    # --- checks ---------------------------------------------------------------------------

    def _balances(self, batch: Batch, rows: Rows) -> list[Balance]:
        opened = {
            id_: Balance(id_, book, kind, owner, currency, live, batch.recorded_ms, 0, 0, 0, 0, 0)
            for id_, book, kind, owner, currency, live in rows.accounts
        }
        changed = []
        for id_, change in _changes(rows.transfers).items():
            old = opened.get(id_) or self.accounts[id_]
            new = msgspec.structs.replace(
                old,
                debits_pending=old.debits_pending + change[0],
                debits_posted=old.debits_posted + change[1],
                credits_pending=old.credits_pending + change[2],
                credits_posted=old.credits_posted + change[3],
                version=old.version + change[4],
            )
            totals = (
                new.debits_pending, new.credits_pending, new.debits_posted, new.credits_posted,
            )  # fmt: skip
            _check_values(totals)
            if min(totals[:2]) < 0:
                raise EntryInvalid("invalid: pending_not_negative")
            if min(totals[2:]) < 0:
                raise EntryInvalid("invalid: posted_not_negative")
            changed.append(new)
        return changed

    def _check_transfers(self, rows: Rows) -> None:
        seen = {row[0]: row for row in rows.transfers}
        if len(seen) < len(rows.transfers) or any(id_ in self.transfers for id_ in seen):
            raise EntryInvalid("invalid: transfers_pkey")
        for id_, debit, credit, amount, _kind, phase, resolves, *_ in rows.transfers:
            if id_ <= 0:
                raise EntryInvalid("invalid: transfers_id_positive")
            if amount <= 0:
                raise EntryInvalid("invalid: transfers_amount_positive")
            if debit == credit:
                raise EntryInvalid("invalid: transfers_two_accounts")
            if (resolves == 0) != (phase in FIRST_PHASES):
                raise EntryInvalid("invalid: transfers_phase")
            if resolves == 0:
                continue
            held = self.transfers.get(resolves)
            fits = (
                (held.phase, held.debit_account, held.credit_account, held.amount)
                if held is not None
                else _held_here(seen.get(resolves))
            )
            if fits[:3] != ("pending", debit, credit) or fits[3] < amount:
                raise EntryInvalid("invalid: second_phase")

    def _payments(self, rows: Rows) -> list[Row]:
        after: list[Row] = []
        references: set[Key] = set()
        for row in rows.payments:
            if row[0] in self.payments:
                raise EntryInvalid("invalid: payments_pkey")
            if row[7] <= 0:
                raise EntryInvalid("invalid: payments_amount_positive")
            if row[23]:
                reference = (row[1], row[2], row[21])
                if reference in self.references or reference in references:
                    raise EntryInvalid("reference_taken")
                references.add(reference)
            after.append(row)
        for change in rows.payment_changes:
            id_, expected, version, open_, *counters, status, doc, held, has_work = change
            old = self.payments.get(id_)
            if old is None or old[5] != expected:
                raise EntryInvalid("invalid: stale_version")
            if held and self.references.get((old[1], old[2], old[21]), id_) != id_:
                raise EntryInvalid("reference_taken")
            after.append(
                (
                    *old[:3],
                    open_,
                    old[4],
                    version,
                    *old[6:8],
                    *counters,
                    status,
                    *old[18:22],
                    doc,
                    held,
                    has_work,
                )
            )
        for row in after:
            authorized, capturing, captured, releasing, released, refunding, refunded = row[8:15]
            if min(row[8:17]) < 0:
                raise EntryInvalid("invalid: payments_counters_not_negative")
            if captured + capturing + released + releasing > authorized:
                raise EntryInvalid("invalid: payments_within_authorized")
            if refunded + refunding > captured:
                raise EntryInvalid("invalid: payments_within_captured")
        return after

    def _check_unique(self, rows: Rows) -> None:
        _refuse_repeated(
            "events_pkey", [(r[0], r[1], r[4]) for r in rows.events], self.events.keys()
        )
        letters = [r[0] for r in rows.dead_letters]
        _refuse_repeated("dead_letters_pkey", letters, self.dead_letters.keys())
        for payment_id, version, _steps in rows.timeline:
            if version in self.timeline.get(payment_id, ()):
                raise EntryInvalid("invalid: timeline_pkey")

    # --- writes ---------------------------------------------------------------------------

    def _write_journal(
        self, batch: Batch, rows: Rows, number: int, balances: list[Balance]
    ) -> None:
        self.account_ids.update(rows.opened)
        for balance in balances:
            self.accounts[balance.id] = balance
            self.history.setdefault(balance.id, []).append((number, batch.recorded_ms, balance))
        for id_, debit, credit, amount, kind, phase, *rest in rows.transfers:
            account = self.accounts[debit]
            tail: Row = (*rest, batch.recorded_ms, account.livemode)
            self.transfers[id_] = TransferRow(
                id_, number, debit, credit, amount, account.currency, kind, phase, *tail
            )
            self.of_account.setdefault(debit, []).append(id_)
            self.of_account.setdefault(credit, []).append(id_)

    def _write_payments(self, batch: Batch, rows: Rows, number: int, payments: list[Row]) -> None:
        for row in payments:
            self.payments[row[0]] = row
            reference = (row[1], row[2], row[21])
            if row[23]:
                self.references[reference] = row[0]
            elif self.references.get(reference) == row[0]:
                del self.references[reference]
        for payment_id, version, steps in rows.timeline:
            versions = self.timeline.setdefault(payment_id, {})
            versions[version] = (number, batch.recorded_ms, steps)
        for row in rows.refunds:
            old = self.refunds.get(row[0])
            self.refunds[row[0]] = row if old is None else (*old[:5], *row[5:])

    def _write_promises(self, batch: Batch, rows: Rows) -> None:
        for row in rows.claims:
            self.claims[row[0], row[1], row[2]] = row
        for row in rows.answers:
            key = (row[0], row[1], row[2])
            claim = self.claims.get(key)
            if claim is not None and claim[7] is None:
                self.claims[key] = (*claim[:7], *row[3:])
                self.answered_ms[key] = batch.recorded_ms
        for key in rows.released:
            self.claims.pop(key, None)
            self.answered_ms.pop(key, None)
        for row in rows.events:
            self.events[row[0], row[1], row[4]] = row

    def _write_work(self, rows: Rows) -> None:
        for timer in rows.timers_cleared:
            self.timers.pop(timer, None)
        for timer in rows.timers_set:
            self.timers[timer] = None
        for row in rows.inbox:
            self.inbox.setdefault((row[0], row[1]), (row, None))
        for gateway, event_id, letter_id in rows.inbox_reopened:
            _letter, closed = self.dead_letters.get(letter_id, ((), True))
            if not closed:
                self.inbox[gateway, event_id] = (self.inbox[gateway, event_id][0], None)
        for gateway, event_id, outcome in rows.inbox_done:
            stored = self.inbox.get((gateway, event_id))
            if stored is not None and stored[1] is None:
                self.inbox[gateway, event_id] = (stored[0], outcome)
        for row in rows.dead_letters:
            self.dead_letters[row[0]] = (row, False)
        for id_ in rows.dead_letters_done:
            if id_ in self.dead_letters:
                self.dead_letters[id_] = (self.dead_letters[id_][0], True)


def _changes(transfers: list[TransferTuple]) -> dict[int, list[int]]:
    """Account -> what is added to its four totals and to its version, in order of id."""
    changes: dict[int, list[int]] = {}
    for _id, debit, credit, amount, _kind, phase, *_ in transfers:
        pending, posted = SIGNS[phase]
        for account, side in ((debit, 0), (credit, 2)):
            change = changes.setdefault(account, [0, 0, 0, 0, 0])
            change[side] += pending * amount
            change[side + 1] += posted * amount
            change[4] += 1
    return dict(sorted(changes.items()))


def _held_here(row: Row | None) -> tuple[str, int, int, int]:
    """The same of a hold in the batch at hand."""
    return ("", 0, 0, 0) if row is None else (row[5], row[1], row[2], row[3])


def _refuse_repeated(constraint: str, keys: list[Any], there: KeysView[Any]) -> None:
    if len(set(keys)) < len(keys) or not there.isdisjoint(keys):
        raise EntryInvalid(f"invalid: {constraint}")


def _check_rows(rows: Rows) -> None:
    """What Postgres has no room for: NUL in a text, an integer beyond its type."""
    for table in (
        rows.accounts, rows.transfers, rows.payments, rows.payment_changes,
        rows.claims, rows.answers, rows.released, rows.events, rows.refunds, rows.timeline,
        rows.timers_set, rows.inbox, rows.inbox_reopened, rows.inbox_done, rows.dead_letters,
    ):  # fmt: skip
        for row in table:
            _check_values(row)


def _check_values(row: Iterable[Any]) -> None:
    for value in row:
        if isinstance(value, str):
            if "\0" in value or not (value.isascii() or _has_utf8(value)):
                raise EntryInvalid("invalid: CharacterNotInRepertoireError")
        elif isinstance(value, int) and not -INT64_MAX - 1 <= value <= INT64_MAX:
            raise EntryInvalid("invalid: NumericValueOutOfRangeError")


def _has_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
