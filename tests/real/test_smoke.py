"""The first minutes of a newcomer: `make run`, the printed line, and the README's first payment."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
# Where nothing is installed yet, `make run` installs first.
READY_S = 600.0
STOP_S = 40.0
BANNER_END = b"Stop with Ctrl-C"
# The line is printed over several, each but the last ending in a backslash.
CURL = re.compile(r"^ *(curl (?:.*\\\n)*.*)$", re.MULTILINE)
README_SECTION = re.compile(r"^## A first payment$(.*?)^## ", re.MULTILINE | re.DOTALL)
README_SCRIPT = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
README_BALANCE = re.compile(r"^\| `(\w+)`[^|]*\| (\d+) \|", re.MULTILINE)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _environ() -> dict[str, str]:
    """The caller's, without settings of an engine and without those of the make we run under."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ENGINE_", "MAKE", "MFLAGS")) and name != "DATABASE_URL"
    }


@contextlib.contextmanager
def _make_run(port: int, data: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`make run` in a process group of its own, which is ended whatever happens."""
    with subprocess.Popen(
        ["make", "run", f"PORT={port}", f"DATA={data}"],
        cwd=ROOT,
        env=_environ(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as make:
        try:
            yield make
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(make.pid, signal.SIGKILL)


def _read_banner(make: subprocess.Popen[bytes]) -> str:
    """What is printed until the engine is ready."""
    assert make.stdout is not None
    deadline = time.monotonic() + READY_S
    output = b""
    with selectors.DefaultSelector() as selector:
        selector.register(make.stdout, selectors.EVENT_READ)
        while BANNER_END not in output:
            assert selector.select(max(0.0, deadline - time.monotonic())), output.decode()
            chunk = os.read(make.stdout.fileno(), 65_536)
            assert chunk, f"it ended instead:\n{output.decode()}"
            output += chunk
    return output.decode()


def _bash(script: str) -> str:
    """Run a script as it was pasted; returns what it printed."""
    done = subprocess.run(
        ["bash", "-c", script], env=_environ(), capture_output=True, timeout=60, check=True
    )
    return done.stdout.decode()


def _documents(text: str) -> list[Any]:
    """The JSON documents that stand one after another in a text."""
    decoder, found, at = json.JSONDecoder(), [], 0
    text = text.strip()
    while at < len(text):
        document, at = decoder.raw_decode(text, at)
        found.append(document)
        while text[at : at + 1].isspace():
            at += 1
    return found


def _follow_the_readme(port: int) -> None:
    """Its script, on this engine; afterwards the accounts say what its table says."""
    section = README_SECTION.search((ROOT / "README.md").read_text("utf-8"))
    assert section is not None
    script = README_SCRIPT.search(section[1])
    assert script is not None
    *answers, accounts = _documents(_bash(script[1].replace(":8080", f":{port}")))
    refused = [answer for answer in answers if "code" in answer]
    assert refused == []
    balances = {account["kind"]: account["balance"] for account in accounts["data"]}
    told = README_BALANCE.findall(section[1])
    assert len(told) == 3
    assert balances == {kind: int(balance) for kind, balance in told}


def _command(process: psutil.Process) -> str:
    """A process's command line; empty where it has ended since it was listed."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.mark.smoke
def test_the_printed_line_pays_and_nothing_is_left_behind(tmp_path: Path) -> None:
    port, data = _free_port(), tmp_path / "data"
    with _make_run(port, data) as make:
        banner = _read_banner(make)
        assert f"http://127.0.0.1:{port}" in banner
        line = CURL.search(banner)
        assert line is not None, banner

        payment = json.loads(_bash(line[1]))
        assert payment["status"] == "authorized", payment
        _follow_the_readme(port)
        verify = ["make", "--no-print-directory", "verify", f"DATA={data}"]
        proof = subprocess.run(verify, cwd=ROOT, env=_environ(), capture_output=True, timeout=60)
        assert proof.returncode == 0, proof.stdout.decode()

        started = psutil.Process(make.pid).children(recursive=True)
        commands = [_command(process) for process in started]
        assert any(str(data) in command and "postgres" in command for command in commands), commands

        os.killpg(make.pid, signal.SIGTERM)
        # Nobody reads what it prints on its way down, so this waits for the end of its output too.
        make.communicate(timeout=STOP_S)
        assert make.returncode is not None
        _, left = psutil.wait_procs(started, timeout=STOP_S)
        assert left == []
