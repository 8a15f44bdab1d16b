"""The customers of the load tests, read as source: locust is there only where load is made."""

from __future__ import annotations

import ast
from pathlib import Path

import loadtests.scenarios
from loadtests.scenarios import SCENARIOS, SOAK

SOURCE = Path(loadtests.scenarios.__file__).with_name("locustfile.py")


def test_every_customer_does_one_thing() -> None:
    """locust adds a class's tasks to those of its bases, also where they have the same name."""
    classes = {
        node.name: node
        for node in ast.parse(SOURCE.read_text()).body
        if isinstance(node, ast.ClassDef)
    }

    def tasks(name: str) -> list[str]:
        node = classes.get(name)
        if node is None:
            return []
        found = [base for at in node.bases if isinstance(at, ast.Name) for base in tasks(at.id)]
        for function in node.body:
            if isinstance(function, ast.FunctionDef):
                marks = [mark.id for mark in function.decorator_list if isinstance(mark, ast.Name)]
                found += [f"{name}.{function.name}"] * ("task" in marks)
        return found

    users = {scenario.user for scenario in (*SCENARIOS, SOAK)}
    assert {user: len(tasks(user)) for user in users} == dict.fromkeys(users, 1)
