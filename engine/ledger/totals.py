"""The projection: accounts' totals and their history, a moment behind the journal.

Not in the path of any payment. It runs in a transaction of its own, on a connection of its own, and
beside the commits: they insert transfers, it folds those of whole batches into the totals. What is
read meanwhile is exact (`account_totals` in schema.sql), so all that depends on how far it has come
is how much a reader has to fold. A crash loses nothing: what was not projected is folded again.
"""

from __future__ import annotations

from typing import Final

import asyncpg

from engine.ledger.connections import PROJECTION, close, connect
from engine.ledger.errors import DRIVER_ERRORS, ledger_error
from engine.ledger.queries import QUERIES

FOLDED_MAX: Final = 100_000
"""Transfers of one transaction: a few tenths of a second."""
BATCHES_MAX: Final = 10_000
TIMEOUT_S: Final = 60.0


class Totals:
    """Projects, one caller at a time."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: asyncpg.Connection | None = None

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
        connection, self._connection = self._connection, None
        if connection is not None:
            await close(connection)

    async def _step(self) -> tuple[int, int]:
        connection = self._connection
        if connection is None or connection.is_closed():
            connection = self._connection = await connect(
                self._dsn, PROJECTION, wanted="read-write"
            )
        try:
            row = await connection.fetchrow(
                QUERIES["project_totals"], FOLDED_MAX, BATCHES_MAX, timeout=TIMEOUT_S
            )
        except DRIVER_ERRORS as error:
            self._connection = None
            connection.terminate()
            raise ledger_error(error) from error
        except BaseException:
            self._connection = None
            connection.terminate()
            raise
        assert row is not None, "a function has a row"
        return row["transfers"], row["batches"]
