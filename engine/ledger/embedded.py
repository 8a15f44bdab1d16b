"""The embedded Postgres: one server on one data directory, for as long as one engine lives.

    with EmbeddedPostgres(Path(".data")) as postgres:
        connection = await asyncpg.connect(postgres.dsn)

Everything here blocks; call it before the event loop starts or through a thread.

Three promises, and what keeps each of them:
- One holder: the process that started the server holds a kernel lock on `engine.lock` in the data
  directory. The kernel drops it when that process dies, so it is never stale.
- No stray server: a watchdog (`embedded_watchdog.py`) is the server's parent and holds a pipe from
  this process. When this process ends, even by `kill -9`, the watchdog shuts the server down.
- No lost data: `fsync` and `synchronous_commit` are on, and a cluster appears under its name only
  when it is complete and on disk.

The data directory gets `postgres/` (the cluster), `engine.lock` and `postgres-start.log`.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import msgspec

from engine.ledger import embedded_cluster as files
from engine.ledger.embedded_account import Account, EmbeddedPostgresError, choose_account
from engine.ledger.embedded_lock import DataDirectoryInUseError, DirectoryLock

__all__ = [
    "DataDirectoryInUseError",
    "EmbeddedPostgres",
    "EmbeddedPostgresError",
    "EmbeddedPostgresStatistics",
    "attached",
    "find_running",
]

# A fast shutdown writes at most the shared buffers; what is slower than this recovers from the log.
FAST_SHUTDOWN_S = 10.0
IMMEDIATE_SHUTDOWN_S = 5.0
START_TIMEOUT_S = 60.0
# Back ends notice the death of their server by themselves; until then it can't be started again.
ORPHANED_BACKENDS_S = 10.0
# A killed process holds its lock until the kernel has taken it apart, some milliseconds later.
LOCK_PATIENCE_S = 0.3
POLL_S = 0.01
WATCHDOG = Path(__file__).with_name("embedded_watchdog.py")


class EmbeddedPostgresStatistics(msgspec.Struct, frozen=True):
    """What is known of the server; `server_pid` is None while it does not run."""

    data_dir: str
    server_pid: int | None
    created_cluster: bool
    start_s: float


class EmbeddedPostgres:
    """One Postgres server on `data_dir`, started by `start` and stopped by `stop`."""

    def __init__(
        self,
        data_dir: Path,
        *,
        create: bool = True,
        lay_wal: bool = False,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        """With `create=False`, `start` refuses a directory without a database.

        With `lay_wal` the log of a new database is laid out, so that the first commits need not do
        it: for one that is there to stay. `start_timeout_s` is what the server may take until it is
        ready, not what it takes to make a database.
        """
        self.data_dir = data_dir.expanduser().resolve()
        self.cluster = self.data_dir / "postgres"
        self._start_log = self.data_dir / "postgres-start.log"
        self._create = create
        self._lay_wal = lay_wal
        self._start_timeout_s = start_timeout_s
        self._lock = DirectoryLock(self.data_dir)
        self._sockets = files.socket_folder(self.cluster)
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._server_pid: int | None = None
        self._created_cluster = False
        self._start_s = 0.0

    @property
    def dsn(self) -> str:
        """The address for asyncpg: a unix socket, no password. The server must have started."""
        if self._server_pid is None:
            raise EmbeddedPostgresError(f"the Postgres of {self.data_dir} has not been started")
        return _dsn(str(self._sockets))

    @property
    def alive(self) -> bool:
        """Whether the server process runs. After a death, `start` starts it anew."""
        return self._watchdog is not None and self._watchdog.poll() is None

    def statistics(self) -> EmbeddedPostgresStatistics:
        """A frozen view for the console; `start_s` is how long the last start took in seconds."""
        return EmbeddedPostgresStatistics(
            data_dir=str(self.data_dir),
            server_pid=self._server_pid if self.alive else None,
            created_cluster=self._created_cluster,
            start_s=self._start_s,
        )

    def start(self) -> None:
        """Lock the directory, make the cluster when there is none, start, wait for connections.

        Raises DataDirectoryInUseError at once when another process holds the directory, and
        EmbeddedPostgresError, which says what to do, for everything else. After an error nothing
        runs and nothing is held.
        """
        if self.alive:
            raise EmbeddedPostgresError(f"the Postgres of {self.data_dir} is already started")
        if not self._create and not self.data_dir.is_dir():
            raise EmbeddedPostgresError(f"there is no database in {self.data_dir}")
        if self._watchdog is not None:
            _end_of_pipe(self._watchdog)
        began = time.monotonic()
        try:
            self._lock.acquire(patience_s=LOCK_PATIENCE_S)
            self._start_locked()
        except OSError as error:
            self.stop()
            raise EmbeddedPostgresError(
                f"cannot start Postgres in {self.data_dir}: {error.strerror or error}"
                f"{f' ({error.filename})' if error.filename else ''}"
            ) from error
        except BaseException:
            self.stop()
            raise
        self._start_s = time.monotonic() - began

    def stop(self) -> None:
        """Shut the server down and give the directory free; without effect when not started."""
        try:
            if self._watchdog is not None:
                _end_of_pipe(self._watchdog)
            if self._server_pid is not None:
                # It outlives its watchdog only when that was killed.
                _stop_server(self._server_pid, self.cluster)
            if self._lock.held and self._sockets != self.cluster:
                with contextlib.suppress(OSError):
                    self._sockets.rmdir()
        finally:
            self._watchdog = self._server_pid = None
            self._lock.release()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _start_locked(self) -> None:
        binaries = files.find_binaries()
        files.remove_half_made(self.cluster)
        account = choose_account(
            self.cluster,
            enter=[self.data_dir, self._sockets.parent],
            read=files.files_to_read(binaries),
        )
        exists = files.check_cluster(self.cluster)
        if not exists and not self._create:
            raise EmbeddedPostgresError(f"there is no database in {self.data_dir}")
        if self._sockets != self.cluster:
            files.make_socket_folder(self._sockets, account)
        if not exists:
            files.create_cluster(self.cluster, binaries, account, lay_wal=self._lay_wal)
            self._created_cluster = True
        elif self.cluster.stat().st_uid != account.uid:
            account.own(self.cluster)
        stale_pid = self._end_stray_server()
        self._launch(binaries, account, stale_pid, time.monotonic() + self._start_timeout_s)

    def _end_stray_server(self) -> int | None:
        """Stop a server that outlived its engine; the id in the process file if that has died.

        We hold the lock, so nobody uses that server. Its watchdog may be stopping it right now;
        a second request to stop changes nothing.
        """
        found = files.read_process_file(self.cluster)
        if found is None:
            return None
        _stop_server(found.pid, self.cluster)
        return found.pid

    def _launch(
        self, binaries: Path, account: Account, stale_pid: int | None, deadline: float
    ) -> None:
        environment = files.clean_environment()
        if stale_pid is not None:
            # Postgres won't start while the id in a left-over process file belongs to any process
            # of its user. That process is not a server of this cluster, which has been checked.
            # The file itself must stay: it leads Postgres to back ends that still run.
            environment["PG_GRANDPARENT_PID"] = str(stale_pid)
        command = [
            *(sys.executable, "-I", "-S", str(WATCHDOG)),
            *(str(FAST_SHUTDOWN_S), str(IMMEDIATE_SHUTDOWN_S)),
            *account.prefix,
            *files.server_command(self.cluster, binaries, self._sockets),
        ]
        orphans_deadline = time.monotonic() + ORPHANED_BACKENDS_S
        while not self._launch_once(command, environment, deadline):
            wrote = files.log_tail(self.cluster, self._start_log)
            orphans = "pre-existing shared memory block" in wrote
            if not orphans or time.monotonic() > orphans_deadline:
                raise EmbeddedPostgresError(
                    f"Postgres did not start in {self.data_dir}. It wrote:\n{wrote}"
                )
            time.sleep(0.1)

    def _launch_once(
        self, command: list[str], environment: dict[str, str], deadline: float
    ) -> bool:
        """Start the watchdog with the server; False when the server ended before it was ready."""
        with self._start_log.open("wb") as start_log:
            self._watchdog = subprocess.Popen(  # noqa: S603  (a list of arguments of our own)
                command,
                cwd="/",
                env=environment,
                stdin=subprocess.PIPE,  # Its other end is not inherited: only this process has it.
                stdout=subprocess.PIPE,
                stderr=start_log,
                start_new_session=True,  # Ctrl-C at the terminal is for the engine alone.
            )
        assert self._watchdog.stdout is not None
        with self._watchdog.stdout as answer:
            line = answer.readline().strip()
        self._server_pid = int(line) if line else None
        while time.monotonic() < deadline:
            if self._watchdog.poll() is not None:
                _end_of_pipe(self._watchdog)
                self._watchdog = self._server_pid = None
                return False
            found = files.read_process_file(self.cluster)
            if found is not None and found.pid == self._server_pid and found.ready:
                return True
            time.sleep(POLL_S)
        raise EmbeddedPostgresError(
            f"Postgres was not ready in {self.data_dir} after {self._start_timeout_s:g} s. "
            f"It wrote:\n{files.log_tail(self.cluster, self._start_log)}"
        )


def find_running(data_dir: Path) -> str | None:
    """The address of the server that accepts connections for this directory, or None.

    Raises EmbeddedPostgresError when this user may not look into the directory.
    """
    cluster = data_dir.expanduser().resolve() / "postgres"
    try:
        found = files.read_process_file(cluster)
    except PermissionError as error:
        raise EmbeddedPostgresError(
            f"cannot look into {cluster}: run this as the user who runs the engine"
        ) from error
    if found is None or not found.ready or not files.is_server_of(found.pid, cluster):
        return None
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(f"{found.sockets}/.s.PGSQL.{files.PORT}")
    except OSError:
        return None
    return _dsn(found.sockets)


@contextlib.contextmanager
def attached(data_dir: Path, *, timeout_s: float = START_TIMEOUT_S) -> Iterator[str]:
    """The address of the running server, or of one that runs for as long as the context does.

    For commands that look at the books of an engine which may be running. Never makes a database:
    EmbeddedPostgresError when there is none, or when whoever holds the directory does not get its
    server ready within `timeout_s` seconds.
    """
    postgres = EmbeddedPostgres(data_dir, create=False, start_timeout_s=timeout_s)
    dsn = _running_or_started(postgres, time.monotonic() + timeout_s)
    try:
        yield dsn
    finally:
        postgres.stop()


def _running_or_started(postgres: EmbeddedPostgres, deadline: float) -> str:
    while True:
        # The lock is asked first: a server without a holder is a stray one that is being stopped.
        try:
            postgres.start()
        except DataDirectoryInUseError:
            if dsn := find_running(postgres.data_dir):
                return dsn
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
        else:
            return postgres.dsn


def _dsn(sockets: str) -> str:
    return f"postgresql://{files.SUPERUSER}@/{files.DATABASE}?host={quote(sockets, safe='')}"


def _end_of_pipe(watchdog: subprocess.Popen[bytes]) -> None:
    """Tell the watchdog to stop its server, and wait until both have ended."""
    assert watchdog.stdin is not None
    watchdog.stdin.close()
    try:
        watchdog.wait(FAST_SHUTDOWN_S + IMMEDIATE_SHUTDOWN_S + 5.0)
    except subprocess.TimeoutExpired:
        watchdog.kill()
        watchdog.wait()


def _stop_server(pid: int, cluster: Path) -> None:
    """Stop a server that is not our watchdog's child; without effect on any other process."""
    for stop_signal, patience_s in (
        (signal.SIGINT, FAST_SHUTDOWN_S),
        (signal.SIGQUIT, IMMEDIATE_SHUTDOWN_S),
        (signal.SIGKILL, IMMEDIATE_SHUTDOWN_S),
    ):
        if not files.is_server_of(pid, cluster):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, stop_signal)
        deadline = time.monotonic() + patience_s
        while files.is_server_of(pid, cluster) and time.monotonic() < deadline:
            time.sleep(POLL_S)
    if files.is_server_of(pid, cluster):
        raise EmbeddedPostgresError(f"the Postgres of {cluster}, process {pid}, cannot be stopped")
