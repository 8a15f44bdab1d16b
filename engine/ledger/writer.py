"""The group commit on Postgres: one transaction, one statement, one round trip.

A batch of thousands of transfers is still one transaction, but sends these by COPY, which costs a
few round trips and saves a quarter of the time.

A commit has a definite result or an open outcome. Open means that the connection broke, or the
database said that it can't write just now. Then the batch stays `unsettled`: the caller commits
the same batch again, on a new connection its key is looked for at the end of the journal, and it
is applied exactly once. Only a definite result moves the head of the chain on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import anyio
import asyncpg
import msgspec
from asyncpg.prepared_stmt import PreparedStatement

from engine.domain.entry import Batch, KeyRef
from engine.domain.journal import TransferTuple
from engine.failpoints import failpoint
from engine.ledger.ahead import Ahead
from engine.ledger.connections import (
    WRITER,
    DurabilityError,
    check_durable,
    close,
    connect,
    send_whole,
)
from engine.ledger.errors import DRIVER_ERRORS, ledger_error, verdict_of
from engine.ledger.guard import Guarded
from engine.ledger.packing import (
    OUT_OF_RANGE,
    PACKERS,
    TRANSFER_COLUMNS,
    copy_of_transfers,
    domain_of,
)
from engine.ledger.preparing import LANE, Prepared, Preparer, is_copied
from engine.ledger.queries import QUERIES
from engine.ledger.rows import Rows
from engine.ports import (
    EntryInvalid,
    Fenced,
    KeysTaken,
    LedgerError,
    LedgerUnavailable,
    Receipt,
)

TRIES_MAX: Final = 4
PAUSE_S: Final = 0.02
PIECE: Final = 512
"""Transfers that are packed at once, 50 to 100 KiB: the database is at work on one meanwhile."""


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
        self._epoch = 0
        self._preparer = Preparer()
        self._ahead: Ahead | None = None
        self._unsettled: str | None = None
        self._commits = self._resolved = self._again = self._connections = 0

    def statistics(self) -> WriterStatistics:
        """A frozen view for the console."""
        return WriterStatistics(
            connected=self._connection is not None and not self._connection.is_closed(),
            epoch=self._epoch,
            head=self._preparer.head.number,
            accounts=self._preparer.accounts,
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
        return self._preparer.head

    async def commit(self, batch: Batch, following: Batch | None = None) -> Receipt:
        """Apply the batch in one transaction, or find that it has been applied.

        `following` is what is likely to be committed next: it is made ready meanwhile.
        Raises KeysTaken and EntryInvalid, which are definite; LedgerUnavailable, after which the
        same batch must be committed again; and Fenced, after which nothing may be: what became of
        this batch, or of one before it, may be open, and is the next engine's to find out.
        """
        assert self._epoch, "an engine takes over before it writes"
        if self._unsettled not in (None, batch.key):
            # Something crashed in between. A start reads what became of it; this process can't.
            raise Fenced(f"what became of batch {self._unsettled} is open: a start finds it out")
        # A commit is never cancelled half-way: its outcome would be open for no reason. It is
        # bounded by the time-out of its statement.
        with anyio.CancelScope(shield=True):
            for tries_left in range(TRIES_MAX - 1, -1, -1):
                try:
                    return await self._try(batch, following)
                except DRIVER_ERRORS as error:
                    if verdict_of(error) != "again" or not tries_left:
                        raise self._failed(error) from error
                except DurabilityError as error:
                    # What became of an earlier try is open still, and nothing may be written now.
                    raise LedgerUnavailable(str(error)) from error
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
        if self._ahead is not None:
            self._ahead.drop()
        connection, self._connection, self._append = self._connection, None, None
        if connection is not None:
            await close(connection)

    async def _try(self, batch: Batch, following: Batch | None) -> Receipt:
        append = self._append
        if append is None or self._connection is None or self._connection.is_closed():
            append = await self._connected()
        if batch.key == self._preparer.head_key:
            return self._settled(resolved=True)
        prepared = await self._prepared(batch)
        assert prepared.after == self._preparer.head, "it continues the chain"
        self._unsettled = batch.key
        failpoint("before_commit")
        failpoint("in_commit")
        if following is not None:
            self._ahead = Ahead(self._preparer, following, prepared)
        if is_copied(prepared.rows):
            applied = await self._append_and_copy(append, prepared)
        else:
            applied = await append.fetchval(*prepared.arguments, timeout=self._timeout_s)
        if not applied:
            # An earlier try was applied after all, while this one was being prepared: what counts
            # is what that one sealed and opened, which need not be what was built now.
            await self._connected()
            if self._preparer.head_key != batch.key:
                raise Fenced(f"another engine has written behind batch {prepared.head.number}")
            return self._settled(resolved=True)
        self._preparer.keep(prepared)
        return self._settled(resolved=False)

    async def _prepared(self, batch: Batch) -> Prepared:
        ahead, self._ahead = self._ahead, None
        prepared = None if ahead is None else ahead.take(batch, self._preparer.head)
        if prepared is not None:
            failpoint("made_ahead")
            return prepared
        rows = self._preparer.rows_of(batch)
        try:
            guarded = self._preparer.check(rows)
        except EntryInvalid as refused:
            await self._judge_first(batch, rows)
            if refused.reason != OUT_OF_RANGE:
                raise
            guarded = await self._measured(rows)
        return self._preparer.prepare(batch, rows, guarded)

    async def _measured(self, rows: Rows) -> Guarded:
        """Check them against the totals as they are.

        The bound that is remembered grows by all that is moved, also by what is voided again.
        """
        assert self._connection is not None
        largest = await self._connection.fetchval(QUERIES["largest_total"], timeout=self._timeout_s)
        self._preparer.measure(largest)
        return self._preparer.check(rows)

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

    async def _append_and_copy(self, append: PreparedStatement[Any], prepared: Prepared) -> bool:
        """Apply a batch of many transfers: everything else, then these by COPY, then the commit.

        The batch's own row comes first here too, so a second try is settled in the same way. While
        Postgres takes one piece of the transfers in, the next one is packed.
        """
        connection, timeout = self._connection, self._timeout_s
        transfers = prepared.rows.transfers
        assert connection is not None
        try:
            await connection.execute("BEGIN", timeout=timeout)
            applied: bool = await append.fetchval(*prepared.arguments, timeout=timeout)
            if applied:
                copied = await connection.copy_to_table(
                    "transfers",
                    source=_pieces(prepared.head.number, transfers),
                    columns=TRANSFER_COLUMNS,
                    format="binary",
                    timeout=timeout,
                )
                assert copied == f"COPY {len(transfers)}", copied
                if prepared.rows.second_phases:
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

    def _settled(self, *, resolved: bool) -> Receipt:
        head = self._preparer.head
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
        known = self._preparer
        connection = await connect(self._dsn, WRITER, wanted="read-write")
        try:
            # The driver's own time-out does not bound all that it asks by itself.
            with anyio.fail_after(self._timeout_s):
                if self._durable:
                    await check_durable(connection)
                # Told here too: after a migration, the statement of a commit may not even begin.
                epoch = await connection.fetchval(QUERIES["epoch"])
                if epoch > self._epoch:
                    raise Fenced(f"epoch {self._epoch} is over, this is epoch {epoch}")
                send_whole(connection)
                types = await _take_packed(connection)
                append = await connection.prepare(QUERIES["append_batch"])
            # One snapshot: an earlier try that ends meanwhile is in all of it, or in nothing.
            limit_s = self._timeout_s
            await connection.execute(QUERIES["snapshot"], timeout=limit_s)
            found = await connection.fetchrow(QUERIES["head"], LANE, timeout=limit_s)
            opened = await connection.fetch(
                QUERIES["accounts_above"], known.last_account, timeout=limit_s
            )
            pending = await connection.fetch(QUERIES["pending"], timeout=limit_s)
            most = await connection.fetchval(QUERIES["largest_total"], timeout=limit_s)
            ours = await connection.fetchval(
                QUERIES["hash_of"], LANE, known.head.number, timeout=limit_s
            )
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
        head, head_key = known.head, known.head_key
        number = 0
        if found is not None:
            number, head_key = found["number"], found["key"]
            head = Receipt(number=number, hash=found["hash"])
        if known.head.number and ours != known.head.hash:
            # Fewer batches, or as many and others: another engine may have gone on from there.
            connection.terminate()
            raise Fenced(
                f"batch {known.head.number} had been committed, but the journal, which ends at "
                f"batch {number}, does not have it: this database has lost commits (restored, or "
                f"an async standby)"
            )
        if self._ahead is not None:
            self._ahead.drop()  # It may be packed for the connection before.
            self._ahead = None
        known.begin(
            self._epoch,
            types,
            head=head,
            head_key=head_key,
            opened=[tuple(row) for row in opened],
            pending=[(row[0], row[1], row[2]) for row in pending],
            largest_total=most,
        )
        self._connection, self._append = connection, append
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
