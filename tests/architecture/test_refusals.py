"""Every refusal has one HTTP mapping, and every mapping is told to the users of the API."""

from __future__ import annotations

import ast

from engine.domain.problems import PROBLEMS
from engine.http.openapi import codes_of
from engine.http.routes import ROUTES, SIMULATOR_ROUTES
from tests.architecture.source import folder_of, modules, name_of, tree_of

REFUSALS = {"Refusal", "WebhookRefused"}

WITHOUT_ROUTE = {"route_not_found", "method_not_allowed"}
"""Answered where no route matches, so no route of the OpenAPI document can list them."""

NOT_SERVED_YET = {
    "webhook_endpoint_not_found",
    "customer_not_found",
    "plan_not_found",
    "subscription_not_found",
    "invoice_not_found",
    "coupon_not_found",
    "test_clock_not_found",
    "currency_mismatch",
}
"""Promised by the contract for calls that are not there yet. The list may only shrink."""


def _documented() -> set[str]:
    return {code for route in (*ROUTES, *SIMULATOR_ROUTES) for code in codes_of(route)}


def _codes_in_the_code() -> dict[str, str]:
    """Every code that is written out where a refusal is made, and one place where it is."""
    found: dict[str, str] = {}
    for path in modules():
        if folder_of(path) == "supervisor":
            continue  # It has a closed list of its own, which never leaves the process.
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id not in REFUSALS:
                continue
            named = [word.value for word in node.keywords if word.arg == "code"]
            for code in _literals(node.args[0] if node.args else named[0]):
                found[code] = f"{name_of(path)}:{node.lineno}"
    return found


def _literals(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, str), node.value
        return [node.value]
    if isinstance(node, ast.IfExp):
        return [*_literals(node.body), *_literals(node.orelse)]
    return []


def test_every_refusal_has_a_mapping() -> None:
    used = _codes_in_the_code()
    assert len(used) > 40, "the search has gone blind"
    assert {code: place for code, place in used.items() if code not in PROBLEMS} == {}


def test_every_refusal_is_in_the_openapi_document() -> None:
    untold = set(_codes_in_the_code()) - _documented() - WITHOUT_ROUTE
    assert untold == set()


def test_every_mapping_is_in_the_openapi_document() -> None:
    assert set(PROBLEMS) - _documented() == WITHOUT_ROUTE | NOT_SERVED_YET


def test_routes_name_only_codes_that_exist() -> None:
    named = {code for route in (*ROUTES, *SIMULATOR_ROUTES) for code in route.refusals}
    assert named - set(PROBLEMS) == set()
