"""A bounded queue that outlives the actor reading it.

The mailbox belongs to the supervisor's side: an actor opens it with `attach()` at each start and
gets a `MailboxReader` for that one incarnation. What the incarnation was handed and had not
acknowledged when it ended goes back to the front, in order, so a restart loses nothing.

Poison. After a crash the messages that were in the crashed actor's hands are *suspects*: they are
handed out one at a time from then on, so the next crash has exactly one culprit. A message that
crashed its actor `crashes_max` times is parked as a dead letter; its neighbours go on.
"""

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import anyio
import anyio.lowlevel
import msgspec

from engine.supervisor.errors import MailboxFull, MailboxRevoked

T = TypeVar("T")


class DeadLetter(msgspec.Struct, Generic[T], frozen=True):
    """A message that will not be delivered again, with the reason of the last crash."""

    message: T
    reason: str
    crashes: int


class MailboxStatistics(msgspec.Struct, frozen=True):
    """Counts since the mailbox was made; `depth` is waiting plus handed out and unacknowledged."""

    depth: int
    capacity: int
    reserved_capacity: int
    high_water: int
    received: int
    delivered: int
    dead_letters: int
    is_revoked: bool


class MailboxReader(Generic[T]):
    """One incarnation's right to read a mailbox; it ends with the incarnation or by `revoke()`."""

    # Slots keep `acknowledge_one` at a load and an add: it runs once per message.
    __slots__ = ("_batch", "_crashes", "_cursor", "_mailbox", "_revoked")

    def __init__(self, mailbox: "Mailbox[T]") -> None:
        self._mailbox = mailbox
        self._batch: list[T] = []
        self._cursor = 0
        self._crashes = 0  # crashes of the single suspect in the batch, 0 for an ordinary batch
        self._revoked = False

    async def receive_all(self) -> list[T]:
        """Wait until there is a message, then take all that wait, oldest first.

        After a crash the suspects come first, one per call. The caller must not change the list,
        and must have acknowledged the last one, as a whole or one by one. Always a checkpoint; a
        cancelled wait takes nothing. Raises MailboxRevoked when this incarnation has lost its
        mailbox.
        """
        await self.wait()
        return self.take_all()

    async def wait(self) -> None:
        """Wait until there is a message, and take none. Always a checkpoint.

        The last batch must have been acknowledged.
        """
        assert self._cursor >= len(self._batch), "acknowledge a batch before receiving the next"
        if self._batch:
            self.acknowledge()
        mailbox = self._mailbox
        await anyio.lowlevel.checkpoint()
        while not self._revoked and not mailbox._waiting and not mailbox._suspects:
            mailbox._bell = bell = anyio.Event()
            await bell.wait()

    def waiting(self) -> int:
        """How many messages there are to take; suspects of a crash are not counted."""
        return len(self._mailbox._waiting)

    def take_all(self) -> list[T]:
        """As `receive_all`, of what there is at the moment."""
        mailbox = self._mailbox
        if self._revoked:
            raise MailboxRevoked("another incarnation owns this mailbox now")
        if mailbox._suspects:
            message, self._crashes = mailbox._suspects.popleft()
            batch = [message]
        else:
            batch, mailbox._waiting = mailbox._waiting, []
        self._batch = batch
        mailbox._delivered += len(batch)
        return batch

    def acknowledge_one(self) -> None:
        """Mark the next message of the batch as handled; a crash then redelivers only the rest.

        Gives its room back. Raises MailboxRevoked.
        """
        if self._revoked:
            raise MailboxRevoked("another incarnation owns this mailbox now")
        self._cursor += 1

    def acknowledge(self) -> None:
        """Mark the whole batch as handled and give its room back. Raises MailboxRevoked."""
        if self._revoked:
            raise MailboxRevoked("another incarnation owns this mailbox now")
        self._mailbox._settled += len(self._batch)
        self._batch = []
        self._cursor = 0
        self._crashes = 0


class Mailbox(Generic[T]):
    """A bounded queue of messages with one reader at a time. Not for use across threads.

    `capacity` bounds all messages held, waiting or in the reader's hands. `reserved_capacity` is
    room beyond it that only `put_reserved_nowait` may use: replies, outcomes and recovery of work
    that was admitted. Ordinary messages can't fill it, so a cycle of actors can't deadlock.
    """

    def __init__(
        self,
        *,
        capacity: int,
        reserved_capacity: int,
        crashes_max: int = 2,
        dead_letters_max: int = 1_000,
        on_dead_letter: Callable[[DeadLetter[T]], None] | None = None,
    ) -> None:
        """`on_dead_letter` sees every dead letter; the last `dead_letters_max` are kept.

        Raises ValueError for numbers that make no mailbox.
        """
        if capacity < 1 or reserved_capacity < 0 or crashes_max < 1 or dead_letters_max < 1:
            raise ValueError(
                "a mailbox needs capacity >= 1, reserved_capacity >= 0, crashes_max >= 1"
                " and dead_letters_max >= 1"
            )
        self._capacity = capacity
        self._reserved_capacity = reserved_capacity
        self._crashes_max = crashes_max
        self._on_dead_letter = on_dead_letter
        self._dead_letters: deque[DeadLetter[T]] = deque(maxlen=dead_letters_max)
        self._dead_letter_count = 0
        self._waiting: list[T] = []
        self._suspects: deque[tuple[T, int]] = deque()
        self._reader: MailboxReader[T] | None = None
        self._bell: anyio.Event | None = None
        self._is_revoked = False
        # Depth is the difference of these two, so the hot path keeps one counter, not two.
        self._received = 0
        self._settled = 0
        self._delivered = 0
        self._high_water = 0

    @property
    def dead_letters(self) -> tuple[DeadLetter[T], ...]:
        """The parked messages, oldest first."""
        return tuple(self._dead_letters)

    def put_nowait(self, message: T) -> None:
        """Add a message at the end.

        Raises MailboxFull at capacity, and MailboxRevoked between `revoke()` and the next
        `attach()`: nobody is there to handle new work. Between a crash and the restart messages
        are accepted and kept.
        """
        if self._is_revoked:
            raise MailboxRevoked("the mailbox has no reader; its actor was abandoned")
        self._put(message, self._capacity)

    def put_reserved_nowait(self, message: T) -> None:
        """Add a reply, an outcome or recovery work, which may use the reserved room.

        Accepted while revoked too, because the work it belongs to was admitted. Raises
        MailboxFull when the reserved room is used up as well: a sizing error of the caller.
        """
        self._put(message, self._capacity + self._reserved_capacity)

    def _put(self, message: T, limit: int) -> None:
        depth = self._received - self._settled
        if self._reader is not None:
            depth -= self._reader._cursor  # Handled, with others of its batch still to come.
        if depth >= limit:
            raise MailboxFull(f"the mailbox holds {depth} of {limit} messages")
        self._waiting.append(message)
        self._received += 1
        if depth >= self._high_water:
            self._high_water = depth + 1
        if self._bell is not None:
            self._ring()

    def _ring(self) -> None:
        if self._bell is not None:
            self._bell.set()
            self._bell = None

    def attach(self) -> MailboxReader[T]:
        """Open the mailbox for a new incarnation and lock every earlier one out.

        What an earlier reader still held goes back to the front without blame.
        """
        self.requeue_unacknowledged()
        self._is_revoked = False
        self._reader = MailboxReader(self)
        return self._reader

    def requeue_unacknowledged(self, *, crash_reason: str | None = None) -> None:
        """Take the reader's mailbox away and put what it had not acknowledged at the front.

        With a `crash_reason` the first of those messages is blamed and all become suspects; at
        `crashes_max` the blamed one is parked as a dead letter instead. The supervisor calls this
        at the end of every incarnation.
        """
        reader, self._reader = self._reader, None
        if reader is None:
            return
        reader._revoked = True
        self._ring()  # a reader left waiting must learn that it lost its mailbox
        self._settled += min(reader._cursor, len(reader._batch))
        rest = reader._batch[reader._cursor :]
        if not rest:
            return
        if crash_reason is not None:
            self._blame(rest[0], reader._crashes + 1, rest[1:], crash_reason)
        elif self._suspects or reader._crashes:
            # While there are suspects a batch is one suspect, and it goes back before the others.
            self._suspects.extendleft((message, reader._crashes) for message in reversed(rest))
        else:
            self._waiting[:0] = rest

    def _blame(self, culprit: T, crashes: int, neighbours: list[T], reason: str) -> None:
        self._suspects.extendleft((message, 0) for message in reversed(neighbours))
        if crashes < self._crashes_max:
            self._suspects.appendleft((culprit, crashes))
            return
        self._settled += 1
        self.park(DeadLetter(message=culprit, reason=reason, crashes=crashes))

    def park(self, letter: DeadLetter[T]) -> None:
        """Keep a message that no incarnation is to see again, also one handed out before."""
        self._dead_letters.append(letter)
        self._dead_letter_count += 1
        if self._on_dead_letter is not None:
            # The letter is kept either way, and an observer may not stop the restart under way.
            with contextlib.suppress(Exception):
                self._on_dead_letter(letter)

    def revoke(self, reason: str) -> None:
        """Lock out an incarnation that can't be ended, and refuse new work until the next one.

        The message it hangs on is blamed as if it had crashed, since it would hang again.
        """
        self.requeue_unacknowledged(crash_reason=reason)
        self._is_revoked = True

    def statistics(self) -> MailboxStatistics:
        """The state at this moment."""
        reader = self._reader
        progress = min(reader._cursor, len(reader._batch)) if reader is not None else 0
        return MailboxStatistics(
            depth=self._received - self._settled - progress,
            capacity=self._capacity,
            reserved_capacity=self._reserved_capacity,
            high_water=self._high_water,
            received=self._received,
            delivered=self._delivered,
            dead_letters=self._dead_letter_count,
            is_revoked=self._is_revoked,
        )
