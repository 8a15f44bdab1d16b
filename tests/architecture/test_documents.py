"""The documents speak of what is there: files, functions, settings, payment methods, diagrams."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import msgspec
import pytest

from engine import config
from engine.domain.diagrams import SECTIONS, refreshed
from engine.gateways.simulator_methods import METHODS
from tests.architecture.source import ROOT, definitions_of, modules, text_of

ARCHITECTURE = ROOT / "ARCHITECTURE.md"
README = ROOT / "README.md"
DOCUMENTS = [ARCHITECTURE, README]
DOCUMENTS += [ROOT / f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG", "RELIABILITY")]
DOCUMENTS += [ROOT / "PERFORMANCE.md"]

CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"[\w./-]+/[\w.-]*|[\w-]+\.(?:py|sql|md|toml|txt)")
FUNCTION = re.compile(r"(?:\w+\.)?(\w+)\(\)")
LINK = re.compile(r"\]\(([^)#:\s]+)?(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)

RENEW = "python -m engine.domain.diagrams - < ARCHITECTURE.md > new.md && mv new.md ARCHITECTURE.md"


def _quoted(document: Path) -> list[str]:
    return CODE.findall(FENCE.sub("", text_of(document)))


def test_the_diagrams_are_those_of_the_tables() -> None:
    committed = text_of(ARCHITECTURE)
    assert committed == refreshed(committed), f"stale; renew them with: {RENEW}"


def test_renewing_replaces_what_stands_between_the_markers() -> None:
    stale = text_of(ARCHITECTURE)
    for draw in SECTIONS.values():
        assert draw() in stale
        stale = stale.replace(draw(), "something old")
    assert refreshed(stale) == text_of(ARCHITECTURE)


def test_a_document_without_a_marker_is_not_renewed() -> None:
    with pytest.raises(ValueError, match="payment"):
        refreshed("# Nothing of the kind\n")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(document: Path) -> None:
    named = [text for text in _quoted(document) if FILE.fullmatch(text) and text[0] not in "/."]
    missing = [
        text
        for text in named
        if not any((base / text).exists() for base in (ROOT, ROOT / "engine"))
        and Path(text).suffix in {".py", ".sql", ".md", ".txt"}
    ]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_functions_that_are_named_exist(document: Path) -> None:
    defined = {node.name for path in modules() for node in definitions_of(path)}
    # What a library defines and the documents speak of all the same.
    defined |= {"open", "half_open", "close"}
    named = [found[1] for text in _quoted(document) if (found := FUNCTION.fullmatch(text))]
    assert [name for name in named if name not in defined] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    broken = []
    for file, anchor in LINK.findall(FENCE.sub("", text_of(document))):
        target = (document.parent / file) if file else document
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(f"{file}#{anchor}")
    assert broken == []


def _anchors(document: Path) -> set[str]:
    """The names that headings get where Markdown is shown."""
    headings = HEADING.findall(FENCE.sub("", text_of(document)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_setting_is_in_the_readme() -> None:
    quoted = set(_quoted(README))
    fields = {field.name for field in msgspec.structs.fields(config.Settings)} - {"file"}
    assert fields - quoted == set()
    assert set(config._VARIABLES) - quoted == set()


def test_every_payment_method_is_in_the_readme() -> None:
    assert set(METHODS) - set(_quoted(README)) == set()


def test_every_command_is_in_the_readme() -> None:
    main = ast.parse(text_of(ROOT / "engine" / "__main__.py"))
    commands = [
        node.args[0].value
        for node in ast.walk(main)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "command"
        and isinstance(node.args[0], ast.Constant)
    ]
    assert len(commands) >= 5
    assert [name for name in commands if f"engine {name}" not in text_of(README)] == []
