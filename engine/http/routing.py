"""Routes as data, and the match of a request to one of them.

A path has at most one variable part, and it is the third: `/v1/payments/{id}/capture`. That keeps
the match at one or two dictionary look-ups, whatever the number of routes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from engine.http.calls import Handler
from engine.http.exchange import JSON
from engine.http.query import Param

Method = Literal["GET", "POST"]
Scope = Literal["merchant", "operator"]
KeyRule = Literal["required", "accepted"]


class Answered(msgspec.Struct, frozen=True):
    """One answer that is no error: its status, the view in it, and what it means."""

    status: int
    view: Any
    """A Struct; `list[Struct]` for a page of a list; None for a body that is not JSON."""
    description: str
    content_type: str = JSON


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One call of the API: dispatch and the OpenAPI document are both made from it."""

    method: Method
    template: str
    handler: Handler
    name: str
    """The operation's id in the OpenAPI document."""
    summary: str
    tag: str
    answers: tuple[Answered, ...]
    scope: Scope | None = "merchant"
    """The scope a key needs; None: no key is needed."""
    key: KeyRule | None = None
    """Whether an Idempotency-Key must or may be sent."""
    body: type[msgspec.Struct] | None = None
    raw: bool = False
    """The body is taken as bytes, of any content type."""
    itemised: bool = False
    """The handler decodes the body, because what is wrong with a part of it fails no other."""
    query: tuple[Param, ...] = ()
    refusals: tuple[str, ...] = ()
    """Codes it can answer beside those that follow from the rest of the route."""
    example: Mapping[str, Any] | None = None
    """A body that works with the simulator."""

    @property
    def variable(self) -> str | None:
        """The name of the variable part of the path."""
        _, brace, rest = self.template.partition("{")
        return rest.partition("}")[0] if brace else None


class Bound:
    """A route, made ready to run."""

    __slots__ = ("body_is_optional", "decoder", "defaults", "handler", "key", "query", "route")

    def __init__(self, route: Route) -> None:
        self.route = route
        self.handler = route.handler
        self.key = route.key
        self.query = route.query
        self.defaults: Mapping[str, Any] = {param.name: param.default for param in route.query}
        self.decoder: msgspec.json.Decoder[Any] | None = None
        self.body_is_optional = False
        if route.body is not None and not route.itemised:
            self.decoder = msgspec.json.Decoder(route.body)
            fields = msgspec.structs.fields(route.body)
            self.body_is_optional = not any(field.required for field in fields)


_Methods = dict[str, Bound]

_NO_METHODS: Final[_Methods] = {}


class Router:
    """Finds the route of a request."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._fixed: dict[str, _Methods] = {}
        self._variable: dict[tuple[str, str, str], _Methods] = {}
        for route in routes:
            methods = self._place(route.template)
            assert route.method not in methods, f"{route.method} {route.template} is there twice"
            methods[route.method] = bound = Bound(route)
            if route.method == "GET":
                # A HEAD is a GET whose body is not sent (RFC 9110, 9.3.2).
                methods["HEAD"] = bound

    def _place(self, template: str) -> _Methods:
        if "{" not in template:
            return self._fixed.setdefault(template, {})
        parts = template.split("/", 4)
        assert len(parts) >= 4, template
        assert parts[3].startswith("{"), template
        rest = parts[4] if len(parts) > 4 else ""
        return self._variable.setdefault((parts[1], parts[2], rest), {})

    def find(self, method: str, path: str) -> tuple[Bound | None, str]:
        """The route, or None; and what stands in the variable part of the path."""
        methods = self._fixed.get(path)
        if methods is not None:
            return methods.get(method), ""
        parts = path.split("/", 4)
        if len(parts) == 5:
            # An empty rest would be a trailing slash, which is another path.
            methods = self._variable.get((parts[1], parts[2], parts[4])) if parts[4] else None
        elif len(parts) == 4:
            methods = self._variable.get((parts[1], parts[2], ""))
        if methods is None or not parts[3]:
            return None, ""
        return methods.get(method), parts[3]

    def allowed(self, path: str) -> tuple[str, ...]:
        """The methods there are at a path; none where nothing is there."""
        methods = self._fixed.get(path, _NO_METHODS)
        if not methods:
            for method in ("GET", "POST"):
                bound, _ = self.find(method, path)
                if bound is not None:
                    methods = {**methods, method: bound}
                    if method == "GET":
                        methods["HEAD"] = bound
        return tuple(sorted(methods))

    def posts_below(self, path: str) -> tuple[str, ...]:
        """The paths right below one that take a POST: where a POST to it may have been meant."""
        return tuple(
            sorted(
                template
                for template, methods in self._fixed.items()
                if "POST" in methods and template.rpartition("/")[0] == path
            )
        )

    def takes_any_type(self, path: str) -> bool:
        """Whether bodies at a path may have any content type: their sender decides."""
        bound, _ = self.find("POST", path)
        return bound is not None and bound.route.raw
