"""Who may import what, beyond the layers (those are import-linter's, in pyproject.toml)."""

from __future__ import annotations

import ast
import sys

import pytest

from tests.architecture.source import folder_of, imports_of, modules, name_of, tree_of

ONLY_IN = {
    "aiohttp": {
        "engine/http/connection.py": "handlers take and return plain Structs",
        "engine/gateways/http_client.py": "the one client of all gateways",
        "engine/gateways/simulator_http.py": "the simulator as a provider, over sockets",
    },
    "asyncpg": {"engine/ledger/": "the ledger's driver"},
    "pybreaker": {"engine/gateways/breaker.py": "it holds the breaker's state, and nothing else"},
    "structlog": {"engine/app/telemetry.py": "the rest of the engine knows the telemetry port"},
    "prometheus_client": {"engine/app/metrics.py": "the same"},
    "asyncio": {
        "engine/http/connection.py": "aiohttp runs on asyncio; the actors must not",
        "engine/http/server.py": "the same",
        "engine/ledger/ahead.py": "it works in the gaps of the event loop that asyncpg waits on",
        "engine/app/": "what runs on asyncio is put together there",
    },
    "trio": {"engine/simulation/": "the one part that decides how time passes"},
    "uvloop": {},
    "redis": {},
    "logging": {},
}
"""What is imported only in the modules named here (a folder ends in a slash), and why there."""

PURE = {
    *("__future__", "bisect", "collections", "collections.abc", "dataclasses", "datetime"),
    *("decimal", "enum", "fractions", "functools", "hashlib", "itertools", "math", "re"),
    *("string", "types", "typing", "unicodedata", "zlib", "msgspec"),
}
"""All that the core may import: no IO, no clock, no chance."""
PURE_EXCEPTIONS = {("engine/domain/diagrams.py", "sys"): "its command prints"}

CLOCKS = {"time", "asyncio"}
"""What nothing below the app and the adapters may ask for the time, or wait with."""
WITHOUT_CLOCK = {"actors", "supervisor", "domain", "messages", "ports", "config"}

ACTORS_THIRD_PARTY = {"anyio", "msgspec"}


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_package_is_known_only_where_it_belongs(package: str) -> None:
    places = tuple(ONLY_IN[package])
    found = [
        f"{name_of(path)}:{line}"
        for path in modules()
        for line, name in imports_of(path)
        if name.split(".")[0] == package and not name_of(path).startswith(places or ("-",))
    ]
    assert found == []


def test_the_core_imports_nothing_that_could_act() -> None:
    found = [
        f"{name_of(path)}:{line}: {name}"
        for path in modules()
        if folder_of(path) in {"domain", "messages"}
        for line, name in imports_of(path)
        if name not in PURE
        and not name.startswith("engine.domain")
        and (name_of(path), name) not in PURE_EXCEPTIONS
    ]
    assert found == []


def test_the_core_never_waits() -> None:
    waiting = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in modules()
        if folder_of(path) == "domain"
        for node in ast.walk(tree_of(path))
        if isinstance(node, waiting)
    ]
    assert found == []


def test_actors_and_supervisors_run_under_any_clock() -> None:
    found = [
        f"{name_of(path)}:{line}: {name}"
        for path in modules()
        if folder_of(path) in WITHOUT_CLOCK
        for line, name in imports_of(path)
        if name.split(".")[0] in CLOCKS
    ]
    assert found == []


def test_actors_and_supervisors_know_anyio_and_no_other_library() -> None:
    found = []
    for path in modules():
        if folder_of(path) not in {"actors", "supervisor"}:
            continue
        for line, name in imports_of(path):
            package = name.split(".")[0]
            if package in sys.stdlib_module_names or package == "engine":
                continue
            if package not in ACTORS_THIRD_PARTY:
                found.append(f"{name_of(path)}:{line}: {name}")
    assert found == []


def test_nothing_blocks_the_event_loop_with_a_sleep() -> None:
    blocking = {
        # Both run before or beside any event loop.
        "engine/ledger/embedded.py",
        "engine/ledger/embedded_account.py",
        "engine/ledger/embedded_cluster.py",
        "engine/ledger/embedded_lock.py",
        "engine/ledger/embedded_watchdog.py",
        # Blocking the loop is what it is armed for.
        "engine/failpoints.py",
    }
    found = []
    for path in modules():
        if name_of(path) in blocking:
            continue
        for node in ast.walk(tree_of(path)):
            is_sleep = isinstance(node, ast.Attribute) and node.attr == "sleep"
            if is_sleep and isinstance(node.value, ast.Name) and node.value.id == "time":
                found.append(f"{name_of(path)}:{node.lineno}")
    assert found == []
