"""Codes of refusals: each is in the closed table, and each is documented where it can occur."""

import ast
from collections.abc import Iterator
from pathlib import Path

import engine
from engine.domain.problems import PROBLEMS
from engine.http.openapi import codes_of
from engine.http.routes import ROUTES

ENGINE = Path(engine.__file__).parent

# Decided before a route is known.
UNROUTED = {"route_not_found", "method_not_allowed"}
# Of parts of the contract that have no routes in this version.
LATER = {
    "currency_mismatch",
    "webhook_endpoint_not_found",
    "customer_not_found",
    "plan_not_found",
    "subscription_not_found",
    "invoice_not_found",
    "coupon_not_found",
    "test_clock_not_found",
}


def refused_in(folder: Path) -> Iterator[tuple[str, str]]:
    """Every code that stands as text in a `Refusal(...)`, with its file."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Refusal":
                given = [*node.args[:1], *(k.value for k in node.keywords if k.arg == "code")]
                for value in given:
                    if isinstance(value, ast.Constant):
                        yield str(value.value), path.name


def test_every_code_that_is_refused_with_is_in_the_table() -> None:
    found = list(refused_in(ENGINE))
    assert found
    assert [(code, file) for code, file in found if code not in PROBLEMS] == []


def test_every_code_is_documented_at_a_route() -> None:
    documented = {code for route in ROUTES for code in codes_of(route)}
    assert documented | UNROUTED | LATER == set(PROBLEMS)


def test_every_code_has_one_status_of_an_error() -> None:
    assert all(400 <= kind.status < 600 for kind in PROBLEMS.values())
