"""What the architecture tests read: the project's files, and their code as syntax trees."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "engine"

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


def name_of(path: Path) -> str:
    """A path as the messages and the lists of exceptions write it."""
    return path.relative_to(ROOT).as_posix()


@cache
def modules() -> tuple[Path, ...]:
    """Every Python file of the engine."""
    return tuple(sorted(ENGINE.rglob("*.py")))


@cache
def text_of(path: Path) -> str:
    """A file's text, read once."""
    return path.read_text("utf-8")


@cache
def tree_of(path: Path) -> ast.Module:
    """A module's syntax tree."""
    return ast.parse(text_of(path), str(path))


def folder_of(path: Path) -> str:
    """The layer of a module: its folder below `engine`, or its own name."""
    return path.relative_to(ENGINE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that is imported, wherever the import stands."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: imports are absolute"
            yield node.lineno, node.module or ""


def definitions_of(path: Path) -> Iterator[Definition]:
    """Every class and function of a module, nested ones too."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node


def public_definitions_of(path: Path) -> Iterator[Definition]:
    """Classes, functions and methods that others may use: no name on the way begins with `_`."""

    def below(body: list[ast.stmt]) -> Iterator[Definition]:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if node.name.startswith("_"):
                continue
            yield node
            if isinstance(node, ast.ClassDef):
                yield from below(node.body)

    return below(tree_of(path).body)


@cache
def project_files() -> tuple[Path, ...]:
    """Every file that is, or may come to be, under version control, and holds text."""
    return tuple(path for path in sorted(_listed()) if path.is_file() and _is_text(path))


def _listed() -> list[Path]:
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        # A copy without its history: all that is not hidden, installed or cached.
        return [
            path
            for path in ROOT.rglob("*")
            if not any(
                part.startswith(".") or part == "__pycache__" or part.endswith(".egg-info")
                for part in path.relative_to(ROOT).parts
            )
        ]
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name]


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" not in file.read(8_192)
