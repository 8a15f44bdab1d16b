"""Style as a test: sizes, names, words and docstrings. Every exception carries its reason."""

from __future__ import annotations

import ast
import re
import tokenize
from pathlib import Path

import pytest

from tests.architecture.source import (
    ENGINE,
    ROOT,
    definitions_of,
    modules,
    name_of,
    project_files,
    public_definitions_of,
    text_of,
    tree_of,
)

MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
COLUMNS_MAX = 100

LONG_MODULES = {
    "engine/actors/shard.py": "one actor: every message it handles, beside the state they share",
    "engine/domain/outcomes.py": "one treatment per verdict of one table, which read as a whole",
    "engine/domain/representation.py": "payment, refund, event and answer quote one another",
    "engine/ports.py": "every protocol between the layers, mostly docstrings",
}
"""Modules over the limit, each with the reason that it is one module."""

LONG_FUNCTIONS = {
    "engine/actors/system.py:__init__": "the list of all actors, in the order of their starts",
}
"""Functions over the limit, each with the reason that it is one function."""

UNFINISHED = re.compile(r"\b(TODO|FIXME|HACK|XXX)\b")

VAGUE_NAMES = {"manager", "managers", "helper", "helpers", "util", "utils"}
VAGUE_PREFIX = "process_"

# Where somebody works is nobody else's business. In pieces, so that this file does not find itself.
_PLACES = "|".join(("work", "root", "tmp/w", "home/[a-z]", "Users/[A-Za-z]"))
MACHINE_PATH = re.compile(rf"(?<![\w.:}}/-])/(?:{_PLACES})(?:/|\b)")
ORIGIN_NOTE = re.compile(r"co[-]authored[-]by|generated[ ]with", re.IGNORECASE)

URL_HOST = re.compile(r"\b(?:https?|git|ssh)://(?:[^/\s\"'`)>@]*@)?([A-Za-z0-9.-]+)")
HOSTS = {
    "127.0.0.1": "this machine",
    "localhost": "this machine",
    "0.0.0.0": "this machine",
    "www.postgresql.org": "the documentation of Postgres",
    "www.rfc-editor.org": "standards",
    "datatracker.ietf.org": "standards",
    "www.w3.org": "standards",
    "spec.openapis.org": "standards",
    "json-schema.org": "standards",
    "github.com": "specifications that are kept there",
    "www.standardwebhooks.com": "standards",
    "www.six-group.com": "the maintainer of ISO 4217",
    "www.iso.org": "standards",
    "www.crockford.com": "the base 32 of ids",
    "keepachangelog.com": "the form of the change log",
    "semver.org": "the form of version numbers",
    "mermaid.js.org": "the language of the diagrams",
    "www.erlang.org": "the documentation of OTP",
    "docs.stripe.com": "a provider's documentation",
    "developer.paypal.com": "a provider's documentation",
    "developer.squareup.com": "a provider's documentation",
    "developer.authorize.net": "a provider's documentation",
}
"""The hosts that an address in a file may name, and why."""
EXAMPLE_HOST = re.compile(r"(^|\.)(example|test|invalid|localhost)(\.(com|org|net))?$")


def _engine_modules() -> list[object]:
    return [pytest.param(path, id=name_of(path)) for path in modules()]


def test_modules_are_short_enough_to_read_at_once() -> None:
    long = {
        name_of(path) for path in modules() if len(text_of(path).splitlines()) > MODULE_LINES_MAX
    }
    assert long - set(LONG_MODULES) == set(), "split them, or give the reason in LONG_MODULES"
    assert set(LONG_MODULES) - long == set(), "they are short now: take them off the list"


def test_functions_are_short_enough_to_see_at_once() -> None:
    long = set()
    for path in modules():
        for node in definitions_of(path):
            if isinstance(node, ast.ClassDef):
                continue
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines >= FUNCTION_LINES_MAX:
                long.add(f"{name_of(path)}:{node.name}")
    assert long - set(LONG_FUNCTIONS) == set(), "split them, or give the reason"
    assert set(LONG_FUNCTIONS) - long == set(), "they are short now: take them off the list"


def test_lines_fit_a_hundred_columns() -> None:
    files = [p for p in project_files() if p.suffix in {".py", ".sql"}]
    wide = [
        f"{name_of(path)}:{number}"
        for path in files
        for number, line in enumerate(text_of(path).splitlines(), 1)
        # A comment for the linter may stand beside its line.
        if len(line.split("  # ")[0]) > COLUMNS_MAX
    ]
    assert wide == []


@pytest.mark.parametrize("path", _engine_modules())
def test_nothing_is_left_unfinished(path: Path) -> None:
    with path.open("rb") as file:
        comments = [
            (token.start[0], token.string)
            for token in tokenize.tokenize(file.readline)
            if token.type == tokenize.COMMENT
        ]
    assert [line for line, text in comments if UNFINISHED.search(text)] == []
    names = {"NotImplementedError"}
    assert [
        node.lineno
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Name) and node.id in names
    ] == []


@pytest.mark.parametrize("path", _engine_modules())
def test_everything_public_has_a_docstring(path: Path) -> None:
    missing = [] if ast.get_docstring(tree_of(path)) else ["the module"]
    missing += [
        f"{node.name} (line {node.lineno})"
        for node in public_definitions_of(path)
        if not ast.get_docstring(node)
    ]
    assert missing == []


def test_names_say_what_things_are() -> None:
    vague = []
    for path in modules():
        if VAGUE_NAMES.intersection(path.stem.split("_")):
            vague.append(name_of(path))
        for node in definitions_of(path):
            words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", node.name).lower().strip("_").split("_")
            prefixed = node.name.lstrip("_").startswith(VAGUE_PREFIX)
            if VAGUE_NAMES.intersection(words) or prefixed:
                vague.append(f"{name_of(path)}:{node.lineno} {node.name}")
    assert vague == []


def test_folders_of_the_engine_hold_code_only() -> None:
    known = {".py", ".sql", ".typed", ""}
    strange = [
        name_of(path)
        for path in ENGINE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in known
    ]
    assert strange == []


def test_test_folders_are_no_packages() -> None:
    assert [name_of(path) for path in (ROOT / "tests").rglob("__init__.py")] == []


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in project_files()
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []


def test_no_file_names_who_or_what_typed_it() -> None:
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in project_files()
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if ORIGIN_NOTE.search(line)
    ]
    assert found == []


def test_addresses_lead_to_standards_and_providers_only() -> None:
    found = []
    for path in project_files():
        in_tests = path.is_relative_to(ROOT / "tests")
        for host in URL_HOST.findall(text_of(path).replace("\\.", ".")):
            invented = EXAMPLE_HOST.search(host) or (in_tests and "." not in host)
            if host.rstrip(".") not in HOSTS and not invented:
                found.append(f"{name_of(path)}: {host}")
    assert found == [], "an address of a package index or of a private host, or one to be listed"
