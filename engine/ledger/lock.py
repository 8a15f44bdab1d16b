"""Which engine may write: an advisory lock says who tries, the epoch says whose commits count.

The lock keeps a second engine standing by, and hands over when the first one's connection ends.
It does not fence: it is gone with its connection, while the commits of its engine come over
another. So every take-over raises the epoch, and every commit checks it (DESIGN.md, section 2).
"""

from __future__ import annotations

import time
from typing import Final

import anyio
import asyncpg

from engine.ledger.connections import LOCK, connect
from engine.ledger.errors import ledger_error
from engine.ledger.queries import QUERIES
from engine.ports import Fenced, LedgerUnavailable

POLL_S: Final = 0.25
STAND_BY_POLL_S: Final = 1.0
HEARTBEAT_S: Final = 5.0
HEARTBEAT_TIMEOUT_S: Final = 10.0


class LockTaken(LedgerUnavailable):
    """Another engine holds the lock of this database, and held it for as long as we waited."""


class EngineLock:
    """The lock, on a connection of its own."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: asyncpg.Connection | None = None

    @property
    def held(self) -> bool:
        """Whether the connection that holds the lock is there, as far as this process knows."""
        return self._connection is not None and not self._connection.is_closed()

    async def acquire(self, patience_s: float) -> None:
        """Take the lock, or raise LockTaken after `patience_s` (0: one try).

        A back end of an engine that died a moment ago may still hold it, hence the patience.
        Raises LedgerUnavailable where there is no connection.
        """
        deadline = anyio.current_time() + patience_s
        while not await self.try_acquire():
            if anyio.current_time() >= deadline:
                raise LockTaken(f"another engine has held the lock for {patience_s:g} s")
            await anyio.sleep(POLL_S)

    async def wait_acquired(self) -> None:
        """Stand by: return when the lock is ours. Raises LedgerUnavailable."""
        while not await self.try_acquire():  # noqa: ASYNC110 - it polls another process
            await anyio.sleep(STAND_BY_POLL_S)

    async def try_acquire(self) -> bool:
        """Whether the lock is ours now. Raises LedgerUnavailable where nothing can be said."""
        if self.held:
            return True
        connection = self._connection = await connect(self._dsn, LOCK, writable=True)
        try:
            if await connection.fetchval(QUERIES["try_lock"]):
                return True
        except Exception as error:
            self.release()
            raise ledger_error(error) from error
        except BaseException:
            self.release()
            raise
        self.release()
        return False

    async def next_epoch(self, owner: str) -> int:
        """Raise the epoch and return it: from here on no earlier engine commits anything.

        Waits for a commit of theirs that is under way. Raises LedgerUnavailable.
        """
        assert self._connection is not None, "the lock is acquired first"
        try:
            now_ms = time.time_ns() // 1_000_000  # Told to operators, decided upon by nobody.
            epoch = await self._connection.fetchval(QUERIES["next_epoch"], owner, now_ms)
        except Exception as error:
            self.release()
            raise ledger_error(error) from error
        assert isinstance(epoch, int), epoch
        return epoch

    async def check_epoch(self, epoch: int) -> None:
        """Raise Fenced where another engine has had the database in the meantime."""
        assert self._connection is not None, "the lock is acquired first"
        try:
            found = await self._connection.fetchval(QUERIES["epoch"])
        except Exception as error:
            self.release()
            raise ledger_error(error) from error
        if found != epoch:
            self.release()
            raise Fenced(f"epoch {epoch} is over, this is epoch {found}")

    async def wait_lost(self) -> None:
        """Return when the connection that holds the lock is gone.

        It is asked every few seconds too: a peer that vanished closes nothing.
        """
        connection = self._connection
        if connection is None:
            return
        ended = anyio.Event()

        def end(_: object) -> None:
            ended.set()

        connection.add_termination_listener(end)
        while not connection.is_closed():
            with anyio.move_on_after(HEARTBEAT_S):
                await ended.wait()
            if ended.is_set() or connection.is_closed():
                break
            try:
                await connection.fetchval(QUERIES["epoch"], timeout=HEARTBEAT_TIMEOUT_S)
            except Exception:
                break
            except BaseException:
                # A cancelled heartbeat leaves the connection in a state nobody knows.
                self.release()
                raise
        self.release()

    def release(self) -> None:
        """Let the lock go, at once and without a word to the server."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()
