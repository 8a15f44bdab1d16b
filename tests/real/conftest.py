"""Real parts, started once per test run: a Postgres, and fresh databases in it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from engine.ledger.embedded import EmbeddedPostgres
from engine.ledger.migrate import migrate

_numbers = itertools.count(1)
TEMPLATE = "ledger_template"


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """One server for the whole run, with fsync on as in production."""
    with EmbeddedPostgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


def dsn_of(server: EmbeddedPostgres, database: str) -> str:
    """The address of another database on the server."""
    return urlunsplit(urlsplit(server.dsn)._replace(path=f"/{database}"))


def execute(dsn: str, *statements: str) -> None:
    """Run statements one by one, outside of a transaction."""

    async def run() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())


@pytest.fixture(scope="session")
def migrated_template(postgres_server: EmbeddedPostgres) -> str:
    """The name of a database with the schema and nothing else, to be copied."""
    execute(postgres_server.dsn, f"CREATE DATABASE {TEMPLATE}")
    asyncio.run(migrate(dsn_of(postgres_server, TEMPLATE)))
    return TEMPLATE


@pytest.fixture
def new_database(
    postgres_server: EmbeddedPostgres, request: pytest.FixtureRequest
) -> Iterator[Callable[..., str]]:
    """Makes databases that live as long as the test; `template` is what they are copied from."""
    made: list[str] = []

    def new(template: str = "template1") -> str:
        name = f"test_{next(_numbers)}"
        execute(postgres_server.dsn, f"CREATE DATABASE {name} TEMPLATE {template}")
        made.append(name)
        return dsn_of(postgres_server, name)

    yield new
    if postgres_server.alive:
        drops = [f"DROP DATABASE IF EXISTS {name} WITH (FORCE)" for name in made]
        execute(postgres_server.dsn, *drops)


@pytest.fixture
def database(new_database: Callable[..., str], migrated_template: str) -> str:
    """The address of a fresh, migrated database of this test's own."""
    return new_database(migrated_template)
