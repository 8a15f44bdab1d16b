"""The ledger on Postgres: writer, reader and the right to write, as one object.

    await migrate(dsn)
    ledger = PostgresLedger(dsn)
    await ledger.open()
    await ledger.take_over("engine on web-1")
    receipt = await ledger.commit(batch)
    await ledger.close()

It runs on asyncio (asyncpg does). Nothing in it reconnects by itself: after LedgerUnavailable the
next call tries a new connection, and how long to wait before that is the caller's to decide.
"""

from __future__ import annotations

import msgspec

from engine.domain.entry import Batch
from engine.failpoints import failpoint
from engine.ledger.connections import ReaderStatistics
from engine.ledger.lock import EngineLock
from engine.ledger.pruning import Pruner
from engine.ledger.reader import Reader
from engine.ledger.totals import Totals
from engine.ledger.writer import Writer, WriterStatistics
from engine.ports import Receipt


class LedgerStatistics(msgspec.Struct, frozen=True):
    """What the ledger knows of itself."""

    writer: WriterStatistics
    reader: ReaderStatistics
    lock_held: bool


class PostgresLedger(Reader):
    """`LedgerWriter`, `LedgerReader` and `LedgerUpkeep` on a migrated database.

    `readers_max` connections and two more read, and one for each shard that begins; one writes, one
    projects, one prunes, one holds the lock.
    `commit_timeout_s` bounds a commit; when it has passed, its outcome is open. `durable=False`
    accepts a database that would lose commits in a power cut, for throw-away ones.
    """

    def __init__(
        self,
        dsn: str,
        *,
        readers_max: int = 4,
        commit_timeout_s: float = 60.0,
        durable: bool = True,
    ) -> None:
        super().__init__(dsn, readers_max)
        self._writer = Writer(dsn, durable=durable, commit_timeout_s=commit_timeout_s)
        self._totals = Totals(dsn)
        self._pruner = Pruner(dsn)
        self._lock = EngineLock(dsn)
        self._epoch = 0

    def statistics(self) -> LedgerStatistics:
        """A frozen view for the console."""
        return LedgerStatistics(
            writer=self._writer.statistics(),
            reader=self._connections.statistics(),
            lock_held=self._lock.held,
        )

    async def open(self) -> None:
        """Check that the database answers. Raises LedgerUnavailable."""
        await self._connections.fetchrow("epoch")

    async def close(self) -> None:
        """Let all connections go, and with them the right to write."""
        await self._writer.close()
        await self._totals.close()
        await self._pruner.close()
        await self._lock.close()
        await self._connections.close()
        await self._by_keys.close()

    async def take_over(self, owner: str, *, patience_s: float = 10.0) -> int:
        """Become the one engine that writes; returns the new epoch.

        Every other engine's commits fail from here on. Raises LockTaken when another engine
        holds the lock for all of `patience_s` seconds (it is alive: stand by), and
        LedgerUnavailable.
        """
        await self._lock.acquire(patience_s)
        return await self._begin(owner)

    async def stand_by(self, owner: str) -> int:
        """Wait until no other engine holds the lock, then take over. Raises LedgerUnavailable."""
        await self._lock.wait_acquired()
        return await self._begin(owner)

    async def wait_lock_lost(self) -> None:
        """Return when the connection that holds the lock is gone. Then `retake`, or stop."""
        await self._lock.wait_lost()

    async def retake(self) -> None:
        """One try to get a lost lock back, in the same epoch.

        Raises LedgerUnavailable (LockTaken where somebody else has it: try again, or be fenced
        soon), and Fenced where another engine has had the database in the meantime.
        """
        await self._lock.acquire(0)
        await self._lock.check_epoch(self._epoch)

    async def commit(self, batch: Batch, following: Batch | None = None) -> Receipt:
        """Apply the batch in one transaction; see `Writer.commit`."""
        return await self._writer.commit(batch, following)

    async def project_totals(self) -> int:
        """Let the accounts' totals follow the journal; see `Totals.project`."""
        return await self._totals.project()

    async def believe_time(self, now_ms: int, at_most_ms: int) -> int:
        """What time it is, as far as is believed; see `LedgerUpkeep.believe_time`."""
        return await self._pruner.believe_time(now_ms, at_most_ms)

    async def prune_keys(self, before_ms: int, at_most: int) -> int:
        """Forget idempotency keys of long ago; see `Pruner.keys`."""
        return await self._pruner.keys(before_ms, at_most)

    async def _begin(self, owner: str) -> int:
        self._epoch = await self._lock.next_epoch(owner)
        failpoint("epoch_raised")
        await self._writer.begin(self._epoch)
        return self._epoch
