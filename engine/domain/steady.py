"""A clock that never jumps: what a process goes by while the machine's clock is set.

Waits, deadlines and what is concluded from them are counted in Unix milliseconds, because they are
stored. If those jumped by two hours, an operation of two seconds ago would look as old as that, and
the gateway's "not found" would be believed while its look-ups still lag. So time passes here as the
machine's monotonic clock does, and a difference to its wall clock is made up for gradually.
"""

from __future__ import annotations

from typing import Final

_SLEW: Final = 20
"""At most a twentieth of the time that passes is added or left out to come right again."""


class SteadyTime:
    """Wall time for one process, from two readings of its machine. Pure: it reads no clock."""

    __slots__ = ("_monotonic_ns", "_now_ns")

    def __init__(self, wall_ns: int, monotonic_ns: int) -> None:
        """Begin at what the wall clock shows."""
        self._now_ns = wall_ns
        self._monotonic_ns = monotonic_ns

    def now_ms(self, wall_ns: int, monotonic_ns: int) -> int:
        """Unix milliseconds: never back, never by more than has passed and a twentieth of it."""
        passed_ns = monotonic_ns - self._monotonic_ns
        if passed_ns > 0:
            self._monotonic_ns = monotonic_ns
            behind_ns = wall_ns - self._now_ns - passed_ns
            limit_ns = passed_ns // _SLEW
            self._now_ns += passed_ns + max(-limit_ns, min(limit_ns, behind_ns))
        return self._now_ns // 1_000_000
