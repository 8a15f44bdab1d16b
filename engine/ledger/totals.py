"""The projection: accounts' totals and their history, a moment behind the journal.

Not in the path of any payment. It runs in a transaction of its own, on a connection of its own, and
beside the commits: they insert transfers, it folds those of whole batches into the totals. What is
read meanwhile is exact (`account_totals` in schema.sql), so all that depends on how far it has come
is how much a reader has to fold. A crash loses nothing: what was not projected is folded again.
"""

from __future__ import annotations

from typing import Final

from engine.ledger.upkeep import Upkeep

FOLDED_MAX: Final = 100_000
"""Transfers of one transaction: a few tenths of a second."""
BATCHES_MAX: Final = 10_000


class Totals:
    """Projects, one caller at a time."""

    def __init__(self, dsn: str) -> None:
        self._upkeep = Upkeep(dsn, "engine-totals")

    async def project(self) -> int:
        """Bring the totals up to the journal's end; returns how many transfers were folded.

        Raises LedgerUnavailable, and EntryInvalid where Postgres refuses the result, which is a
        bug of ours: what was projected before stays, and what is read does not depend on it.
        """
        folded = 0
        while True:
            transfers, batches = await self._step()
            folded += transfers
            if transfers < FOLDED_MAX and batches < BATCHES_MAX:
                return folded

    async def close(self) -> None:
        """Let the connection go."""
        await self._upkeep.close()

    async def _step(self) -> tuple[int, int]:
        row = await self._upkeep.fetchrow("project_totals", FOLDED_MAX, BATCHES_MAX)
        return row["transfers"], row["batches"]
