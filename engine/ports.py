"""The ports: what the actors and the HTTP layer need of the outside, as protocols.

Every port has a real adapter and a shipped in-memory one; both pass the same contract suite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from engine.domain.commands import Command
from engine.domain.entry import Answer, Batch, Claim, DeadLetter, InboxRow, KeyRef, TimerRow
from engine.domain.news import GatewayCall, GatewayTraits, News, OperationNews
from engine.domain.payment import Payment

# --- time and chance ------------------------------------------------------------------------


class Clock(Protocol):
    """Wall time. Waiting is anyio's business (virtual under trio's mock clock)."""

    def now_ms(self) -> int:
        """Unix time in milliseconds, never going back within a process."""
        ...


class Event(Protocol):
    """What is needed of `anyio.Event`, so that a cheaper one may stand in for it."""

    def set(self) -> object:
        """Wake whoever waits, now and later."""
        ...

    def is_set(self) -> bool:
        """Whether it has been set."""
        ...

    async def wait(self) -> None:
        """Wait for `set`."""
        ...


class Ids(Protocol):
    """New identifiers, and the one source of chance."""

    def payment(self, slot_key: str | None) -> str:
        """A new payment id, in the slot of `slot_key` (a subscription) or a random one."""
        ...

    def new(self, prefix: str, payment_id: str | None = None) -> str:
        """A new id such as `evt_…` or `re_…`; it carries its payment's slot when there is one."""
        ...

    def transfer(self) -> int:
        """The next transfer id: a positive 63-bit integer, always larger than the one before."""
        ...

    def jitter(self) -> float:
        """A number in [0, 1)."""
        ...


# --- ledger ---------------------------------------------------------------------------------


class LedgerError(Exception):
    """Breakage (never a refusal) of the ledger."""


class LedgerUnavailable(LedgerError):
    """No connection, read-only, out of space, ...: nothing may be concluded; try again.

    Raised by `commit`, it leaves the outcome open: the same batch, with the same key, must be
    committed again, and will be applied exactly once.
    """


class Fenced(LedgerError):
    """This engine must stop writing for good: as a rule, a newer one has taken over."""


class KeysTaken(LedgerError):
    """Entries claim idempotency keys that are taken. Nothing was written."""

    def __init__(self, refs: frozenset[KeyRef]) -> None:
        super().__init__(f"{len(refs)} idempotency keys are taken")
        self.refs = refs


class EntryInvalid(LedgerError):
    """Something in the batch can't be stored (constraint or data). Nothing was written.

    `reason` is `reference_taken`, or `invalid: <constraint or cause>`. Which entry it is, is for
    the writer to find out by bisecting.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Receipt(msgspec.Struct, frozen=True):
    """Proof of a group commit. `resolved`: it had been applied by an earlier, unanswered try."""

    number: int
    hash: bytes
    resolved: bool = False


class Balance(msgspec.Struct, frozen=True):
    """An account and its four running totals, as TigerBeetle keeps them (minor units).

    `version` counts its transfers.
    """

    id: int
    book: str
    kind: str
    owner: str
    currency: str
    livemode: bool
    created_ms: int
    debits_pending: int
    debits_posted: int
    credits_pending: int
    credits_posted: int
    version: int


class TransferRow(msgspec.Struct, frozen=True):
    """A transfer as it was recorded."""

    id: int
    batch: int
    debit_account: int
    credit_account: int
    amount: int
    currency: str
    kind: str
    phase: str
    resolves: int
    link: int
    payment_id: str
    op: int
    event_ms: int
    recorded_ms: int
    livemode: bool


class PaymentFilter(msgspec.Struct, frozen=True):
    """Which payments to list. Newest first; `before` is the id to start after."""

    merchant_id: str
    livemode: bool
    status: str | None = None
    customer: str | None = None
    subscription: str | None = None
    reference: str | None = None
    created_gte_ms: int | None = None
    created_lte_ms: int | None = None
    before: str | None = None
    limit: int = 10


class StoredEvent(msgspec.Struct, frozen=True):
    """An event as it is read from the outbox."""

    id: str
    type: str
    object_id: str
    sequence: int
    created_ms: int
    body: bytes


class TimelineRow(msgspec.Struct, frozen=True):
    """The steps one commit wrote, with the batch and the time it was recorded."""

    version: int
    batch: int
    recorded_ms: int
    steps: bytes


class LedgerWriter(Protocol):
    """The writing half: one caller at a time."""

    async def commit(self, batch: Batch, following: Batch | None = None) -> Receipt:
        """Apply the batch in one transaction. It is not given up half-way, however it is cancelled:
        its outcome would be unknown to those who wait.

        `following` is what will be committed next if all goes well, for a ledger that can make it
        ready meanwhile. It promises nothing: another batch may come instead, or none.
        Raises `KeysTaken`, `EntryInvalid`, `LedgerUnavailable` or `Fenced`.
        """
        ...


class LedgerUpkeep(Protocol):
    """What is done beside the commits and can wait: one caller of each."""

    async def project_totals(self) -> int:
        """Bring them up to the last batch; returns how many transfers were folded into them.

        What `LedgerReader` tells is exact before and after. Raises `LedgerUnavailable`, and
        `EntryInvalid` where the totals cannot be what the journal says.
        """
        ...

    async def believe_time(self, now_ms: int, at_most_ms: int) -> int:
        """What time it is, as far as this ledger believes; it outlives the process.

        It follows `now_ms`, by `at_most_ms` a call. The first call on a new ledger is believed,
        whatever it says. Raises `LedgerError`.
        """
        ...

    async def prune_keys(self, before_ms: int, at_most: int) -> int:
        """Forget idempotency keys that were claimed and answered before a time, the oldest first.

        Returns how many: fewer than `at_most` when there are no more. Raises `LedgerError`.
        """
        ...


TakePayments = Callable[[dict[str, bytes], list[bytes]], None]
"""Takes documents of payments: by id those without work, and those that may have work."""


class LedgerReader(Protocol):
    """The reading half: any number of callers. Reads what has been committed."""

    async def payments(self, ids: Sequence[str]) -> dict[str, Payment]:
        """The payments of these ids that exist. Raises DOCUMENT_ERRORS where one is damaged."""
        ...

    async def open_payments(self, slots: range, take: TakePayments) -> None:
        """Hand over the documents (`domain/document.py`) of the open payments of the slots.

        `take` gets some hundreds at a time, in no order: by id those that have no work, of which
        nobody has looked whether they can be read; and those that may have some. What it raises
        ends the reading. `slots` has no gaps.
        """
        ...

    async def claim(self, ref: KeyRef) -> Claim | None:
        """The claim of an idempotency key, with its final answer if there is one."""
        ...

    async def list_payments(self, wanted: PaymentFilter) -> list[Payment]:
        """At most `limit + 1` payments, newest first (one more tells that there are more)."""
        ...

    async def refund(self, merchant_id: str, livemode: bool, refund_id: str) -> bytes | None:
        """A refund's representation."""
        ...

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
        ...

    async def timeline(self, payment_id: str) -> list[TimelineRow]:
        """What each commit wrote of the payment, in order."""
        ...

    async def event(self, merchant_id: str, livemode: bool, event_id: str) -> StoredEvent | None:
        """One event."""
        ...

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
        ...

    async def accounts(
        self, *, owner: str | None, livemode: bool, after: int, limit: int
    ) -> list[Balance]:
        """Accounts by id; only those of `owner` when given. At most `limit + 1`."""
        ...

    async def account(self, account_id: int, at_ms: int | None = None) -> Balance | None:
        """One account, now or as it was recorded at a time."""
        ...

    async def account_transfers(
        self, account_id: int, *, before: int | None, limit: int
    ) -> list[TransferRow]:
        """Transfers on either side of the account, newest first. At most `limit + 1`."""
        ...

    async def transfer(self, transfer_id: int) -> TransferRow | None:
        """One transfer."""
        ...

    async def payment_transfers(self, payment_id: str, ids: Sequence[int]) -> list[TransferRow]:
        """These transfers of a payment, by id."""
        ...

    async def timers_due(
        self, kind: str, until_ms: int, limit: int, *, after: TimerRow | None = None
    ) -> list[TimerRow]:
        """Timers of a kind that are due by then, earliest first; a page, from `after` on."""
        ...

    async def inbox_open(self, limit: int, *, after: InboxRow | None = None) -> list[InboxRow]:
        """Webhooks stored and not yet dealt with, oldest first; a page, from `after` on."""
        ...

    async def dead_letters(self, *, before: str | None, limit: int) -> list[DeadLetter]:
        """Dead letters that nobody has dealt with, newest first. At most `limit + 1`."""
        ...

    async def dead_letter(self, letter_id: str) -> DeadLetter | None:
        """A dead letter that nobody has dealt with."""
        ...


# --- gateways -------------------------------------------------------------------------------


class WebhookRefused(msgspec.Struct, frozen=True):
    """`code` is `webhook_signature_invalid`, `webhook_timestamp_stale` or `webhook_malformed`."""

    code: str
    detail: str


class WebhookEvent(msgspec.Struct, frozen=True):
    """What a verified webhook says. `op_id` names our operation where the provider echoes it."""

    event_id: str
    news: News | None
    op_id: str | None


class Gateway(Protocol):
    """One provider."""

    @property
    def traits(self) -> GatewayTraits:
        """Its numbers."""
        ...

    def perform_now(self, calls: Sequence[GatewayCall]) -> list[OperationNews | None]:
        """Answer at once what can be answered without waiting; None: `perform` it."""
        ...

    async def perform(self, call: GatewayCall, in_time_s: float = math.inf) -> OperationNews:
        """Make the call. Never raises for what the provider does: that is news.

        Nothing of it leaves later than `in_time_s` from now, whatever holds it up (a connection
        that does not come about, a process that stands still).
        The caller bounds it with the deadline and turns a time-out into `Unknown`.
        """
        ...

    def verify_webhook(
        self, headers: Mapping[str, str], raw: bytes, now_ms: int
    ) -> WebhookEvent | WebhookRefused:
        """Check signature and time stamp on the raw bytes, and read them. Pure."""
        ...

    def read_webhook(self, event_id: str, raw: bytes) -> WebhookEvent | WebhookRefused:
        """Read one that was verified before it was stored, perhaps with a secret of then. Pure."""
        ...

    async def close(self) -> None:
        """Let connections go."""
        ...


class Breaker(Protocol):
    """The circuit breaker of one gateway. Seconds are of the caller's monotonic clock."""

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`."""
        ...

    def admits(self) -> bool:
        """Whether a call may be sent now; half-open admits exactly one trial."""
        ...

    def record(self, outcome: str, now_s: float, *, is_trial: bool = True) -> None:
        """Count an outcome (`news.NEWS_KIND`); what arrives while open is ignored.

        Half-open, only the trial's outcome counts.
        """
        ...

    def half_open(self) -> None:
        """The rest is over: let one trial through."""
        ...

    def retry_in_s(self, now_s: float) -> float:
        """How long until the trial, at least 0."""
        ...


# --- the front ------------------------------------------------------------------------------


class Ask(msgspec.Struct, frozen=True):
    """A merchant's request, as the HTTP layer hands it to the actors.

    `payment_id` is None for an authorize or purchase. `key` is the idempotency key, `fingerprint`
    is over method, path and parsed body.
    """

    request_id: str
    command: Command
    payment_id: str | None
    key: str | None
    fingerprint: bytes
    path: str


class Front(Protocol):
    """The way in to the actors. Answers come after the commit that contains them."""

    async def ask(self, ask: Ask) -> tuple[Answer, bool]:
        """Do it, join it or replay it: the answer, and whether it is a replay."""
        ...

    async def ask_many(self, asks: Sequence[Ask]) -> list[tuple[Answer, bool]]:
        """Do many of one merchant and mode at once, each as `ask` would: the answers in order.

        Those of one payment run in the order given, each after the answer of the one before. What
        there is no room for waits for room, at most as long as a single request for its answer.
        """
        ...

    async def webhook(
        self, gateway: str, headers: Mapping[str, str], raw: bytes, request_id: str
    ) -> Answer:
        """Verify and store a gateway's webhook; answered when it is durable."""
        ...


# --- telemetry ------------------------------------------------------------------------------


class Telemetry(Protocol):
    """Logs and metrics, as the actors see them. No call of it waits or raises."""

    def log(self, event: str, **fields: Any) -> None:
        """A line at level info."""
        ...

    def warn(self, event: str, **fields: Any) -> None:
        """A line at level warning: somebody should look at it in daylight."""
        ...

    def error(self, event: str, **fields: Any) -> None:
        """A line at level error: somebody should look at it now."""
        ...

    def payment_outcome(self, payment: Payment, op: int, outcome: str, took_ms: int) -> None:
        """The canonical line, and the count, of an operation's outcome."""
        ...

    def gateway_call(self, gateway: str, action: str, outcome: str, took_s: float) -> None:
        """Count and time a gateway call."""
        ...

    def group_commit(self, entries: int, took_s: float) -> None:
        """Count and time a group commit."""
        ...
