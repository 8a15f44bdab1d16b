"""Idempotency keys in Postgres: by the index over their digests, also those from before it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

pytest.register_assert_rewrite("tests.contracts.ledger")

from engine.domain.entry import Answer, Claim, Entry, KeyAnswer, KeyRef  # noqa: E402
from engine.ledger.connections import BY_KEYS, UPKEEP  # noqa: E402
from engine.ledger.migrate import FOLDER, migrate  # noqa: E402
from engine.ledger.postgres import PostgresLedger  # noqa: E402
from engine.ledger.queries import QUERIES  # noqa: E402
from engine.ports import KeysTaken, LedgerUnavailable  # noqa: E402
from tests.contracts.ledger import MERCHANT, NOW, Maker  # noqa: E402

pytestmark = pytest.mark.anyio

ANSWER = Answer(201, b"{}", final=True, code="")

OLD_KEY = """
INSERT INTO idempotency (
    merchant_id, livemode, key, fingerprint, created_ms, payment_id, op, batch, status, code, body
) VALUES ($1, true, $2, $3, $4, '', 0, 0, $5, $6, $7)
"""

END_PRUNER = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE application_name = 'engine-pruner' AND wait_event_type = 'Lock'
    AND datname = current_database()
"""

WRITER_WAITS = """
SELECT count(*) FROM pg_stat_activity
WHERE application_name = 'engine-writer' AND wait_event = 'advisory'
    AND datname = current_database()
"""


async def tables_read(database: str) -> int:
    """How often the table of keys was read from end to end, by sessions that have ended."""
    connection = await asyncpg.connect(database)
    try:
        scans = await connection.fetchval(
            "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'idempotency'"
        )
        return int(scans)
    finally:
        await connection.close()


async def test_no_statement_reads_the_whole_table_of_keys(database: str, make: Maker) -> None:
    ledger = PostgresLedger(database)
    await ledger.open()
    await ledger.take_over("test")
    before = await tables_read(database)
    refs = [KeyRef(MERCHANT, True, key) for key in ("a", "b", "c")]
    for ref in refs:
        await ledger.commit(make.batch(Entry(claim=Claim(ref, b"f", NOW))))
    await ledger.commit(make.batch(Entry(answers=(KeyAnswer(refs[0], ANSWER),))))
    await ledger.commit(make.batch(Entry(claims_released=(refs[1],))))
    with pytest.raises(KeysTaken):
        await ledger.commit(make.batch(Entry(claim=Claim(refs[2], b"f", NOW))))
    assert await ledger.claim(refs[0]) == Claim(refs[0], b"f", NOW, answer=ANSWER)
    await ledger.close()
    assert await tables_read(database) == before


@pytest.mark.parametrize(
    ("name", "arguments"), [("claim", "'m', true, 'k'"), ("keys_taken", "'{m}', '{true}', '{k}'")]
)
async def test_a_query_for_keys_uses_their_index(database: str, name: str, arguments: str) -> None:
    await migrate(database)
    connection = await asyncpg.connect(database, server_settings=BY_KEYS)
    await connection.execute(f"PREPARE asked AS {QUERIES[name]}")
    plan = await connection.fetch(f"EXPLAIN EXECUTE asked ({arguments})")
    await connection.close()
    assert any("Index Scan using idempotency_key " in line[0] for line in plan), plan
    assert any("Index Cond" in line[0] and "sha256(" in line[0] for line in plan), plan


def test_keys_from_before_the_digest_are_found(
    new_database: Callable[..., str], make: Maker, tmp_path: Path
) -> None:
    for script in sorted(FOLDER.glob("000[123]_*.sql")):
        shutil.copy(script, tmp_path)
    asyncio.run(bring_over(new_database(), make, tmp_path))


async def bring_over(database: str, make: Maker, before: Path) -> None:
    """Migrate to before the digest, claim two keys, migrate on, and go on."""
    await migrate(database, folder=before)
    answered, waiting = (KeyRef(MERCHANT, True, key) for key in ("a\\b", "\\x41"))
    connection = await asyncpg.connect(database)
    await connection.execute(OLD_KEY, MERCHANT, answered.key, b"f", NOW, 201, "", b"{}")
    await connection.execute(OLD_KEY, MERCHANT, waiting.key, b"f", NOW, None, None, None)
    await connection.close()

    applied = await migrate(database)
    assert applied[0].number == 4
    ledger = PostgresLedger(database)
    await ledger.open()
    await ledger.take_over("test")
    assert await ledger.claim(answered) == Claim(answered, b"f", NOW, answer=ANSWER)
    assert await ledger.claim(waiting) == Claim(waiting, b"f", NOW)
    for ref in (answered, waiting):
        with pytest.raises(KeysTaken) as raised:
            await ledger.commit(make.batch(Entry(claim=Claim(ref, b"g", NOW))))
        assert raised.value.refs == {ref}
    await ledger.commit(make.batch(Entry(answers=(KeyAnswer(waiting, ANSWER),))))
    assert await ledger.claim(waiting) == Claim(waiting, b"f", NOW, answer=ANSWER)
    await ledger.close()


A_BATCH = """
INSERT INTO batches (
    lane, number, key, epoch, recorded_ms, transfers, first_transfer, last_transfer, prev_hash, hash
) VALUES (0, $1::bigint, $1::bigint::text, 1, $2, 0, 0, 0, sha256(''), sha256(''))
"""


def test_keys_from_before_their_answers_had_a_time_count_from_the_migration(
    new_database: Callable[..., str], tmp_path: Path
) -> None:
    for script in sorted(FOLDER.glob("000[1234]_*.sql")):
        shutil.copy(script, tmp_path)
    asyncio.run(bring_over_times(new_database(), tmp_path))


async def bring_over_times(database: str, before: Path) -> None:
    """Migrate to before the time of answers, with a key of long ago and two batches; go on."""
    await migrate(database, folder=before)
    connection = await asyncpg.connect(database)
    await connection.execute(OLD_KEY, MERCHANT, "old", b"f", 1, 201, "", b"{}")
    for number, recorded_ms in ((1, NOW), (2, NOW + 7)):
        await connection.execute(A_BATCH, number, recorded_ms)
    await connection.close()
    await migrate(database)
    ledger = PostgresLedger(database)
    assert await ledger.prune_keys(NOW + 7, 9) == 0
    assert await ledger.prune_keys(NOW + 8, 9) == 1
    assert await ledger.believe_time(NOW + 99, 5) == NOW + 7 + 5
    await ledger.close()


async def test_old_keys_are_found_by_an_index_and_deleted_where_they_lie(database: str) -> None:
    await migrate(database)
    connection = await asyncpg.connect(database, server_settings=UPKEEP)
    await connection.execute(f"PREPARE asked AS {QUERIES['prune_keys']}")
    plan = await connection.fetch("EXPLAIN EXECUTE asked (5, 10, 0)")
    await connection.close()
    text = "\n".join(line[0] for line in plan)
    # Nothing is read before the migration's time is old.
    assert "One-Time Filter" in text
    assert "Index Scan using idempotency_age " in text
    assert "Tid Scan" in text
    assert "Seq Scan on idempotency" not in text
    assert "Sort" not in text


async def test_a_key_that_somebody_else_holds_is_left_for_the_next_time(
    database: str, make: Maker
) -> None:
    ledger = PostgresLedger(database)
    await ledger.open()
    await ledger.take_over("test")
    refs = [KeyRef(MERCHANT, True, key) for key in ("a", "b", "c")]
    claims = [Claim(ref, b"f", NOW, answer=ANSWER) for ref in refs]
    await ledger.commit(make.batch(*(Entry(claim=claim) for claim in claims)))
    other = await asyncpg.connect(database)
    async with other.transaction():
        await other.execute("SELECT FROM idempotency WHERE key = 'b' FOR UPDATE")
        assert await ledger.prune_keys(NOW + 1, 9) == 2
    await other.close()
    assert [await ledger.claim(ref) for ref in refs] == [None, claims[1], None]
    assert await ledger.prune_keys(NOW + 1, 9) == 1
    await ledger.close()


HOLD_UP = """
CREATE FUNCTION hold_up() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1);
    RETURN NULL;
END
$$;
CREATE TRIGGER hold_up AFTER INSERT ON idempotency
FOR EACH STATEMENT EXECUTE FUNCTION hold_up();
"""


async def test_a_key_that_is_forgotten_in_the_middle_of_a_commit_is_claimed_anew(
    database: str, make: Maker
) -> None:
    ledger = PostgresLedger(database)
    await ledger.open()
    await ledger.take_over("test")
    ref = KeyRef(MERCHANT, True, "a")
    await ledger.commit(make.batch(Entry(claim=Claim(ref, b"f", NOW, answer=ANSWER))))
    holder, other = await asyncpg.connect(database), await asyncpg.connect(database)
    await holder.execute(HOLD_UP)
    await holder.execute("SELECT pg_advisory_lock(1)")
    # It finds the old one, and has not told which keys are taken yet.
    committing = asyncio.ensure_future(
        ledger.commit(make.batch(Entry(claim=Claim(ref, b"g", NOW + 9))))
    )
    while not committing.done() and not await other.fetchval(WRITER_WAITS):
        await asyncio.sleep(0.01)
    assert await ledger.prune_keys(NOW + 1, 9) == 1
    await holder.execute("SELECT pg_advisory_unlock(1)")
    await committing
    assert await ledger.claim(ref) == Claim(ref, b"g", NOW + 9)
    assert ledger.statistics().writer.tried_again == 1
    for connection in (holder, other):
        await connection.close()
    await ledger.close()


async def test_what_a_look_has_forgotten_is_not_looked_at_again_in_it(
    database: str, make: Maker
) -> None:
    ledger = PostgresLedger(database)
    await ledger.open()
    await ledger.take_over("test")
    claims = [
        Claim(KeyRef(MERCHANT, True, f"k{n}"), b"f", NOW + n // 3, answer=ANSWER) for n in range(12)
    ]
    await ledger.commit(make.batch(*(Entry(claim=claim) for claim in claims)))
    assert await ledger.prune_keys(NOW + 9, 5) == 5
    late = Claim(KeyRef(MERCHANT, True, "late"), b"f", NOW, answer=ANSWER)
    await ledger.commit(make.batch(Entry(claim=late)))
    # The seven that are left, from where it stopped; then from the beginning.
    assert await ledger.prune_keys(NOW + 9, 8) == 7
    assert await ledger.prune_keys(NOW + 9, 8) == 1
    await ledger.close()


async def test_pruning_goes_on_after_its_connection_was_lost(database: str, make: Maker) -> None:
    ledger = PostgresLedger(database)
    await ledger.open()
    await ledger.take_over("test")
    claim = Claim(KeyRef(MERCHANT, True, "a"), b"f", NOW, answer=ANSWER)
    await ledger.commit(make.batch(Entry(claim=claim)))
    # Who is in a transaction sees the sessions as they were when it first asked.
    holder, other = await asyncpg.connect(database), await asyncpg.connect(database)
    async with holder.transaction():
        await holder.execute("LOCK TABLE idempotency")
        pruning = asyncio.ensure_future(ledger.prune_keys(NOW + 1, 9))
        while not pruning.done() and not await other.fetchval(END_PRUNER):
            await asyncio.sleep(0.01)
        with pytest.raises(LedgerUnavailable, match=r"terminat|closed"):
            await pruning
    await holder.close()
    await other.close()
    assert await ledger.prune_keys(NOW + 1, 9) == 1
    await ledger.close()
