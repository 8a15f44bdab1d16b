"""The embedded Postgres with real servers: durability, one holder, nothing left behind.

All of it holds for root and for a normal user; where the two differ, the test says so.
"""

import asyncio
import os
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import asyncpg
import psutil
import pytest

from engine.ledger import embedded_account, embedded_cluster
from engine.ledger.embedded import (
    DataDirectoryInUseError,
    EmbeddedPostgres,
    EmbeddedPostgresError,
    attached,
    find_running,
)

PATIENCE_S = 30.0
HOLDER = """
import sys
from pathlib import Path
from engine.ledger.embedded import EmbeddedPostgres
postgres = EmbeddedPostgres(Path(sys.argv[1]))
postgres.start()
print(postgres.statistics().server_pid, flush=True)
sys.stdin.read()
postgres.stop()
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data directory with a short path below a folder that only we may enter."""
    parent = Path(tempfile.mkdtemp(prefix="pe-"))
    yield parent / "data"
    shutil.rmtree(parent)


@pytest.fixture(scope="module")
def shared_dir() -> Iterator[Path]:
    parent = Path(tempfile.mkdtemp(prefix="pe-"))
    with EmbeddedPostgres(parent / "data"):
        pass
    yield parent / "data"
    shutil.rmtree(parent)


@pytest.fixture
def made_dir(shared_dir: Path) -> Path:
    """A data directory whose database was made for an earlier test, which saves making one."""
    assert find_running(shared_dir) is None
    return shared_dir


class Holder:
    """Another process that runs the server of a data directory until told to stop."""

    def __init__(self, data_dir: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(data_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.server_pid = int(self.process.stdout.readline())
        self.started = psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> None:
        """Let it stop its server and finish; without effect when it was killed."""
        self.process.communicate(timeout=PATIENCE_S)

    def kill(self) -> None:
        """What `kill -9` of an engine does."""
        self.process.kill()
        self.end()


@pytest.fixture
def hold() -> Iterator[Callable[[Path], Holder]]:
    holders: list[Holder] = []

    def start(data_dir: Path) -> Holder:
        holders.append(Holder(data_dir))
        return holders[-1]

    yield start
    for holder in holders:
        holder.end()
        wait_until(lambda holder=holder: all(is_gone(p) for p in holder.started))


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll until the condition holds; fails after PATIENCE_S seconds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def is_gone(process: psutil.Process) -> bool:
    """Whether the process has ended, reaped or not."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def run_sql(dsn: str, statement: str) -> list[tuple[object, ...]]:
    async def run() -> list[tuple[object, ...]]:
        connection = await asyncpg.connect(dsn)
        try:
            return [tuple(row) for row in await connection.fetch(statement)]
        finally:
            await connection.close()

    return asyncio.run(run())


def written_pid(data_dir: Path) -> int:
    found = embedded_cluster.read_process_file(data_dir / "postgres")
    assert found is not None
    return found.pid


def test_data_survive_a_stop_and_a_second_start(data_dir: Path) -> None:
    postgres = EmbeddedPostgres(data_dir)
    postgres.start()
    assert postgres.alive
    assert postgres.statistics().created_cluster
    run_sql(postgres.dsn, "create table kept as select 42 as n")
    server = psutil.Process(written_pid(data_dir))
    postgres.stop()
    assert is_gone(server)
    assert not postgres.alive
    with EmbeddedPostgres(data_dir) as again:
        assert run_sql(again.dsn, "select n from kept") == [(42,)]
        assert not again.statistics().created_cluster


def segments(data_dir: Path) -> dict[str, int]:
    """The files of the log, and what tells each from one that was made anew."""
    log = (data_dir / "postgres" / "pg_wal").glob("0" * 7 + "1" + "?" * 16)
    return {path.name: path.stat().st_ino for path in log}


def test_commits_go_into_the_segments_that_were_laid_out(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir, lay_wal=True) as postgres:
        laid = segments(data_dir)
        assert len(laid) == embedded_cluster.WAL_KEPT_MB // 16
        files = [(data_dir / "postgres" / "pg_wal" / name).stat() for name in laid]
        (first, *_), owners = files, {(file.st_uid, file.st_gid) for file in files}
        assert {(file.st_size, file.st_mode & 0o777) for file in files} == {(16 * 2**20, 0o600)}
        assert owners == {(first.st_uid, first.st_gid)}
        write = "SELECT pg_logical_emit_message(true, 'x', repeat('x', 40000000))"
        run_sql(postgres.dsn, write)
        name = "SELECT pg_walfile_name(pg_current_wal_lsn())"
        assert run_sql(postgres.dsn, name)[0][0] > f"{1:08X}{2:016X}"
        assert segments(data_dir) == laid
        server = psutil.Process(postgres.statistics().server_pid)
        server.kill()
        server.wait(PATIENCE_S)
    # After a crash the log is read to its end, which lies in one of them; those before it are used
    # again.
    with EmbeddedPostgres(data_dir, lay_wal=True) as postgres:
        assert run_sql(postgres.dsn, name)[0][0] > f"{1:08X}{2:016X}"
        assert set(segments(data_dir).values()) == set(laid.values())


def test_the_server_is_durable_private_and_utf8(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as postgres:
        names = ("fsync", "synchronous_commit", "full_page_writes", "listen_addresses")
        rows = run_sql(
            postgres.dsn,
            f"select name, setting from pg_settings where name in {names} union all "
            "select 'encoding', pg_encoding_to_char(encoding) from pg_database "
            "where datname = current_database()",
        )
        cluster = data_dir / "postgres"
        assert cluster.stat().st_mode & 0o077 == 0
        assert (cluster / ".s.PGSQL.5432").is_socket()
    assert dict(rows) == {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "listen_addresses": "",
        "encoding": "UTF8",
    }


def test_nothing_is_left_after_kill_9_of_the_holder(
    made_dir: Path, hold: Callable[[Path], Holder]
) -> None:
    holder = hold(made_dir)
    assert written_pid(made_dir) == holder.server_pid
    assert any(process.pid == holder.server_pid for process in holder.started)
    holder.kill()
    wait_until(lambda: all(is_gone(process) for process in holder.started))
    assert not (made_dir / "postgres" / "postmaster.pid").exists()


def test_a_killed_holder_can_be_replaced_at_once_and_its_commits_are_there(
    made_dir: Path, hold: Callable[[Path], Holder]
) -> None:
    holder = hold(made_dir)
    dsn = find_running(made_dir)
    assert dsn is not None
    run_sql(dsn, "create table kept_at_kill as select 42 as n")
    holder.process.kill()  # And not waited for: it may not be dead yet.
    with EmbeddedPostgres(made_dir) as postgres:
        assert run_sql(postgres.dsn, "select n from kept_at_kill") == [(42,)]


def test_a_server_that_lost_its_engine_and_its_watchdog_is_replaced(
    made_dir: Path, hold: Callable[[Path], Holder]
) -> None:
    holder = hold(made_dir)
    server = psutil.Process(holder.server_pid)
    watchdog = server.parent()
    assert watchdog is not None
    watchdog.kill()
    holder.process.kill()
    holder.process.wait()
    assert not is_gone(server)
    with EmbeddedPostgres(made_dir) as postgres:
        assert is_gone(server)
        assert run_sql(postgres.dsn, "select 1") == [(1,)]


def test_a_server_whose_process_was_killed_starts_anew(made_dir: Path) -> None:
    with EmbeddedPostgres(made_dir) as postgres:
        run_sql(postgres.dsn, "create table kept_at_crash as select 42 as n")
        os.kill(written_pid(made_dir), signal.SIGKILL)
        wait_until(lambda: not postgres.alive)
        assert postgres.statistics().server_pid is None
        postgres.start()
        assert run_sql(postgres.dsn, "select n from kept_at_crash") == [(42,)]


def test_a_stopped_and_continued_server_goes_on(made_dir: Path) -> None:
    """A debugger does that, and the watchdog must not take it for an end."""
    with EmbeddedPostgres(made_dir) as postgres:
        server = psutil.Process(written_pid(made_dir))
        server.suspend()
        wait_until(lambda: server.status() == psutil.STATUS_STOPPED)
        server.resume()
        assert run_sql(postgres.dsn, "select 1") == [(1,)]
        assert postgres.alive


def test_a_second_holder_is_refused_and_told_who_the_first_is(
    made_dir: Path, hold: Callable[[Path], Holder]
) -> None:
    holder = hold(made_dir)
    with pytest.raises(DataDirectoryInUseError, match=f"process {holder.process.pid} ") as refused:
        EmbeddedPostgres(made_dir).start()
    assert refused.value.pid == holder.process.pid
    assert find_running(made_dir) is not None
    holder.end()
    with EmbeddedPostgres(made_dir) as postgres:
        assert postgres.alive


def test_a_second_holder_in_the_same_process_is_refused(made_dir: Path) -> None:
    with EmbeddedPostgres(made_dir) as postgres:
        with pytest.raises(DataDirectoryInUseError):
            EmbeddedPostgres(made_dir).start()
        with pytest.raises(EmbeddedPostgresError, match="already started"):
            postgres.start()
        assert run_sql(postgres.dsn, "select 1") == [(1,)]


def test_attached_uses_the_running_server_and_leaves_it_running(made_dir: Path) -> None:
    with EmbeddedPostgres(made_dir) as postgres:
        with attached(made_dir) as dsn:
            assert dsn == postgres.dsn == find_running(made_dir)
        assert run_sql(postgres.dsn, "select 1") == [(1,)]


def test_attached_starts_a_server_for_its_own_duration(made_dir: Path) -> None:
    assert find_running(made_dir) is None
    with attached(made_dir) as dsn:
        assert run_sql(dsn, "select 1") == [(1,)]
    assert find_running(made_dir) is None


def test_attached_makes_no_database(data_dir: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match="there is no database"), attached(data_dir):
        pass
    assert not data_dir.exists()
    data_dir.mkdir()
    with pytest.raises(EmbeddedPostgresError, match="there is no database"), attached(data_dir):
        pass
    assert not (data_dir / "postgres").exists()


def test_attached_gives_up_when_the_holder_brings_no_server(made_dir: Path) -> None:
    with EmbeddedPostgres(made_dir) as postgres:
        os.kill(written_pid(made_dir), signal.SIGTERM)
        wait_until(lambda: not postgres.alive)
        with pytest.raises(DataDirectoryInUseError), attached(made_dir, timeout_s=0.1):
            pass


def test_the_folder_above_keeps_its_mode_and_owner(data_dir: Path) -> None:
    """As root the server runs as another user, who could not pass through that folder."""
    parent = data_dir.parent
    parent.chmod(0o700)
    before = parent.stat()
    with EmbeddedPostgres(data_dir) as postgres:
        assert run_sql(postgres.dsn, "select 1") == [(1,)]
        server = psutil.Process(written_pid(data_dir))
        assert server.uids().real != 0
        if os.geteuid() != 0:
            assert server.uids().real == os.geteuid()
    after = parent.stat()
    assert (after.st_mode, after.st_uid) == (before.st_mode, before.st_uid)


def test_binaries_below_a_closed_folder_can_be_used(
    data_dir: Path, made_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clone with its virtual environment in root's home is that case."""
    installed = embedded_cluster.find_binaries().parent
    packages = installed.parent.parent
    closed = data_dir.parent / "packages"
    closed.mkdir(mode=0o700)
    version, package = installed.name, installed.parent.name
    shutil.copytree(installed, closed / package / version, symlinks=True)
    if (packages / f"{package}.libs").exists():
        shutil.copytree(packages / f"{package}.libs", closed / f"{package}.libs")
    monkeypatch.setattr(
        embedded_cluster, "find_binaries", lambda: closed / package / version / "bin"
    )
    with EmbeddedPostgres(made_dir) as postgres:
        assert run_sql(postgres.dsn, "select 1") == [(1,)]
        assert str(closed) in psutil.Process(written_pid(made_dir)).exe()


def test_an_open_path_needs_no_capability_as_root(data_dir: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("a normal user switches to nobody else")
    data_dir.parent.chmod(0o755)
    account = embedded_account.choose_account(
        data_dir / "postgres", enter=[data_dir.parent], read=[Path("/etc/passwd")]
    )
    assert not any("caps" in part for part in account.prefix)


@pytest.mark.parametrize("name", ["long" * 40, "with space, comma & ünicode"])
def test_a_path_that_cannot_hold_the_socket_gets_a_short_one(data_dir: Path, name: str) -> None:
    strange = data_dir / name / "data"
    with EmbeddedPostgres(strange) as postgres:
        assert run_sql(postgres.dsn, "select 1") == [(1,)]
        sockets = embedded_cluster.socket_folder(strange / "postgres")
        assert sockets != strange / "postgres"
        assert sockets.stat().st_mode & 0o077 == 0
        assert find_running(strange) == postgres.dsn
    assert not sockets.exists()


def test_a_socket_folder_that_others_may_enter_is_refused(data_dir: Path) -> None:
    far = data_dir / ("long" * 40)
    sockets = embedded_cluster.socket_folder(far / "postgres")
    sockets.mkdir()
    sockets.chmod(0o755)
    try:
        with pytest.raises(EmbeddedPostgresError, match="remove it, or set TMPDIR"):
            EmbeddedPostgres(far).start()
    finally:
        shutil.rmtree(sockets, ignore_errors=True)


def test_a_process_file_with_a_dead_or_reused_id_is_no_obstacle(made_dir: Path) -> None:
    with EmbeddedPostgres(made_dir):
        process_file = made_dir / "postgres" / "postmaster.pid"
        owner = process_file.stat()
        lines = process_file.read_text().splitlines()
    # A live process of the server's own user is what Postgres itself would not start beside.
    user = {"user": owner.st_uid, "group": owner.st_gid} if os.geteuid() == 0 else {}
    bystander = subprocess.Popen(["/bin/sleep", "600"], cwd="/", **user)
    dead = subprocess.Popen(["/bin/true"])
    dead.wait()
    try:
        for pid in (bystander.pid, dead.pid):
            process_file.write_text("\n".join([str(pid), *lines[1:]]) + "\n")
            os.chown(process_file, owner.st_uid, owner.st_gid)
            process_file.chmod(0o600)
            assert find_running(made_dir) is None
            with EmbeddedPostgres(made_dir) as postgres:
                assert run_sql(postgres.dsn, "select 1") == [(1,)]
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_half_made_cluster_is_removed(data_dir: Path) -> None:
    half_made = data_dir / f"postgres.new-{secrets.token_hex(4)}"
    half_made.mkdir(parents=True)
    (half_made / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(data_dir) as postgres:
        assert run_sql(postgres.dsn, "select 1") == [(1,)]
    assert not half_made.exists()


def test_a_disk_that_is_full_at_the_first_start_leaves_nothing(data_dir: Path) -> None:
    """A limit on the size of files stands for the full disk: a write fails half-way."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    tried = subprocess.run(
        [sys.executable, "-c", HOLDER, str(data_dir)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
    )
    assert tried.returncode == 1
    assert "EmbeddedPostgresError: cannot make the database" in tried.stderr
    assert "nothing of it was kept" in tried.stderr
    assert [path.name for path in data_dir.iterdir()] == ["engine.lock"]
    with EmbeddedPostgres(data_dir) as postgres:
        assert run_sql(postgres.dsn, "select 1") == [(1,)]


def test_a_log_that_there_is_no_room_for_is_made_by_commits(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, size: int) -> None:
        path.write_bytes(bytes(2**20))
        if path.name.endswith("5"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(embedded_cluster, "_write_zeros", full)
    with EmbeddedPostgres(data_dir, lay_wal=True) as postgres:
        assert len(segments(data_dir)) == 1
        run_sql(postgres.dsn, "create table kept as select 42 as n")


def test_a_log_is_not_laid_out_where_the_disk_is_small(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SimpleNamespace(free=2 * embedded_cluster.WAL_KEPT_MB * 2**20 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: small)
    with EmbeddedPostgres(data_dir, lay_wal=True):
        assert len(segments(data_dir)) == 1


def test_a_cluster_that_cannot_get_its_name_leaves_nothing(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(half_made: Path, cluster: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(EmbeddedPostgresError, match=r"nothing of it was kept: .*No space left"):
        EmbeddedPostgres(data_dir).start()
    assert [path.name for path in data_dir.iterdir()] == ["engine.lock"]


def test_a_server_that_does_not_start_says_why_and_is_gone(
    made_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmbeddedPostgres(made_dir):
        pass
    with monkeypatch.context() as patched:
        patched.setitem(embedded_cluster.SETTINGS, "shared_buffers", "many")
        with pytest.raises(EmbeddedPostgresError, match=r'invalid value for.*"shared_buffers"'):
            EmbeddedPostgres(made_dir).start()
    with EmbeddedPostgres(made_dir) as postgres:
        assert postgres.alive


def test_data_of_another_version_are_refused_with_what_to_do(data_dir: Path) -> None:
    cluster = data_dir / "postgres"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("16\n")
    with pytest.raises(EmbeddedPostgresError, match=r"made by PostgreSQL 16.*pg_dumpall"):
        EmbeddedPostgres(data_dir).start()


def test_a_folder_that_holds_no_database_is_refused(data_dir: Path) -> None:
    (data_dir / "postgres" / "holiday").mkdir(parents=True)
    with pytest.raises(EmbeddedPostgresError, match="holds no database"):
        EmbeddedPostgres(data_dir).start()
    assert (data_dir / "postgres" / "holiday").exists()


def test_a_data_directory_that_cannot_be_written_is_refused(data_dir: Path) -> None:
    data_dir.write_text("this is a file")
    with pytest.raises(EmbeddedPostgresError, match="cannot write to the data directory"):
        EmbeddedPostgres(data_dir).start()


def test_the_server_gets_none_of_the_engines_secrets(
    made_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINE_TEST_SECRET", "sk_live_secret")
    with EmbeddedPostgres(made_dir):
        server = psutil.Process(written_pid(made_dir))
        watchdog = server.parent()
        assert watchdog is not None
        for process in (server, watchdog):
            assert "ENGINE_TEST_SECRET" not in process.environ()


def test_data_that_belong_to_root_are_given_to_the_servers_user(made_dir: Path) -> None:
    """As after a restore by root with a plain copy."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    cluster = made_dir / "postgres"
    for path in (cluster, *cluster.rglob("*")):
        os.chown(path, 0, 0, follow_symlinks=False)
    with EmbeddedPostgres(made_dir) as postgres:
        assert run_sql(postgres.dsn, "select 1") == [(1,)]
    assert cluster.stat().st_uid != 0
    assert made_dir.stat().st_uid == 0


def test_the_servers_log_names_an_error_and_tells_no_customers_data(made_dir: Path) -> None:
    fault = "DO $$ BEGIN RAISE EXCEPTION 'what went wrong' USING DETAIL = 'a key'; END $$"

    async def fail(dsn: str) -> str | None:
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute(fault)
        except asyncpg.RaiseError as error:
            return error.detail
        finally:
            await connection.close()
        return None

    with EmbeddedPostgres(made_dir) as postgres:
        assert asyncio.run(fail(postgres.dsn)) == "a key"
    log = "".join(path.read_text() for path in made_dir.glob("postgres/log/*.log"))
    assert "what went wrong" in log
    assert "a key" not in log
    assert "RAISE EXCEPTION" not in log
