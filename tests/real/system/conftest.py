"""The engine that the tests of one module share, and the event loop of their clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.real.system.process import EngineProcess, engine_folder


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineProcess]:
    """A running engine, for tests that leave it running."""
    with engine_folder() as made:
        yield made.start()


@pytest.fixture
def own_engine() -> Iterator[EngineProcess]:
    """A running engine that one test has for itself."""
    with engine_folder() as made:
        yield made.start()
