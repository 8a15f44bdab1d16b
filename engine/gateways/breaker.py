"""A gateway's circuit breaker: pybreaker holds the state, our own pure code decides.

pybreaker's ways of calling through it don't fit an actor: it swallows cancellation, lets every
concurrent caller through when half-open and reads the wall clock. So only `open()`,
`half_open()` and `close()` are used, and the rest is here: the window of outcomes
(`engine.domain.breaker`), one trial at a time, and time as an argument. The owner is one actor;
nothing here waits or is safe to share between threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, cast

import msgspec
import pybreaker

from engine.domain.breaker import (
    OUTCOME_IS_OK,
    BreakerSettings,
    counts_of,
    new_window,
    open_duration_s,
    record,
    should_open,
)

BreakerState = Literal["closed", "open", "half-open"]

# A clear "I don't know it" is the answer of a gateway that works.
_ANSWERS_FINE: Final = "not_found"


class BreakerStatistics(msgspec.Struct, frozen=True):
    """The state, and the counts since the process started where not said otherwise."""

    state: BreakerState
    openings: int
    openings_in_a_row: int
    """Openings since it was last closed; each lasts longer."""
    refused: int
    ignored: int
    """Results that arrived while it was open."""
    window_calls: int
    window_failures: int
    consecutive_failures: int


class GatewayBreaker:
    """One gateway's breaker. Times are seconds of the owner's monotonic clock."""

    def __init__(
        self,
        settings: BreakerSettings,
        *,
        name: str,
        now_s: float,
        jitter: Callable[[], float],
    ) -> None:
        """`jitter` gives numbers in [0, 1): it stretches the time the breaker stays open."""
        self._settings = settings
        self._jitter = jitter
        self._breaker = pybreaker.CircuitBreaker(name=name)
        self._window = new_window(settings, now_s)
        self._is_closed = True
        self._half_opens_at_s = now_s
        self._is_trial_out = False
        self._openings = self._openings_in_a_row = self._refused = self._ignored = 0

    @property
    def state(self) -> BreakerState:
        """Where pybreaker stands."""
        return cast(BreakerState, self._breaker.current_state)

    def admits(self) -> bool:
        """Whether a call may go out now. Half-open, the caller who hears yes is the trial."""
        if self._is_closed:
            return True
        if self.state == pybreaker.STATE_OPEN or self._is_trial_out:
            self._refused += 1
            return False
        self._is_trial_out = True
        return True

    def record(self, outcome: str, now_s: float, *, is_trial: bool = True) -> None:
        """Hear how a call that was admitted went: a kind of `engine.domain.news.NEWS_KIND`.

        Half-open, `is_trial` False keeps the late result of a call from before from being taken
        for the trial's. KeyError for a kind nobody knows.
        """
        ok = True if outcome == _ANSWERS_FINE else OUTCOME_IS_OK[outcome]
        if self._is_closed:
            if ok is None:
                return
            record(self._window, now_s, ok)
            if not ok and should_open(self._window, self._settings):
                self._open(now_s)
            return
        if self.state == pybreaker.STATE_OPEN or not (is_trial and self._is_trial_out):
            self._ignored += 1
            return
        self._is_trial_out = False
        if ok:
            self._close(now_s)
        elif ok is False:
            self._open(now_s)

    def half_open(self) -> None:
        """The time has passed: let one trial through. Called by the owner's timer.

        Called again while a trial is out, it gives that one up for lost.
        """
        if not self._is_closed:
            self._is_trial_out = False
            self._breaker.half_open()

    def retry_in_s(self, now_s: float) -> float:
        """How long it stays open: 0 when it is not. The owner's timer, and `Retry-After`."""
        if self.state != pybreaker.STATE_OPEN:
            return 0.0
        return max(0.0, self._half_opens_at_s - now_s)

    def statistics(self) -> BreakerStatistics:
        """A snapshot."""
        counts = counts_of(self._window)
        return BreakerStatistics(
            state=self.state,
            openings=self._openings,
            openings_in_a_row=self._openings_in_a_row,
            refused=self._refused,
            ignored=self._ignored,
            window_calls=counts.calls,
            window_failures=counts.failures,
            consecutive_failures=counts.consecutive_failures,
        )

    def _open(self, now_s: float) -> None:
        self._openings += 1
        self._openings_in_a_row += 1
        pause_s = open_duration_s(self._settings, self._openings_in_a_row, self._jitter())
        self._half_opens_at_s = now_s + pause_s
        self._is_closed = False
        self._breaker.open()

    def _close(self, now_s: float) -> None:
        self._openings_in_a_row = 0
        self._window = new_window(self._settings, now_s)
        self._is_closed = True
        self._breaker.close()
