"""When a gateway's circuit breaker opens, and for how long: decisions only.

The state itself (closed, open, half-open) is held elsewhere, by the gateway's actor; results that
arrive while it is not closed are not recorded here, and a window starts afresh when it closes.

Two sliding windows look at the same outcomes. The one over time sees an outage under load within
a second; the one over the last calls sees it when there are few calls. Beside them a run of
consecutive failures opens the breaker, because a dead gateway should not need the minimum.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec

OUTCOME_IS_OK: Final[Mapping[str, bool | None]] = MappingProxyType(
    {
        "approved": True,
        # The issuer said no: the gateway works.
        "declined": True,
        "action_required": True,
        "pending": True,
        # A look-up that finds nothing was answered all the same.
        "not_found": True,
        "failed_technical": False,
        # A time-out or a garbled reply is the first sign of an outage.
        "unknown": False,
        # Nothing was sent, so nothing was learned about the gateway.
        "not_sent": None,
    }
)
"""What an outcome says of the gateway's health: True fine, False a failure, None nothing."""

_WINDOW_MAX_S: Final = 600
_LAST_CALLS_MAX: Final = 1_000
_GROWTH_MAX: Final = 10.0
# Enough doublings to reach any maximum, few enough that no power overflows.
_OPENINGS_MAX: Final = 64


class BreakerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of one gateway's breaker. Raises ValueError for values that contradict each other."""

    window_s: int = 10
    last_calls: int = 50
    calls_min: int = 20
    """A ratio says nothing below this many calls in the window it is taken from."""
    failure_ratio: float = 0.5
    consecutive_failures: int = 5
    open_s: float = 2.0
    open_growth: float = 2.0
    open_max_s: float = 60.0
    jitter_ratio: float = 0.2
    """The open time is stretched by up to this part of itself."""

    def __post_init__(self) -> None:
        """Cross-check the limits once, where settings are read."""
        if not 1 <= self.window_s <= _WINDOW_MAX_S:
            raise ValueError(f"window_s must be 1 to {_WINDOW_MAX_S}")
        if not 1 <= self.calls_min <= self.last_calls <= _LAST_CALLS_MAX:
            raise ValueError(f"1 <= calls_min <= last_calls <= {_LAST_CALLS_MAX} must hold")
        if not 0.0 < self.failure_ratio <= 1.0:
            raise ValueError("failure_ratio must be above 0 and at most 1")
        if self.consecutive_failures < 1:
            raise ValueError("consecutive_failures must be at least 1")
        if not 0.0 < self.open_s <= self.open_max_s:
            raise ValueError("0 < open_s <= open_max_s must hold")
        if not 1.0 <= self.open_growth <= _GROWTH_MAX:
            raise ValueError(f"open_growth must be 1 to {_GROWTH_MAX}")
        if not 0.0 <= self.jitter_ratio <= 1.0:
            raise ValueError("jitter_ratio must be 0 to 1")


class Window(msgspec.Struct):
    """Outcomes since the breaker last closed. Made by `new_window`, changed by `record`.

    The totals only grow; `calls_before` and `failures_before` remember what they were at the
    start of each second of the window, one slot per second. The difference is the window, so
    an outcome costs two additions and nothing is summed.
    """

    second: int
    width_s: int
    calls_before: list[int]
    failures_before: list[int]
    last_mask: int
    calls: int = 0
    failures: int = 0
    consecutive: int = 0
    """Failures since the last success."""
    last_failed: int = 0
    """The last calls as bits, the newest lowest, 1 for a failure."""


class WindowCounts(msgspec.Struct, frozen=True):
    """What a window holds, for `statistics()`."""

    calls: int
    failures: int
    last_calls: int
    last_failures: int
    consecutive_failures: int


def counts_as_failure(outcome: str) -> bool:
    """Whether an outcome counts against the gateway. KeyError for a kind not in the table."""
    return OUTCOME_IS_OK[outcome] is False


def new_window(settings: BreakerSettings, now_s: float) -> Window:
    """An empty window that starts at `now_s` (seconds of any monotonic clock)."""
    return Window(
        second=int(now_s),
        width_s=settings.window_s,
        calls_before=[0] * settings.window_s,
        failures_before=[0] * settings.window_s,
        last_mask=(1 << settings.last_calls) - 1,
    )


def record(window: Window, now_s: float, ok: bool) -> None:
    """Add one outcome. A clock that steps back counts it in the latest second seen."""
    if now_s >= window.second + 1:
        _advance(window, int(now_s))
    window.calls += 1
    if ok:
        window.consecutive = 0
        # An int without a bit set needs no shift, which is every success of a healthy gateway.
        if window.last_failed:
            window.last_failed = (window.last_failed << 1) & window.last_mask
    else:
        window.failures += 1
        window.consecutive += 1
        window.last_failed = ((window.last_failed << 1) | 1) & window.last_mask


def should_open(window: Window, settings: BreakerSettings) -> bool:
    """Whether the breaker opens, as of the outcome last recorded; asked after a failure."""
    if window.consecutive >= settings.consecutive_failures:
        return True
    counts = counts_of(window)
    return (
        counts.calls >= settings.calls_min
        and counts.failures >= settings.failure_ratio * counts.calls
    ) or (
        counts.last_calls >= settings.calls_min
        and counts.last_failures >= settings.failure_ratio * counts.last_calls
    )


def counts_of(window: Window) -> WindowCounts:
    """The counts of both windows, as of the outcome last recorded."""
    oldest = (window.second + 1) % window.width_s
    return WindowCounts(
        calls=window.calls - window.calls_before[oldest],
        failures=window.failures - window.failures_before[oldest],
        last_calls=min(window.calls, window.last_mask.bit_length()),
        last_failures=window.last_failed.bit_count(),
        consecutive_failures=window.consecutive,
    )


def open_duration_s(settings: BreakerSettings, openings: int, jitter: float) -> float:
    """How long the breaker stays open, in seconds, before one trial is let through.

    `openings` counts this opening and those since the breaker was last closed for good, so it
    is at least 1; `jitter` from 0 to 1 keeps several engines from trying in step.
    """
    assert openings >= 1, openings
    assert 0.0 <= jitter <= 1.0, jitter
    growth = settings.open_growth ** min(openings - 1, _OPENINGS_MAX)
    duration = min(settings.open_s * growth, settings.open_max_s)
    return duration * (1.0 + settings.jitter_ratio * jitter)


def _advance(window: Window, second: int) -> None:
    """Begin a later second; seconds without a call begin with the same totals."""
    width = window.width_s
    for passed in range(max(window.second + 1, second - width + 1), second + 1):
        window.calls_before[passed % width] = window.calls
        window.failures_before[passed % width] = window.failures
    window.second = second
