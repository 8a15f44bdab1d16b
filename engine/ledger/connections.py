"""Connections to Postgres: how each kind is set up, and the few that readers share.

Every connection has one user at a time, which is an actor or a read of this module. A statement
that ends in any error, a cancellation among them, takes its connection with it: asyncpg can't
always tell in what state the connection is then, and a new one costs milliseconds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from socket import AF_UNIX, SO_SNDBUF, SOL_SOCKET
from typing import Any, Final, Literal

import anyio
import asyncpg
import msgspec
from asyncpg.connect_utils import SessionAttribute

from engine.ledger.addresses import cannot_connect
from engine.ledger.copied import CopiedPayments
from engine.ledger.errors import DRIVER_ERRORS, ledger_error
from engine.ledger.queries import QUERIES
from engine.ports import LedgerError, LedgerUnavailable, TakePayments

CONNECT_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 2.0
READ_TIMEOUT_S: Final = 15.0
ANSWER_TIMEOUT_S: Final = 20.0
"""For what the server gives up by itself after `READ_TIMEOUT_S`: who has vanished does not."""
SEND_BYTES: Final = 4 * 1_024 * 1_024

COMMON: Final[dict[str, str]] = {
    "jit": "off",  # Compiling takes longer than any statement here runs.
    "timezone": "UTC",
    # So that the lock of an engine whose machine vanished is free after seconds, not hours.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
}

BY_KEYS: Final[dict[str, str]] = {
    # Rows are touched by their keys only. Without this, a plan made while the tables were small
    # would read whole tables after they have grown, until somebody analyses them.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}

WRITER: Final[dict[str, str]] = (
    COMMON
    | BY_KEYS
    | {
        "application_name": "engine-writer",
        "statement_timeout": "0",  # A commit under way is waited for: its outcome is wanted.
        "lock_timeout": "5s",
        "idle_in_transaction_session_timeout": "0",
        "synchronous_commit": "on",
    }
)

UPKEEP: Final[dict[str, str]] = (
    COMMON
    | BY_KEYS
    | {
        "lock_timeout": "5s",
        # What a power cut takes of it is done again.
        "synchronous_commit": "off",
    }
)

READER: Final[dict[str, str]] = COMMON | {
    "application_name": "engine-reader",
    "statement_timeout": str(int(READ_TIMEOUT_S * 1000)),
    "default_transaction_read_only": "on",
}

READER_BY_KEYS: Final[dict[str, str]] = READER | BY_KEYS

READER_OF_TABLES: Final[dict[str, str]] = READER | {
    "statement_timeout": "0",  # It takes what it takes; how long until the next piece is bounded.
    # A session that waits for a lock does not see that nobody waits for it any more.
    "lock_timeout": str(int(READ_TIMEOUT_S * 1000)),
    # The index says which pages to read, and they are read in their order.
    "enable_seqscan": "off",
    "enable_indexscan": "off",
}

LOCK: Final[dict[str, str]] = COMMON | {
    "application_name": "engine-lock",
    "lock_timeout": "15s",
    "idle_session_timeout": "0",
}


class DurabilityError(LedgerError):
    """The database would lose what it says it has committed. The message says what to change."""


Wanted = Literal["any", "primary", "read-write"]
"""Which of the hosts in a DSN will do (libpq's `target_session_attrs`): a standby may be behind, so
what decides about money is read from the primary."""


async def connect(dsn: str, settings: dict[str, str], *, wanted: Wanted) -> asyncpg.Connection:
    """A new connection. Raises LedgerUnavailable."""
    try:
        return await asyncpg.connect(
            dsn,
            timeout=CONNECT_TIMEOUT_S,
            server_settings=settings,
            target_session_attrs=SessionAttribute(wanted),
        )
    except Exception as error:
        # Whatever it is, from a wrong password to a refused connection: there is none.
        raise LedgerUnavailable(cannot_connect(dsn, error, CONNECT_TIMEOUT_S)) from error


def send_whole(connection: Any) -> None:
    """Let the kernel take a statement of `SEND_BYTES` at once, as far as the system allows.

    A group commit under load is up to 1.2 MiB, and a unix socket takes 208 KiB. What is left is
    sent when the event loop comes round, and until then the database waits for the end of a
    statement while the engine is busy with something else. The system's limit is
    `net.core.wmem_max` (socket(7)); TCP's buffers grow by themselves. Where it can't be done,
    nothing is wrong.
    """
    # The driver offers no other way to its socket, so it may take this one away.
    transport = getattr(connection, "_transport", None)
    socket = transport and transport.get_extra_info("socket")
    if socket is not None and socket.family == AF_UNIX:
        # uvloop's sockets say by a ValueError that they are closed.
        with suppress(OSError, ValueError):
            socket.setsockopt(SOL_SOCKET, SO_SNDBUF, SEND_BYTES)


async def close(connection: asyncpg.Connection) -> None:
    """Say good-bye to the server; a connection on which it does not answer is cut off."""
    try:
        with anyio.CancelScope(shield=True):
            await connection.close(timeout=CLOSE_TIMEOUT_S)
    except DRIVER_ERRORS:
        connection.terminate()


async def check_durable(connection: asyncpg.Connection) -> None:
    """Raise DurabilityError where fsync or synchronous_commit is off."""
    row = await connection.fetchrow(QUERIES["durability"])
    assert row is not None
    if row["fsync"] != "on":
        raise DurabilityError("fsync is off: a power cut would corrupt the ledger; set fsync = on")
    if row["commit"] not in {"on", "remote_apply"}:
        raise DurabilityError(
            f"synchronous_commit is {row['commit']}: set it to on, or commits would be "
            f"acknowledged before they are durable"
        )


class _TakerFailed(Exception):
    """What `take` raised, kept apart from what the driver raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error


async def copy_payments(dsn: str, take: TakePayments, name: str, *arguments: Any) -> None:
    """Hand over the payments that a named query finds, on a connection of its own.

    Raises LedgerUnavailable, also where nothing comes for as long as a read may take; and what
    `take` raises. After either, what was handed over may be a part of the rows.
    """
    payments = CopiedPayments()
    connection = await connect(dsn, READER_OF_TABLES, wanted="primary")
    try:
        with anyio.fail_after(READ_TIMEOUT_S) as patience:

            async def feed(piece: bytes) -> None:
                quiet, working = payments.feed(piece)
                try:
                    take(quiet, working)
                except Exception as error:
                    raise _TakerFailed(error) from error
                if not patience.cancel_called:
                    patience.deadline = anyio.current_time() + READ_TIMEOUT_S

            await connection.copy_from_query(
                QUERIES[name], *arguments, output=feed, format="binary"
            )
        if not payments.is_whole:
            raise LedgerUnavailable(f"{name}: what was copied out ends too early")
    except BaseException as error:
        connection.terminate()
        if isinstance(error, _TakerFailed):
            raise error.error from None
        if isinstance(error, DRIVER_ERRORS):
            raise ledger_error(error) from error
        raise
    await close(connection)


class ReaderStatistics(msgspec.Struct, frozen=True):
    """`opened` counts every connection of the pool ever opened: it grows where reads fail."""

    connections_max: int
    busy: int
    idle: int
    waiting: int
    opened: int


class ReadConnections:
    """At most `connections_max` connections, opened when needed and kept while they work."""

    def __init__(self, dsn: str, connections_max: int, settings: dict[str, str] = READER) -> None:
        self._dsn = dsn
        self._settings = settings
        self._limit = anyio.CapacityLimiter(connections_max)
        self._idle: list[asyncpg.Connection] = []
        self._opened = 0
        self._closed = False

    def statistics(self) -> ReaderStatistics:
        """A frozen view for the console."""
        limit = self._limit.statistics()
        return ReaderStatistics(
            connections_max=int(limit.total_tokens),
            busy=limit.borrowed_tokens,
            idle=len(self._idle),
            waiting=limit.tasks_waiting,
            opened=self._opened,
        )

    async def fetch(self, name: str, *arguments: Any) -> list[asyncpg.Record]:
        """The rows of a named query. Raises LedgerUnavailable (EntryInvalid for bad values)."""
        async with self._connection() as connection:
            return await connection.fetch(QUERIES[name], *arguments)

    async def fetchrow(self, name: str, *arguments: Any) -> asyncpg.Record | None:
        """The first row of a named query. Raises as `fetch` does."""
        async with self._connection() as connection:
            return await connection.fetchrow(QUERIES[name], *arguments)

    async def close(self) -> None:
        """Close what is idle, and whatever comes back later."""
        self._closed = True
        while self._idle:
            await close(self._idle.pop())

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        async with self._limit:
            connection = self._take()
            if connection is None:
                connection = await connect(self._dsn, self._settings, wanted="primary")
                self._opened += 1
            try:
                # Not the driver's own time-out, which does not bound all that it asks by itself.
                with anyio.fail_after(ANSWER_TIMEOUT_S):
                    yield connection
            except DRIVER_ERRORS as error:
                connection.terminate()
                raise ledger_error(error) from error
            except BaseException:
                connection.terminate()
                raise
            if self._closed:
                connection.terminate()
            else:
                self._idle.append(connection)

    def _take(self) -> asyncpg.Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return None
