"""The OpenAPI 3.1 document, generated from the table of routes and the Structs they name.

Nothing in it is written twice: bodies and views give the schemas, the closed table of problems
gives the error answers (https://spec.openapis.org/oas/v3.1.0).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, get_args, get_origin

import msgspec

from engine.domain.problems import CONTENT_TYPE, PROBLEMS
from engine.http.idempotency import HEADER, KEY_LENGTH_MAX
from engine.http.routing import Answered, Route
from engine.http.views import Problem

_SCHEMAS: Final = "#/components/schemas/"
_HEADERS: Final = "#/components/headers/"

Document = dict[str, Any]

_DESCRIPTION: Final = """\
Amounts are integers in the currency's minor unit. Ids are opaque. Unknown fields are refused by \
name. Errors are RFC 9457 problem documents with a stable `code`; where `retryable` is true, the \
same request with the same Idempotency-Key may be sent again. `traceparent` (W3C) is accepted on \
every request. With the simulator, `pm_card_visa` is approved and `pm_card_declined` is declined."""

_TAGS: Final = (
    ("Payments", "Authorise, capture, cancel, refund, and read."),
    ("Refunds", "Refunds as objects of their own."),
    ("Events", "One for every committed change."),
    ("Ledger", "Accounts and transfers of the double-entry ledger."),
    ("Gateway webhooks", "What gateways send."),
    ("System", "The engine about itself."),
    ("Simulator", "What a customer would do, in development."),
)

# What can be answered to any request, before its route counts.
_ALWAYS: Final = (
    "malformed_http",
    "bad_utf8",
    "nul_not_allowed",
    "duplicate_parameter",
    "unknown_parameter",
    "request_timeout",
    "body_too_large",
    "uri_too_long",
    "unsupported_media_type",
    "content_encoding_not_supported",
    "headers_too_large",
    "internal_error",
    "overloaded",
)
_WITH_KEY_SCOPE: Final = ("invalid_api_key", "permission_denied", "rate_limited")
_WITH_QUERY: Final = ("wrong_type", "parameter_invalid")
_WITH_BODY: Final = (
    "malformed_json",
    "depth_exceeded",
    "duplicate_key",
    "unknown_field",
    "wrong_type",
    "field_missing",
    "parameter_invalid",
)
_WITH_IDEMPOTENCY: Final = ("idempotency_key_invalid", "pan_not_allowed", "secret_not_allowed")
_WITH_REQUIRED: Final = (
    "idempotency_key_missing",
    "idempotency_key_reused",
    "idempotency_in_progress",
)

_RETRY_AFTER_STATUSES: Final = frozenset((202, 409, 429, 503))

_MOMENT: Final = re.compile(r"created|at|recorded|occurred|timestamp|.*_at")


def codes_of(route: Route) -> tuple[str, ...]:
    """Every code a route can answer with, in the order of the table of problems."""
    codes = {*_ALWAYS, *route.refusals}
    if route.scope is not None:
        codes.update(_WITH_KEY_SCOPE)
    if route.query:
        codes.update(_WITH_QUERY)
    if route.body is not None:
        codes.update(_WITH_BODY)
    if route.key is not None:
        codes.update(_WITH_IDEMPOTENCY)
    if route.key == "required":
        codes.update(_WITH_REQUIRED)
    return tuple(code for code in PROBLEMS if code in codes)


def openapi_document(routes: Sequence[Route], *, version: str) -> Document:
    """The document of these routes, as plain values."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route)
    used = {route.tag for route in routes}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Payment engine", "version": version, "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS if name in used],
        "paths": paths,
        "components": {
            "schemas": _schemas(routes),
            "headers": _headers(),
            "parameters": {"IdempotencyKey": _key_parameter(False)},
            "securitySchemes": {
                "apiKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A merchant's key, `sk_test_…` or `sk_live_…`.",
                }
            },
        },
    }


def openapi_bytes(document: Document) -> bytes:
    """The document as it is served."""
    return msgspec.json.encode(document)


# --- schemas ----------------------------------------------------------------------------------


def _views(routes: Iterable[Route]) -> list[Any]:
    """The types that need a schema of their own, each once."""
    found: dict[Any, None] = {Problem: None}
    for route in routes:
        if route.body is not None:
            found[route.body] = None
        for answered in route.answers:
            view = _item_of(answered.view) or answered.view
            if isinstance(view, type) and issubclass(view, msgspec.Struct):
                found[view] = None
    return list(found)


def _item_of(view: Any) -> Any:
    """The type of a page's objects, or None where the view is no page."""
    return get_args(view)[0] if get_origin(view) is list else None


def _name_of(view: Any) -> str:
    name: str = view.__name__
    return name.removesuffix("View")


def _schemas(routes: Iterable[Route]) -> dict[str, Any]:
    _, components = msgspec.json.schema_components(
        _views(routes), ref_template=f"{_SCHEMAS}{{name}}"
    )
    schemas: dict[str, Any] = {}
    for name, schema in components.items():
        public = name.removesuffix("View")
        assert public not in schemas, f"two schemas would be called {public}"
        schemas[public] = _published(schema)
        if "title" in schemas[public]:
            schemas[public]["title"] = public
    for item in {_item_of(one.view) for route in routes for one in route.answers} - {None}:
        schemas[f"{_name_of(item)}List"] = _list_schema(_name_of(item))
    if "EventData" in schemas:
        schemas["EventData"]["properties"]["object"] = {
            "anyOf": [{"$ref": f"{_SCHEMAS}Payment"}, {"$ref": f"{_SCHEMAS}Refund"}]
        }
    if "BatchResult" in schemas:
        schemas["BatchResult"]["properties"]["body"] = {
            "anyOf": [{"$ref": f"{_SCHEMAS}{name}"} for name in ("Payment", "Refund", "Problem")]
        }
    return dict(sorted(schemas.items()))


def _published(schema: Any) -> Any:
    """A schema with the names that are published, and with what its field names say."""
    if isinstance(schema, list):
        return [_published(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    out = {name: _published(part) for name, part in schema.items()}
    if isinstance(out.get("$ref"), str):
        out["$ref"] = out["$ref"].removesuffix("View")
    properties = out.get("properties")
    if isinstance(properties, dict):
        for name, part in properties.items():
            if _MOMENT.fullmatch(name) is not None:
                for one in (part, *part.get("anyOf", ())):
                    if one.get("type") == "string":
                        one["format"] = "date-time"
    return out


def _list_schema(item: str) -> dict[str, Any]:
    return {
        "title": f"{item}List",
        "description": "A page of a list.",
        "type": "object",
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": f"{_SCHEMAS}{item}"}},
            "has_more": {"type": "boolean"},
            "next_cursor": {
                "type": ["string", "null"],
                "description": "Give it as `cursor` for the next page.",
            },
        },
        "required": ["object", "data", "has_more", "next_cursor"],
    }


# --- operations -------------------------------------------------------------------------------


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.tag],
        "security": [] if route.scope is None else [{"apiKey": []}],
    }
    if route.scope == "operator":
        operation["description"] = "Needs a key with the operator scope."
    parameters = _parameters(route)
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        content: dict[str, Any] = {"schema": {"$ref": f"{_SCHEMAS}{_name_of(route.body)}"}}
        if route.example is not None:
            content["example"] = dict(route.example)
        required = any(field.required for field in msgspec.structs.fields(route.body))
        operation["requestBody"] = {
            "required": required,
            "content": {"application/json": content},
        }
    elif route.raw:
        operation["requestBody"] = {
            "required": False,
            "description": "Taken as bytes, whatever its type.",
            "content": {"*/*": {"schema": {}}},
        }
    operation["responses"] = _responses(route)
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = []
    if route.variable is not None:
        parameters.append(
            {
                "name": route.variable,
                "in": "path",
                "required": True,
                "schema": {"type": "string", "minLength": 1},
            }
        )
    parameters += [
        {
            "name": param.name,
            "in": "query",
            "required": False,
            "description": param.description,
            "schema": param.schema,
        }
        for param in route.query
    ]
    if route.key == "required":
        parameters.append(_key_parameter(True))
    elif route.key == "accepted":
        parameters.append({"$ref": "#/components/parameters/IdempotencyKey"})
    return parameters


def _key_parameter(required: bool) -> dict[str, Any]:
    return {
        "name": HEADER,
        "in": "header",
        "required": required,
        "description": "Makes the request safe to send again: its first final answer is repeated,"
        " byte for byte. Visible ASCII, in double quotes or bare.",
        "schema": {"type": "string", "minLength": 1, "maxLength": KEY_LENGTH_MAX + 2},
    }


def _responses(route: Route) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for answered in route.answers:
        answer = _answer(route, answered)
        other = responses.setdefault(str(answered.status), answer)
        if other is not answer:
            # The same in another type, for who asks for it.
            other["content"].update(answer["content"])
            other["description"] += f" {answer['description']}"
    by_status: dict[int, list[str]] = {}
    for code in codes_of(route):
        by_status.setdefault(PROBLEMS[code].status, []).append(code)
    for status, codes in by_status.items():
        refusal = _refusal(status, codes)
        known = responses.get(str(status))
        if known is None:
            responses[str(status)] = refusal
        else:
            known["content"].update(refusal["content"])
            known["headers"].update(refusal["headers"])
            known["description"] += f" Or {refusal['description']}"
    return dict(sorted(responses.items()))


def _answer(route: Route, answered: Answered) -> dict[str, Any]:
    view = answered.view
    item = _item_of(view)
    schema: dict[str, Any] = {"type": "string"}
    if item is not None:
        schema = {"$ref": f"{_SCHEMAS}{_name_of(item)}List"}
    elif view is dict:
        schema = {"type": "object"}
    elif view is not None:
        schema = {"$ref": f"{_SCHEMAS}{_name_of(view)}"}
    headers = ["Request-Id"]
    if route.key == "required":
        headers.append("Idempotent-Replayed")
        if answered.status in (201, 202):
            headers.append("Location")
    return {
        "description": answered.description,
        "headers": _header_refs(answered.status, headers),
        "content": {answered.content_type: {"schema": schema}},
    }


def _refusal(status: int, codes: Sequence[str]) -> dict[str, Any]:
    return {
        "description": "; ".join(f"`{code}`: {PROBLEMS[code].title}" for code in codes) + ".",
        "headers": _header_refs(status, ["Request-Id"]),
        "content": {
            CONTENT_TYPE: {
                "schema": {
                    "allOf": [
                        {"$ref": f"{_SCHEMAS}Problem"},
                        {"properties": {"code": {"enum": list(codes)}}},
                    ]
                }
            }
        },
    }


def _header_refs(status: int, names: list[str]) -> dict[str, Any]:
    more = ["Retry-After"] if status in _RETRY_AFTER_STATUSES else []
    return {name: {"$ref": f"{_HEADERS}{name}"} for name in (*names, *more)}


def _headers() -> dict[str, Any]:
    text = {"type": "string"}
    return {
        "Request-Id": {
            "description": "The request's id, as in logs, events and error documents.",
            "schema": text,
        },
        "Idempotent-Replayed": {
            "description": "The answer repeats the first one given to this key.",
            "schema": {"const": "true"},
        },
        "Location": {"description": "The path of the object.", "schema": text},
        "Retry-After": {
            "description": "Seconds after which to ask again.",
            "schema": {"type": "integer", "minimum": 0},
        },
    }
