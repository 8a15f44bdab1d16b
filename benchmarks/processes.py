"""The processes of a benchmark: servers pinned to one core, load and databases to the other.

Everything listens on loopback, is started here and is ended here, by its own process id.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil  # type: ignore[import-untyped]

from benchmarks.load import DONE
from engine.config import DEV_KEY

SERVER_CORE, LOAD_CORE = 0, 1
START_S = 60.0
STOP_S = 30.0
SETTLE_S = 1.0

Result = dict[str, Any]


def free_port() -> int:
    """A port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def pin(pid: int, core: int) -> None:
    """Pin a process with all its threads to a core, where there are two and the system can."""
    if not hasattr(os, "sched_setaffinity") or (os.cpu_count() or 1) < 2:
        return
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new folder that goes away with everything in it, short enough for a unix socket."""
    made = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def get(port: int, path: str, timeout_s: float = 5.0, *, key: str = DEV_KEY) -> tuple[int, bytes]:
    """One GET: status and body; status 0 where nobody answers."""
    request = urllib.request.Request(  # loopback only
        f"http://127.0.0.1:{port}{path}", headers={"Authorization": f"Bearer {key}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read()
    except OSError:
        return 0, b""


class Server:
    """A server process: started, awaited until ready, pinned, ended."""

    def __init__(
        self,
        arguments: Sequence[str],
        port: int,
        *,
        ready_path: str | None = None,
        core: int = SERVER_CORE,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.port = port
        self._arguments = [sys.executable, "-m", *arguments]
        self._ready_path = ready_path
        self._core = core
        kept = {k: v for k, v in os.environ.items() if not k.startswith("ENGINE_")}
        kept.pop("DATABASE_URL", None)
        self._environ = {**kept, **(environ or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self.ready_after_s = 0.0

    @property
    def pid(self) -> int:
        """The process; it must have been started."""
        assert self._process is not None
        return self._process.pid

    def spawn(self) -> None:
        """Start it and return at once."""
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            self._arguments, stdout=subprocess.DEVNULL, env=self._environ
        )

    def is_ready(self) -> bool:
        """Whether it takes work. Raises RuntimeError when it has ended instead."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"{self._arguments[2]} ended at its start")
        if self._ready_path is not None:
            return get(self.port, self._ready_path)[0] == 200
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.2):
            return True
        return False

    def wait_ready(self, timeout_s: float = START_S) -> None:
        """Wait until it takes work; `ready_after_s` is how long that took from the start."""
        deadline = time.monotonic() + timeout_s
        while not self.is_ready():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self._arguments[2]} was not ready within {timeout_s} s")
            time.sleep(0.01)
        self.ready_after_s = time.monotonic() - self._began
        self.pin()

    def pin(self) -> None:
        """The server to its core, its children (a database of its own) to the other."""
        pin(self.pid, self._core)
        for child in psutil.Process(self.pid).children(recursive=True):
            pin(child.pid, LOAD_CORE)

    def memory_bytes(self) -> int:
        """What the process alone holds in memory, its children not counted."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def stop(self, *, kill: bool = False) -> None:
        """End it and wait for the end."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.kill() if kill else process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)

    def __enter__(self) -> Self:
        self.spawn()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        time.sleep(SETTLE_S)  # what the start left to do is not measured
        self.pin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def engine(data: Path, *, settings: str = "", environ: Mapping[str, str] | None = None) -> Server:
    """The engine as `engine dev` runs it, logging to a file. `settings` is TOML."""
    data.mkdir(parents=True, exist_ok=True)
    port = free_port()
    arguments = ["engine", "dev", f"--port={port}", f"--data={data}"]
    if settings:
        file = data.parent / f"{data.name}.toml"
        file.write_text(settings)
        arguments.append(f"--config={file}")
    log = {"ENGINE_LOG_FILE": f"{data.parent}/{data.name}.log"}
    return Server(arguments, port, ready_path="/readyz", environ={**log, **(environ or {})})


def run_engine_command(*arguments: str, environ: Mapping[str, str], limit_s: float = 3600) -> bool:
    """Run a command of the engine that ends by itself; whether its exit status is 0."""
    done = subprocess.run(
        [sys.executable, "-m", "engine", *arguments], stdout=subprocess.DEVNULL, check=False,
        env={**os.environ, **environ}, timeout=limit_s,
    )  # fmt: skip
    return done.returncode == 0


def echo() -> Server:
    """The yardstick: a bare echo."""
    port = free_port()
    return Server(["benchmarks.echo", f"--port={port}"], port)


def simulator(data: Path, *, latency_ms: float, rates: Sequence[str] = ()) -> Server:
    """The gateway as a process of its own, on the core of the load."""
    port = free_port()
    options = [f"--rate={rate}" for rate in rates]
    return Server(
        ["engine", "gateway-simulator", f"--port={port}", f"--data={data}",
         f"--latency-ms={latency_ms}", *options],
        port, core=LOAD_CORE,
    )  # fmt: skip


def load(port: int, **options: object) -> Result:
    """One round of `benchmarks.load` from a process of its own on the other core."""
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load", f"--port={port}", *given], stdout=subprocess.PIPE
    )
    pin(process.pid, LOAD_CORE)
    try:
        out, _ = process.communicate(timeout=float(str(options.get("seconds", 5))) + 60)
    finally:
        process.kill()
        process.wait(STOP_S)
    if process.returncode:
        raise RuntimeError("the load generator failed")
    result: Result = json.loads(out)
    return result


def good_per_s(result: Result) -> float:
    """Requests a second that did what was asked, answered within the time of measurement."""
    rates: dict[str, float] = result["per_s"]
    return sum(rates.get(status, 0.0) for status in DONE)


def median_of(results: Sequence[Result]) -> float:
    """The median of the good rates of several rounds."""
    return statistics.median(good_per_s(result) for result in results)
