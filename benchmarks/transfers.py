"""Transfers for the ledger's benchmarks, with everything that a transfer has in the engine.

Each is an entry of its own: an id, two accounts, an amount, a kind, a phase, a payment, an
operation, a time. With `two_phases` every second one is a hold and every other posts a hold that
an earlier batch made, which the database compares with what it resolves.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Literal

from engine.domain.entry import Batch, Entry
from engine.domain.ids import new_id
from engine.domain.posting import Books, Transfer, books_of, leg

START_MS = 1_800_000_000_000
ACCOUNTS = 10_000
GATEWAYS = 4
Shape = Literal["payments", "spread", "hot"]
"""Between whom: `payments` as in the engine, one of four gateways' receivables and one of ten
thousand merchants'; `spread`, both sides of ten thousand; `hot`, always the same two accounts."""


class TransferSource:
    """Numbers transfers and makes batches of them."""

    def __init__(
        self, *, shape: Shape = "payments", two_phases: bool = True, seed: int = 1
    ) -> None:
        merchants = {"payments": ACCOUNTS, "spread": ACCOUNTS // 2, "hot": 1}[shape]
        gateways = {"payments": GATEWAYS, "spread": ACCOUNTS // 2, "hot": 1}[shape]
        self._books: list[Books] = [
            books_of(f"mer_{shape}_{n:06d}", f"gateway_{shape}_{n % gateways}", "EUR", True)
            for n in range(merchants)
        ]
        self._random = Random(seed)
        self._two_phases = two_phases
        self._holds: list[Transfer] = []

    def batches(self, first_id: int, count: int, size: int) -> Iterator[Batch]:
        """`count` batches of `size` transfers, numbered from `first_id`."""
        for n in range(count):
            at = first_id + n * size
            transfers = self._transfers(at, size)
            yield Batch(f"b-{at}", START_MS + at, tuple(Entry(transfers=(t,)) for t in transfers))

    def entries(self, first_id: int, count: int) -> list[Entry]:
        """Entries of one transfer each."""
        return [Entry(transfers=(t,)) for t in self._transfers(first_id, count)]

    def _transfers(self, first_id: int, count: int) -> list[Transfer]:
        posts = self._holds[: count // 2] if self._two_phases else []
        del self._holds[: len(posts)]
        made: list[Transfer] = []
        for number in range(first_id, first_id + count):
            if number % 2 and posts:
                hold = posts.pop()
                made.append(
                    Transfer(
                        number, hold.debit, hold.credit, hold.amount, "hold", "post_pending",
                        hold.payment_id, 1, START_MS + number, hold.id,
                    )
                )  # fmt: skip
                continue
            books = self._books[self._random.randrange(len(self._books))]
            payment = new_id("pay_", START_MS + number, number % 4096, number)
            new = leg(
                books, "hold", id=number, amount=1_099, payment_id=payment, op=1,
                event_ms=START_MS + number, phase="pending" if self._two_phases else "posted",
            )  # fmt: skip
            made.append(new)
            if self._two_phases:
                self._holds.append(new)
        return made
