"""The real clock, on readings that the test makes."""

from __future__ import annotations

import pytest

from engine.app import identity
from engine.app.identity import SystemClock

START_NS = 1_800_000_000_000_000_000


class Machine:
    """Both clocks of a machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed_ns = 0
        self.wall_read = 0
        monkeypatch.setattr(identity, "_elapsed_ns", lambda: self.passed_ns)
        monkeypatch.setattr(identity.time, "time_ns", self.wall_ns)

    def wall_ns(self) -> int:
        """As `time.time_ns`."""
        self.wall_read += 1
        return START_NS + self.passed_ns


def test_the_clock_is_never_late_by_more_than_half_a_millisecond(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine(monkeypatch)
    clock = SystemClock()
    for passed_us in range(0, 20_000, 7):
        machine.passed_ns = passed_us * 1_000
        true_ms = (START_NS + machine.passed_ns) / 1_000_000
        assert int(true_ms - 0.5) <= clock.now_ms() <= true_ms


def test_what_is_asked_many_times_at_once_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    clock = SystemClock()
    read = machine.wall_read
    machine.passed_ns = 3_000_000
    assert {clock.now_ms() for _ in range(100)} == {START_NS // 1_000_000 + 3}
    assert machine.wall_read == read + 1
