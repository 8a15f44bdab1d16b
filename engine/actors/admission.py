"""Who is let in: a credit for whatever is under way, and a place in the queue of a shard.

A request has begun when its intent is durable. From then on it may wait for its gateway, which
takes memory and nothing else; credits bound that. Until then it stands in its shard's queue, and a
queue that never goes down only makes everybody wait. A burst is not one: it is let in and worked
off. CoDel (RFC 8289) tells the two apart by the least there was in a while, and Little's law says
how long a queue may be: as many as are begun in `queue_s`.

Every shard has a queue of its own, so that one that is stuck keeps nobody else out.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from engine.actors.settings import ActorSettings

LOOKS: Final = 10
"""For so many looks in a row a queue must have stood: a second of them. Its pace is theirs too."""
COMMITS: Final = 2
"""A queue is never shorter than what so many commits take: the one under way, and the next."""


class Queue:
    """The requests of one shard that have not begun."""

    __slots__ = ("_least", "_left", "_lowest", "_most", "_queue_s", "_seen", "_standing",
                 "_was_full", "length", "limit")  # fmt: skip

    def __init__(self, *, most: int, least: int, queue_s: float) -> None:
        """`limit` is from `least` to `most`; below half of `least` there is no queue at all."""
        self._most = most
        self._least = least
        self._queue_s = queue_s
        self.limit = most
        """How many may wait at the moment."""
        self.length = 0
        """How many do."""
        self._left = 0
        self._lowest = 0
        self._was_full = False
        self._standing = 0
        self._seen: deque[tuple[float, int]] = deque(maxlen=LOOKS + 1)

    @property
    def is_limited(self) -> bool:
        """Whether it stands, so that not everybody is let in for whom there is a credit."""
        return self.limit < self._most

    def enter(self) -> None:
        """A request was let in."""
        self.length += 1
        if self.length >= self.limit:
            self._was_full = True

    def leave(self) -> None:
        """A request has begun, or ended before that."""
        self._left += 1
        self.length -= 1
        if self.length < self._lowest:
            self._lowest = self.length

    def look(self, now: float, commit_s: float) -> None:
        """Set the limit by what has happened; called ten times a second. Both are seconds."""
        # What leaves, leaves by the commit. So a short queue may be empty for a moment although
        # people are turned away: then it stands all the same.
        keeps_out = self.is_limited and self._was_full
        stands = keeps_out or 2 * self._lowest >= self._least
        # Counted in looks: of a pause in which nobody looked, nothing is known.
        self._standing = self._standing + 1 if stands else 0
        self._lowest = self.length
        self._was_full = self.length >= self.limit
        self._seen.append((now, self._left))
        self.limit = self._most
        then, left = self._seen[0]
        if self._standing >= LOOKS and then < now:
            per_s = (self._left - left) / (now - then)
            so_many = round(per_s * max(self._queue_s, COMMITS * commit_s))
            self.limit = min(self._most, max(self._least, so_many))


class Admission:
    """The credits, and the queues by number of shard. Plain state; the router moves it."""

    __slots__ = ("credits", "queues")

    def __init__(self, settings: ActorSettings) -> None:
        self.credits = settings.credits
        """Those that are free."""
        self.queues = [
            Queue(
                most=settings.credits,
                least=settings.queue_least,
                queue_s=settings.queue_ms / 1000,
            )
            for _ in range(settings.shards)
        ]

    def is_full(self, before: int = 0) -> bool:
        """Whether nobody can be let in, whatever the shard, after so many `before` them."""
        if self.credits <= before:
            return True
        for queue in self.queues:
            left = queue.limit - queue.length
            if left > 0:
                before -= left
                if before < 0:
                    return False
        return True

    def has_room(self, shard: int) -> bool:
        """Whether another one may wait for this shard."""
        queue = self.queues[shard]
        return queue.length < queue.limit

    def enter(self, shard: int) -> Queue:
        """Take a credit and a place; returns the queue, which is to be left."""
        self.credits -= 1
        queue = self.queues[shard]
        queue.enter()
        return queue

    def look(self, now: float, commit_s: float) -> None:
        """Set the limits of all queues."""
        for queue in self.queues:
            queue.look(now, commit_s)
