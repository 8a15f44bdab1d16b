"""A whole installation on loopback: Postgres, the simulator and engines, each its own process.

Everything may be killed and started again, and everything is ended by its process id at the end.
The data directory holds the cluster and the simulator's books, as with `engine dev`, so `engine
verify` holds the two against each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import psutil

from engine.ledger import embedded_cluster
from engine.ledger.embedded import EmbeddedPostgres
from tests.real.system.process import API_KEY, READY_S, ROOT, EngineProcess, wait_until
from tests.torture.proxy import Proxy

SETTINGS = """
failpoints_allowed = true
park_retry_s = 1
{more}

[simulator]
url = "http://127.0.0.1:{simulator}"
deadline_ms = {deadline_ms}
lookup_lag_ms = {lag_ms}
send_webhooks = {webhooks}

[[api_keys]]
sha256 = "{digest}"
merchant = "m_dev"
scopes = ["merchant", "operator"]

[[fees]]
valid_from = "2020-01-01"
currency = "USD"
basis_points = 290
fixed_minor = 30
"""


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def own_environment() -> dict[str, str]:
    """The environment without any setting of the engine."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("ENGINE_") and name != "DATABASE_URL"
    }


class Engine(EngineProcess):
    """`engine serve` on a fixed port; `module` may be another command line of the engine."""

    def __init__(self, plant: Plant, name: str, port: int, module: str = "engine") -> None:
        super().__init__(plant.data_dir, module=module)
        self.plant = plant
        self.name = name
        self.port = port
        self.address = f"http://127.0.0.1:{port}"
        self.environ: dict[str, str] = {}
        self.kills = 0

    def spawn(self, failpoint: str | None = None) -> None:
        """Start it without waiting for anything, armed or not."""
        assert self._process is None, "it runs already"
        self._starts += 1
        environ = {**own_environment(), "DATABASE_URL": self.plant.dsn, **self.environ}
        if failpoint is not None:
            environ["ENGINE_FAILPOINT"] = failpoint
        command = [sys.executable, "-m", self._module, "serve", "--port", str(self.port)]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--config", str(self.plant.settings), "--data", str(self.data_dir)],
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"it ended instead:\n{self.log()}"
        return self.probe("/readyz") == 200

    def probe(self, path: str, timeout_s: float = 2.0) -> int | None:
        """The status of a GET on a new connection; None where there is no answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {API_KEY}"})
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    @property
    def pid(self) -> int:
        """The process id of what runs."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """`kill -9`, counted."""
        super().kill()
        self.kills += 1

    def has_died(self) -> bool:
        """Whether it has been killed by a failpoint of its own; takes note of it."""
        if self._process is None or self._process.poll() is None:
            return False
        assert self._process.returncode == -signal.SIGKILL, self.log()
        self._process = None
        self.kills += 1
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    @property
    def log_path(self) -> Path:
        """Where the output of the present run goes."""
        return self.plant.folder / f"engine-{self.name}-{self._starts}.log"

    def logs(self) -> str:
        """Everything that any run of any engine of the plant has printed."""
        paths = sorted(self.plant.folder.glob("engine-*.log"))
        return "".join(path.read_text("utf-8", "replace") for path in paths)

    def wait_nothing_left(self) -> None:
        """The plant looks after what is left: the database is not this engine's."""


class Plant:
    """One data directory, one database, one simulator, and engines on them."""

    def __init__(
        self,
        folder: Path,
        *,
        data_dir: Path | None = None,
        more: str = "",
        deadline_ms: int = 1_500,
        lag_ms: int = 500,
        proxied: bool = False,
        module: str = "engine",
        webhooks: bool = True,
    ) -> None:
        self.folder = folder
        self.data_dir = data_dir or folder / "data"
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.settings = folder / "settings.toml"
        self.simulator_port = free_port()
        self.database = EmbeddedPostgres(self.data_dir)
        self.proxy: Proxy | None = None
        self._proxied = proxied
        self._simulator: subprocess.Popen[bytes] | None = None
        self.settings.write_text(
            SETTINGS.format(
                more=more,
                simulator=self.simulator_port,
                deadline_ms=deadline_ms,
                lag_ms=lag_ms,
                webhooks=str(webhooks).lower(),
                digest=hashlib.sha256(API_KEY.encode()).hexdigest(),
            )
        )
        self.engine = Engine(self, "a", free_port(), module)
        self.engines = [self.engine]

    # --- life -------------------------------------------------------------------------------

    def start(self) -> Plant:
        """Database, schema, simulator. Engines are started one by one."""
        self.database.start()
        self.start_simulator()
        done = self.engine.run_command("migrate")
        assert done.returncode == 0, done.stdout + done.stderr
        if self._proxied:
            self.proxy = Proxy(self.socket_path).start()
        return self

    def second_engine(self) -> Engine:
        """Another engine on the same database, not started."""
        name = "abcdefgh"[len(self.engines)]
        self.engines.append(Engine(self, name, free_port()))
        return self.engines[-1]

    def start_simulator(self) -> None:
        """Start the gateway as a process of its own, with its books in the data directory."""
        with (self.folder / "simulator.log").open("ab") as log:
            self._simulator = subprocess.Popen(
                [
                    *(sys.executable, "-m", self.engine._module, "gateway-simulator"),
                    *("--port", str(self.simulator_port), "--data", str(self.data_dir)),
                    *("--config", str(self.settings)),
                    *("--webhook-url", f"{self.engine.address}/v1/webhooks/simulator"),
                ],
                cwd=ROOT,
                env=own_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until(self._simulator_listens, READY_S, "the simulator")

    def _simulator_listens(self) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.simulator_port), 1).close()
            return True
        return False

    def kill_simulator(self) -> None:
        """`kill -9` of the gateway."""
        assert self._simulator is not None
        self._simulator.kill()
        self._simulator.wait(10)

    def simulator_signal(self, number: signal.Signals) -> None:
        """Send the gateway a signal."""
        assert self._simulator is not None
        self._simulator.send_signal(number)

    def close(self) -> None:
        """End everything, the last things first, and see that nothing is left."""
        try:
            for engine in self.engines:
                if engine._process is not None:
                    with contextlib.suppress(ProcessLookupError):
                        engine.signal(signal.SIGCONT)
                engine.close()
            if self._simulator is not None:
                with contextlib.suppress(ProcessLookupError):
                    self._simulator.send_signal(signal.SIGCONT)
                self._simulator.terminate()
                try:
                    self._simulator.wait(5)
                except subprocess.TimeoutExpired:
                    self.kill_simulator()
            if self.proxy is not None:
                self.proxy.stop()
        finally:
            self.database.stop()
        wait_until(lambda: not self.engine.processes(), 20, f"no process on {self.data_dir}")

    # --- the database -----------------------------------------------------------------------

    @property
    def dsn(self) -> str:
        """Where engines find the database: through the proxy where there is one."""
        if self.proxy is None:
            return self.database.dsn
        return f"postgresql://engine@127.0.0.1:{self.proxy.port}/postgres?sslmode=disable"

    @property
    def socket_path(self) -> str:
        """The server's unix socket."""
        return str(self.database._sockets / f".s.PGSQL.{embedded_cluster.PORT}")

    @property
    def server_pid(self) -> int:
        """The process id of the postmaster."""
        pid = self.database.statistics().server_pid
        assert pid is not None
        return pid

    def end_database(self, how: signal.Signals) -> None:
        """SIGINT: a fast shutdown. SIGQUIT: an immediate one. SIGKILL: as by the kernel."""
        os.kill(self.server_pid, how)
        wait_until(lambda: not self.database.alive, 30, "the end of the server")

    def rows(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        """Ask the database, past the proxy."""

        async def fetch() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(self.database.dsn, timeout=10)
            try:
                return await connection.fetch(statement, *arguments)
            finally:
                await connection.close()

        # In a thread of its own, since a test's event loop may be running in this one.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, fetch()).result()

    def backends(self, application: str) -> list[int]:
        """The process ids of the back ends that serve one kind of connection."""
        found = self.rows(
            "SELECT pid FROM pg_stat_activity WHERE application_name = $1", application
        )
        return [row["pid"] for row in found]


def rss_bytes(pid: int) -> int:
    """The resident memory of a process."""
    return int(psutil.Process(pid).memory_info().rss)


@contextlib.contextmanager
def plant(**options: Any) -> Iterator[Plant]:
    """A started plant in a folder of its own that goes away with it."""
    folder = Path(tempfile.mkdtemp(prefix="pe-torture-"))
    made = Plant(folder, **options)
    try:
        yield made.start()
    except BaseException:
        if keep := os.environ.get("TORTURE_KEEP"):
            shutil.copytree(folder, Path(keep) / folder.name, dirs_exist_ok=True)
        raise
    finally:
        try:
            made.close()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
