"""A connection for what is done beside the commits, and may be done again."""

from __future__ import annotations

from typing import Any, Final

import asyncpg

from engine.ledger.connections import UPKEEP, close, connect
from engine.ledger.errors import DRIVER_ERRORS, ledger_error
from engine.ledger.queries import QUERIES

TIMEOUT_S: Final = 60.0


class Upkeep:
    """One statement at a time, on a connection of its own."""

    def __init__(self, dsn: str, name: str) -> None:
        self._dsn = dsn
        self._settings = UPKEEP | {"application_name": name}
        self._connection: asyncpg.Connection | None = None

    async def close(self) -> None:
        """Let the connection go."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await close(connection)

    async def fetchrow(self, query: str, *arguments: Any) -> asyncpg.Record:
        """The one row of a named query. Raises LedgerError; the next call connects anew."""
        connection = self._connection
        if connection is None or connection.is_closed():
            connection = self._connection = await connect(
                self._dsn, self._settings, wanted="read-write"
            )
        try:
            row = await connection.fetchrow(QUERIES[query], *arguments, timeout=TIMEOUT_S)
        except DRIVER_ERRORS as error:
            self._connection = None
            connection.terminate()
            raise ledger_error(error) from error
        except BaseException:
            self._connection = None
            connection.terminate()
            raise
        assert row is not None, "it always has a row"
        return row
