"""Migrations: numbered SQL files, each applied once, in order, and never changed afterwards.

A migration is applied in one transaction with the row that says so. Two engines that start
together are kept apart by an advisory lock. Migrations only go forward.
"""

from __future__ import annotations

import re
import time
from hashlib import sha256
from pathlib import Path
from typing import Final

import asyncpg
import msgspec

from engine.ledger.connections import COMMON, close, connect
from engine.ledger.queries import QUERIES
from engine.ports import LedgerError, LedgerUnavailable

FOLDER: Final = Path(__file__).with_name("migrations")
_FILE: Final = re.compile(r"(\d{4})_(\w+)\.sql")
_SETTINGS: Final = COMMON | {"application_name": "engine-migrate", "statement_timeout": "0"}


class MigrationError(LedgerError):
    """The database is not what this engine expects; the message says what to do about it."""


class Migration(msgspec.Struct, frozen=True):
    """One file. `checksum` is the SHA-256 of its bytes, in hexadecimal."""

    number: int
    name: str
    checksum: str
    sql: str


def migrations(folder: Path = FOLDER) -> list[Migration]:
    """The migrations of this engine, which are numbered from 1 without gaps."""
    found = []
    for path in sorted(folder.glob("*.sql")):
        named = _FILE.fullmatch(path.name)
        assert named is not None, f"{path.name} is not named like 0001_what_it_does.sql"
        raw = path.read_bytes()
        found.append(Migration(int(named[1]), named[2], sha256(raw).hexdigest(), raw.decode()))
    numbers = [migration.number for migration in found]
    assert numbers == list(range(1, len(found) + 1)), f"migrations are numbered {numbers}"
    return found


async def migrate(dsn: str, *, folder: Path = FOLDER) -> list[Migration]:
    """Bring the database up to this engine's schema; returns what was applied now.

    Raises MigrationError where the database was migrated by another engine's files, and
    LedgerUnavailable.
    """
    wanted = migrations(folder)
    connection = await connect(dsn, _SETTINGS, wanted="read-write")
    try:
        await connection.execute(QUERIES["migrations_lock"])
        await connection.execute(QUERIES["migrations_table"])
        pending = _pending(wanted, await connection.fetch(QUERIES["migrations_applied"]))
        for migration in pending:
            await _apply(connection, migration)
        return pending
    except (asyncpg.InterfaceError, OSError) as error:
        raise LedgerUnavailable(f"{type(error).__name__}: {error}") from error
    finally:
        await close(connection)


async def check_migrated(dsn: str, *, folder: Path = FOLDER) -> None:
    """Refuse a database whose schema is not this engine's. Raises as `migrate` does."""
    connection = await connect(dsn, _SETTINGS, wanted="primary")
    try:
        applied = await connection.fetch(QUERIES["migrations_applied"])
    except asyncpg.UndefinedTableError:
        applied = []
    except (asyncpg.InterfaceError, OSError) as error:
        raise LedgerUnavailable(f"{type(error).__name__}: {error}") from error
    finally:
        await close(connection)
    pending = _pending(migrations(folder), applied)
    if pending:
        raise MigrationError(
            f"the database lacks {_migrations(pending)}: run `engine migrate` first"
        )


def _migrations(pending: list[Migration]) -> str:
    first = f"{pending[0].number} ({pending[0].name})"
    return (
        f"migration {first}" if len(pending) == 1 else f"{len(pending)} migrations, from {first} on"
    )


def _pending(wanted: list[Migration], applied: list[asyncpg.Record]) -> list[Migration]:
    ours = {migration.number: migration for migration in wanted}
    for row in applied:
        migration = ours.get(row["number"])
        if migration is None:
            raise MigrationError(
                f"the database has migration {row['number']} ({row['name']}), which this engine "
                f"does not know: it is older than the database. Start the newer engine, or restore "
                f"a backup from before that migration"
            )
        if migration.checksum != row["checksum"]:
            raise MigrationError(
                f"migration {migration.number} ({migration.name}) was changed after it had been "
                f"applied to this database: undo the change of that file and put it into a new "
                f"migration"
            )
    return wanted[len(applied) :]


async def _apply(connection: asyncpg.Connection, migration: Migration) -> None:
    try:
        async with connection.transaction():
            # Whoever comes after it waits as well, so it gives up rather than wait for long.
            await connection.execute("SET LOCAL lock_timeout = '10s'")
            await connection.execute(migration.sql)
            await connection.execute(
                QUERIES["migration_done"],
                migration.number,
                migration.name,
                migration.checksum,
                time.time_ns() // 1_000_000,
            )
    except asyncpg.PostgresError as error:
        raise MigrationError(
            f"migration {migration.number} ({migration.name}) failed and was undone: {error}"
        ) from error
