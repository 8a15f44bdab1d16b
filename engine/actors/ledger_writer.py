"""The ledger writer: group commit.

It takes everything that waits, commits it in groups, each one transaction, and tells the senders.
While a commit is under way the next group gathers, so the busier the engine, the larger the groups.

- A lost reply to a COMMIT is settled by committing the same batch under the same key again.
- Entries whose idempotency key is taken are refused by name; the rest is committed.
- An entry that cannot be stored is found by bisecting; its batch mates are committed.
- Where more waits than one transaction takes, the ledger is told of the next one as well, and makes
  it ready while the database is at work.
"""

from __future__ import annotations

from collections import defaultdict

import anyio
import anyio.lowlevel
from anyio.abc import TaskStatus

from engine.actors.directory import Directory
from engine.domain.entry import Batch
from engine.failpoints import failpoint
from engine.messages import Barrier, Committed, ToWriter, Write, WriteRefused
from engine.ports import (
    Clock,
    EntryInvalid,
    Fenced,
    Ids,
    KeysTaken,
    LedgerUnavailable,
    LedgerWriter,
    Telemetry,
)
from engine.supervisor.mailbox import Mailbox, MailboxReader

COMMITS_AVERAGED = 8
GATHER_TURNS_MAX = 32
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 2.0
REFERENCE_TAKEN = "reference_taken"


class LedgerWriterActor:
    """One lane of the journal."""

    def __init__(
        self,
        mailbox: Mailbox[ToWriter],
        directory: Directory,
        ledger: LedgerWriter,
        clock: Clock,
        ids: Ids,
        telemetry: Telemetry,
        *,
        entries_max: int,
        gather_entries: int,
        told_max: int,
    ) -> None:
        """`entries_max`: of a commit; `told_max`: of a message that says what was committed.

        `gather_entries`: what is waited for while shards are about to hand over more.
        """
        self._mailbox = mailbox
        self._directory = directory
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._telemetry = telemetry
        self._entries_max = entries_max
        self._gather_entries = gather_entries
        self._told_max = told_max
        self._ahead: tuple[list[Write], Batch] | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Commit until cancelled. Raises `Fenced` when this engine may not write any more."""
        reader = self._mailbox.attach()
        self._directory.ledger_trouble = None
        task_status.started()
        while True:
            await reader.wait()
            await self._gather(reader)
            messages = reader.take_all()
            groups = [
                messages[start : start + self._entries_max]
                for start in range(0, len(messages), self._entries_max)
            ]
            writes = [[message for message in group if type(message) is Write] for group in groups]
            for group, now, following in zip(groups, writes, [*writes[1:], []], strict=True):
                if now:
                    await self._commit(now, following)
                self._answer_barriers(group)
                # At once: were the next group to crash, this one would be committed again.
                for _ in group:
                    reader.acknowledge_one()

    async def _gather(self, reader: MailboxReader[ToWriter]) -> None:
        """Let those go on that gave way to others, for as long as there is little to commit."""
        for _ in range(GATHER_TURNS_MAX):
            if not self._directory.gave_way or reader.waiting() >= self._gather_entries:
                return
            await anyio.lowlevel.checkpoint()

    def _answer_barriers(self, settled: list[ToWriter]) -> None:
        """Everything before them is settled."""
        for message in settled:
            if type(message) is Barrier:
                self._tell(message.reply_to, Committed(message.incarnation, (message.token,)))

    async def _commit(self, writes: list[Write], following: list[Write]) -> None:
        """Commit a group, in order, in as many parts as it takes; `following` is the next one."""
        pending = [writes]
        while pending:
            group = pending.pop()
            try:
                await self._commit_group(group, pending[-1] if pending else following)
            except KeysTaken as taken:
                rest = []
                for write in group:
                    claim = write.entry.claim
                    if claim is not None and claim.ref in taken.refs:
                        self._refuse(write, "key_taken")
                    else:
                        rest.append(write)
                assert len(rest) < len(group), "the ledger named keys that nobody claims"
                if rest:
                    pending.append(rest)
            except EntryInvalid as invalid:
                if len(group) == 1:
                    if invalid.reason != REFERENCE_TAKEN:  # That one is an answer, not a fault.
                        self._telemetry.warn("entry_refused", reason=invalid.reason)
                    self._refuse(group[0], invalid.reason)
                else:
                    middle = len(group) // 2
                    pending.append(group[middle:])
                    pending.append(group[:middle])

    async def _commit_group(self, group: list[Write], following: list[Write]) -> None:
        batch, then = self._batch_of(group), None
        if following:
            then = self._batch_of(following)
            self._ahead = following, then
        began = anyio.current_time()
        delay_s = RETRY_FIRST_S
        while True:
            try:
                # It shields itself. Between two tries its outcome is unknown anyway, and the next
                # start finds it out.
                receipt = await self._ledger.commit(batch, then)
                break
            except LedgerUnavailable as trouble:
                # The outcome is open, so the very same batch is committed again, never another.
                failpoint("commit_open")
                # What follows may be a long time off, and is to have the time of its own commit.
                self._ahead = then = None
                if self._directory.ledger_trouble is None:
                    self._telemetry.error("ledger_unavailable", reason=str(trouble))
                self._directory.ledger_trouble = str(trouble)
                await anyio.sleep(delay_s * (0.5 + self._ids.jitter()))
                delay_s = min(delay_s * 2, RETRY_MAX_S)
            except (KeysTaken, EntryInvalid):
                # It judges the batch, so it is there: without this nothing would be admitted any
                # more, and so nothing be committed that could tell.
                self._note_available()
                raise
            except Fenced as fenced:
                self._directory.ledger_trouble = str(fenced)
                self._directory.fenced = fenced
                self._directory.was_fenced.set()
                raise
        self._note_available(receipt.number)
        took_s = anyio.current_time() - began
        self._directory.commit_s += (took_s - self._directory.commit_s) / COMMITS_AVERAGED
        self._telemetry.group_commit(len(group), took_s)
        tokens: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        for write in group:
            tokens[write.reply_to, write.incarnation].append(write.token)
        for (name, incarnation), committed in tokens.items():
            for start in range(0, len(committed), self._told_max):
                told = committed[start : start + self._told_max]
                self._tell(name, Committed(incarnation, tuple(told)))

    def _batch_of(self, group: list[Write]) -> Batch:
        """The batch that was made of the group ahead, if nothing came between; else a new one."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] is group:
            return ahead[1]
        entries = tuple([write.entry for write in group])
        return Batch(self._ids.new("b"), self._clock.now_ms(), entries)

    def _note_available(self, batch: int | None = None) -> None:
        if self._directory.ledger_trouble is not None:
            self._directory.ledger_trouble = None
            self._telemetry.warn("ledger_available", batch=batch)

    def _refuse(self, write: Write, reason: str) -> None:
        self._tell(write.reply_to, WriteRefused(write.incarnation, write.token, reason))

    def _tell(self, name: str, message: Committed | WriteRefused) -> None:
        mailbox = self._directory.mailboxes.get(name)
        if mailbox is not None:
            mailbox.put_reserved_nowait(message)
