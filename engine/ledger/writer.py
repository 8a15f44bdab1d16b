"""The group commit on Postgres: one transaction, one statement, one round trip.

A batch of thousands of transfers is still one transaction, but sends these by COPY, which costs a
few round trips and saves a quarter of the time.

A commit has a definite result or an open outcome. Open means that the connection broke, or the
database said that it can't write just now. Then the batch stays `unsettled`: the caller commits
the same batch again, on a new connection its key is looked for at the end of the journal, and it
is applied exactly once. Only a definite result moves the head of the chain on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import anyio
import asyncpg
import msgspec
from asyncpg.prepared_stmt import PreparedStatement

from engine.domain.entry import Batch, KeyRef
from engine.domain.journal import GENESIS, TransferTuple, seal
from engine.domain.posting import AccountKey
from engine.failpoints import failpoint
from engine.ledger.connections import WRITER, check_durable, close, connect
from engine.ledger.errors import DRIVER_ERRORS, ledger_error, verdict_of
from engine.ledger.guard import TotalsGuard
from engine.ledger.packing import (
    PACKERS,
    TRANSFER_COLUMNS,
    copy_of_transfers,
    domain_of,
    pack,
)
from engine.ledger.queries import QUERIES
from engine.ledger.rows import Pair, Rows, build
from engine.ports import (
    EntryInvalid,
    Fenced,
    KeysTaken,
    LedgerError,
    LedgerUnavailable,
    Receipt,
)

LANE: Final = 0
TRIES_MAX: Final = 4
PAUSE_S: Final = 0.02
COPIED_MIN: Final = 2_000
"""From so many transfers on, COPY saves more than the round trips it adds."""
PAIRS_MAX: Final = 50_000
"""Pairs of accounts whose numbers are remembered: about 200 bytes each."""
PIECE: Final = 512
"""Transfers that are packed at once: about what the socket's buffer takes."""


class WriterStatistics(msgspec.Struct, frozen=True):
    """What the writing half knows of itself. `head` is the number of the last batch."""

    connected: bool
    epoch: int
    head: int
    accounts: int
    unsettled: str | None
    commits: int
    resolved: int
    tried_again: int
    connections: int


class Writer:
    """The writing half: one caller at a time, on one connection that nobody else uses."""

    def __init__(self, dsn: str, *, durable: bool, commit_timeout_s: float) -> None:
        self._dsn = dsn
        self._durable = durable
        self._timeout_s = commit_timeout_s
        self._connection: asyncpg.Connection | None = None
        self._append: PreparedStatement[Any] | None = None
        self._types: dict[str, int] = {}
        self._epoch = 0
        self._head = Receipt(number=0, hash=GENESIS)
        self._head_key = ""
        self._accounts: dict[AccountKey, int] = {}
        self._pairs: dict[Pair, Sequence[int]] = {}
        self._last_account = 0
        self._guard = TotalsGuard()
        self._unsettled: str | None = None
        self._commits = self._resolved = self._again = self._connections = 0

    def statistics(self) -> WriterStatistics:
        """A frozen view for the console."""
        return WriterStatistics(
            connected=self._connection is not None and not self._connection.is_closed(),
            epoch=self._epoch,
            head=self._head.number,
            accounts=len(self._accounts),
            unsettled=self._unsettled,
            commits=self._commits,
            resolved=self._resolved,
            tried_again=self._again,
            connections=self._connections,
        )

    async def begin(self, epoch: int) -> Receipt:
        """Write under this epoch from now on; returns the head of the chain.

        Raises LedgerUnavailable, or LedgerError where the database is not durable.
        """
        self._disconnect()
        self._epoch = epoch
        await self._connected()
        return self._head

    async def commit(self, batch: Batch) -> Receipt:
        """Apply the batch in one transaction, or find that it has been applied.

        Raises KeysTaken and EntryInvalid, which are definite; LedgerUnavailable, after which the
        same batch must be committed again; and Fenced, after which nothing may be: what became of
        an earlier try of the batch may be open, and is the next engine's to find out.
        """
        assert self._epoch, "an engine takes over before it writes"
        assert self._unsettled in (None, batch.key), f"{self._unsettled} is not settled yet"
        # A commit is never cancelled half-way: its outcome would be open for no reason. It is
        # bounded by the time-out of its statement.
        with anyio.CancelScope(shield=True):
            for tries_left in range(TRIES_MAX - 1, -1, -1):
                try:
                    return await self._try(batch)
                except DRIVER_ERRORS as error:
                    if verdict_of(error) != "again" or not tries_left:
                        raise self._failed(error) from error
                except LedgerError:
                    raise
                except BaseException:
                    # A bug of ours, or the end of the event loop.
                    self._disconnect()
                    raise
                self._again += 1
                await anyio.sleep(PAUSE_S * (TRIES_MAX - tries_left))
        raise AssertionError("the last try returns or raises")

    async def close(self) -> None:
        """Let the connection go."""
        connection, self._connection, self._append = self._connection, None, None
        if connection is not None:
            await close(connection)

    async def _try(self, batch: Batch) -> Receipt:
        append = self._append
        if append is None or self._connection is None or self._connection.is_closed():
            append = await self._connected()
        if batch.key == self._head_key:
            return self._settled(self._head, resolved=True)
        rows = build(batch, self._accounts, self._last_account + 1, self._pairs)
        try:
            checked = self._guard.check(rows.moves)
        except EntryInvalid:
            await self._judge_first(batch, rows)
            raise
        number = self._head.number + 1
        hash_ = seal(
            self._head.hash,
            number,
            batch.key,
            batch.recorded_ms,
            rows.transfers,
            accounts=rows.accounts,
            lane=LANE,
        )
        arguments = self._arguments(batch, rows, number, hash_)
        self._unsettled = batch.key
        failpoint("before_commit")
        failpoint("in_commit")
        if len(rows.transfers) < COPIED_MIN:
            applied = await append.fetchval(*arguments, timeout=self._timeout_s)
        else:
            applied = await self._append_and_copy(append, arguments, rows, number)
        if not applied:
            # An earlier try was applied after all, while this one was being prepared: what counts
            # is what that one sealed and opened, which need not be what was built now.
            await self._connected()
            assert self._head_key == batch.key, "nobody else writes behind a batch of ours"
            return self._settled(self._head, resolved=True)
        self._accounts.update(rows.opened)
        if rows.numbered:
            if len(self._pairs) > PAIRS_MAX:
                self._pairs.clear()
            self._pairs.update(rows.numbered)
        self._last_account += len(rows.opened)
        self._guard.keep(checked)
        self._head_key = batch.key
        self._head = Receipt(number=number, hash=hash_)
        return self._settled(self._head, resolved=False)

    async def _judge_first(self, batch: Batch, rows: Rows) -> None:
        """Raise what the database would have raised before it came to the totals."""
        connection = self._connection
        assert connection is not None
        epoch = await connection.fetchval(QUERIES["epoch"], timeout=self._timeout_s)
        if epoch != self._epoch:
            raise Fenced(f"epoch {self._epoch} is over, this is epoch {epoch}")
        if self._unsettled == batch.key:
            # It was good when it was first sent, and may be there yet: nothing may be concluded.
            self._disconnect()
            raise LedgerUnavailable("the first try of the batch is not over")
        if rows.claims:
            merchants, modes, keys = zip(*(row[:3] for row in rows.claims), strict=True)
            taken = await connection.fetch(
                QUERIES["keys_taken"], merchants, modes, keys, timeout=self._timeout_s
            )
            if taken:
                raise KeysTaken(frozenset(KeyRef(*row) for row in taken))

    async def _append_and_copy(
        self, append: PreparedStatement[Any], arguments: list[Any], rows: Rows, number: int
    ) -> bool:
        """Apply a batch of many transfers: everything else, then these by COPY, then the commit.

        The batch's own row comes first here too, so a second try is settled in the same way. While
        Postgres takes one piece of the transfers in, the next one is packed.
        """
        connection, transfers, timeout = self._connection, rows.transfers, self._timeout_s
        assert connection is not None
        try:
            await connection.execute("BEGIN", timeout=timeout)
            applied: bool = await append.fetchval(*arguments, timeout=timeout)
            if applied:
                copied = await connection.copy_to_table(
                    "transfers",
                    source=_pieces(number, transfers),
                    columns=TRANSFER_COLUMNS,
                    format="binary",
                    timeout=timeout,
                )
                assert copied == f"COPY {len(transfers)}", copied
                if rows.second_phases:
                    await connection.fetchval(
                        QUERIES["check_second_phases"],
                        transfers[0][0],
                        transfers[-1][0],
                        timeout=timeout,
                    )
            await connection.execute("COMMIT", timeout=timeout)
        except asyncpg.PostgresError:
            await self._roll_back(connection)
            raise
        except LedgerError:
            # A piece that can't be packed: nothing will be committed, which settles the batch.
            await self._roll_back(connection)
            self._unsettled = None
            raise
        return applied

    async def _roll_back(self, connection: asyncpg.Connection) -> None:
        try:
            await connection.execute("ROLLBACK", timeout=self._timeout_s)
        except DRIVER_ERRORS:
            self._disconnect()

    def _arguments(self, batch: Batch, rows: Rows, number: int, hash_: bytes) -> list[Any]:
        transfers, types = rows.transfers, self._types
        copied = len(transfers) >= COPIED_MIN
        return [
            LANE,
            number,
            batch.key,
            self._epoch,
            batch.recorded_ms,
            transfers[0][0] if transfers else 0,
            transfers[-1][0] if transfers else 0,
            len(transfers),
            self._head.hash,
            hash_,
            rows.accounts or None,
            None if copied else pack("transfer_input", types["transfer_input"], transfers),
            rows.second_phases and not copied,
            rows.payments or None,
            rows.payment_changes or None,
            rows.claims or None,
            rows.answers or None,
            rows.released or None,
            rows.events or None,
            rows.refunds or None,
            pack("timeline_input", types["timeline_input"], rows.timeline),
            pack("timer_input", types["timer_input"], rows.timers_cleared),
            pack("timer_input", types["timer_input"], rows.timers_set),
            rows.inbox or None,
            rows.inbox_reopened or None,
            rows.inbox_done or None,
            rows.dead_letters or None,
            rows.dead_letters_done or None,
        ]

    def _settled(self, head: Receipt, *, resolved: bool) -> Receipt:
        self._unsettled = None
        self._commits += 1
        if resolved:
            self._resolved += 1
            return Receipt(number=head.number, hash=head.hash, resolved=True)
        return head

    def _failed(self, error: BaseException) -> LedgerError:
        """The error to raise. Only a definite one settles the batch and keeps the connection."""
        raised = ledger_error(error)
        if isinstance(raised, LedgerUnavailable):
            self._disconnect()
        else:
            self._unsettled = None
        return raised

    def _disconnect(self) -> None:
        connection, self._connection, self._append = self._connection, None, None
        if connection is not None:
            connection.terminate()

    async def _connected(self) -> PreparedStatement[Any]:
        """Connect; read where the journal ends, which accounts there are, and what is pending."""
        self._disconnect()
        connection = await connect(self._dsn, WRITER, wanted="read-write")
        try:
            if self._durable:
                await check_durable(connection)
            # Told here too: after a migration, the statement of a commit may not even begin.
            epoch = await connection.fetchval(QUERIES["epoch"], timeout=self._timeout_s)
            if epoch > self._epoch:
                raise Fenced(f"epoch {self._epoch} is over, this is epoch {epoch}")
            types = await _take_packed(connection)
            append = await connection.prepare(QUERIES["append_batch"])
            # One snapshot: an earlier try that ends meanwhile is in all of it, or in nothing.
            limit_s = self._timeout_s
            await connection.execute(QUERIES["snapshot"], timeout=limit_s)
            found = await connection.fetchrow(QUERIES["head"], LANE, timeout=limit_s)
            opened = await connection.fetch(
                QUERIES["accounts_above"], self._last_account, timeout=limit_s
            )
            pending = await connection.fetch(QUERIES["pending"], timeout=limit_s)
            most = await connection.fetchval(QUERIES["largest_total"], timeout=limit_s)
            await connection.execute("COMMIT", timeout=limit_s)
        except LedgerError:
            connection.terminate()
            raise
        except DRIVER_ERRORS as error:
            connection.terminate()
            raise LedgerUnavailable(f"{type(error).__name__}: {error}") from error
        except BaseException:
            connection.terminate()
            raise
        number = 0 if found is None else found["number"]
        if number < self._head.number:
            connection.terminate()
            raise Fenced(
                f"the journal ends at batch {number}, but batch {self._head.number} had been "
                f"committed: this database has lost commits (restored, or an async standby)"
            )
        if found is not None:
            self._head = Receipt(number=number, hash=found["hash"])
            self._head_key = found["key"]
        for id_, *key in opened:
            self._accounts[AccountKey(*key)] = self._last_account = id_
        self._guard.reset([(row[0], row[1], row[2]) for row in pending], most)
        self._connection, self._append, self._types = connection, append, types
        self._connections += 1
        return append


async def _pieces(number: int, transfers: list[TransferTuple]) -> AsyncIterator[bytes]:
    count = len(transfers)
    for at in range(0, count, PIECE):
        last = at + PIECE >= count
        yield copy_of_transfers(number, transfers[at : at + PIECE], first=not at, last=last)


async def _take_packed(connection: asyncpg.Connection) -> dict[str, int]:
    """Let rows that are packed already pass as they are; returns the types' numbers.

    Raises LedgerUnavailable where the types are not there.
    """
    found = await connection.fetch(QUERIES["types"], list(PACKERS))
    if len(found) < len(PACKERS):
        raise LedgerUnavailable("the input types are not there: the database is not migrated")
    for type_, _, schema in found:
        await connection.set_builtin_type_codec(
            domain_of(type_), schema=schema, codec_name="bytea", format="binary"
        )
    return {type_: number for type_, number, _ in found}
