"""pgbench, from the same wheel as the embedded Postgres: what the database does by itself.

TPC-B is three updates, a select and an insert in one transaction. The scale is larger than the
number of clients, so that they do not queue for the same branch.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from engine.ledger.embedded_cluster import clean_environment, find_binaries

SCALE = 40
DATABASE = "bench_peer"
ROW_LOCK = Path(__file__).parent / "peers" / "row_lock.sql"
ROW_LOCK_SCHEMA = ROW_LOCK.with_name("row_lock_schema.sql")
_TPS = re.compile(r"tps = ([0-9.]+) \(without initial connection time\)")


class PgBench:
    """A database of its own for the peer, in the cluster that the engine's ledger is in."""

    def __init__(self, dsn: str) -> None:
        self._admin = dsn
        self.dsn = urlunsplit(urlsplit(dsn)._replace(path=f"/{DATABASE}"))
        self._program = find_binaries() / "pgbench"

    async def prepare(self) -> None:
        """Make the database and its tables."""
        connection = await asyncpg.connect(self._admin)
        await connection.execute(f"CREATE DATABASE {DATABASE}")
        await connection.close()
        self._run("--initialize", "--quiet", f"--scale={SCALE}")
        connection = await asyncpg.connect(self.dsn)
        for statement in ROW_LOCK_SCHEMA.read_text().split(";"):
            if statement.strip():
                await connection.execute(statement)
        await connection.execute("CHECKPOINT")
        await connection.close()

    def tpc_b(self, clients: int, seconds: int) -> float:
        """Transactions a second."""
        return self._measured(clients, seconds)

    def row_lock(self, clients: int, seconds: int) -> float:
        """Transfers a second, each with two row locks in a transaction of its own."""
        return self._measured(clients, seconds, f"--file={ROW_LOCK}", "--no-vacuum")

    def _measured(self, clients: int, seconds: int, *options: str) -> float:
        found = _TPS.search(
            self._run(
                f"--client={clients}", "--jobs=2", f"--time={seconds}", "--protocol=prepared",
                *options,
            )
        )  # fmt: skip
        assert found is not None, "pgbench did not say what it measured"
        return float(found[1])

    def _run(self, *options: str) -> str:
        done = subprocess.run(
            [str(self._program), *options, self.dsn],
            capture_output=True, text=True, check=False, timeout=180, env=clean_environment(),
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"pgbench: {done.stderr.strip()[-500:]}")
        return done.stdout
