"""From what was seen to what held: pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.percentiles import percentile
from loadtests.scenarios import Scenario

Seen = Mapping[str, Any]


def troubles_of(scenario: Scenario, seen: Seen, memory: Sequence[int], verified: bool) -> list[str]:
    """What did not hold, in words; empty when everything did."""
    limits, troubles = scenario.thresholds, []

    def check(holds: bool, text: str) -> None:
        if not holds:
            troubles.append(text)

    kinds = totals(seen)
    attempts = sum(kinds.values())
    if not attempts or not seen["latencies_ms"]:
        return ["nothing was answered"]
    failed = (kinds.get("failed", 0) + sum(seen["failures"].values())) / attempts
    put_off = kinds.get("put_off", 0) / attempts
    under_way = seen["under_way"]
    ordered = sorted(seen["latencies_ms"])
    p50, p99 = percentile(ordered, 0.5), percentile(ordered, 0.99)
    recovered = recovery(seen, scenario.seconds, limits.recovered_from)
    check(failed <= limits.failed_max, f"failed {failed:.2%}: {dict(seen['failures'])}")
    check(not under_way, f"without an end when the customers left: {under_way}")
    check(put_off <= limits.put_off_max, f"put off {put_off:.1%}, at most {limits.put_off_max:.1%}")
    check(
        put_off >= limits.put_off_min,
        f"put off {put_off:.1%}, at least {limits.put_off_min:.1%}: nothing went wrong",
    )
    check(p50 <= limits.p50_ms, f"p50 {p50:.0f} ms, at most {limits.p50_ms:.0f}")
    check(p99 <= limits.p99_ms, f"p99 {p99:.0f} ms, at most {limits.p99_ms:.0f}")
    check(
        recovered >= limits.recovered_min,
        f"good at the end {recovered:.1%}, at least {limits.recovered_min:.0%}",
    )
    growth = growth_of(memory)
    if limits.memory_growth_max is not None and growth is not None:
        check(
            growth <= limits.memory_growth_max,
            f"memory grew to {growth:.2f} times, at most {limits.memory_growth_max}",
        )
    check(verified, "engine verify does not hold")
    return troubles


def totals(seen: Seen) -> dict[str, int]:
    """Attempts by kind."""
    found: dict[str, int] = {}
    for kinds in seen["seconds"].values():
        for kind, count in kinds.items():
            found[kind] = found.get(kind, 0) + count
    return found


def recovery(seen: Seen, seconds: float, since: float) -> float:
    """Share of good attempts in the last part of the time, 0 where nothing was answered in it.

    `since`: where that part begins, from 0 to 1. What is asked later is not counted.
    """
    last: list[dict[str, int]] = [
        kinds
        for second, kinds in seen["seconds"].items()
        if seconds * since <= int(second) < seconds
    ]
    attempts = sum(sum(kinds.values()) for kinds in last)
    return sum(kinds.get("good", 0) for kinds in last) / attempts if attempts else 0.0


def growth_of(memory: Sequence[int]) -> float | None:
    """Memory in the last third as times the middle one; None where too little was read."""
    third = len(memory) // 3
    if third < 3:
        return None
    middle, last = memory[third : 2 * third], memory[-third:]
    return (sum(last) / len(last)) / (sum(middle) / len(middle))


def in_words(seen: Seen) -> str:
    """One line: rates, latencies, statuses."""
    kinds = totals(seen)
    ordered = sorted(seen["latencies_ms"])
    times = ""
    if ordered:
        times = f"p50 {percentile(ordered, 0.5):.0f} ms, p99 {percentile(ordered, 0.99):.0f} ms, "
    statuses = ", ".join(f"{status}: {count}" for status, count in sorted(seen["statuses"].items()))
    return (
        f"{seen['payments']} payments, {kinds.get('good', 0)} good, "
        f"{kinds.get('put_off', 0)} put off, {times}statuses {statuses}"
    )
