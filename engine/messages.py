"""Messages between actors: plain data, no callbacks, futures or streams inside.

Each actor's mailbox takes one of the unions at the end. Casts carry no deadline; a call (a
request from outside) carries the id its reply goes to.
"""

from __future__ import annotations

import msgspec

from engine.domain.commands import Command
from engine.domain.entry import Answer, Claim, Entry, InboxRef, InboxRow, KeyRef
from engine.domain.news import GatewayCall, News
from engine.domain.payment import Payment

# --- to a shard -----------------------------------------------------------------------------


class Request(msgspec.Struct, frozen=True, tag=True, gc=False):
    """A merchant's command on a payment. `claim` is None where no key was given."""

    request_id: str
    payment_id: str
    command: Command
    claim: Claim | None
    path: str
    at_ms: int


class Committed(msgspec.Struct, frozen=True, tag=True, gc=False):
    """These writes of the shard's incarnation are durable."""

    incarnation: int
    tokens: tuple[int, ...]


class WriteRefused(msgspec.Struct, frozen=True, tag=True, gc=False):
    """A write did not happen. `reason`: `key_taken`, `reference_taken`, or `invalid: ...`."""

    incarnation: int
    token: int
    reason: str


class Heard(msgspec.Struct, frozen=True, tag=True, gc=False):
    """News of a gateway. `op` is 0 for news about the payment as a whole."""

    payment_id: str
    op: int
    news: News
    via: str  # reply | look_up | webhook
    at_ms: int
    inbox: InboxRef | None = None


class TimerDue(msgspec.Struct, frozen=True, tag=True, gc=False):
    """A durable timer has come due (`kind` as in `payment.TimerKind`), or somebody at the console
    wants the payment's unfinished work tried again now (`revive`).
    """

    payment_id: str
    kind: str
    due_ms: int


class PaymentLoaded(msgspec.Struct, frozen=True, tag=True, gc=False):
    """What the ledger holds of a payment that was not in memory (None: no such payment).

    `damage` says why it can't be read, where it is there and can't.
    """

    incarnation: int
    payment_id: str
    payment: Payment | None
    damage: str | None = None


class Tick(msgspec.Struct, frozen=True, tag=True, gc=False):
    """A second has passed: see whether anything in flight is overdue."""

    now_ms: int


# --- to the ledger writer -------------------------------------------------------------------


class Write(msgspec.Struct, frozen=True, tag=True, gc=False):
    """One entry to commit; the reply goes to the named actor."""

    reply_to: str
    incarnation: int
    token: int
    entry: Entry


class Barrier(msgspec.Struct, frozen=True, tag=True, gc=False):
    """Answered with `Committed` once everything sent before it has been settled."""

    reply_to: str
    incarnation: int
    token: int


# --- to the ledger reader -------------------------------------------------------------------


class LoadPayment(msgspec.Struct, frozen=True, tag=True, gc=False):
    """Fetch a payment that is not in memory."""

    reply_to: str
    incarnation: int
    payment_id: str


# --- to a gateway actor ---------------------------------------------------------------------


class Perform(msgspec.Struct, frozen=True, tag=True, gc=False):
    """Make this call (or look-up); its news goes to the payment's shard.

    `asked_ms`: when the step was taken that asks for it, before its commit. What is picked up too
    long after that is not sent any more.
    """

    call: GatewayCall
    payment_id: str
    op: int
    asked_ms: int


# --- to the webhook actor -------------------------------------------------------------------


class WebhookReceived(msgspec.Struct, frozen=True, tag=True, gc=False):
    """A verified webhook, raw. Answered once it is durable."""

    request_id: str
    row: InboxRow


class NewsParked(msgspec.Struct, frozen=True, tag=True, gc=False):
    """The news named a payment or an operation that is not there (yet)."""

    inbox: InboxRef


class NewsCrashed(msgspec.Struct, frozen=True, tag=True, gc=False):
    """The news crashed its shard each time it was handed out, and was taken away from it."""

    inbox: InboxRef
    reason: str


class Redispatch(msgspec.Struct, frozen=True, tag=True, gc=False):
    """A webhook that was given up is to be tried again."""

    row: InboxRow


# --- to the timers (reconciler, expiry, retry) ----------------------------------------------


class Scheduled(msgspec.Struct, frozen=True, tag=True, gc=False):
    """A timer row has been committed that may come due before the next poll of the ledger."""

    due_ms: int
    payment_id: str


# --- from the actors to whoever waits -------------------------------------------------------


class Reply(msgspec.Struct, frozen=True, tag=True, gc=False):
    """The answer to a request. `replay`: the key was taken, its stored answer is to be sent."""

    request_id: str
    answer: Answer | None
    key_taken: KeyRef | None = None


ToShard = Request | Committed | WriteRefused | Heard | TimerDue | PaymentLoaded | Tick
ToWriter = Write | Barrier
ToReader = LoadPayment
ToGateway = Perform
ToWebhooks = WebhookReceived | NewsParked | NewsCrashed | Redispatch | Committed | WriteRefused
ToTimers = Scheduled
