"""Idempotency keys are kept for a time, and then forgotten.

A key that waits for its answer is not old, whatever its age, and one that was answered late is kept
from then on. Two engines may prune at once, and a crash loses nothing: what was not forgotten is
forgotten later.
"""

from __future__ import annotations

from typing import Final

from engine.ledger.upkeep import Upkeep

_BEGINNING_MS: Final = -(2**63)


class Pruner:
    """Forgets, one caller at a time."""

    def __init__(self, dsn: str) -> None:
        self._upkeep = Upkeep(dsn, "engine-pruner")
        self._from_ms = _BEGINNING_MS

    async def keys(self, before_ms: int, at_most: int) -> int:
        """Forget keys that were claimed and answered before a time; see `LedgerUpkeep.prune_keys`.

        A call goes on where the one before it stopped, and begins anew when nothing more was there.
        """
        row = await self._upkeep.fetchrow("prune_keys", before_ms, at_most, self._from_ms)
        pruned: int = row["pruned"]
        self._from_ms = row["reached"] if pruned == at_most else _BEGINNING_MS
        return pruned

    async def believe_time(self, now_ms: int, at_most_ms: int) -> int:
        """What time it is by now; see `LedgerUpkeep.believe_time`."""
        row = await self._upkeep.fetchrow("believe_time", now_ms, at_most_ms)
        at_ms: int = row["at_ms"]
        return at_ms

    async def close(self) -> None:
        """Let the connection go."""
        await self._upkeep.close()
