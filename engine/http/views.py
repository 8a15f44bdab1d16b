"""What is answered, beside payments and refunds: accounts, transfers, events, lists, system.

The OpenAPI document is made from these Structs, and answers are validated against it in tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from engine.domain.entry import DeadLetter
from engine.domain.ids import encode_int_id, op_id
from engine.domain.posting import DEBIT_NORMAL
from engine.domain.representation import EventBody, EventData, PaymentView, rfc3339
from engine.ports import Balance, StoredEvent, TransferRow

ACCOUNT = "acct_"
TRANSFER = "tr_"

_encode = msgspec.json.Encoder().encode
_event_body = msgspec.json.Decoder(EventBody)


class AccountView(msgspec.Struct, frozen=True):
    """A ledger account and its four running totals, in the currency's minor unit.

    `balance` counts what is posted, on the side on which the account grows; `available` is less
    by what is pending against it. `version` counts its transfers. `at` is the time asked for, null
    for now.
    """

    id: str
    object: Literal["account"]
    created: str
    livemode: bool
    book: str
    kind: str
    owner: str
    currency: str
    debits_pending: int
    debits_posted: int
    credits_pending: int
    credits_posted: int
    balance: int
    available: int
    version: int
    at: str | None
    metadata: dict[str, str]


class TransferView(msgspec.Struct, frozen=True):
    """One amount moved from a debit account to a credit account.

    `resolves` is the pending transfer that a second phase acts on; `batch` is the number of the
    journal's batch that recorded it.
    """

    id: str
    object: Literal["transfer"]
    created: str
    livemode: bool
    debit_account: str
    credit_account: str
    amount: int
    currency: str
    kind: str
    phase: Literal["posted", "pending", "post_pending", "void_pending", "expire_pending"]
    resolves: str | None
    payment: str | None
    operation: str | None
    occurred: str
    batch: int
    metadata: dict[str, str]


class EventView(msgspec.Struct, frozen=True):
    """A committed change. `sequence` counts per object, without gaps."""

    id: str
    object: Literal["event"]
    created: str
    livemode: bool
    type: str
    timestamp: str
    sequence: int
    object_id: str
    data: EventData
    metadata: dict[str, str]


class TimelineEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step of a payment: when it happened, and what it was.

    `recorded` and `batch` tell of the commit that made it durable. A step `transfer` carries the
    transfer.
    """

    at: str
    step: str
    recorded: str
    batch: int
    operation: str | None = None
    detail: dict[str, str | int | bool | None] = {}
    transfer: TransferView | None = None


class TimelineView(msgspec.Struct, frozen=True):
    """Every step of a payment, in order."""

    object: Literal["timeline"]
    payment: str
    data: list[TimelineEntry]


class BatchResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one item: what a single request would have answered.

    `idempotency_key` is null where the item had none, or none that is allowed. `location` and
    `retry_after` (seconds) stand for the headers of a single request; `replayed` says that the
    answer repeats the first one given to this key. Below 400 `body` is the payment or the refund,
    else the problem document.
    """

    idempotency_key: str | None
    status: int
    body: dict[str, Any]
    replayed: bool = False
    location: str | None = None
    retry_after: int | None = None


class BatchView(msgspec.Struct, frozen=True):
    """One result per item, in the order of the items."""

    object: Literal["batch"]
    data: list[BatchResult]


class DeadLetterView(msgspec.Struct, frozen=True):
    """Work that could not be done and waits for a person. `subject` is what it is about."""

    id: str
    object: Literal["dead_letter"]
    created: str
    kind: str
    subject: str
    reason: str
    metadata: dict[str, str]


class DeadLetterRetried(msgspec.Struct, frozen=True):
    """The dead letter has been handed to the engine again."""

    id: str
    object: Literal["dead_letter"]
    status: Literal["retried"]


class VerificationView(msgspec.Struct, frozen=True):
    """The last verification of the whole ledger; null while none has ended yet."""

    object: Literal["ledger_verification"]
    result: dict[str, Any] | None


class PartHealth(msgspec.Struct, frozen=True):
    """The state of one part of the engine, and why."""

    name: str
    state: Literal["ok", "degraded", "down"]
    detail: str = ""


class HealthView(msgspec.Struct, frozen=True):
    """Each part's state; `status` is the worst of them."""

    object: Literal["health"]
    status: Literal["ok", "degraded", "down"]
    version: str
    parts: list[PartHealth]


class LiveView(msgspec.Struct, frozen=True):
    """The process answers."""

    status: Literal["alive"]


class ReadyView(msgspec.Struct, frozen=True):
    """Whether work is taken, and if not, why."""

    status: Literal["ready", "not_ready"]
    reasons: list[str]


class StatisticsView(msgspec.Struct, frozen=True):
    """What every long-lived part counts: actors, mailboxes, breakers, the ledger writer."""

    object: Literal["statistics"]
    parts: dict[str, Any]


class AuthenticationCompleted(msgspec.Struct, frozen=True):
    """The simulated customer has done what was asked."""

    object: Literal["authentication"]
    reference: str
    status: Literal["completed"]


class WebhookAccepted(msgspec.Struct, frozen=True):
    """The webhook is stored, now or by an earlier delivery."""

    received: bool


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error (RFC 9457). `code` is stable; `param` is the path of the field at fault."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    retryable: bool
    param: str | None = None
    payment: PaymentView | None = None
    decline_code: str | None = None
    advice: str | None = None
    failure_code: str | None = None


def account_view(account: Balance, at_ms: int | None = None) -> AccountView:
    """An account as it is answered."""
    if account.kind in DEBIT_NORMAL:
        balance = account.debits_posted - account.credits_posted
        available = balance - account.credits_pending
    else:
        balance = account.credits_posted - account.debits_posted
        available = balance - account.debits_pending
    return AccountView(
        id=encode_int_id(ACCOUNT, account.id),
        object="account",
        created=rfc3339(account.created_ms),
        livemode=account.livemode,
        book=account.book,
        kind=account.kind,
        owner=account.owner,
        currency=account.currency,
        debits_pending=account.debits_pending,
        debits_posted=account.debits_posted,
        credits_pending=account.credits_pending,
        credits_posted=account.credits_posted,
        balance=balance,
        available=available,
        version=account.version,
        at=None if at_ms is None else rfc3339(at_ms),
        metadata={},
    )


def transfer_view(transfer: TransferRow) -> TransferView:
    """A transfer as it is answered."""
    payment = transfer.payment_id or None
    return TransferView(
        id=encode_int_id(TRANSFER, transfer.id),
        object="transfer",
        created=rfc3339(transfer.recorded_ms),
        livemode=transfer.livemode,
        debit_account=encode_int_id(ACCOUNT, transfer.debit_account),
        credit_account=encode_int_id(ACCOUNT, transfer.credit_account),
        amount=transfer.amount,
        currency=transfer.currency,
        kind=transfer.kind,
        phase=transfer.phase,  # type: ignore[arg-type]  # the ledger holds no other phase
        resolves=encode_int_id(TRANSFER, transfer.resolves) if transfer.resolves else None,
        payment=payment,
        operation=op_id(payment, transfer.op) if payment and transfer.op else None,
        occurred=rfc3339(transfer.event_ms),
        batch=transfer.batch,
        metadata={},
    )


def event_view(event: StoredEvent) -> EventView:
    """An event as it is answered: its webhook's body, and what every object has."""
    body = _event_body.decode(event.body)
    return EventView(
        id=event.id,
        object="event",
        created=rfc3339(event.created_ms),
        livemode=body.livemode,
        type=body.type,
        timestamp=body.timestamp,
        sequence=body.sequence,
        object_id=event.object_id,
        data=body.data,
        metadata={},
    )


def dead_letter_view(letter: DeadLetter) -> DeadLetterView:
    """A dead letter as it is answered. Its body stays inside: it may hold anything."""
    return DeadLetterView(
        id=letter.id,
        object="dead_letter",
        created=rfc3339(letter.created_ms),
        kind=letter.kind,
        subject=letter.subject,
        reason=letter.reason,
        metadata={},
    )


def list_bytes(data: Iterable[bytes], next_cursor: str | None) -> bytes:
    """A page of a list, of objects that are encoded already. A cursor is URL-safe text."""
    ending = b'],"has_more":false,"next_cursor":null}'
    if next_cursor is not None:
        ending = b'],"has_more":true,"next_cursor":"%b"}' % next_cursor.encode()
    return b'{"object":"list","data":[' + b",".join(data) + ending


def encoded(view: msgspec.Struct) -> bytes:
    """A view in the bytes that are sent."""
    return _encode(view)
