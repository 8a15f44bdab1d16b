"""Messages that wait until their payment is free: they outlive the actor that lined them up.

A message in line has been acknowledged, so no mailbox would deliver it again after a crash. The
next incarnation handles what its predecessor left here, in the order of each line; and a message
that crashed its actor twice on its turn is parked, as a mailbox parks one (`Mailbox.park`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from engine.supervisor.mailbox import DeadLetter

CRASHES_MAX = 2


class Lines:
    """The lines of one shard, by payment id."""

    def __init__(self, park: Callable[[DeadLetter[Any]], None]) -> None:
        self._park = park
        self._by_payment: dict[str, deque[Any]] = {}
        self._left: deque[Any] = deque()
        # How often the turn of a message ended in a crash, by its identity; the message is kept
        # beside the count, so that the identity stays its own.
        self._crashes: dict[int, tuple[Any, int]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_payment.values())) + len(self._left)

    def __contains__(self, payment_id: str) -> bool:
        return payment_id in self._by_payment

    def add(self, payment_id: str, message: Any) -> None:
        """Put a message at the end of its payment's line."""
        self._by_payment.setdefault(payment_id, deque()).append(message)

    def first(self, payment_id: str) -> Any:
        """The message whose turn comes next; None: there is no line."""
        line = self._by_payment.get(payment_id)
        return line[0] if line else None

    def next_turn(self, payment_id: str, handle: Callable[[Any], None]) -> None:
        """Handle the first message of a line; a crash is held against it."""
        line = self._by_payment[payment_id]
        message = line.popleft()
        if not line:
            del self._by_payment[payment_id]
        self.turn(message, handle)

    def turn(self, message: Any, handle: Callable[[Any], None]) -> None:
        """Handle one message of a line; a crash is held against it."""
        try:
            handle(message)
        except Exception as error:
            self._blame(message, f"{type(error).__name__}: {error}")
            raise
        if self._crashes and not self._holds(message):
            self._crashes.pop(id(message), None)

    def _holds(self, message: Any) -> bool:
        """Whether the message is in line (again): handled, but not done."""
        return any(message is other for line in self._by_payment.values() for other in line)

    def _blame(self, message: Any, reason: str) -> None:
        crashes = self._crashes.pop(id(message), (message, 0))[1] + 1
        if crashes >= CRASHES_MAX:
            self._park(DeadLetter(message=message, reason=reason, crashes=crashes))
        else:
            self._crashes[id(message)] = (message, crashes)
            self._left.appendleft(message)

    def begin_life(self) -> None:
        """What the last life left in line is handled first by the next one."""
        for line in self._by_payment.values():
            self._left.extend(line)
        self._by_payment.clear()

    def left(self) -> Any:
        """Take the next message that an earlier life left; None: there is none."""
        return self._left.popleft() if self._left else None
