"""The engine that the tests of one module share, and the event loop of their clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.real.system.process import EngineProcess, engine_folder


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def folder() -> Iterator[EngineProcess]:
    """The data directory that the tests of a module share, and the engine on it."""
    with engine_folder() as made:
        yield made


@pytest.fixture
def engine(folder: EngineProcess) -> EngineProcess:
    """A running engine. A test may stop it; the next one starts it again."""
    return folder if folder.is_running else folder.start()


@pytest.fixture
def own_engine() -> Iterator[EngineProcess]:
    """A running engine that one test has for itself."""
    with engine_folder() as made:
        yield made.start()
