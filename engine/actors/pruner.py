"""The pruner: forgets idempotency keys whose time is over.

A wrong clock must not make it forget in a minute what merchants rely on. So it goes by the time
that the ledger believes, which follows the clock by at most `CATCH_UP` times what has passed, and
outlives the process. With a clock that is a month ahead it forgets a day's keys too many in an
hour, the oldest first, and one of this moment after thirty hours.
"""

from __future__ import annotations

from typing import Final

import anyio
import msgspec
from anyio.abc import TaskStatus

from engine.ports import Clock, LedgerError, LedgerUpkeep, Telemetry

NAME = "pruner"
KEYS_AT_ONCE: Final = 1_000
"""A transaction of ten to thirty milliseconds."""
PAUSE_S: Final = 0.05
"""Between two of them, so that commits have the database for most of the time."""
CATCH_UP: Final = 24
"""A day of believed time passes in an hour, where it is so far behind the clock."""


class PrunerStatistics(msgspec.Struct, frozen=True):
    """`keys`: forgotten by this process; `failed`: passes in a row that were cut short."""

    keys: int
    failed: int


class PrunerActor:
    """Looks for old keys every so often. Nobody waits for it: a key may be kept for longer."""

    def __init__(
        self,
        ledger: LedgerUpkeep,
        clock: Clock,
        telemetry: Telemetry,
        *,
        keys_kept_ms: int,
        every_s: float,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._telemetry = telemetry
        self._keys_kept_ms = keys_kept_ms
        self._every_s = every_s
        self._keys = self._failed = 0
        self._looked_s = 0.0

    def statistics(self) -> PrunerStatistics:
        """The actor at this moment."""
        return PrunerStatistics(self._keys, self._failed)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Prune until cancelled. What was under way then is rolled back, and done again later."""
        self._looked_s = anyio.current_time()
        task_status.started()
        while True:
            await anyio.sleep(self._every_s)
            try:
                await self._forget_keys()
            except LedgerError as trouble:
                if not self._failed:
                    self._telemetry.warn("keys_not_pruned", reason=str(trouble))
                self._failed += 1
                continue
            if self._failed:
                self._telemetry.warn("keys_pruned_again", failed=self._failed)
                self._failed = 0

    async def _forget_keys(self) -> None:
        """Every key that is old by now, the oldest first."""
        looked_s, now_ms = anyio.current_time(), self._clock.now_ms()
        passed_ms = int((looked_s - self._looked_s) * 1_000)
        self._looked_s = looked_s  # Whatever comes of it: no time counts twice.
        believed_ms = await self._ledger.believe_time(now_ms, CATCH_UP * passed_ms)
        before_ms = min(now_ms, believed_ms) - self._keys_kept_ms
        while True:
            pruned = await self._ledger.prune_keys(before_ms, KEYS_AT_ONCE)
            self._keys += pruned
            if pruned < KEYS_AT_ONCE:
                return
            await anyio.sleep(PAUSE_S)
