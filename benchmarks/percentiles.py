"""Percentiles by the nearest rank: the figure is one that was measured, never one in between."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed.

    `ordered` is sorted, and not empty; `share` is in (0, 1].
    """
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summary_ms(latencies_s: Sequence[float]) -> dict[str, float]:
    """Count, median, p99, p99.9 and the largest, in milliseconds; only the count where empty."""
    ordered = sorted(latencies_s)
    if not ordered:
        return {"count": 0}
    return {
        "count": len(ordered),
        "p50_ms": percentile(ordered, 0.5) * 1000,
        "p99_ms": percentile(ordered, 0.99) * 1000,
        "p999_ms": percentile(ordered, 0.999) * 1000,
        "max_ms": ordered[-1] * 1000,
    }
