"""What figures depend on: the machine, the versions, the commit, the time."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from engine.ledger.embedded_cluster import find_binaries

PACKAGES = (
    "aiohttp", "anyio", "asyncpg", "msgspec", "uvloop", "fastapi", "sqlalchemy", "uvicorn",
)  # fmt: skip


def describe_machine() -> dict[str, Any]:
    """Everything as plain values for JSON."""
    return {
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "changed_since_commit": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "postgres": _postgres(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def one_line(machine: dict[str, Any]) -> str:
    """The conditions, for the head of a table."""
    changed = " with changes" if machine["changed_since_commit"] else ""
    return (
        f"{machine['taken']}, commit {machine['commit']}{changed}; {machine['cpu']}, "
        f"{machine['cores']} cores, {machine['memory_gib']} GiB; Python {machine['python']}, "
        f"{machine['postgres']}; load average before {machine['load_before']}"
    )


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True,
            cwd=Path(__file__).parent,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


def _postgres() -> str:
    program = find_binaries() / "postgres"
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.strip().replace("postgres (PostgreSQL)", "PostgreSQL")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
