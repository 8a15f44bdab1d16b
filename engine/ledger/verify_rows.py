"""Rows of one snapshot, streamed: several sorted queries read side by side on one connection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import asyncpg

from engine.ledger.queries import parse
from engine.ledger.verify_report import Findings

QUERIES: Final = parse(Path(__file__).with_name("verify.sql").read_text(encoding="utf-8"))
PREFETCH: Final = 1_000


def stream(connection: asyncpg.Connection, name: str) -> AsyncIterator[asyncpg.Record]:
    """The rows of a named query, through a cursor on the server: a thousand in memory at most."""
    rows: AsyncIterator[asyncpg.Record] = aiter(connection.cursor(QUERIES[name], prefetch=PREFETCH))
    return rows


class Groups:
    """Rows sorted by `key`, taken group by group while another query is walked in that order.

    Rows whose key nobody asked for go to `stray`.
    """

    def __init__(
        self,
        rows: AsyncIterator[asyncpg.Record],
        key: str,
        stray: Callable[[asyncpg.Record], None],
    ) -> None:
        self._rows = rows
        self._key = key
        self._stray = stray
        self._next: asyncpg.Record | None = None
        self._begun = False

    async def of(self, key: Any) -> list[asyncpg.Record]:
        """The rows of `key`, which is larger than any key asked for before."""
        if not self._begun:
            await self._advance()
        name = self._key
        found: list[asyncpg.Record] = []
        while self._next is not None and self._next[name] <= key:
            if self._next[name] == key:
                found.append(self._next)
            else:
                self._stray(self._next)
            await self._advance()
        return found

    async def rest(self) -> None:
        """Nobody will ask for any more."""
        if not self._begun:
            await self._advance()
        while self._next is not None:
            self._stray(self._next)
            await self._advance()

    async def _advance(self) -> None:
        self._begun = True
        self._next = await anext(self._rows, None)


async def report_rows(
    connection: asyncpg.Connection,
    name: str,
    findings: Findings,
    sentence: Callable[[asyncpg.Record], tuple[str, str]],
) -> None:
    """Run a query that looks for what is wrong, and add what it finds."""
    rows = await connection.fetch(QUERIES[name])
    for row in rows:
        findings.add(*sentence(row))
    if rows:
        findings.add_more(rows[0]["problems"] - len(rows))
