"""What no batch may do to the accounts' totals, checked before it is sent.

The totals in the database follow the journal a moment behind, so what they would refuse must be
refused here. There is one writer, so what it remembers is what is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from engine.ledger.packing import OUT_OF_RANGE
from engine.ledger.rows import INT64_MAX
from engine.ports import EntryInvalid

Guarded = tuple[dict[int, int], int]
"""What a batch leads to: pending by side where it changes, and how large a total can be then."""


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

    def measure(self, most: int) -> None:
        """The largest total that there is, as it was read after the last batch that was kept."""
        self._most = most

    def check(self, added: Mapping[int, int], moved: int, before: Guarded | None = None) -> Guarded:
        """What a batch would lead to, for `keep` when it has been committed.

        `added` and `moved` are `pending` and `moved` of its rows; `before` is what the batch before
        it leads to, where that one is not kept yet.
        Raises EntryInvalid where second phases take more than is pending, and where a total might
        not fit its column. No total grows by more than all that is moved, so that is added up here
        until it comes to 2**63 - 1 minor units; what is there by then has to be measured anew.
        """
        find = self._pending.get
        if before is None:
            most = self._most + moved
            after = {side: find(side, 0) + change for side, change in added.items()}
        else:
            earlier, most = before
            most += moved
            after = {
                side: (earlier[side] if side in earlier else find(side, 0)) + change
                for side, change in added.items()
            }
        if most > INT64_MAX:
            raise EntryInvalid(OUT_OF_RANGE)
        if after and min(after.values()) < 0:
            raise EntryInvalid("invalid: pending_not_negative")
        return after, most

    def keep(self, guarded: Guarded) -> None:
        """The batch is durable."""
        pending, self._most = guarded
        self._keep(pending)

    def _keep(self, pending: dict[int, int]) -> None:
        kept = self._pending
        for side, amount in pending.items():
            if amount:
                kept[side] = amount
            else:
                kept.pop(side, None)
