"""When something durable is due again: retries of work, and look-ups of unknown outcomes.

Times are integer milliseconds since the epoch (UTC), because they are stored as rows' `due_at`.
Nothing here waits; the caller stores the time and sleeps until the earliest one.
"""

from typing import Final

import msgspec

from engine.domain.news import GatewayTraits

RETRY_DELAYS_MS: Final = (5 * 60_000, 15 * 60_000, 30 * 60_000)
"""Work the engine starts itself is tried again this long after each failed attempt."""

# Close together while young: an outcome that settles within 5 s of the charge is seen within
# 10 s, and what a crash left behind within 30 s of the restart, even where the gateway's own
# look-up lags. After that every gap doubles, up to 15 minutes, and that one repeats for ever.
_LOOKUP_DELAYS_S: Final = (1, 2, 4, 5, 5, 5, 5, 10, 20, 40, 80, 160, 320, 640, 900)


class LookupSchedule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the reconciler looks an operation up. Raises ValueError for a schedule it cannot run."""

    delays_ms: tuple[int, ...] = tuple(1_000 * delay_s for delay_s in _LOOKUP_DELAYS_S)
    """The gap before each look-up; the last one repeats."""
    jitter_ratio: float = 0.1
    """A gap is stretched by up to this part of itself."""
    review_after_ms: int = 24 * 3_600_000
    """After this long without an answer a person is asked; the look-ups go on."""

    def __post_init__(self) -> None:
        """Check the limits once, where settings are read."""
        if not self.delays_ms or min(self.delays_ms) < 1:
            raise ValueError("delays_ms must name at least one gap, each of 1 ms or more")
        if list(self.delays_ms) != sorted(self.delays_ms):
            raise ValueError("delays_ms must not shrink")
        if not 0.0 <= self.jitter_ratio <= 1.0:
            raise ValueError("jitter_ratio must be 0 to 1")
        if self.review_after_ms < 1:
            raise ValueError("review_after_ms must be 1 or more")


LOOKUPS: Final = LookupSchedule()


def retry_due_ms(attempts_failed: int, failed_at_ms: int) -> int | None:
    """When work is tried again after its nth failed attempt, or None: it is a dead letter.

    The first failure waits 5 minutes, the second 15 and the third 30, each counted from the
    failure before it; after the fourth failure nothing is tried by itself any more.
    """
    assert attempts_failed >= 1, attempts_failed
    if attempts_failed > len(RETRY_DELAYS_MS):
        return None
    return failed_at_ms + RETRY_DELAYS_MS[attempts_failed - 1]


def may_resend(first_ms: int, at_ms: int, traits: GatewayTraits) -> bool:
    """Whether the gateway still knows a key that it was first sent at `first_ms`."""
    return at_ms < first_ms + traits.resend_ms


def lookup_due_ms(
    lookups_done: int, last_ms: int, jitter: float, schedule: LookupSchedule = LOOKUPS
) -> int:
    """When to look an operation up next.

    `lookups_done` counts since the outcome became unknown, those of earlier engines included.
    `last_ms` is the time of the last look-up, or where there was none that of the beginning;
    `jitter` from 0 to 1 spreads operations that became unknown together.
    """
    assert lookups_done >= 0, lookups_done
    assert 0.0 <= jitter <= 1.0, jitter
    delay_ms = schedule.delays_ms[min(lookups_done, len(schedule.delays_ms) - 1)]
    return last_ms + delay_ms + int(delay_ms * schedule.jitter_ratio * jitter)


def review_due_ms(unknown_since_ms: int, schedule: LookupSchedule = LOOKUPS) -> int:
    """When an operation without an answer becomes a person's to decide.

    Counted from the first moment it was unknown, so that restarts do not put it off. It is
    neither failed nor forgotten then: an answer that comes later still counts.
    """
    return unknown_since_ms + schedule.review_after_ms
