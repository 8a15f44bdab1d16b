"""The reading half on Postgres: any number of callers over a few connections.

Every method raises LedgerUnavailable where the database does not answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg
import msgspec

from engine.domain.document import from_document
from engine.domain.entry import Answer, Claim, DeadLetter, InboxRow, KeyRef, TimerRow
from engine.domain.payment import Payment
from engine.ledger.connections import READER_BY_KEYS, ReadConnections, copy_payments
from engine.ports import (
    Balance,
    PaymentFilter,
    StoredEvent,
    TakePayments,
    TimelineRow,
    TransferRow,
)

_headers = msgspec.json.Decoder(dict[str, str]).decode


class Reader:
    """`LedgerReader` on Postgres: what has been committed."""

    def __init__(self, dsn: str, readers_max: int) -> None:
        self._dsn = dsn
        self._connections = ReadConnections(dsn, readers_max)
        # For what reads a few rows here and there of the largest tables.
        self._by_keys = ReadConnections(dsn, 2, READER_BY_KEYS)

    async def payments(self, ids: Sequence[str]) -> dict[str, Payment]:
        """The payments of these ids that exist."""
        rows = await self._connections.fetch("payments", list(ids))
        found = [from_document(row["doc"]) for row in rows]
        return {payment.id: payment for payment in found}

    async def open_payments(self, slots: range, take: TakePayments) -> None:
        """Hand over the documents of the open payments of the slots, as they come."""
        assert slots.step == 1, "a shard owns all slots between two"
        await copy_payments(self._dsn, take, "open_payments", slots.start, slots.stop)

    async def claim(self, ref: KeyRef) -> Claim | None:
        """The claim of an idempotency key, with its final answer if there is one."""
        row = await self._connections.fetchrow("claim", ref.merchant_id, ref.livemode, ref.key)
        if row is None:
            return None
        answer = None
        if row["status"] is not None:
            answer = Answer(
                status=row["status"],
                body=row["body"],
                final=True,
                code=row["code"],
                location=row["location"],
            )
        return Claim(
            ref=ref,
            fingerprint=row["fingerprint"],
            created_ms=row["created_ms"],
            payment_id=row["payment_id"],
            op=row["op"],
            answer=answer,
        )

    async def list_payments(self, wanted: PaymentFilter) -> list[Payment]:
        """At most `limit + 1` payments, newest first (one more tells that there are more)."""
        arguments = (
            wanted.merchant_id,
            wanted.livemode,
            wanted.status,
            wanted.customer,
            wanted.subscription,
            wanted.created_gte_ms,
            wanted.created_lte_ms,
            wanted.before,
            wanted.limit + 1,
        )
        if wanted.reference is None:
            rows = await self._connections.fetch("list_payments", *arguments)
        else:
            rows = await self._connections.fetch(
                "list_payments_by_reference", *arguments, wanted.reference
            )
        return [from_document(row["doc"]) for row in rows]

    async def refund(self, merchant_id: str, livemode: bool, refund_id: str) -> bytes | None:
        """A refund's representation."""
        row = await self._connections.fetchrow("refund", merchant_id, livemode, refund_id)
        return None if row is None else row["body"]

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
        arguments = (merchant_id, livemode, status, before, limit + 1)
        if payment_id is None:
            rows = await self._connections.fetch("list_refunds", *arguments)
        else:
            rows = await self._connections.fetch("list_refunds_of_payment", *arguments, payment_id)
        return [(row["id"], row["body"]) for row in rows]

    async def timeline(self, payment_id: str) -> list[TimelineRow]:
        """What each commit wrote of the payment, in order."""
        rows = await self._connections.fetch("timeline", payment_id)
        return [TimelineRow(*row) for row in rows]

    async def event(self, merchant_id: str, livemode: bool, event_id: str) -> StoredEvent | None:
        """One event."""
        row = await self._connections.fetchrow("event", merchant_id, livemode, event_id)
        return None if row is None else StoredEvent(*row)

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
        rows = await self._connections.fetch(
            "list_events", merchant_id, livemode, type, object_id, before, limit + 1
        )
        return [StoredEvent(*row) for row in rows]

    async def accounts(
        self, *, owner: str | None, livemode: bool, after: int, limit: int
    ) -> list[Balance]:
        """Accounts by id; only those of `owner` when given. At most `limit + 1`."""
        rows = await self._connections.fetch("accounts", owner, livemode, after, limit + 1)
        return [Balance(*row) for row in rows]

    async def account(self, account_id: int, at_ms: int | None = None) -> Balance | None:
        """One account, now or as it was recorded at a time (None: it was not there yet)."""
        row = await self._by_keys.fetchrow("account", account_id, at_ms)
        return None if row is None else Balance(*row)

    async def account_transfers(
        self, account_id: int, *, before: int | None, limit: int
    ) -> list[TransferRow]:
        """Transfers on either side of the account, newest first. At most `limit + 1`."""
        rows = await self._by_keys.fetch("account_transfers", account_id, before, limit + 1)
        return [TransferRow(*row) for row in rows]

    async def transfer(self, transfer_id: int) -> TransferRow | None:
        """One transfer."""
        rows = await self._transfers([transfer_id], None)
        return rows[0] if rows else None

    async def payment_transfers(self, payment_id: str, ids: Sequence[int]) -> list[TransferRow]:
        """These transfers of a payment, by id."""
        return await self._transfers(list(ids), payment_id)

    async def last_transfer(self) -> int:
        """The largest transfer id of the journal; 0 when it is empty."""
        row = await self._connections.fetchrow("last_transfer")
        assert row is not None, "an aggregate always has a row"
        return int(row["id"])

    async def timers_due(
        self, kind: str, until_ms: int, limit: int, *, after: TimerRow | None = None
    ) -> list[TimerRow]:
        """Timers of a kind that are due by then, earliest first; a page, from `after` on."""
        start = (0, "") if after is None else (after.due_ms, after.payment_id)
        rows = await self._connections.fetch("timers_due", kind, until_ms, limit, *start)
        return [TimerRow(*row) for row in rows]

    async def inbox_open(self, limit: int, *, after: InboxRow | None = None) -> list[InboxRow]:
        """Webhooks stored and not yet dealt with, oldest first; a page, from `after` on."""
        start = (0, "", "") if after is None else (after.received_ms, after.gateway, after.event_id)
        rows = await self._connections.fetch("inbox_open", limit, *start)
        return [_inbox(row) for row in rows]

    async def dead_letters(self, *, before: str | None, limit: int) -> list[DeadLetter]:
        """Dead letters that nobody has dealt with, newest first. At most `limit + 1`."""
        rows = await self._connections.fetch("dead_letters", before, limit + 1)
        return [DeadLetter(*row) for row in rows]

    async def dead_letter(self, letter_id: str) -> DeadLetter | None:
        """A dead letter that nobody has dealt with."""
        row = await self._connections.fetchrow("dead_letter", letter_id)
        return None if row is None else DeadLetter(*row)

    async def _transfers(self, ids: list[int], payment_id: str | None) -> list[TransferRow]:
        rows = await self._connections.fetch("transfers", ids, payment_id)
        return [TransferRow(*row) for row in rows]


def _inbox(row: asyncpg.Record) -> InboxRow:
    return InboxRow(
        gateway=row["gateway"],
        event_id=row["event_id"],
        received_ms=row["received_ms"],
        headers=_headers(row["headers"]),
        raw=row["raw"],
    )
