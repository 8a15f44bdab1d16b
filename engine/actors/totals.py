"""The totals actor: lets the accounts' totals follow the journal."""

from __future__ import annotations

import anyio
import msgspec
from anyio.abc import TaskStatus

from engine.ports import LedgerError, LedgerUnavailable, LedgerUpkeep, Telemetry

NAME = "totals"


class TotalsStatistics(msgspec.Struct, frozen=True):
    """`folded`: transfers; `failed`: tries in a row that came to nothing, 0 when all is well."""

    folded: int
    failed: int


class TotalsActor:
    """Projects every so often. Nobody waits for it: reads are exact without it, only slower."""

    def __init__(self, ledger: LedgerUpkeep, telemetry: Telemetry, *, every_s: float) -> None:
        self._ledger = ledger
        self._telemetry = telemetry
        self._every_s = every_s
        self._folded = self._failed = 0
        self._told: type[LedgerError] | None = None

    def statistics(self) -> TotalsStatistics:
        """The actor at this moment."""
        return TotalsStatistics(self._folded, self._failed)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Project until cancelled. What was under way then is rolled back, and done again later."""
        task_status.started()
        while True:
            await anyio.sleep(self._every_s)
            try:
                self._folded += await self._ledger.project_totals()
            except LedgerError as trouble:
                if type(trouble) is not self._told:
                    self._told = type(trouble)
                    self._tell(trouble)
                self._failed += 1
                continue
            if self._failed:
                self._telemetry.warn("totals_projected_again", failed=self._failed)
                self._failed, self._told = 0, None

    def _tell(self, trouble: LedgerError) -> None:
        if isinstance(trouble, LedgerUnavailable):
            self._telemetry.warn("totals_not_projected", reason=str(trouble))
            return
        self._telemetry.error(
            "totals_refused",
            reason=str(trouble),
            meaning="the journal adds up to totals that cannot be; payments go on, balances are "
            "read from the journal: run `engine verify`",
        )
