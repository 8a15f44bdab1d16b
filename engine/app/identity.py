"""The real clock and the real source of ids."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from random import Random, SystemRandom
from typing import Final

from engine.domain.ids import new_id, slot_of, slot_of_key
from engine.domain.steady import SteadyTime

# Where there is one, a clock that also counts while the machine is suspended.
_ELAPSED = getattr(time, "CLOCK_BOOTTIME", None)


_elapsed_ns: Callable[[], int] = (
    time.monotonic_ns if _ELAPSED is None else partial(time.clock_gettime_ns, _ELAPSED)
)

_HELD_NS: Final = 500_000
"""For how long one reading is good: it is asked for several times for each payment."""


class SystemClock:
    """Wall time that neither goes back nor jumps within a process, whoever sets the machine's."""

    def __init__(self) -> None:
        self._steady = SteadyTime(time.time_ns(), _elapsed_ns())
        self._now_ms = 0
        self._good_until_ns = 0

    def now_ms(self) -> int:
        """Unix milliseconds; half of one late at most."""
        elapsed_ns = _elapsed_ns()
        if elapsed_ns >= self._good_until_ns:
            self._good_until_ns = elapsed_ns + _HELD_NS
            self._now_ms = self._steady.now_ms(time.time_ns(), elapsed_ns)
        return self._now_ms


class RandomIds:
    """New ids from a clock and a generator, which is seeded from the system's entropy.

    A plain generator is enough: ids need to be unique, and nothing is granted to who guesses one.
    """

    def __init__(self, clock: SystemClock) -> None:
        self._clock = clock
        self._random = Random(SystemRandom().getrandbits(128))
        self._transfer = 0

    def payment(self, slot_key: str | None) -> str:
        """A new payment id, in the slot of `slot_key` or a random one."""
        bits = self._random.getrandbits(72)
        slot = slot_of_key(slot_key) if slot_key is not None else bits >> 60
        return new_id("pay_", self._clock.now_ms(), slot, bits & 0xFFF_FFFF_FFFF_FFFF)

    def new(self, prefix: str, payment_id: str | None = None) -> str:
        """A new id; it carries its payment's slot when there is one."""
        bits = self._random.getrandbits(72)
        slot = slot_of(payment_id) if payment_id is not None else bits >> 60
        return new_id(f"{prefix}_", self._clock.now_ms(), slot, bits & 0xFFF_FFFF_FFFF_FFFF)

    def continue_after(self, last_transfer: int) -> None:
        """Number transfers after the last one in the journal."""
        self._transfer = max(self._transfer, last_transfer)

    def transfer(self) -> int:
        """The next transfer id."""
        self._transfer += 1
        return self._transfer

    def jitter(self) -> float:
        """A number in [0, 1)."""
        return self._random.random()
