"""What one step writes: an entry of the journal, committed whole or not at all.

The money (transfers), the state it belongs to (payment), the promise to the client (claim and
answer), the news of it (events) and the wish to be woken (timers) are one unit, so no crash can
part them.
"""

from __future__ import annotations

import msgspec

from engine.domain.payment import Payment
from engine.domain.posting import Transfer


class Answer(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An HTTP answer as plain values. `final`: it is stored and replayed byte for byte."""

    status: int
    body: bytes
    final: bool
    code: str = ""
    location: str | None = None
    retry_after_s: int | None = None

    @property
    def is_problem(self) -> bool:
        """Whether the body is an RFC 9457 problem document."""
        return self.status >= 400


class KeyRef(msgspec.Struct, frozen=True, gc=False):
    """An idempotency key, which is unique per merchant and mode."""

    merchant_id: str
    livemode: bool
    key: str

    def __hash__(self) -> int:
        """The key alone spreads well enough, and is cheaper than hashing all three."""
        return hash(self.key)


class Claim(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The claim of a key by its first request, in the commit of that request's intent.

    `fingerprint` is over method, path and parsed body; `op` is 0 where no operation came of it.
    """

    ref: KeyRef
    fingerprint: bytes
    created_ms: int
    payment_id: str = ""
    op: int = 0
    answer: Answer | None = None


class KeyAnswer(msgspec.Struct, frozen=True, gc=False):
    """The final answer of a key that was claimed in an earlier commit."""

    ref: KeyRef
    answer: Answer


class EventRow(msgspec.Struct, frozen=True, gc=False):
    """One event of the outbox. `body` is what a merchant's webhook will carry, in its bytes."""

    id: str
    type: str
    merchant_id: str
    livemode: bool
    object_id: str
    sequence: int
    created_ms: int
    body: bytes


class RefundRow(msgspec.Struct, frozen=True, gc=False):
    """A refund as it is read and listed. `body` is its representation, in bytes."""

    id: str
    payment_id: str
    merchant_id: str
    livemode: bool
    status: str
    created_ms: int
    body: bytes


class TimelineStep(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One line of a payment's timeline. `at_ms` is when it happened, not when it was written."""

    at_ms: int
    step: str
    op: str | None = None
    detail: dict[str, str | int | bool | None] = {}


class TimerRow(msgspec.Struct, frozen=True, gc=False):
    """A durable wish to be woken."""

    due_ms: int
    payment_id: str
    kind: str


class InboxRow(msgspec.Struct, frozen=True, gc=False):
    """A webhook as it came in. `event_id` is the provider's: it de-duplicates."""

    gateway: str
    event_id: str
    received_ms: int
    headers: dict[str, str]
    raw: bytes


class InboxRef(msgspec.Struct, frozen=True, gc=False):
    """An inbox row that has been dealt with, and how."""

    gateway: str
    event_id: str
    outcome: str


class DeadLetter(msgspec.Struct, frozen=True, gc=False):
    """Work that could not be done and waits for a person."""

    id: str
    kind: str
    subject: str
    reason: str
    body: bytes
    created_ms: int


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything one step writes. `payment.version` 1 inserts; later versions update version-1.

    `document` is the payment's where it has been made already. `timers_cleared` and `timers_set`
    are exact rows; `claims_released` lets a key run again.
    """

    payment: Payment | None = None
    document: bytes | None = None
    transfers: tuple[Transfer, ...] = ()
    claim: Claim | None = None
    answers: tuple[KeyAnswer, ...] = ()
    claims_released: tuple[KeyRef, ...] = ()
    events: tuple[EventRow, ...] = ()
    refunds: tuple[RefundRow, ...] = ()
    timeline: tuple[TimelineStep, ...] = ()
    timers_set: tuple[TimerRow, ...] = ()
    timers_cleared: tuple[TimerRow, ...] = ()
    inbox: InboxRow | None = None
    inbox_done: InboxRef | None = None
    dead_letter: DeadLetter | None = None
    dead_letter_done: str | None = None


class Batch(msgspec.Struct, frozen=True):
    """A group commit. `key` is made by the client of the ledger: it settles a lost COMMIT reply."""

    key: str
    recorded_ms: int
    entries: tuple[Entry, ...]
