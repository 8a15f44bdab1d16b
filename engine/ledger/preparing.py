"""What a batch becomes before it is sent, and what of the journal has to be known for that.

There is no database in it. So the batch that follows can be made ready while one is under way,
from where the journal will end if that one is applied. Whether it ended there is told by the hash
of its head, which stands for everything before it: the batches, their transfers, and the accounts
that they opened. What is not in the journal, the epoch and the numbers of types, goes with the
connection.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from engine.domain.entry import Batch
from engine.domain.journal import GENESIS, seal
from engine.domain.posting import AccountKey
from engine.ledger.guard import Guarded, TotalsGuard
from engine.ledger.packing import pack
from engine.ledger.rows import Numbers, Pair, Rows, build, building
from engine.ports import Receipt

LANE: Final = 0
COPIED_MIN: Final = 2_000
"""From so many transfers on, COPY saves more than the round trips it adds."""
PAIRS_MAX: Final = 50_000
"""Pairs of accounts whose numbers are remembered: about 200 bytes each."""


class Prepared(msgspec.Struct, frozen=True):
    """A batch that is ready to be sent, as long as `after` is the head of the chain."""

    batch: Batch
    after: Receipt
    head: Receipt
    """What the head will be when the batch has been applied."""
    rows: Rows
    last_account: int
    guarded: Guarded
    arguments: list[Any]
    """Of `append_batch`."""


def is_copied(rows: Rows) -> bool:
    """Whether the transfers are so many that they go by COPY, and not among the arguments."""
    return len(rows.transfers) >= COPIED_MIN


class Preparer:
    """Makes batches ready, and remembers of those that were applied what the next ones need."""

    def __init__(self) -> None:
        self.head = Receipt(number=0, hash=GENESIS)
        self.head_key = ""
        self.last_account = 0
        self._epoch = 0
        self._types: Mapping[str, int] = {}
        self._accounts: dict[AccountKey, int] = {}
        self._pairs: dict[Pair, Numbers] = {}
        self._guard = TotalsGuard()

    @property
    def accounts(self) -> int:
        """How many accounts are known, which is all there are."""
        return len(self._accounts)

    def begin(
        self,
        epoch: int,
        types: Mapping[str, int],
        *,
        head: Receipt,
        head_key: str,
        opened: Iterable[Sequence[Any]],
        pending: Iterable[tuple[int, int, int]],
        largest_total: int,
    ) -> None:
        """Go on from what a connection has read.

        `types`: the numbers of the input types; `opened`: the accounts above `last_account`;
        `pending`: account, debits pending, credits pending.
        """
        self._epoch, self._types = epoch, types
        self.head, self.head_key = head, head_key
        for id_, *key in opened:
            self._accounts[AccountKey(*key)] = self.last_account = id_
        self._guard.reset(pending, largest_total)

    def rows_of(self, batch: Batch) -> Rows:
        """The rows of a batch that is sent next. Raises EntryInvalid."""
        return build(batch, self._accounts, self.last_account + 1, self._pairs)

    def check(self, rows: Rows, before: Prepared | None = None) -> Guarded:
        """Compare the rows with what is pending, after `before` too. Raises EntryInvalid."""
        earlier = None if before is None else before.guarded
        return self._guard.check(rows.pending, rows.moved, earlier)

    def measure(self, largest_total: int) -> None:
        """How large a total is by now, at the head of the chain."""
        self._guard.measure(largest_total)

    def prepare(
        self, batch: Batch, rows: Rows, guarded: Guarded, before: Prepared | None = None
    ) -> Prepared:
        """Seal and pack a batch that is sent next, or after `before`.

        Raises EntryInvalid, and UnicodeEncodeError where text has no UTF-8 form.
        """
        after = before.head if before else self.head
        last_account = before.last_account if before else self.last_account
        number = after.number + 1
        hash_ = seal(
            after.hash,
            number,
            batch.key,
            batch.recorded_ms,
            rows.transfers,
            accounts=rows.accounts,
            lane=LANE,
        )
        head = Receipt(number=number, hash=hash_)
        arguments = self._arguments(batch, rows, after, head)
        last_account += len(rows.opened)
        return Prepared(batch, after, head, rows, last_account, guarded, arguments)

    def preparing(self, batch: Batch, before: Prepared) -> Generator[None, None, Prepared]:
        """All of that in steps, for a batch that is sent after `before`. Raises as they do."""
        known = ChainMap(before.rows.opened, self._accounts)
        rows = Rows()
        yield from building(rows, batch, known, before.last_account + 1, self._pairs)
        return self.prepare(batch, rows, self.check(rows, before), before)

    def keep(self, prepared: Prepared) -> None:
        """The batch is durable."""
        rows = prepared.rows
        self._accounts.update(rows.opened)
        if rows.numbered:
            if len(self._pairs) > PAIRS_MAX:
                self._pairs.clear()
            self._pairs.update(rows.numbered)
        self.last_account = prepared.last_account
        self._guard.keep(prepared.guarded)
        self.head_key = prepared.batch.key
        self.head = prepared.head

    def _arguments(self, batch: Batch, rows: Rows, after: Receipt, head: Receipt) -> list[Any]:
        transfers, types = rows.transfers, self._types
        copied = is_copied(rows)
        return [
            LANE,
            head.number,
            batch.key,
            self._epoch,
            batch.recorded_ms,
            transfers[0][0] if transfers else 0,
            transfers[-1][0] if transfers else 0,
            len(transfers),
            after.hash,
            head.hash,
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
