"""One operation on a payment, and the table of what news does to it.

An operation is one thing asked of a gateway: authorize, purchase, capture, cancel, refund, or a
`reversal` the engine starts by itself to undo a success that came too late. It is durable before
a byte is sent. From then on only news moves it, whichever road the news took (reply, look-up,
webhook), and in whichever order it arrives:

- open statuses are `processing` (asked, not answered), `requires_action` (the customer must act),
  `pending` (the gateway says "not yet") and `unknown` (it may or may not have been done);
- `succeeded`, `declined`, `failed`, `expired` and `canceled` are final. A final status is never
  downgraded; news that contradicts it is a fact that gets its own treatment, not an overwrite.

`TRANSITIONS` is total over statuses and news: a pair that is not there cannot happen.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from engine.domain.news import (
    ActionRequired,
    Approved,
    Declined,
    Expired,
    Failed,
    NotFound,
    StillPending,
    Unknown,
)

OperationType = Literal["authorize", "purchase", "capture", "cancel", "refund", "reversal"]

OperationStatus = Literal[
    "processing",
    "requires_action",
    "pending",
    "unknown",
    "succeeded",
    "declined",
    "failed",
    "expired",
    "canceled",
]

Verdict = Literal[
    "succeed",  # done, as asked
    "decline",  # definitely refused
    "fail",  # definitely not done, for a technical reason
    "expire",  # the customer did not act in time
    "require_action",  # wait for the customer
    "wait",  # wait for the gateway
    "doubt",  # outcome unknown: look it up
    "ask_again",  # nothing new: look it up again later
    "weigh_absence",  # not there: definite only when the look-up lag has passed
    "ignore",  # repeats, or is older than, what is known
    "contradict",  # contradicts a success: flag it, change nothing
    "return_refund",  # a refund that succeeded came back
    "late_success",  # a success after a final failure: record the fact and undo or adopt it
]

OPEN: frozenset[str] = frozenset({"processing", "requires_action", "pending", "unknown"})
FINAL: frozenset[str] = frozenset({"succeeded", "declined", "failed", "expired", "canceled"})

_ASKED: tuple[OperationStatus, ...] = ("processing", "unknown")
_TOLD: tuple[OperationStatus, ...] = ("requires_action", "pending")
UNDONE: tuple[OperationStatus, ...] = ("declined", "failed", "expired", "canceled")
"""Final, and not done."""


def _transitions() -> dict[tuple[OperationStatus, type], Verdict]:
    table: dict[tuple[OperationStatus, type], Verdict] = {}
    for status in _ASKED:
        table[status, Approved] = "succeed"
        table[status, Declined] = "decline"
        table[status, Failed] = "fail"
        table[status, Expired] = "expire"
        table[status, ActionRequired] = "require_action"
        table[status, StillPending] = "wait"
        table[status, NotFound] = "weigh_absence"
    table["processing", Unknown] = "doubt"
    table["unknown", Unknown] = "ask_again"
    for status in _TOLD:
        table[status, Approved] = "succeed"
        table[status, Declined] = "decline"
        table[status, Failed] = "fail"
        table[status, Expired] = "expire"
        table[status, StillPending] = "ask_again"
        table[status, Unknown] = "ask_again"
        # The gateway told us of it once, so that it does not find it now is its lag or its fault.
        table[status, NotFound] = "ask_again"
    table["requires_action", ActionRequired] = "ask_again"
    table["pending", ActionRequired] = "require_action"

    table["succeeded", Approved] = "ignore"
    for refused in (Declined, Failed, Expired):
        table["succeeded", refused] = "contradict"
    for vague in (ActionRequired, StillPending, Unknown, NotFound):
        table["succeeded", vague] = "ignore"
    for undone in UNDONE:
        table[undone, Approved] = "late_success"
        for news in (Declined, Failed, Expired, ActionRequired, StillPending, Unknown, NotFound):
            table[undone, news] = "ignore"
    return table


TRANSITIONS: dict[tuple[OperationStatus, type], Verdict] = _transitions()

LEADS_TO: dict[Verdict, OperationStatus] = {
    "succeed": "succeeded",
    "decline": "declined",
    "fail": "failed",
    "expire": "expired",
    "require_action": "requires_action",
    "wait": "pending",
    "doubt": "unknown",
    "return_refund": "failed",
}
"""The status a verdict leads to; a verdict that is not here leaves the status as it is."""


class Operation(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One operation. `n` numbers it within its payment; its id is `<payment id>.<n>`.

    `release` is what a final capture gives back beside its amount. `key` is the idempotency key
    it was asked with (empty for the engine's own work). `deferred`: a cancel that waits for the
    outcome of what it cancels. `answered`: its final answer has been stored.
    `events`: how many events of its own were published (only a refund has any). `counted`: how much
    of a refund that succeeded is in the payment's `refunded`, where that is not its amount.
    `returned`: a refund that had succeeded came back, which is the last that happens to it.
    `owed`: the engine does it of its own accord, or has promised it (a cancel that waited), so
    nobody is there to ask again where it fails: it is retried, at `retry_ms`, then a person's.
    """

    n: int
    type: OperationType
    amount: int
    created_ms: int
    status: OperationStatus = "processing"
    release: int = 0
    final: bool = True
    transfer: int = 0
    key: str = ""
    request_id: str = ""
    path: str = ""
    reference: str | None = None
    code: str | None = None
    reason: str | None = None
    metadata: dict[str, str] = {}
    refund_id: str | None = None
    sent_ms: int = 0
    checks: int = 0
    next_check_ms: int | None = None
    attempts: int = 1
    retry_ms: int | None = None
    deferred: bool = False
    answered: bool = False
    events: int = 0
    needs_review: bool = False
    counted: int | None = None
    returned: bool = False
    owed: bool = False

    @property
    def is_open(self) -> bool:
        """Whether its outcome is still to come."""
        return self.status in OPEN

    @property
    def is_unfinished(self) -> bool:
        """Whether it is open, or failed and waits for its retry: what it reserved stays so."""
        return self.status in OPEN or self.retry_ms is not None


def verdict(operation: Operation, news: object) -> Verdict:
    """What `news` does to `operation`: the table, and the one case where the type matters."""
    found = TRANSITIONS[operation.status, type(news)]
    if found == "contradict" and operation.type == "refund":
        return "return_refund"
    return found
