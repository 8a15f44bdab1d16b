"""Idempotency keys are kept for a time, and then forgotten.

A key that waits for its answer is not old, whatever its age. Two engines may prune at once, and a
crash loses nothing: what was not forgotten is forgotten later.
"""

from __future__ import annotations

from engine.ledger.upkeep import Upkeep


class Pruner:
    """Forgets, one caller at a time."""

    def __init__(self, dsn: str) -> None:
        self._upkeep = Upkeep(dsn, "engine-pruner")

    async def keys(self, before_ms: int, at_most: int) -> int:
        """Forget answered keys of requests that came before a time, the oldest first.

        Returns how many: fewer than `at_most` means that there are no more. Raises
        LedgerUnavailable.
        """
        row = await self._upkeep.fetchrow("prune_keys", before_ms, at_most)
        pruned: int = row["pruned"]
        return pruned

    async def close(self) -> None:
        """Let the connection go."""
        await self._upkeep.close()
