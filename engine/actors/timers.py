"""Durable timers: the reconciler (look-ups), the expiry and the retry actor.

A timer is a row that was committed with the state that wants to be woken. Each actor reads the
rows of its kind that come due soon, sleeps until the earliest, and wakes the payment's shard. It
never decides anything: a shard that has nothing to do any more clears the row. Waking twice is
harmless, so a row is simply sent again if it is still there a while later.

However many rows are due, at most `OUT_MAX` of those that were read are out at a time: waiting for
their moment, or with their shards. So neither memory nor the shards' mailboxes grow with a
back-log, and it is worked off as fast as the shards can: a row counts as out until a later reading
finds it gone, or until it is to be sent again. Readings go through the table from front to end
and only then begin anew; so what cannot be woken now does not hide what comes later.
"""

from __future__ import annotations

import heapq

import anyio
import msgspec
from anyio.abc import TaskStatus

from engine.actors.directory import Directory
from engine.actors.settings import ActorSettings
from engine.domain.entry import TimerRow
from engine.messages import TimerDue, ToTimers
from engine.ports import Clock, LedgerReader, LedgerUnavailable, Telemetry
from engine.supervisor.mailbox import Mailbox

PAGE = 1_000
PAGES_MAX = 8
OUT_MAX = 2_000
SEND_AGAIN_MS = 30_000
BACK_LOG_POLL_MS = 250

Key = tuple[int, str]  # a timer of the actor's kind: when it is due, and whose it is


class TimerStatistics(msgspec.Struct, frozen=True):
    """A timer actor at this moment. `out`: read from the ledger and not seen to be gone."""

    kind: str
    scheduled: int
    woken: int
    out: int


class TimersActor:
    """Wakes payments for one kind of timer: `look_up`, `expire` or `retry`."""

    def __init__(
        self,
        kind: str,
        mailbox: Mailbox[ToTimers],
        directory: Directory,
        ledger: LedgerReader,
        clock: Clock,
        telemetry: Telemetry,
        settings: ActorSettings,
    ) -> None:
        self._kind = kind
        self._mailbox = mailbox
        self._directory = directory
        self._ledger = ledger
        self._clock = clock
        self._telemetry = telemetry
        self._settings = settings
        self._woken = 0
        self._forget()

    def _forget(self) -> None:
        # What waits for its moment: its order, and what is in it.
        self._heap: list[Key] = []
        self._scheduled: set[Key] = set()
        # When each was sent, oldest first; forgotten when it is to be sent again.
        self._sent: dict[Key, int] = {}
        # Those of both that were read. What the shards tell of is bounded by what they do.
        self._out: set[Key] = set()
        # Where the next reading goes on; None: at the front of the table.
        self._after: TimerRow | None = None
        self._has_back_log = False

    def statistics(self) -> TimerStatistics:
        """The actor at this moment."""
        return TimerStatistics(self._kind, len(self._heap), self._woken, len(self._out))

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Wake payments until cancelled."""
        self._forget()
        reader = self._mailbox.attach()
        task_status.started()
        poll_at = self._clock.now_ms()
        while True:
            now_ms = self._clock.now_ms()
            if now_ms >= poll_at:
                await self._poll(now_ms)
                poll_at = now_ms + (
                    BACK_LOG_POLL_MS if self._has_back_log else self._settings.timer_poll_ms
                )
            self._wake_due(now_ms)
            until_ms = min(poll_at, self._heap[0][0]) if self._heap else poll_at
            with anyio.move_on_after(max(0.001, (until_ms - self._clock.now_ms()) / 1000)):
                for message in await reader.receive_all():
                    self._schedule((message.due_ms, message.payment_id))
                reader.acknowledge()

    async def _poll(self, now_ms: int) -> None:
        """Read on: a bounded number of pages, as long as there is room for what they hold."""
        self._let_go(now_ms)
        self._has_back_log = False
        begin: TimerRow | None = None
        holds = False  # whether a row that is out was met; the next reading begins before it
        at = self._after
        for _ in range(PAGES_MAX):
            try:
                rows = await self._ledger.timers_due(
                    self._kind, now_ms + self._settings.timer_horizon_ms, PAGE, after=at
                )
            except LedgerUnavailable as trouble:
                self._telemetry.warn("timers_not_read", kind=self._kind, reason=str(trouble))
                return
            is_end, next_row = len(rows) < PAGE, None
            self._note_gone(at, rows, is_end=is_end)
            for row in rows:
                is_out = self._take(row)
                if is_out is None:
                    next_row = row
                    break
                if is_out and not holds:
                    begin, holds = at, True
                at = row
            if is_end or next_row is not None:
                break
        last = next_row or (None if is_end else at)
        if last is None or last.due_ms > now_ms:
            self._after = None
        else:
            self._after, self._has_back_log = begin if holds else at, True

    def _let_go(self, now_ms: int) -> None:
        """Forget what was sent long ago, so that it is sent again when it is next met.

        In a back-log that is once the end was reached: what does not go away must not hold it up.
        """
        while self._sent:
            key, sent_ms = next(iter(self._sent.items()))
            if sent_ms > now_ms - SEND_AGAIN_MS:
                return
            del self._sent[key]
            if key in self._out:
                self._out.discard(key)
                if self._has_back_log and key > _key(self._after):
                    self._after = TimerRow(key[0], key[1], self._kind)

    def _take(self, row: TimerRow) -> bool | None:
        """Whether the row is out, as of now if need be; None: there is no room for it."""
        key = (row.due_ms, row.payment_id)
        if key in self._scheduled or key in self._sent:
            return True
        if self._directory.trouble_of(row.payment_id) is not None:
            # Its shard is parked or starting: the row stays, and is read again.
            return False
        if len(self._out) >= OUT_MAX:
            return None
        self._out.add(key)
        self._schedule(key)
        return True

    def _note_gone(self, start: TimerRow | None, rows: list[TimerRow], *, is_end: bool) -> None:
        """What was sent, and would be in this page if its row were still there, is dealt with."""
        found = {(row.due_ms, row.payment_id) for row in rows}
        first, last = _key(start), None if is_end else _key(rows[-1])
        for key in [key for key in self._out if key in self._sent and key not in found]:
            if first < key and (last is None or key <= last):
                self._out.discard(key)
                del self._sent[key]

    def _schedule(self, key: Key) -> None:
        if key not in self._scheduled and key not in self._sent:
            self._scheduled.add(key)
            heapq.heappush(self._heap, key)

    def _wake_due(self, now_ms: int) -> None:
        heap = self._heap
        while heap and heap[0][0] <= now_ms:
            key = heapq.heappop(heap)
            self._scheduled.discard(key)
            if self._directory.trouble_of(key[1]) is not None:
                self._out.discard(key)
                continue
            self._sent[key] = now_ms
            self._woken += 1
            self._directory.shard_of(key[1]).put_reserved_nowait(
                TimerDue(key[1], self._kind, key[0])
            )


def _key(row: TimerRow | None) -> Key:
    return (0, "") if row is None else (row.due_ms, row.payment_id)
