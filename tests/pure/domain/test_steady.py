"""A process's time: it passes as the monotonic clock does, and comes right gradually."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.steady import SteadyTime

SECOND = 1_000_000_000
START = 1_800_000_000 * SECOND
MS = 1_000_000


def test_it_shows_the_wall_clock_that_nobody_touches():
    time = SteadyTime(START, 0)
    for s in (0, 1, 2, 3_600):
        assert time.now_ms(START + s * SECOND, s * SECOND) == (START + s * SECOND) // MS


@pytest.mark.parametrize("jump_s", [-7_200, -1, 1, 7_200])
def test_a_jump_is_made_up_for_gradually(jump_s):
    time = SteadyTime(START, 0)
    wall = START + jump_s * SECOND
    after = time.now_ms(wall + SECOND, SECOND) - START // MS
    assert 950 <= after <= 1_050
    hours = 40 * 3_600
    for minute in range(1, hours // 60 + 1):
        now = time.now_ms(wall + minute * 60 * SECOND, minute * 60 * SECOND)
    assert now == (wall + hours * SECOND) // MS


@given(st.lists(st.tuples(st.integers(-(10**14), 10**14), st.integers(0, 10**12)), max_size=20))
def test_it_never_goes_back_and_never_runs_away(steps):
    time, monotonic, last = SteadyTime(START, 0), 0, START // MS
    for offset, passed in steps:
        monotonic += passed
        now = time.now_ms(START + monotonic + offset, monotonic)
        assert passed * 0.95 / MS - 1 <= now - last <= passed * 1.05 / MS + 1
        last = now
