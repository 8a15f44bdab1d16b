"""The ledger in memory: for tests, the simulation and `dev` without a database.

It passes the contract suite that the ledger on Postgres passes, runs on asyncio and trio, and
fails on request: see `Faults`. Two ledgers on one `MemoryStore` are two engines on one database.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

import anyio
import msgspec

from engine.domain.document import from_document
from engine.domain.entry import Answer, Batch, Claim, DeadLetter, InboxRow, KeyRef, TimerRow
from engine.domain.payment import Payment
from engine.ledger.memory_store import MemoryStore
from engine.ledger.rows import Row
from engine.ports import (
    Balance,
    Fenced,
    LedgerError,
    LedgerUnavailable,
    PaymentFilter,
    Receipt,
    StoredEvent,
    TakePayments,
    TimelineRow,
    TransferRow,
)

PIECE: Final = 500

_headers = msgspec.json.Decoder(dict[str, str]).decode


class Faults(msgspec.Struct):
    """What goes wrong next. The lists are used up from the front, one item per commit."""

    outcomes: list[Literal["ok", "applied", "not_applied"]] = []
    """`applied` and `not_applied` raise LedgerUnavailable: the reply was lost, or the batch."""
    read_only: bool = False
    """Commits raise LedgerUnavailable, reads go on: a failover under way."""
    down: bool = False
    """Commits and reads raise LedgerUnavailable."""
    commit_delay_s: float = 0.0
    """Before each commit; the clock is anyio's, so virtual in the simulation."""
    read_delay_s: float = 0.0


class MemoryLedger:
    """`LedgerWriter`, `LedgerReader` and `LedgerUpkeep` on a `MemoryStore`."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.store = MemoryStore() if store is None else store
        self.faults = Faults()
        self._epoch = 0
        self._unsettled: str | None = None

    # --- the right to write ---------------------------------------------------------------

    async def open(self) -> None:
        """Check that the store answers. Raises LedgerUnavailable."""
        await self._reading()

    async def close(self) -> None:
        """Give up the right to write; the store stays as it is."""
        self.lose_lock()

    async def take_over(self, owner: str, *, patience_s: float = 10.0) -> int:
        """Become the one engine that writes; returns the new epoch. Raises LedgerUnavailable."""
        with anyio.move_on_after(patience_s):
            return await self.stand_by(owner)
        raise LedgerUnavailable(f"another engine has held the lock for {patience_s:g} s")

    async def stand_by(self, owner: str) -> int:
        """Wait until no other ledger holds the lock, then take over."""
        while self.store.lock_holder not in (None, self):
            await self.store.lock_changed.wait()
        self.store.lock_holder = self
        self.store.epoch += 1
        self.store.owner = owner
        self._epoch = self.store.epoch
        return self._epoch

    async def wait_lock_lost(self) -> None:
        """Return when the lock is not held any more."""
        while self.store.lock_holder is self:
            await self.store.lock_changed.wait()

    async def retake(self) -> None:
        """Get a lost lock back, in the same epoch. Raises LedgerUnavailable or Fenced."""
        if self.store.lock_holder not in (None, self):
            raise LedgerUnavailable("another engine holds the lock")
        if self.store.epoch != self._epoch:
            raise Fenced(f"epoch {self._epoch} is over, this is epoch {self.store.epoch}")
        self.store.lock_holder = self

    def lose_lock(self) -> None:
        """The connection that holds the lock breaks."""
        if self.store.lock_holder is self:
            self.store.lock_holder = None
            changed, self.store.lock_changed = self.store.lock_changed, anyio.Event()
            changed.set()

    # --- writing --------------------------------------------------------------------------

    async def commit(self, batch: Batch, following: Batch | None = None) -> Receipt:
        """Apply the batch; raises as the protocol says, and what `faults` ask for."""
        assert self._epoch, "an engine takes over before it writes"
        if self._unsettled not in (None, batch.key):
            # Something crashed in between. A start reads what became of it; this process can't.
            raise Fenced(f"what became of batch {self._unsettled} is open: a start finds it out")
        self._unsettled = batch.key
        if self.faults.commit_delay_s:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(self.faults.commit_delay_s)
        outcome = self.faults.outcomes.pop(0) if self.faults.outcomes else "ok"
        if self.faults.down or self.faults.read_only or outcome == "not_applied":
            raise LedgerUnavailable("the connection was lost before the batch arrived")
        try:
            receipt = self.store.apply(batch, self._epoch)
        except LedgerError:
            self._unsettled = None
            raise
        if outcome == "applied":
            raise LedgerUnavailable("the connection was lost before the reply came")
        self._unsettled = None
        return receipt

    async def project_totals(self) -> int:
        """Nothing to do: here the totals change with every commit. Raises LedgerUnavailable."""
        await self._reading()
        return 0

    async def believe_time(self, now_ms: int, at_most_ms: int) -> int:
        """What time it is, as far as is believed: it follows a clock, by so much at most."""
        await self._reading()
        return self.store.believe_time(now_ms, at_most_ms)

    async def prune_keys(self, before_ms: int, at_most: int) -> int:
        """Forget keys claimed and answered before a time, the oldest first; returns how many."""
        await self._reading()
        return self.store.prune_keys(before_ms, at_most)

    # --- reading --------------------------------------------------------------------------

    async def payments(self, ids: Sequence[str]) -> dict[str, Payment]:
        """The payments of these ids that exist."""
        await self._reading()
        rows = self.store.payments
        return {id_: from_document(rows[id_][22]) for id_ in ids if id_ in rows}

    async def open_payments(self, slots: range, take: TakePayments) -> None:
        """Hand over the documents of the open payments of the slots, as they come."""
        assert slots.step == 1, "a shard owns all slots between two"
        await self._reading()
        rows = [row for row in self.store.payments.values() if row[3] and row[4] in slots]
        for at in range(0, len(rows), PIECE):
            piece = rows[at : at + PIECE]
            quiet = {row[0]: row[22] for row in piece if not row[24]}
            take(quiet, [row[22] for row in piece if row[24]])

    async def claim(self, ref: KeyRef) -> Claim | None:
        """The claim of an idempotency key, with its final answer if there is one."""
        await self._reading()
        row = self.store.claims.get((ref.merchant_id, ref.livemode, ref.key))
        if row is None:
            return None
        fingerprint, created_ms, payment_id, op, status, body, code, location = row[3:]
        answer = None
        if status is not None:
            answer = Answer(status, body, final=True, code=code, location=location)
        return Claim(ref, fingerprint, created_ms, payment_id, op, answer)

    async def list_payments(self, wanted: PaymentFilter) -> list[Payment]:
        """At most `limit + 1` payments, newest first."""
        await self._reading()
        oldest = -math.inf if wanted.created_gte_ms is None else wanted.created_gte_ms
        newest = math.inf if wanted.created_lte_ms is None else wanted.created_lte_ms
        found = [
            row
            for row in self.store.payments.values()
            if row[1:3] == (wanted.merchant_id, wanted.livemode)
            and wanted.status in (None, row[17])
            and wanted.customer in (None, row[19])
            and wanted.subscription in (None, row[20])
            and wanted.reference in (None, row[21])
            and oldest <= row[6] <= newest
            and (wanted.before is None or row[0] < wanted.before)
        ]
        found.sort(key=lambda row: str(row[0]), reverse=True)
        return [from_document(row[22]) for row in found[: wanted.limit + 1]]

    async def refund(self, merchant_id: str, livemode: bool, refund_id: str) -> bytes | None:
        """A refund's representation."""
        await self._reading()
        row = self.store.refunds.get(refund_id)
        if row is None or row[2:4] != (merchant_id, livemode):
            return None
        body: bytes = row[6]
        return body

    async def list_refunds(
        self,
        merchant_id: str,
        livemode: bool,
        *,
        payment_id: str | None,
        status: str | None,
        before: str | None,
        limit: int,
    ) -> list[tuple[str, bytes]]:
        """At most `limit + 1` (id, representation), newest first."""
        await self._reading()
        found = [
            (row[0], row[6])
            for row in self.store.refunds.values()
            if row[2:4] == (merchant_id, livemode)
            and payment_id in (None, row[1])
            and status in (None, row[5])
            and (before is None or row[0] < before)
        ]
        return sorted(found, reverse=True)[: limit + 1]

    async def timeline(self, payment_id: str) -> list[TimelineRow]:
        """What each commit wrote of the payment, in order."""
        await self._reading()
        versions = self.store.timeline.get(payment_id, {})
        return [TimelineRow(version, *row) for version, row in sorted(versions.items())]

    async def event(self, merchant_id: str, livemode: bool, event_id: str) -> StoredEvent | None:
        """One event."""
        await self._reading()
        row = self.store.events.get((merchant_id, livemode, event_id))
        return None if row is None else _event(row)

    async def list_events(
        self,
        merchant_id: str,
        livemode: bool,
        *,
        type: str | None,  # noqa: A002 - the API's own word
        object_id: str | None,
        before: str | None,
        limit: int,
    ) -> list[StoredEvent]:
        """At most `limit + 1` events, newest first."""
        await self._reading()
        found = [
            _event(row)
            for row in self.store.events.values()
            if row[:2] == (merchant_id, livemode)
            and type in (None, row[5])
            and object_id in (None, row[6])
            and (before is None or row[4] < before)
        ]
        return sorted(found, key=lambda event: event.id, reverse=True)[: limit + 1]

    async def accounts(
        self, *, owner: str | None, livemode: bool, after: int, limit: int
    ) -> list[Balance]:
        """Accounts by id; only those of `owner` when given. At most `limit + 1`."""
        await self._reading()
        found = [
            account
            for id_, account in sorted(self.store.accounts.items())
            if id_ > after and account.livemode == livemode and owner in (None, account.owner)
        ]
        return found[: limit + 1]

    async def account(self, account_id: int, at_ms: int | None = None) -> Balance | None:
        """One account, now or as it was recorded at a time (None: it was not there yet)."""
        await self._reading()
        if at_ms is None:
            return self.store.accounts.get(account_id)
        last = max(
            ((b.recorded_ms, b.receipt.number) for b in self.store.batches
             if b.recorded_ms <= at_ms),
            default=(0, 0),
        )[1]  # fmt: skip
        history = self.store.history.get(account_id, [])
        return next((balance for number, _, balance in reversed(history) if number <= last), None)

    async def account_transfers(
        self, account_id: int, *, before: int | None, limit: int
    ) -> list[TransferRow]:
        """Transfers on either side of the account, newest first. At most `limit + 1`."""
        await self._reading()
        ids = self.store.of_account.get(account_id, [])
        found = sorted(
            (self.store.transfers[id_] for id_ in ids), key=lambda t: (t.batch, t.id), reverse=True
        )
        if before is not None:
            start = self.store.transfers.get(before)
            limits = (math.inf, before) if start is None else (start.batch, before)
            found = [t for t in found if (t.batch, t.id) < limits]
        return found[: limit + 1]

    async def transfer(self, transfer_id: int) -> TransferRow | None:
        """One transfer."""
        await self._reading()
        return self.store.transfers.get(transfer_id)

    async def payment_transfers(self, payment_id: str, ids: Sequence[int]) -> list[TransferRow]:
        """These transfers of a payment, by id."""
        await self._reading()
        found = [self.store.transfers.get(id_) for id_ in sorted(set(ids))]
        return [t for t in found if t is not None and t.payment_id == payment_id]

    async def timers_due(
        self, kind: str, until_ms: int, limit: int, *, after: TimerRow | None = None
    ) -> list[TimerRow]:
        """Timers of a kind that are due by then, earliest first; a page, from `after` on."""
        await self._reading()
        start = (0, "") if after is None else (after.due_ms, after.payment_id)
        due = sorted(
            t for t in self.store.timers if t[0] == kind and t[1] <= until_ms and t[1:] > start
        )
        return [TimerRow(due_ms, payment_id, kind) for kind, due_ms, payment_id in due[:limit]]

    async def inbox_open(self, limit: int, *, after: InboxRow | None = None) -> list[InboxRow]:
        """Webhooks stored and not yet dealt with, oldest first; a page, from `after` on."""
        await self._reading()
        rows = [row for row, outcome in self.store.inbox.values() if outcome is None]
        rows.sort(key=lambda row: (row[2], row[0], row[1]))
        if after is not None:
            start = (after.received_ms, after.gateway, after.event_id)
            rows = [row for row in rows if (row[2], row[0], row[1]) > start]
        return [InboxRow(row[0], row[1], row[2], _headers(row[3]), row[4]) for row in rows[:limit]]

    async def dead_letters(self, *, before: str | None, limit: int) -> list[DeadLetter]:
        """Dead letters that nobody has dealt with, newest first. At most `limit + 1`."""
        await self._reading()
        rows = [
            row
            for row, done in self.store.dead_letters.values()
            if not done and (before is None or row[0] < before)
        ]
        rows.sort(key=lambda row: str(row[0]), reverse=True)
        return [_letter(row) for row in rows[: limit + 1]]

    async def dead_letter(self, letter_id: str) -> DeadLetter | None:
        """A dead letter that nobody has dealt with."""
        await self._reading()
        row, done = self.store.dead_letters.get(letter_id, ((), True))
        return None if done else _letter(row)

    async def _reading(self) -> None:
        if self.faults.read_delay_s:
            await anyio.sleep(self.faults.read_delay_s)
        if self.faults.down:
            raise LedgerUnavailable("the database does not answer")


def _letter(row: Row) -> DeadLetter:
    return DeadLetter(row[0], row[1], row[2], row[3], row[5], row[4])


def _event(row: Row) -> StoredEvent:
    return StoredEvent(
        id=row[4], type=row[5], object_id=row[6], sequence=row[2], created_ms=row[3], body=row[7]
    )
