"""A ledger that has taken over a database of the test's own, and what to write into it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

pytest.register_assert_rewrite("tests.contracts.ledger")

from engine.ledger.postgres import PostgresLedger  # noqa: E402
from tests.contracts.ledger import Maker  # noqa: E402


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def make() -> Maker:
    return Maker()


@pytest.fixture
async def ledger(database: str, anyio_backend: str) -> AsyncIterator[PostgresLedger]:
    ledger = PostgresLedger(database)
    await ledger.open()
    await ledger.take_over("test")
    yield ledger
    await ledger.close()
