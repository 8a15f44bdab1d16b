"""The state of one payment: its amounts, its operations, and what follows from them.

A payment's `status` is not stored by hand: it follows from its first operation (authorize or
purchase) and its counters, so it cannot disagree with the money. The guarded counters keep, for
everything that is asked for here:

    captured + capturing + released + releasing <= authorized
    refunded + refunding <= captured

What a gateway reports beyond that is a fact and is counted in `excess_captured` and
`excess_refunded`, outside the guard, with the payment flagged for review.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from engine.domain.news import Card, NextAction
from engine.domain.operation import UNDONE, Operation

PaymentStatus = Literal[
    "processing",
    "requires_action",
    "pending",
    "authorized",
    "partially_captured",
    "captured",
    "canceled",
    "declined",
    "failed",
    "expired",
    "reversed",
    "unknown",
]

ReleaseCause = Literal["canceled", "expired"]


class Payment(msgspec.Struct, frozen=True, omit_defaults=True):
    """One payment, whole: enough to go on from after a restart. Amounts in minor units.

    `told`: the facts a person was told of that show in no other field, so that each is told once.
    """

    id: str
    merchant_id: str
    livemode: bool
    created_ms: int
    amount: int
    currency: str
    gateway: str
    payment_method: str
    operations: tuple[Operation, ...]
    version: int = 1
    sequence: int = 0
    authorized: int = 0
    capturing: int = 0
    captured: int = 0
    releasing: int = 0
    released: int = 0
    refunding: int = 0
    refunded: int = 0
    excess_captured: int = 0
    excess_refunded: int = 0
    disputed: int = 0
    disputes: tuple[str, ...] = ()
    reversed: int = 0
    fee: int = 0
    fee_tax: int = 0
    hold: int = 0
    released_by: ReleaseCause = "canceled"
    cancel_requested: bool = False
    needs_review: bool = False
    told: tuple[str, ...] = ()
    expires_ms: int | None = None
    decline_code: str | None = None
    advice: str | None = None
    failure_code: str | None = None
    gateway_reference: str | None = None
    next_action: NextAction | None = None
    card: Card | None = None
    customer: str | None = None
    subscription: str | None = None
    reference: str | None = None
    description: str | None = None
    statement_descriptor: str | None = None
    return_url: str | None = None
    metadata: dict[str, str] = {}

    @property
    def origin(self) -> Operation:
        """The authorize or purchase that the payment began with."""
        return self.operations[0]

    @property
    def reference_held(self) -> bool:
        """Whether no other payment may have its reference.

        One that never came about gives it up, so that the order can be paid by the next attempt.
        That is for good: what is final and undone is never revived, also not by a late success,
        so a reference that another payment has taken meanwhile is never claimed back.
        """
        return self.reference is not None and self.operations[0].status not in UNDONE

    @property
    def capturable(self) -> int:
        """What may still be captured or released."""
        return self.authorized - self.captured - self.capturing - self.released - self.releasing

    @property
    def refundable(self) -> int:
        """What may still be refunded."""
        if self.reversed:
            return 0
        return self.captured - self.refunded - self.refunding

    @property
    def status(self) -> PaymentStatus:
        """The confirmed facts in one word."""
        if self.reversed:
            return "reversed"
        begun = self.operations[0].status
        if begun != "succeeded":
            return begun
        if self.captured == 0:
            if self.released and self.released >= self.authorized:
                return self.released_by
            return "authorized"
        if self.captured + self.released >= self.authorized:
            return "captured"
        return "partially_captured"

    @property
    def is_open(self) -> bool:
        """Whether it lives in memory: a hold, or an operation whose outcome is to come."""
        return self.authorized - self.captured - self.released > 0 or self.has_work

    @property
    def has_work(self) -> bool:
        """Whether an operation is under way, or to be tried again."""
        for op in self.operations:  # noqa: SIM110 - asked at every step, and twice as fast
            if op.is_open or op.retry_ms is not None:
                return True
        return False


TimerKind = Literal["look_up", "expire", "retry"]


NO_TIMERS: dict[TimerKind, int] = {}


def timers(payment: Payment) -> dict[TimerKind, int]:
    """When the payment next needs waking, per kind of timer, in Unix milliseconds."""
    due: dict[TimerKind, int] = {}
    if payment.expires_ms is not None and payment.capturable > 0:
        due["expire"] = payment.expires_ms
    for op in payment.operations:
        check_ms, retry_ms = op.next_check_ms, op.retry_ms
        if check_ms is not None and op.is_open:
            due["look_up"] = min(due.get("look_up", check_ms), check_ms)
        if retry_ms is not None:
            due["retry"] = min(due.get("retry", retry_ms), retry_ms)
    return due


STATUS_TRANSITIONS: frozenset[tuple[PaymentStatus, PaymentStatus]] = frozenset(
    {
        ("processing", "authorized"),
        ("processing", "captured"),
        ("processing", "requires_action"),
        ("processing", "pending"),
        ("processing", "unknown"),
        ("processing", "declined"),
        ("processing", "failed"),
        ("processing", "expired"),
        ("requires_action", "authorized"),
        ("requires_action", "captured"),
        ("requires_action", "declined"),
        ("requires_action", "failed"),
        ("requires_action", "expired"),
        ("requires_action", "canceled"),
        ("pending", "authorized"),
        ("pending", "captured"),
        ("pending", "requires_action"),
        ("pending", "declined"),
        ("pending", "failed"),
        ("pending", "expired"),
        ("pending", "canceled"),
        ("unknown", "authorized"),
        ("unknown", "captured"),
        ("unknown", "requires_action"),
        ("unknown", "pending"),
        ("unknown", "declined"),
        ("unknown", "failed"),
        ("unknown", "expired"),
        ("authorized", "partially_captured"),
        ("authorized", "captured"),
        ("authorized", "canceled"),
        ("authorized", "expired"),
        ("partially_captured", "captured"),
        ("partially_captured", "reversed"),
        ("captured", "reversed"),
    }
)
"""Every change of status there is. A property test holds the machine to it."""

Command = Literal["capture", "cancel", "refund"]

COMMANDS: dict[PaymentStatus, dict[Command, Literal["yes", "unresolved", "no"]]] = {
    "processing": {"capture": "unresolved", "cancel": "yes", "refund": "unresolved"},
    "unknown": {"capture": "unresolved", "cancel": "yes", "refund": "unresolved"},
    "requires_action": {"capture": "unresolved", "cancel": "yes", "refund": "unresolved"},
    "pending": {"capture": "unresolved", "cancel": "yes", "refund": "unresolved"},
    "authorized": {"capture": "yes", "cancel": "yes", "refund": "no"},
    "partially_captured": {"capture": "yes", "cancel": "yes", "refund": "yes"},
    "captured": {"capture": "no", "cancel": "no", "refund": "yes"},
    "canceled": {"capture": "no", "cancel": "no", "refund": "no"},
    "declined": {"capture": "no", "cancel": "no", "refund": "no"},
    "failed": {"capture": "no", "cancel": "no", "refund": "no"},
    "expired": {"capture": "no", "cancel": "no", "refund": "no"},
    "reversed": {"capture": "no", "cancel": "no", "refund": "no"},
}
"""Which requests each status accepts. `unresolved`: not yet, its outcome must be known first."""
