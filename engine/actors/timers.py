"""Durable timers: the reconciler (look-ups), the expiry and the retry actor.

A timer is a row that was committed with the state that wants to be woken. Each actor reads the
rows of its kind that come due soon, sleeps until the earliest, and wakes the payment's shard. It
never decides anything: a shard that has nothing to do any more clears the row. Waking twice is
harmless, so a row is simply sent again if it is still there a while later.
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
SEND_AGAIN_MS = 30_000


class TimerStatistics(msgspec.Struct, frozen=True):
    """A timer actor at this moment."""

    kind: str
    scheduled: int
    woken: int


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
        self._heap: list[tuple[int, str]] = []
        self._known: dict[tuple[int, str], int] = {}
        self._woken = 0
        # Where the next reading goes on; what cannot be woken now must not hide what comes later.
        self._after: TimerRow | None = None

    def statistics(self) -> TimerStatistics:
        """The actor at this moment."""
        return TimerStatistics(self._kind, len(self._heap), self._woken)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Wake payments until cancelled."""
        self._heap.clear()
        self._known.clear()
        self._after = None
        reader = self._mailbox.attach()
        task_status.started()
        poll_at = self._clock.now_ms()
        while True:
            now_ms = self._clock.now_ms()
            if now_ms >= poll_at:
                await self._poll(now_ms)
                poll_at = now_ms + self._settings.timer_poll_ms
            self._wake_due(now_ms)
            until_ms = min(poll_at, self._heap[0][0]) if self._heap else poll_at
            with anyio.move_on_after(max(0.001, (until_ms - self._clock.now_ms()) / 1000)):
                for message in await reader.receive_all():
                    self._schedule(message.due_ms, message.payment_id)
                reader.acknowledge()

    async def _poll(self, now_ms: int) -> None:
        for key in [k for k, sent in self._known.items() if 0 < sent < now_ms - SEND_AGAIN_MS]:
            del self._known[key]
        try:
            rows = await self._ledger.timers_due(
                self._kind, now_ms + self._settings.timer_horizon_ms, PAGE, after=self._after
            )
        except LedgerUnavailable as trouble:
            self._telemetry.warn("timers_not_read", kind=self._kind, reason=str(trouble))
            return
        self._after = rows[-1] if len(rows) == PAGE else None
        for row in rows:
            self._schedule(row.due_ms, row.payment_id)

    def _schedule(self, due_ms: int, payment_id: str) -> None:
        key = (due_ms, payment_id)
        if key not in self._known:
            self._known[key] = 0
            heapq.heappush(self._heap, key)

    def _wake_due(self, now_ms: int) -> None:
        heap = self._heap
        while heap and heap[0][0] <= now_ms:
            key = heapq.heappop(heap)
            if self._directory.trouble_of(key[1]) is not None:
                # Its shard is parked or starting: the row stays, and is read again.
                del self._known[key]
                continue
            self._known[key] = now_ms
            self._woken += 1
            self._directory.shard_of(key[1]).put_reserved_nowait(
                TimerDue(key[1], self._kind, key[0])
            )
