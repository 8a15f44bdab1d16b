"""Inbound webhooks: stored raw, answered when durable, and only then processed.

A webhook that names something that is not there yet (it can be faster than our own commit) stays
in the inbox and is tried again; one that finds nothing for an hour is a dead letter. So is one that
crashes its shard. Nothing is given up for its age alone: a shard that is out of service, or an
engine that was down, has not tried it.
"""

from __future__ import annotations

from collections.abc import Mapping

import anyio
import msgspec
from anyio.abc import TaskStatus

from engine.actors.directory import Directory
from engine.actors.settings import ActorSettings
from engine.domain.entry import Answer, DeadLetter, Entry, InboxRef, InboxRow
from engine.domain.ids import parse_op_id
from engine.failpoints import failpoint
from engine.messages import (
    Committed,
    Heard,
    NewsCrashed,
    NewsParked,
    Redispatch,
    Reply,
    ToWebhooks,
    WebhookReceived,
    Write,
    WriteRefused,
)
from engine.ports import (
    Clock,
    Gateway,
    Ids,
    LedgerReader,
    LedgerUnavailable,
    Telemetry,
    WebhookRefused,
)
from engine.supervisor.mailbox import Mailbox

NAME = "webhooks"
PAGE = 500
CRASHES_MAX = 3
SEND_AGAIN_S = 30.0
RECEIVED = Answer(200, b'{"received":true}', final=False)


class WebhookStatistics(msgspec.Struct, frozen=True):
    """The webhook actor at this moment. `watched`: webhooks it knows to be on their way."""

    storing: int
    dispatched: int
    parked: int
    watched: int


class _Watched:
    """What this life of the actor knows of a webhook that was sent to its shard, or came back."""

    __slots__ = (
        "closing", "crashed", "crashes", "parked_s", "parked_since_s", "reading", "sent_s", "shard",
        "shard_crashes",
    )  # fmt: skip

    def __init__(self, reading: int) -> None:
        self.reading = reading  # the last reading of the inbox that found it
        self.sent_s: float | None = None  # when it was sent; None: it is not with its shard
        self.shard = 0
        self.shard_crashes = 0  # how often its shard had crashed by then
        self.crashes = 0
        self.crashed: str | None = None  # it was taken away from its shard, which it crashes
        self.parked_since_s: float | None = None
        self.parked_s = 0.0
        self.closing = False  # it was given up, and that is on its way to the ledger


class WebhookActor:
    """Stores, answers, dispatches; and goes through the inbox again from time to time."""

    def __init__(
        self,
        mailbox: Mailbox[ToWebhooks],
        directory: Directory,
        ledger: LedgerReader,
        gateways: Mapping[str, Gateway],
        clock: Clock,
        ids: Ids,
        telemetry: Telemetry,
        settings: ActorSettings,
    ) -> None:
        self._mailbox = mailbox
        self._directory = directory
        self._ledger = ledger
        self._gateways = gateways
        self._clock = clock
        self._ids = ids
        self._telemetry = telemetry
        self._settings = settings
        self._incarnation = 0
        self._token = 0
        self._storing: dict[int, WebhookReceived] = {}
        self._dispatched = 0
        self._parked = 0
        self._watched: dict[tuple[str, str], _Watched] = {}
        self._closing: dict[int, tuple[str, str]] = {}
        self._reading = 0
        # Where the next reading goes on; what cannot be dealt with must not hide what came later.
        self._after: InboxRow | None = None

    def statistics(self) -> WebhookStatistics:
        """The actor at this moment."""
        return WebhookStatistics(
            len(self._storing), self._dispatched, self._parked, len(self._watched)
        )

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Handle webhooks until cancelled."""
        self._incarnation += 1
        self._storing.clear()
        self._watched.clear()
        self._closing.clear()
        self._after = None
        reader = self._mailbox.attach()
        task_status.started()
        again_at = anyio.current_time()
        while True:
            if anyio.current_time() >= again_at:
                await self._go_through_inbox()
                again_at = anyio.current_time() + self._settings.inbox_retry_ms / 1000
            with anyio.move_on_after(max(0.001, again_at - anyio.current_time())):
                for message in await reader.receive_all():
                    self._handle(message)
                    reader.acknowledge_one()

    def _handle(self, message: ToWebhooks) -> None:
        if isinstance(message, WebhookReceived):
            self._storing[self._write(Entry(inbox=message.row))] = message
        elif isinstance(message, NewsParked):
            self._parked += 1
            self._came_back(self._watch(message.inbox))
        elif isinstance(message, NewsCrashed):
            watched = self._watch(message.inbox)
            watched.sent_s, watched.crashed = None, message.reason
        elif isinstance(message, Redispatch):
            self._watched.pop((message.row.gateway, message.row.event_id), None)
            self._dispatch(message.row)
        elif message.incarnation == self._incarnation:
            self._settled(message)

    def _settled(self, message: Committed | WriteRefused) -> None:
        tokens = message.tokens if isinstance(message, Committed) else (message.token,)
        for token in tokens:
            given_up = self._watched.get(self._closing.pop(token, ("", "")))
            received = self._storing.pop(token, None)
            if isinstance(message, WriteRefused):
                self._telemetry.error("webhook_not_stored", reason=message.reason)
                if given_up is not None:
                    given_up.closing = False
            elif received is not None:
                failpoint("webhook_stored")
                self._directory.reply(Reply(received.request_id, RECEIVED))
                self._dispatch(received.row)

    def _watch(self, row: InboxRow | InboxRef) -> _Watched:
        key = (row.gateway, row.event_id)
        watched = self._watched.get(key)
        if watched is None:
            watched = self._watched[key] = _Watched(self._reading)
        return watched

    @staticmethod
    def _came_back(watched: _Watched) -> None:
        watched.sent_s, watched.crashes = None, 0
        watched.parked_s = anyio.current_time()
        if watched.parked_since_s is None:
            watched.parked_since_s = watched.parked_s

    def _write(self, entry: Entry) -> int:
        self._token += 1
        self._directory.mailboxes["ledger-writer"].put_reserved_nowait(
            Write(NAME, self._incarnation, self._token, entry)
        )
        return self._token

    def _dispatch(self, row: InboxRow) -> None:
        """Read the webhook again and send its news to the payment it is about."""
        self._dispatched += 1
        ref = InboxRef(row.gateway, row.event_id, "applied")
        adapter = self._gateways.get(row.gateway)
        if adapter is None:
            self._give_up(row, self._watch(row), "its gateway is not configured any more")
            return
        # Its signature was checked before it was stored; the secret may be another one by now.
        event = adapter.read_webhook(row.event_id, row.raw)
        if isinstance(event, WebhookRefused):
            self._give_up(row, self._watch(row), f"it cannot be read: {event.detail}")
            return
        subject = parse_op_id(event.op_id) if event.op_id is not None else None
        if event.news is None or subject is None:
            self._done(ref, "not_for_us")
            return
        payment_id, op = subject
        if self._directory.trouble_of(payment_id) is not None:
            # Its shard is parked or starting: the webhook stays in the inbox until the next pass.
            return
        watched = self._watch(row)
        watched.sent_s = anyio.current_time()
        watched.shard = self._directory.shard_index(payment_id)
        watched.shard_crashes = self._directory.shard_crashes[watched.shard]
        self._directory.shard_of(payment_id).put_reserved_nowait(
            Heard(payment_id, op, event.news, "webhook", self._clock.now_ms(), ref)
        )

    def _done(self, ref: InboxRef, outcome: str) -> None:
        self._write(Entry(inbox_done=InboxRef(ref.gateway, ref.event_id, outcome)))

    async def _go_through_inbox(self) -> None:
        """What was stored and not dealt with: before a crash, or because it came too early."""
        try:
            rows = await self._ledger.inbox_open(PAGE, after=self._after)
        except LedgerUnavailable as trouble:
            self._telemetry.warn("inbox_not_read", reason=str(trouble))
            return
        self._after = rows[-1] if len(rows) == PAGE else None
        storing = {(m.row.gateway, m.row.event_id) for m in self._storing.values()}
        suspects: set[int] = set()
        for row in rows:
            if (row.gateway, row.event_id) not in storing:
                self._go_on_with(row, suspects)
        if self._after is None:
            # What a whole reading did not find has been dealt with.
            gone = [key for key, it in self._watched.items() if it.reading < self._reading]
            for key in gone:
                del self._watched[key]
            self._reading += 1

    def _go_on_with(self, row: InboxRow, suspects: set[int]) -> None:
        """Send a webhook, or send it again, or give it up for a reason that was seen.

        A webhook that was with its shard when that crashed is a suspect. Suspects are sent one at a
        time to a shard, so that the innocent ones among them are soon dealt with.
        """
        watched = self._watch(row)
        watched.reading = self._reading
        if watched.closing:
            return
        if watched.sent_s is not None:
            if self._directory.shard_crashes[watched.shard] != watched.shard_crashes:
                watched.crashes += 1
                watched.sent_s = None
            elif anyio.current_time() - watched.sent_s < SEND_AGAIN_S:
                return
        patience_s = self._settings.inbox_give_up_ms / 1000
        since_s = watched.parked_since_s
        if watched.crashed is not None:
            self._give_up(row, watched, f"it crashes its shard: {watched.crashed}")
        elif watched.crashes >= CRASHES_MAX:
            self._give_up(
                row, watched, f"its shard crashed {watched.crashes} times while it had it"
            )
        elif since_s is not None and watched.parked_s - since_s > patience_s:
            self._give_up(
                row, watched, "it names a payment, or money of it, that is not known here"
            )
        elif not watched.crashes:
            self._dispatch(row)
        elif watched.shard not in suspects:
            suspects.add(watched.shard)
            self._dispatch(row)

    def _give_up(self, row: InboxRow, watched: _Watched, reason: str) -> None:
        watched.closing = True
        token = self._write(
            Entry(
                inbox_done=InboxRef(row.gateway, row.event_id, "unmatched"),
                dead_letter=DeadLetter(
                    id=self._ids.new("dl"),
                    kind="webhook",
                    subject=f"{row.gateway}:{row.event_id}",
                    reason=reason,
                    body=msgspec.json.encode(row),
                    created_ms=self._clock.now_ms(),
                ),
            )
        )
        self._closing[token] = (row.gateway, row.event_id)
