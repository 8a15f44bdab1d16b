"""The OpenAPI document says what the table of routes says, and is one."""

import re
from html.parser import HTMLParser
from typing import Any

import jsonschema
import pytest

from engine.domain.problems import PROBLEMS
from engine.http.docs_page import docs_page
from engine.http.openapi import codes_of, openapi_document
from engine.http.routes import ROUTES, SIMULATOR_ROUTES

ALL = (*ROUTES, *SIMULATOR_ROUTES)
DOCUMENT = openapi_document(ALL, version="1.2.3")
OPERATIONS = [
    (path, method, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]


def references(value: Any) -> list[str]:
    """Every `$ref` inside a value."""
    if isinstance(value, list):
        return [found for item in value for found in references(item)]
    if not isinstance(value, dict):
        return []
    own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
    return own + [found for item in value.values() for found in references(item)]


def test_the_document_has_exactly_the_routes_of_the_table() -> None:
    documented = {(method.upper(), path) for path, method, _ in OPERATIONS}
    assert documented == {(route.method, route.template) for route in ALL}


def test_the_contract_of_this_version_is_there() -> None:
    paths = {
        "/v1/payments/authorize", "/v1/payments/purchase", "/v1/payments/{id}/capture",
        "/v1/payments/{id}/cancel", "/v1/payments/{id}/refund", "/v1/payments/{id}",
        "/v1/payments/batch",
        "/v1/payments", "/v1/refunds/{id}", "/v1/refunds", "/v1/payments/{id}/timeline",
        "/v1/webhooks/{gateway}", "/v1/events", "/v1/accounts", "/v1/accounts/{id}",
        "/v1/accounts/{id}/transfers", "/v1/transfers/{id}", "/v1/ledger/verify", "/livez",
        "/readyz", "/v1/health", "/metrics", "/v1/statistics", "/v1/dead_letters",
        "/v1/dead_letters/{id}/retry", "/openapi.json", "/docs",
    }  # fmt: skip
    assert paths <= set(DOCUMENT["paths"])


def test_every_reference_leads_somewhere() -> None:
    for reference in references(DOCUMENT):
        value = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            value = value[step]


@pytest.mark.parametrize("name", DOCUMENT["components"]["schemas"])
def test_every_schema_is_a_schema(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(DOCUMENT["components"]["schemas"][name])


@pytest.mark.parametrize("route", [route for route in ALL if route.example], ids=lambda r: r.name)
def test_every_example_is_a_valid_body(route) -> None:
    operation = DOCUMENT["paths"][route.template][route.method.lower()]
    content = operation["requestBody"]["content"]["application/json"]
    schema = {**content["schema"], "components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(schema).validate(content["example"])


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_every_operation_is_complete(path: str, method: str, operation: dict[str, Any]) -> None:
    named = set(re.findall(r"\{(\w+)\}", path))
    parameters = operation.get("parameters", [])
    assert named == {one["name"] for one in parameters if one.get("in") == "path"}
    assert operation["summary"]
    assert any(status.startswith("2") for status in operation["responses"])
    for status, answer in operation["responses"].items():
        assert answer["description"]
        assert "Request-Id" in answer["headers"]
        assert answer["content"]
        if status in ("429", "503"):
            assert "Retry-After" in answer["headers"]


@pytest.mark.parametrize("route", ALL, ids=lambda route: route.name)
def test_every_code_of_a_route_stands_at_its_status(route) -> None:
    responses = DOCUMENT["paths"][route.template][route.method.lower()]["responses"]
    for code in codes_of(route):
        status = str(PROBLEMS[code].status)
        schema = responses[status]["content"]["application/problem+json"]["schema"]
        assert code in schema["allOf"][1]["properties"]["code"]["enum"]
    assert set(route.refusals) <= set(codes_of(route))


@pytest.mark.parametrize("route", ALL, ids=lambda route: route.name)
def test_keys_and_scopes_are_documented(route) -> None:
    operation = DOCUMENT["paths"][route.template][route.method.lower()]
    assert operation["security"] == ([] if route.scope is None else [{"apiKey": []}])
    # The items of a batch carry their keys themselves.
    is_batch = route.template == "/v1/payments/batch"
    moves_money = (
        route.template.startswith("/v1/payments/") and route.method == "POST" and not is_batch
    )
    assert (route.key == "required") is moves_money
    headers = [one for one in operation.get("parameters", []) if one.get("in") == "header"]
    assert [one["required"] for one in headers] == ([True] if moves_money else [])


def test_bodies_refuse_unknown_fields_also_on_paper() -> None:
    for route in ALL:
        if route.body is not None:
            schema = DOCUMENT["components"]["schemas"][route.body.__name__]
            assert schema["additionalProperties"] is False


class Page(HTMLParser):
    """Collects what a page would load or run, and checks that tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe", "object"), tag
        given = dict(attrs)
        assert not {"src", "onclick", "onload", "style"} & set(given)
        if given.get("id"):
            self.ids.add(str(given["id"]))
        if given.get("href"):
            self.links.append(str(given["href"]))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing() -> None:
    page = Page()
    page.feed(docs_page(DOCUMENT).decode())
    assert not page.open
    assert {route.name for route in ALL} <= page.ids
    for link in page.links:
        assert link == "/openapi.json" or link.removeprefix("#") in page.ids
