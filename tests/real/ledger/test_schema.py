"""schema.sql is what the migrations make, and migrations refuse what they do not know."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from engine.ledger.migrate import FOLDER, MigrationError, migrate, migrations

ROOT = Path(__file__).parents[3]

# One line of text for everything that the schema makes: columns, constraints, indexes, functions,
# triggers, types, views, and the settings of tables.
CATALOG = """
SELECT format('%s column %s %s %s %s %s', c.relname, a.attnum, a.attname,
    format_type(a.atttypid, a.atttypmod), a.attnotnull,
    coalesce(pg_get_expr(d.adbin, d.adrelid), '')
    || ' ' || coalesce((SELECT collname FROM pg_collation l WHERE l.oid = a.attcollation), ''))
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT format('%s relation %s %s %s', relname, relkind, relreplident, reloptions)
FROM pg_class WHERE relnamespace = 'public'::regnamespace
UNION ALL
SELECT format('%s constraint %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL
SELECT pg_get_indexdef(indexrelid) FROM pg_index JOIN pg_class c ON c.oid = indexrelid
WHERE c.relnamespace = 'public'::regnamespace
UNION ALL
SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
UNION ALL
SELECT pg_get_triggerdef(t.oid) FROM pg_trigger t WHERE NOT t.tgisinternal
UNION ALL
SELECT format('%s view %s', viewname, definition) FROM pg_views WHERE schemaname = 'public'
UNION ALL
SELECT format('epoch %s', epoch) FROM engine_epoch
"""

NewDatabase = Callable[..., str]


async def catalog(dsn: str, script: str | None = None) -> list[str]:
    """Everything in the database, after running a script in it."""
    connection = await asyncpg.connect(dsn)
    try:
        if script is not None:
            await connection.execute(script)
        return sorted(row[0] for row in await connection.fetch(CATALOG))
    finally:
        await connection.close()


def test_schema_sql_is_what_the_migrations_make(new_database: NewDatabase) -> None:
    migrated, read = new_database(), new_database()
    asyncio.run(migrate(migrated))
    made = asyncio.run(catalog(migrated))
    schema = (ROOT / "schema.sql").read_text(encoding="utf-8")
    assert asyncio.run(catalog(read, schema)) == made
    assert len(made) > 200


def test_migrations_are_applied_once(new_database: NewDatabase) -> None:
    dsn = new_database()
    applied = asyncio.run(migrate(dsn))
    assert [m.number for m in applied] == [m.number for m in migrations()]
    assert asyncio.run(migrate(dsn)) == []


def test_two_engines_that_start_together_migrate_once(new_database: NewDatabase) -> None:
    dsn = new_database()

    async def both() -> list[int]:
        results = await asyncio.gather(migrate(dsn), migrate(dsn))
        return sorted(len(applied) for applied in results)

    assert asyncio.run(both()) == [0, len(migrations())]


async def ask(dsn: str, question: str, *arguments: Any) -> list[Any]:
    connection = await asyncpg.connect(dsn)
    try:
        return [row[0] for row in await connection.fetch(question, *arguments)]
    finally:
        await connection.close()


@pytest.mark.parametrize("key", ["k", "\\x41 \\", "ä€", "5b0e8a7c-4f1e-4c38-9f0a-1f4e8f7c2d11"])
def test_the_digest_of_a_key_never_changes(new_database: NewDatabase, key: str) -> None:
    """The index holds it, and a database lives for long."""
    dsn = new_database()
    asyncio.run(migrate(dsn))
    text = f"live {len(key)} {key}m_dev".encode()
    expected = uuid.UUID(bytes=hashlib.sha256(text).digest()[:16])
    assert asyncio.run(ask(dsn, "SELECT key_digest('m_dev', true, $1)", key)) == [expected]


def test_the_digest_of_a_key_is_computed_without_a_call(new_database: NewDatabase) -> None:
    dsn = new_database()
    asyncio.run(migrate(dsn))
    question = "EXPLAIN (VERBOSE) SELECT key_digest(m, true, m) FROM unnest(ARRAY['a', 'b']) m"
    plan = "\n".join(asyncio.run(ask(dsn, question)))
    assert "sha256(" in plan
    assert "key_digest(" not in plan


def copied(folder: Path) -> Path:
    for path in FOLDER.glob("*.sql"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_changed_migration_is_refused(new_database: NewDatabase, tmp_path: Path) -> None:
    dsn = new_database()
    asyncio.run(migrate(dsn))
    changed = next(copied(tmp_path).glob("0001_*.sql"))
    changed.write_bytes(changed.read_bytes() + b"-- a change\n")
    with pytest.raises(MigrationError, match="was changed after it had been applied"):
        asyncio.run(migrate(dsn, folder=tmp_path))


def test_a_database_of_a_newer_engine_is_refused(new_database: NewDatabase, tmp_path: Path) -> None:
    dsn = new_database()
    number = len(migrations()) + 1
    (copied(tmp_path) / f"{number:04d}_later.sql").write_text("CREATE TABLE later ();")
    assert [m.name for m in asyncio.run(migrate(dsn, folder=tmp_path))][-1] == "later"
    with pytest.raises(MigrationError, match="older than the database"):
        asyncio.run(migrate(dsn))


def test_a_migration_that_fails_is_undone(new_database: NewDatabase, tmp_path: Path) -> None:
    dsn = new_database()
    asyncio.run(migrate(dsn))
    number = len(migrations()) + 1
    bad = copied(tmp_path) / f"{number:04d}_bad.sql"
    bad.write_text("CREATE TABLE half (); SELECT 1 / 0;")
    with pytest.raises(MigrationError, match=r"bad.*failed and was undone"):
        asyncio.run(migrate(dsn, folder=tmp_path))
    bad.write_text("CREATE TABLE half ();")
    assert [m.name for m in asyncio.run(migrate(dsn, folder=tmp_path))] == ["bad"]
