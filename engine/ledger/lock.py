"""Which engine may write: an advisory lock says who tries, the epoch says whose commits count.

The lock keeps a second engine standing by, and hands over when the first one's connection ends.
It does not fence: it is gone with its connection, while the commits of its engine come over
another. So every take-over raises the epoch, and every commit checks it.
"""

from __future__ import annotations

import time
from typing import Any, Final

import anyio
import asyncpg

from engine.ledger.connections import ANSWER_TIMEOUT_S, LOCK, close, connect
from engine.ledger.errors import DRIVER_ERRORS, ledger_error
from engine.ledger.queries import QUERIES
from engine.ports import Fenced, LedgerUnavailable

POLL_S: Final = 0.25
STAND_BY_POLL_S: Final = 1.0
HEARTBEAT_S: Final = 5.0


class LockTaken(LedgerUnavailable):
    """Another engine holds the lock of this database, and held it for as long as we waited."""


class EngineLock:
    """The lock, on a connection of its own."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: asyncpg.Connection | None = None
        self._locked = False

    @property
    def held(self) -> bool:
        """Whether the lock is ours, as far as this process knows."""
        connection = self._connection
        return self._locked and connection is not None and not connection.is_closed()

    async def acquire(self, patience_s: float) -> None:
        """Take the lock, or raise LockTaken after `patience_s` (0: one try).

        A back end of an engine that died a moment ago may still hold it, hence the patience.
        Raises LedgerUnavailable where there is no connection.
        """
        deadline = anyio.current_time() + patience_s
        while not await self.try_acquire():
            if anyio.current_time() >= deadline:
                await self.close()
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
        if self._connection is None or self._connection.is_closed():
            self.release()
            self._connection = await connect(self._dsn, LOCK, wanted="read-write")
        self._locked = bool(await self._ask("try_lock"))
        return self._locked

    async def next_epoch(self, owner: str) -> int:
        """Raise the epoch and return it: from here on no earlier engine commits anything.

        Waits for a commit of theirs that is under way. Raises LedgerUnavailable.
        """
        now_ms = time.time_ns() // 1_000_000  # Told to operators, decided upon by nobody.
        epoch = await self._ask("next_epoch", owner, now_ms)
        assert isinstance(epoch, int), epoch
        return epoch

    async def check_epoch(self, epoch: int) -> None:
        """Raise Fenced where another engine has had the database in the meantime."""
        found = await self._ask("epoch")
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
        try:
            while not (ended.is_set() or connection.is_closed()):
                with anyio.move_on_after(HEARTBEAT_S):
                    await ended.wait()
                    break
                await self._ask("epoch")
        except LedgerUnavailable:
            pass
        finally:
            connection.remove_termination_listener(end)
        self.release()

    async def close(self) -> None:
        """Let the lock go."""
        connection, self._connection = self._connection, None
        self._locked = False
        if connection is not None:
            await close(connection)

    def release(self) -> None:
        """Let the lock go, at once and without a word to the server."""
        connection, self._connection = self._connection, None
        self._locked = False
        if connection is not None:
            connection.terminate()

    async def _ask(self, name: str, *arguments: Any) -> Any:
        """One value. Whatever goes wrong, a cancellation too, costs the connection and the lock."""
        assert self._connection is not None, "the lock is acquired first"
        try:
            return await self._connection.fetchval(
                QUERIES[name], *arguments, timeout=ANSWER_TIMEOUT_S
            )
        except DRIVER_ERRORS as error:
            self.release()
            raise ledger_error(error) from error
        except BaseException:
            self.release()
            raise
