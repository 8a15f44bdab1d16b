"""When an open loop sends: arrivals as of customers who do not know of one another (Poisson).

The times are fixed before the first request, so a server that stalls is sent what it would have
been sent, and the time a request waited for its turn is part of its latency.
"""

from __future__ import annotations

from random import Random


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Seconds from the start, ascending, `rate` a second on average. The same seed, the same."""
    if rate <= 0 or seconds <= 0:
        raise ValueError("a schedule needs a rate and a duration above zero")
    gap = Random(seed).expovariate
    times, at = [], gap(rate)
    while at < seconds:
        times.append(at)
        at += gap(rate)
    return times
