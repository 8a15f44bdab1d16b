"""Where the data are: a full disk, an older backup, a promoted standby, an edited journal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from engine.app.commands import BOOKS
from tests.real.standby import standby_of
from tests.real.system.agreement import assert_books_agree, assert_verified
from tests.real.system.client import client_of
from tests.real.system.load import Load, assert_told_holds, wait_all_resolved
from tests.real.system.process import wait_until
from tests.torture.checks import FINAL_S, ensure_running, more_answers, under_load, wait_status
from tests.torture.conftest import Scenario
from tests.torture.plant import Plant, plant

pytestmark = [pytest.mark.anyio, pytest.mark.torture]
DISK = "130m"


@pytest.fixture
def works() -> Iterator[Plant]:
    with plant() as made:
        yield made


@contextlib.contextmanager
def small_disk(works: Plant) -> Iterator[Path]:
    """The cluster on a file system of its own, with little room in it."""
    cluster = works.data_dir / "postgres"
    works.database.stop()
    aside = cluster.with_name("postgres.aside")
    cluster.rename(aside)
    owner = aside.stat()
    cluster.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0700", "tmpfs", str(cluster)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"mounting a file system is not permitted: {mounted.stderr.decode().strip()}")
    try:
        subprocess.run(["cp", "-a", f"{aside}/.", str(cluster)], check=True)
        os.chown(cluster, owner.st_uid, owner.st_gid)
        works.database.start()
        yield cluster
    finally:
        if works.engine.is_running:
            works.engine.terminate()
        works.database.stop()
        subprocess.run(["umount", str(cluster)], check=True)


async def test_row_17_disk_full(works: Plant, scenario: Scenario) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    with small_disk(works) as cluster:
        async with under_load(works.engine, scenario, seed=17) as (_, load):
            for _ in range(2):
                ballast = cluster / "ballast"
                with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(65_536))
                # The log's next segment has no room: whoever writes finds out, and Postgres ends.
                with contextlib.suppress(Exception):
                    for _ in range(3):
                        await asyncio.to_thread(works.rows, "SELECT pg_switch_wal()")
                        await asyncio.to_thread(works.rows, "SELECT txid_current()")
                await wait_status(works.engine, "/readyz", 503)
                assert await asyncio.to_thread(works.engine.probe, "/livez") == 200
                await asyncio.sleep(1)
                ballast.unlink()
                if not works.database.alive:
                    await asyncio.to_thread(works.database.start)
                back_s = await wait_status(works.engine, "/readyz", 200)
                await more_answers(load, 5)
        scenario.note(disk=DISK, times_full=2, ready_again_s=round(back_s, 1))


async def test_row_20_older_backup_restored(works: Plant, scenario: Scenario) -> None:
    """Nothing is charged again by itself, and what the ledger has lost is named."""
    engine = works.engine
    cluster = works.data_dir / "postgres"
    backup = works.folder / "backup"
    async with under_load(engine, scenario, seed=20) as (_, load):
        await more_answers(load, 20)
    await asyncio.to_thread(engine.terminate)
    works.database.stop()
    shutil.copytree(cluster, backup)
    works.database.start()
    await asyncio.to_thread(engine.start)
    async with client_of(engine) as client:
        before = {effect.op_id for effect in engine.books()}
        lost = [(await client.purchase(1_234)).json["id"] for _ in range(7)]
    engine.kill()
    scenario.killed()
    works.database.stop()
    shutil.rmtree(cluster)
    shutil.copytree(backup, cluster)
    works.database.start()
    charged = len(engine.books())
    await asyncio.to_thread(engine.start)
    async with client_of(engine) as client:
        await asyncio.sleep(2)
        assert len(engine.books()) == charged, "nothing is charged again by itself"
        assert (await client.purchase(50)).status == 201
    found = await asyncio.to_thread(engine.run_command, "verify", "--json")
    assert found.returncode == 1, "the books of the gateway hold what ours have lost"
    for payment in lost:
        assert f"{payment}.1" not in before
    named = [payment for payment in lost if payment in found.stdout]
    assert named == lost, found.stdout
    scenario.note(operations_lost=len(lost), named_by_verify=len(named))


async def test_row_20_database_goes_back_while_the_engine_lives(
    works: Plant, scenario: Scenario
) -> None:
    """An engine that knows of later commits does not go on with an earlier journal."""
    engine = works.engine
    cluster = works.data_dir / "postgres"
    await ensure_running(engine)
    async with client_of(engine) as client:
        for _ in range(3):
            assert (await client.purchase(100)).status == 201
        works.end_database(signal.SIGINT)
        shutil.copytree(cluster, works.folder / "backup")
        works.database.start()
        await wait_status(engine, "/readyz", 200)
        for _ in range(3):
            assert (await client.purchase(100)).status == 201
        works.end_database(signal.SIGINT)
        shutil.rmtree(cluster)
        shutil.copytree(works.folder / "backup", cluster)
        works.database.start()
        asked = asyncio.create_task(client.purchase(100))
        assert await asyncio.to_thread(engine.wait_ended) == 1
        with contextlib.suppress(Exception):
            await asked
    assert "has lost commits" in engine.log()
    scenario.note(detected="at the next commit")


async def test_row_55_journal_edited(works: Plant, scenario: Scenario) -> None:
    engine = works.engine
    async with under_load(engine, scenario, seed=55) as (_, load):
        await more_answers(load, 20)
    rows = await asyncio.to_thread(
        works.rows, "SELECT id, amount FROM transfers ORDER BY id OFFSET 5 LIMIT 1"
    )
    statement = "UPDATE transfers SET amount = $2::bigint WHERE id = $1::bigint"
    off, on = (f"ALTER TABLE transfers {word} TRIGGER USER" for word in ("DISABLE", "ENABLE"))

    def edit(amount: int) -> None:
        works.rows(off)
        works.rows(statement, rows[0]["id"], amount)
        works.rows(on)

    await asyncio.to_thread(edit, rows[0]["amount"] + 1)
    found = await asyncio.to_thread(engine.run_command, "verify", "--json")
    assert found.returncode == 1
    await asyncio.to_thread(edit, rows[0]["amount"])
    again = await asyncio.to_thread(engine.run_command, "verify", "--json")
    assert again.returncode == 0, again.stdout
    scenario.note(found_by="engine verify")


@contextlib.contextmanager
def synchronous_standby_of(works: Plant, folder: Path) -> Iterator[str]:
    """A standby of the plant's database that has every commit; yields the folder of its socket."""
    with standby_of(works.database, folder) as second:
        works.rows("ALTER SYSTEM SET synchronous_standby_names = '*'")
        works.rows("SELECT pg_reload_conf()")
        wait_until(
            lambda: works.rows("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"),
            20,
            "synchronous replication",
        )
        yield second


async def test_row_13_synchronous_standby_promoted(works: Plant, scenario: Scenario) -> None:
    """It has every commit that was acknowledged; the engine finds it by itself."""
    engine = works.engine
    data_dir = works.folder / "standby"
    with synchronous_standby_of(works, data_dir) as second:
        hosts = f"{second},{works.database._sockets}"
        engine.environ = {"DATABASE_URL": f"postgresql://engine@/postgres?host={hosts}"}
        await asyncio.to_thread(engine.start)
        async with client_of(engine) as client:
            load = Load(client, seed=130, final_s=FINAL_S)
            running = asyncio.create_task(load.run(6))
            await more_answers(load, 30)
            await asyncio.to_thread(works.end_database, signal.SIGKILL)
            await wait_status(engine, "/readyz", 503)
            promoted = await asyncpg.connect(user="engine", database="postgres", host=second)
            await promoted.execute("SELECT pg_promote()")
            await promoted.execute("ALTER SYSTEM RESET synchronous_standby_names")
            await promoted.execute("SELECT pg_reload_conf()")
            await promoted.close()
            back_s = await wait_status(engine, "/readyz", 200)
            await more_answers(load, 10)
            load.stop()
            await running
            await wait_all_resolved(client)
            await assert_told_holds(load)
            await assert_books_agree(client)
        await asyncio.to_thread(engine.terminate)
    (data_dir / BOOKS).symlink_to(works.data_dir / BOOKS)
    engine.data_dir = data_dir
    await asyncio.to_thread(assert_verified, engine)
    engine.data_dir = works.data_dir
    scenario.note(ready_again_s=round(back_s, 1), acknowledged=len(load.told))
