"""One engine for all tests of this folder: the slice of `make fuzz` that every change runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.real.fuzz.tally import Tally
from tests.real.fuzz.target import Target, running_target


@pytest.fixture(scope="session")
def target() -> Iterator[Target]:
    """A running engine with two merchants."""
    with running_target() as made:
        yield made


@pytest.fixture
def tally() -> Tally:
    """What one test counts and finds."""
    return Tally()
