"""Postgres restarts, crashes, refuses, locks and times out, while payments go on."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator

import asyncpg
import pytest

from tests.torture.checks import more_answers, under_load, wait_status, writer_statistics
from tests.torture.conftest import Scenario
from tests.torture.plant import Plant, plant

pytestmark = [pytest.mark.anyio, pytest.mark.torture]


@pytest.fixture(scope="module")
def works() -> Iterator[Plant]:
    with plant() as made:
        yield made


def alter(works: Plant, *statements: str) -> None:
    for statement in (*statements, "SELECT pg_reload_conf()"):
        works.rows(statement)


async def restarted(works: Plant, how: signal.Signals) -> float:
    """End the server, start it anew; returns for how long the engine was not ready."""
    await asyncio.to_thread(works.end_database, how)
    assert await asyncio.to_thread(works.engine.probe, "/livez") == 200
    await asyncio.to_thread(works.database.start)
    return await wait_status(works.engine, "/readyz", 200)


async def test_row_11_fast_restart_under_load(works: Plant, scenario: Scenario) -> None:
    async with under_load(works.engine, scenario, seed=11) as (_, load):
        pid = works.engine.pid
        back = []
        for _ in range(3):
            back.append(await restarted(works, signal.SIGINT))
            await more_answers(load, 5)
        assert works.engine.pid == pid, "the engine lives through it"
        scenario.note(restarts=3, ready_again_s=round(max(back), 1))


@pytest.mark.parametrize("how", [signal.SIGQUIT, signal.SIGKILL], ids=["immediate", "killed"])
async def test_row_12_server_crashes(works: Plant, scenario: Scenario, how: signal.Signals) -> None:
    async with under_load(works.engine, scenario, seed=12) as (_, load):
        back = []
        for _ in range(2):
            back.append(await restarted(works, how))
            await more_answers(load, 5)
        scenario.note(restarts=2, ready_again_s=round(max(back), 1))


@pytest.mark.parametrize("application", ["engine-writer", "engine-lock"])
async def test_row_12_back_end_killed(works: Plant, scenario: Scenario, application: str) -> None:
    async with under_load(works.engine, scenario, seed=120) as (_, load):
        for _ in range(2):
            pids: list[int] = []
            while not pids:
                pids = await asyncio.to_thread(works.backends, application)
            # The server takes this for a crash and ends every session.
            os.kill(pids[0], signal.SIGKILL)
            await more_answers(load, 10)
        await wait_status(works.engine, "/readyz", 200)


async def test_row_13_read_only_by_default(works: Plant, scenario: Scenario) -> None:
    async with under_load(works.engine, scenario, seed=13) as (client, load):
        await asyncio.to_thread(alter, works, "ALTER SYSTEM SET default_transaction_read_only = on")
        await wait_status(works.engine, "/readyz", 503)
        refused = await client.authorize(500)
        refused.assert_problem(503, "ledger_unavailable")
        assert "Retry-After" in refused.headers
        await asyncio.to_thread(alter, works, "ALTER SYSTEM RESET default_transaction_read_only")
        back_s = await wait_status(works.engine, "/readyz", 200)
        await more_answers(load, 5)
        scenario.note(ready_again_s=round(back_s, 1))


async def test_row_14_idle_in_transaction_while_stopped(works: Plant, scenario: Scenario) -> None:
    setting = "idle_in_transaction_session_timeout"
    async with under_load(works.engine, scenario, seed=14) as (_, load):
        await asyncio.to_thread(alter, works, f"ALTER SYSTEM SET {setting} = 100")
        for _ in range(3):
            works.engine.signal(signal.SIGSTOP)
            await asyncio.sleep(0.6)
            works.engine.signal(signal.SIGCONT)
            await more_answers(load, 10)
        await asyncio.to_thread(alter, works, f"ALTER SYSTEM RESET {setting}")


async def test_row_15_locks_held_by_another_session(works: Plant, scenario: Scenario) -> None:
    async with under_load(works.engine, scenario, seed=15) as (client, load):
        other = await asyncpg.connect(works.database.dsn)
        try:
            async with other.transaction():
                await other.execute("SELECT FROM engine_epoch FOR UPDATE")
                await other.execute("SELECT id FROM accounts FOR UPDATE")
                # Longer than the writer's lock_timeout, so it gives up with 55P03 and comes again.
                await asyncio.sleep(6.5)
            await more_answers(load, 5)
            again = (await writer_statistics(client))["tried_again"]
            assert again >= 1
            deadlocks = await other.fetchval("SELECT sum(deadlocks) FROM pg_stat_database")
            for _ in range(4):
                await cross_over(other)
            await more_answers(load, 5)
            met = await other.fetchval("SELECT sum(deadlocks) FROM pg_stat_database") - deadlocks
            scenario.note(tried_again=int(again), deadlocks_with_the_other_session=int(met))
        finally:
            await other.close()


async def cross_over(other: asyncpg.Connection) -> None:
    """Lock the accounts in the order opposite to the engine's."""
    try:
        async with other.transaction():
            ids = await other.fetch("SELECT id FROM accounts ORDER BY id DESC")
            for row in ids:
                await other.execute("SELECT 1 FROM accounts WHERE id = $1 FOR UPDATE", row["id"])
                await asyncio.sleep(0.3)
    except asyncpg.DeadlockDetectedError:
        pass  # One of the two has to give way.


async def test_row_18_fsync_fails(works: Plant, scenario: Scenario) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    async with under_load(works.engine, scenario, seed=18) as (_, load):
        backend = (await asyncio.to_thread(works.backends, "engine-writer"))[0]
        tracer = await asyncio.create_subprocess_exec(
            *(strace, "-q", "-p", str(backend), "-e", "trace=fsync,fdatasync"),
            *("-e", "inject=fsync,fdatasync:error=EIO:when=1"),
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(20):
            _, said = await tracer.communicate()
        if b"not permitted" in said:
            pytest.skip("tracing another process is not permitted here")
        assert b"EIO" in said, said
        if not works.database.alive:
            await asyncio.to_thread(works.database.start)
        back_s = await wait_status(works.engine, "/readyz", 200)
        await more_answers(load, 5)
        panics = server_log(works).count("PANIC:")
        assert panics >= 1, "Postgres must not go on after an fsync that failed"
        scenario.note(panics=panics, ready_again_s=round(back_s, 1))


def server_log(works: Plant) -> str:
    logs = (works.data_dir / "postgres" / "log").glob("*.log")
    return "".join(path.read_text("utf-8", "replace") for path in logs)
