"""What no batch may do to the accounts' totals, checked before it is sent.

The totals in the database follow the journal a moment behind, so what they would refuse must be
refused here. There is one writer, so what it remembers is what is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.ledger.rows import INT64_MAX, Move
from engine.ports import EntryInvalid


class TotalsGuard:
    """Knows what is pending on each side of the accounts, and how large a total can be by now."""

    def __init__(self) -> None:
        self._pending: dict[int, int] = {}  # by side; what is absent is 0
        self._most = 0

    def reset(self, pending: Iterable[tuple[int, int, int]], most: int) -> None:
        """Begin with (account, debits pending, credits pending) and the largest total there is."""
        self._pending.clear()
        self._most = most
        for account, debits, credits_ in pending:
            self._keep({account * 2: debits, account * 2 + 1: credits_})

    def check(self, moves: Sequence[Move]) -> tuple[dict[int, int], int]:
        """What a batch would lead to, for `keep` when it has been committed.

        Raises EntryInvalid where second phases take more than is pending, and where a total might
        not fit its column. No total grows by more than all that is moved, which is bounded here:
        2**63 - 1 minor units in the life of a process.
        """
        after: dict[int, int] = {}
        met, find, most = after.get, self._pending.get, self._most
        for debit, credit, pending, posted, _transfers in moves:
            most += posted
            if pending:
                most += abs(pending)
                side = debit * 2
                now = met(side)
                after[side] = (find(side, 0) if now is None else now) + pending
                side = credit * 2 + 1
                now = met(side)
                after[side] = (find(side, 0) if now is None else now) + pending
        if most > INT64_MAX:
            raise EntryInvalid("invalid: NumericValueOutOfRangeError")
        if after and min(after.values()) < 0:
            raise EntryInvalid("invalid: pending_not_negative")
        return after, most

    def keep(self, checked: tuple[dict[int, int], int]) -> None:
        """The batch is durable."""
        pending, self._most = checked
        self._keep(pending)

    def _keep(self, pending: dict[int, int]) -> None:
        kept = self._pending
        for side, amount in pending.items():
            if amount:
                kept[side] = amount
            else:
                kept.pop(side, None)
