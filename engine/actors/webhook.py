"""Inbound webhooks: stored raw, answered when durable, and only then processed.

A webhook that names something that is not there yet (it can be faster than our own commit) stays
in the inbox and is tried again; one that finds nothing for an hour is a dead letter.
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
    WebhookEvent,
)
from engine.supervisor.mailbox import Mailbox

NAME = "webhooks"
PAGE = 500
RECEIVED = Answer(200, b'{"received":true}', final=False)


class WebhookStatistics(msgspec.Struct, frozen=True):
    """The webhook actor at this moment."""

    storing: int
    dispatched: int
    parked: int


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
        # Where the next reading goes on; what cannot be dealt with must not hide what came later.
        self._after: InboxRow | None = None

    def statistics(self) -> WebhookStatistics:
        """The actor at this moment."""
        return WebhookStatistics(len(self._storing), self._dispatched, self._parked)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Handle webhooks until cancelled."""
        self._incarnation += 1
        self._storing.clear()
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
        elif isinstance(message, Redispatch):
            self._dispatch(message.row)
        elif message.incarnation == self._incarnation:
            tokens = message.tokens if isinstance(message, Committed) else (message.token,)
            for token in tokens:
                received = self._storing.pop(token, None)
                if received is None:
                    continue
                if isinstance(message, WriteRefused):
                    self._telemetry.error("webhook_not_stored", reason=message.reason)
                    continue
                failpoint("webhook_stored")
                self._directory.reply(Reply(received.request_id, RECEIVED))
                self._dispatch(received.row)

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
        event = (
            adapter.verify_webhook(row.headers, row.raw, row.received_ms)
            if adapter is not None
            else None
        )
        if not isinstance(event, WebhookEvent):
            self._done(ref, "unreadable")
            return
        subject = parse_op_id(event.op_id) if event.op_id is not None else None
        if event.news is None or subject is None:
            self._done(ref, "not_for_us")
            return
        payment_id, op = subject
        if self._directory.trouble_of(payment_id) is not None:
            # Its shard is parked or starting: the webhook stays in the inbox until the next pass.
            return
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
        now_ms = self._clock.now_ms()
        is_first = self._dispatched == 0
        for row in rows:
            age_ms = now_ms - row.received_ms
            if age_ms > self._settings.inbox_give_up_ms:
                self._give_up(row, now_ms)
            elif age_ms > self._settings.inbox_retry_ms or is_first:
                self._dispatch(row)

    def _give_up(self, row: InboxRow, now_ms: int) -> None:
        self._write(
            Entry(
                inbox_done=InboxRef(row.gateway, row.event_id, "unmatched"),
                dead_letter=DeadLetter(
                    id=self._ids.new("dl"),
                    kind="webhook",
                    subject=f"{row.gateway}:{row.event_id}",
                    reason="it names a payment that is not known here",
                    body=msgspec.json.encode(row),
                    created_ms=now_ms,
                ),
            )
        )
