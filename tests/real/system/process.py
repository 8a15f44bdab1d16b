"""The whole product as its users start it: `engine dev`, on any free port and a folder of its own.

Only what was started here is ever ended here: the engine by its process id, and Postgres and its
watchdog by the engine or by themselves.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

from engine.gateways.simulator_books import Effect, read_books

ROOT = Path(__file__).resolve().parents[3]
API_KEY = "sk_test_dev"
READY_S = 30.0
STOP_S = 30.0
GONE_S = 20.0
POLL_S = 0.05
_ADDRESS = re.compile(r"^ +address +(http://127\.0\.0\.1:(\d+))$", re.MULTILINE)


def wait_until(holds: Callable[[], object], within_s: float, what: str) -> None:
    """Return as soon as `holds()` is true; fail when it is not by the deadline."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(POLL_S)


class EngineProcess:
    """One data directory and, while it runs, the engine on it."""

    def __init__(
        self, data_dir: Path, environ: Mapping[str, str] | None = None, module: str = "engine"
    ) -> None:
        """`module` is what runs as the command line."""
        self.data_dir = data_dir
        self._module = module
        self.address = ""
        self.port = 0
        self.ready_after_s = 0.0
        self._environ = dict(environ or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0

    # --- life -------------------------------------------------------------------------------

    def start(self) -> EngineProcess:
        """Start it, and return once it has said that it is ready."""
        began = time.monotonic()
        self.spawn()
        wait_until(self._is_ready, READY_S, "the banner")
        self.ready_after_s = time.monotonic() - began
        return self

    def spawn(self) -> None:
        """Start it without waiting for anything."""
        assert self._process is None, "it runs already"
        self._starts += 1
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("ENGINE_") and name != "DATABASE_URL"
        }
        command = [sys.executable, "-m", self._module, "dev", "--port", "0"]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--data", str(self.data_dir)],
                cwd=ROOT,
                env={**environ, **self._environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _is_ready(self) -> bool:
        assert self._process is not None
        found = _ADDRESS.search(self.log())
        if found is None:
            assert self._process.poll() is None, f"it ended instead:\n{self.log()}"
            return False
        self.address, self.port = found[1], int(found[2])
        return True

    @property
    def is_running(self) -> bool:
        """Whether it has been started, and neither stopped here nor ended by itself."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """`kill -9`, and wait until the process is gone; Postgres may still be stopping."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(STOP_S)
        self._process = None

    def send_sigterm(self) -> None:
        """Ask it to stop, and return at once."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def wait_ended(self) -> int:
        """Wait for its end; returns the exit code."""
        assert self._process is not None
        code = self._process.wait(STOP_S)
        self._process = None
        return code

    def terminate(self) -> int:
        """SIGTERM, and wait for its end; returns the exit code."""
        self.send_sigterm()
        return self.wait_ended()

    def restart(self) -> EngineProcess:
        """Start it again after a kill or a stop."""
        return self.start()

    def close(self) -> None:
        """End it if it still runs, and see that nothing of it is left behind."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.terminate()
            if self._process is not None:
                self.kill()
        self.wait_nothing_left()

    # --- what it leaves ---------------------------------------------------------------------

    @property
    def log_path(self) -> Path:
        """Where the output of the present run goes."""
        return self.data_dir.parent / f"engine-{self._starts}.log"

    def log(self) -> str:
        """Everything the present run has printed."""
        return self.log_path.read_text("utf-8", "replace")

    def logs(self) -> str:
        """Everything that any run has printed."""
        paths = sorted(self.data_dir.parent.glob("engine-*.log"))
        return "".join(path.read_text("utf-8", "replace") for path in paths)

    def processes(self) -> list[psutil.Process]:
        """Every process that names the data directory on its command line: Postgres, watchdog."""
        mine = str(self.data_dir)
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and any(
                    mine in argument for argument in process.cmdline()
                ):
                    found.append(process)
        return found

    def wait_nothing_left(self) -> None:
        """Fail when Postgres or its watchdog outlives the engine."""
        wait_until(lambda: not self.processes(), GONE_S, f"no process on {self.data_dir}")

    def books(self) -> list[Effect]:
        """The simulator's books: the effects as they stand, a revised one in its last form."""
        effects: dict[int, Effect] = {}
        for effect in read_books(self.data_dir / "simulator-books.jsonl"):
            effects[effect.revises or effect.seq] = effect
        return list(effects.values())

    def run_command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command of the engine on this data directory."""
        return subprocess.run(
            [sys.executable, "-m", "engine", *arguments, "--data", str(self.data_dir)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@contextlib.contextmanager
def engine_folder(
    environ: Mapping[str, str] | None = None, module: str = "engine"
) -> Iterator[EngineProcess]:
    """An engine that has not been started, on a new folder that goes away with it."""
    parent = Path(tempfile.mkdtemp(prefix="pe-"))
    engine = EngineProcess(parent / "data", environ, module)
    try:
        yield engine
    finally:
        try:
            engine.close()
        finally:
            shutil.rmtree(parent, ignore_errors=True)
