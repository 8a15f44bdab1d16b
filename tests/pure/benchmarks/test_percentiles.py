"""A percentile is a value that was measured, by the nearest rank."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.percentiles import percentile, summary_ms

SHARES = st.floats(0.001, 1.0)
VALUES = st.lists(st.floats(0, 100), min_size=1, max_size=200)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.001, 1), (0.5, 5), (0.51, 6), (0.99, 10), (1.0, 10)]
)
def test_the_nearest_rank_of_ten(share: float, expected: int) -> None:
    assert percentile(range(1, 11), share) == expected


@given(VALUES, SHARES)
def test_a_share_of_the_values_does_not_exceed_its_percentile(
    values: list[float], share: float
) -> None:
    found = percentile(sorted(values), share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9


@given(VALUES)
def test_percentiles_ascend(values: list[float]) -> None:
    summary = summary_ms(values)
    assert summary["p50_ms"] <= summary["p99_ms"] <= summary["p999_ms"] <= summary["max_ms"]
    assert summary["count"] == len(values)


def test_nothing_measured_has_no_percentiles() -> None:
    assert summary_ms([]) == {"count": 0}
