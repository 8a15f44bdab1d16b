"""A standby of an embedded Postgres: a copy of it that follows by streaming replication."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.ledger.embedded import EmbeddedPostgres
from engine.ledger.embedded_account import choose_account
from engine.ledger.embedded_cluster import clean_environment, find_binaries, server_command
from tests.real.system.process import wait_until


@contextmanager
def standby_of(server: EmbeddedPostgres, folder: Path) -> Iterator[str]:
    """Copy the server to a new folder, and run the copy; yields the folder of its socket."""
    binaries = find_binaries()
    copy = folder / "postgres"
    account = choose_account(server.cluster, enter=[server.data_dir], read=[])
    folder.mkdir(mode=0o755)
    copy.mkdir(mode=0o700)
    account.own(copy)
    made = subprocess.run(
        [
            *(*account.prefix, str(binaries / "pg_basebackup"), "-h", str(server._sockets)),
            *("-U", "engine", "-D", str(copy), "-R", "-c", "fast"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert made.returncode == 0, made.stderr
    # The socket's folder is the cluster's, so the lock of the other server's socket came along.
    (copy / ".s.PGSQL.5432.lock").unlink()
    with (folder / "standby.log").open("wb") as log:
        process = subprocess.Popen(
            [*account.prefix, *server_command(copy, binaries, copy)],
            cwd="/",
            env=clean_environment(),
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        ready = [str(binaries / "pg_isready"), "-q", "-h", str(copy)]
        wait_until(lambda: subprocess.run(ready, check=False).returncode == 0, 20, "the standby")
        yield str(copy)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
