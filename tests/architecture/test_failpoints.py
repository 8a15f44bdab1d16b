"""Every failpoint that is registered stands in the code, once, and no other does."""

from __future__ import annotations

import ast
from collections import Counter

from engine.failpoints import LATER_S, POINTS
from tests.architecture.source import modules, name_of, tree_of


def _placed() -> Counter[str]:
    placed: Counter[str] = Counter()
    for path in modules():
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id == "failpoint":
                (name,) = node.args
                assert isinstance(name, ast.Constant), f"{name_of(path)}:{node.lineno}"
                placed[name.value] += 1
    return placed


def test_every_failpoint_stands_exactly_once_in_the_engine() -> None:
    assert _placed() == Counter(dict.fromkeys(POINTS, 1))


def test_what_is_acted_upon_later_is_registered() -> None:
    assert set(LATER_S) <= set(POINTS)
