"""Every dependency has a reason, a pinned version, and no address."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from tests.architecture.source import ROOT, text_of

PYPROJECT = ROOT / "pyproject.toml"
CONSTRAINTS = ROOT / "constraints.txt"
PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([0-9][A-Za-z0-9.!+]*)")


def _normal(name: str) -> str:
    """As package names are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None, requirement
    return found[0]


def _requirements() -> list[str]:
    project = tomllib.loads(text_of(PYPROJECT))
    optional = project["project"]["optional-dependencies"]
    return [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(requirement for extra in optional.values() for requirement in extra),
    ]


def _pins() -> dict[str, str]:
    pins = {}
    for line in text_of(CONSTRAINTS).splitlines():
        if line and not line.startswith("#"):
            found = PIN.fullmatch(line)
            assert found is not None, f"not an exact version: {line}"
            pins[_normal(found[1])] = found[2]
    return pins


@pytest.mark.parametrize("requirement", _requirements())
def test_a_dependency_is_pinned(requirement: str) -> None:
    assert _normal(_name(requirement)) in _pins()


@pytest.mark.parametrize("requirement", _requirements()[1:])
def test_a_dependency_says_why_it_is_there(requirement: str) -> None:
    """A comment beside it, or above the list where the list holds nothing else."""
    lines = text_of(PYPROJECT).splitlines()
    at = next(number for number, line in enumerate(lines) if f'"{requirement}"' in line)
    beside = lines[at].partition("#")[2]
    above = lines[at - 1] if lines[at].rstrip().endswith("]") else ""
    assert len(beside.strip()) > 10 or above.startswith("# "), lines[at]


def test_what_the_dependencies_need_is_pinned_too() -> None:
    """As far as it is installed here: everything that is reached from the engine itself."""
    pins, seen = _pins(), set()
    todo = [(Requirement(requirement), "") for requirement in _requirements()]
    while todo:
        requirement, extra = todo.pop()
        name = _normal(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in ("", *requirement.extras):
            if (name, wanted) in seen:
                continue
            seen.add((name, wanted))
            try:
                needs = metadata.requires(requirement.name) or []
            except metadata.PackageNotFoundError:
                continue
            todo += [(Requirement(need), wanted) for need in needs]
    assert len(seen) > 20, "the search has gone blind"
    assert {name for name, _ in seen} - set(pins) == set()


def test_constraints_hold_versions_and_no_addresses() -> None:
    assert _pins()
    options = [line for line in text_of(CONSTRAINTS).splitlines() if line.startswith("-")]
    assert options == []
    assert "://" not in text_of(CONSTRAINTS)
    assert "@" not in text_of(CONSTRAINTS)


def test_what_is_installed_names_no_index() -> None:
    words = ("index-url", "find-links", "trusted-host")
    for path in (PYPROJECT, CONSTRAINTS, ROOT / "Makefile"):
        assert [word for word in words if word in text_of(path)] == []
