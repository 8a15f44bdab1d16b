"""Who waits for replies: single requests, and batches with many items at once.

Plain state without any waiting of its own; the router moves it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import takewhile

import msgspec

from engine.actors.admission import Queue
from engine.domain.entry import Answer, KeyRef
from engine.domain.refusals import Refusal
from engine.ports import Ask, Event


class Waiter:
    """A request under way, and all who wait for its one reply (several, joined by a key)."""

    __slots__ = (
        "answer",
        "deadline",
        "done",
        "fingerprint",
        "gathering",
        "gatherings",
        "is_woken",
        "key_taken",
        "payment_id",
        "queue",
        "ref",
        "request_id",
    )

    def __init__(
        self,
        request_id: str,
        payment_id: str,
        ref: KeyRef | None,
        fingerprint: bytes,
        deadline: float,
        done: Event | None = None,
    ) -> None:
        self.request_id = request_id
        self.payment_id = payment_id
        self.ref = ref
        self.fingerprint = fingerprint
        self.deadline = deadline
        self.done = done
        """Of the single request that waits; an item of a batch has none unless one joins it."""
        self.answer: Answer | None = None
        self.key_taken = False
        self.queue: Queue | None = None
        """Where it stands until it has begun."""
        self.is_woken = False
        self.gathering: Gathering | None = None
        """The batch whose item this is; it waits for it like any other that joined."""
        self.gatherings: tuple[tuple[Gathering, int], ...] = ()
        """The batches that wait for it, with the item's place in each."""

    def begin(self) -> None:
        """Its intent is durable, or there will be none."""
        if self.queue is not None:
            self.queue.leave()
            self.queue = None

    def wake(self) -> None:
        """Tell everybody who waits that there is a reply, or that the wait is over."""
        self.is_woken = True
        if self.done is not None:
            self.done.set()
        # Told once: at the end of the wait, and those that join later with the reply.
        told, self.gatherings = self.gatherings, ()
        for gathering, place in told:
            gathering.settle(place)


class Remembered(msgspec.Struct, frozen=True, gc=False):
    """The final answer of a key, and the fingerprint of the request that it belongs to."""

    fingerprint: bytes
    answer: Answer


class Gathering:
    """The items of one batch: which may start, which wait for another, what came of each.

    One event for all of them. Items of one payment follow one another, each after the answer of
    the one before; an item with the key of an earlier one does not run at all.
    """

    __slots__ = (
        "_follower",
        "_left",
        "answers",
        "asks",
        "copies",
        "deadline",
        "done",
        "is_over",
        "ready",
        "refusals",
        "waiters",
    )

    def __init__(self, asks: Sequence[Ask], deadline: float, done: Event) -> None:
        self.asks = asks
        self.deadline = deadline
        self.done = done
        self.is_over = False
        self.ready: deque[int] = deque()
        """Places of the items that may start, in order."""
        self.copies: dict[int, int] = {}
        """Items with the key of an earlier item, and that item's place."""
        self.waiters: list[Waiter | None] = [None] * len(asks)
        self.answers: list[tuple[Answer, bool] | None] = [None] * len(asks)
        """What needed no waiter, because it had been answered before."""
        self.refusals: dict[int, Refusal] = {}
        """What was not admitted, and why."""
        self._follower: dict[int, int] = {}
        keys: dict[str, int] = {}
        last: dict[str, int] = {}
        for place, ask in enumerate(asks):
            if ask.key is not None:
                first = keys.setdefault(ask.key, place)
                if first != place:
                    self.copies[place] = first
                    continue
            if ask.payment_id is None:
                self.ready.append(place)
                continue
            before = last.get(ask.payment_id)
            last[ask.payment_id] = place
            if before is None:
                self.ready.append(place)
            else:
                self._follower[before] = place
        self._left = len(asks) - len(self.copies)

    def wait_for(self, place: int, waiter: Waiter) -> None:
        """This item's answer is the reply to that request."""
        self.waiters[place] = waiter
        waiter.gatherings = (*waiter.gatherings, (self, place))

    def answer(self, place: int, answer: Answer, *, replayed: bool = False) -> None:
        """This item's answer is known already."""
        self.answers[place] = (answer, replayed)
        self.settle(place)

    def refuse(self, place: int, refusal: Refusal) -> None:
        """This item is not admitted."""
        self.refusals[place] = refusal
        self.settle(place)

    def settle(self, place: int) -> None:
        """An item has its answer, or the end of its wait: the next of its payment may start."""
        if self.is_over:
            return
        follower = self._follower.pop(place, None)
        if follower is not None:
            self.ready.append(follower)
        self._left -= 1
        if not self._left:
            self.done.set()

    def end(self) -> None:
        """Whoever waits goes on with what there is, and nothing more starts."""
        self.is_over = True
        self.ready.clear()
        self.done.set()

    def followers(self) -> frozenset[int]:
        """The items that still wait for another one of their payment."""
        return frozenset(self._follower.values())


def overdue(queue: dict[str, Waiter], now: float) -> list[Waiter]:
    """Those whose deadline has passed; they stand at the front."""
    return list(takewhile(lambda waiter: waiter.deadline <= now, queue.values()))


def ref_of(ask: Ask) -> KeyRef | None:
    """The key of a request, among those of its merchant and mode."""
    if ask.key is None:
        return None
    return KeyRef(ask.command.merchant_id, ask.command.livemode, ask.key)
