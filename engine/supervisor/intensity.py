"""Restart accounting and backoff as pure functions: time and chance are arguments.

The accounting is that of OTP's `supervisor.erl` (`add_restart/1`, `in_period/3`): a supervisor may
restart at most `intensity` times within any `period_s` seconds, the edge of the period included.
Intensities multiply up a tree: a parent of intensity 3 over a child supervisor of intensity 5 lets
a leaf start 24 times before the parent gives up. Choose each level with that in mind.
"""

# Past this many doublings every sensible backoff has reached its maximum, and a float still holds
# the power.
DOUBLINGS_MAX = 64


def add_restart(
    restarts_s: tuple[float, ...], *, now_s: float, period_s: float
) -> tuple[float, ...]:
    """The restarts that count at `now_s` (clock seconds), the new one last."""
    oldest_s = now_s - period_s
    return (*(at_s for at_s in restarts_s if at_s >= oldest_s), now_s)


def is_exceeded(restarts_s: tuple[float, ...], *, intensity: int) -> bool:
    """Whether the counted restarts are more than the supervisor may make."""
    return len(restarts_s) > intensity


def longest_delay_s(attempt: int, *, initial_s: float, max_s: float) -> float:
    """The wait before restart number `attempt` (from 0) of a child that keeps failing.

    It doubles from `initial_s` up to `max_s`; jitter only makes it shorter.
    """
    return min(max_s, initial_s * 2.0 ** min(attempt, DOUBLINGS_MAX))


def delay_s(attempt: int, *, initial_s: float, max_s: float, jitter: float, chance: float) -> float:
    """The wait before a restart in seconds, shortened at random.

    `jitter` is the share (0 to 1) of the wait that chance may take away; `chance` is a number in
    [0, 1). Children that failed together so come back spread out instead of together.
    """
    longest_s = longest_delay_s(attempt, initial_s=initial_s, max_s=max_s)
    return longest_s * (1.0 - jitter * chance)


def crash_loop_span_s(intensity: int, *, initial_s: float, max_s: float) -> float:
    """How long `intensity` restarts in a row may take when the child crashes at once each time.

    When this is longer than the period, the first restart has left the window before the last
    one enters it, and a crash loop would never escalate.
    """
    doubling = min(intensity, DOUBLINGS_MAX)
    span_s = sum(
        longest_delay_s(attempt, initial_s=initial_s, max_s=max_s) for attempt in range(doubling)
    )
    at_most_s = longest_delay_s(DOUBLINGS_MAX, initial_s=initial_s, max_s=max_s)
    return span_s + (intensity - doubling) * at_most_s
