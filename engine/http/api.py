"""The API: one callable from a Request to a Response, which any shell or test can drive."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Final

from engine.domain.refusals import Refusal
from engine.http.bodies import decode
from engine.http.calls import Call, Documents, Parts
from engine.http.docs_page import docs_page
from engine.http.documents import PAGE_TYPE
from engine.http.exchange import Request, Response
from engine.http.idempotency import HEADER, read_key
from engine.http.keys import find_key
from engine.http.openapi import openapi_bytes, openapi_document
from engine.http.problems import method_not_allowed
from engine.http.query import read_query
from engine.http.routes import ROUTES, SIMULATOR_ROUTES
from engine.http.routing import Bound, Router
from engine.http.tracing import trace_id_of
from engine.ports import Fenced, LedgerUnavailable

UNMATCHED: Final = "unmatched"
"""Stands for the route in logs and metrics where no route matched: paths are without number."""

_TO_THE_DOCS: Final = Response(302, b"", PAGE_TYPE, (("Location", "/docs"),))
_ROUTE_NOT_FOUND: Final = Refusal("route_not_found", "There is nothing at this path.")
_INVALID_API_KEY: Final = Refusal(
    "invalid_api_key", "Send `Authorization: Bearer <key>` with a key of this engine."
)
_KEY_MISSING: Final = Refusal(
    "idempotency_key_missing",
    "Send an Idempotency-Key header: it makes the request safe to send again.",
    HEADER,
)
_LEDGER_UNAVAILABLE: Final = Refusal(
    "ledger_unavailable", "The ledger cannot be reached at the moment.", None, 1
)
_TAKEN_OVER: Final = Refusal("starting", "Another engine has taken over here.", None, 1)

_CLIENT_GONE: Final = 499
"""For the log: the request was cancelled. The number is nginx's; nobody receives it."""


class Api:
    """Routes, authenticates, decodes, hands over and observes."""

    def __init__(self, parts: Parts) -> None:
        """Raise ValueError where the parts do not fit together."""
        if parts.default_gateway not in parts.gateways:
            raise ValueError(f"there is no gateway {parts.default_gateway!r}")
        self.routes = ROUTES
        if parts.complete_authentication is not None:
            self.routes = (*ROUTES, *SIMULATOR_ROUTES)
        self._documents = _documents(self.routes is not ROUTES, parts.version)
        self._parts = parts
        self._router = Router(self.routes)
        self._find = self._router.find
        self._observe = parts.telemetry.http_request

    def takes_any_type(self, path: str) -> bool:
        """Whether bodies at a path may have any content type (for `limits.Limits`)."""
        return self._router.takes_any_type(path)

    async def handle(self, request: Request) -> Response:
        """Answer a request. Raises only what no handler foresaw; the shell answers that 500."""
        bound, segment = self._find(request.method, request.path)
        call = Call(request, segment, self._documents)
        if bound is None:
            response = self._unmatched(call)
            self._observed(call, UNMATCHED, response.status)
            return response
        try:
            response = await self._run(bound, call)
        except LedgerUnavailable:
            response = call.refused(_LEDGER_UNAVAILABLE)
        except Fenced:
            response = call.refused(_TAKEN_OVER)
        except BaseException as error:
            is_failure = isinstance(error, Exception)
            call.code = "internal_error" if is_failure else "canceled"
            self._observed(call, bound.route.template, 500 if is_failure else _CLIENT_GONE)
            raise
        self._observed(call, bound.route.template, response.status)
        return response

    async def _run(self, bound: Bound, call: Call) -> Response:
        request, route = call.request, bound.route
        headers = request.headers
        if route.scope is not None:
            key = find_key(self._parts.keys, headers.get("authorization"))
            if key is None:
                return call.refused(_INVALID_API_KEY)
            call.key = key
            if route.scope not in key.scopes:
                return call.refused(
                    Refusal("permission_denied", f"This needs a key with the {route.scope} scope.")
                )
        if request.query:
            query = read_query(bound.query, request.query)
            if isinstance(query, Refusal):
                return call.refused(query)
            call.query = query
        else:
            call.query = bound.defaults
        if bound.key is not None:
            refusal = _take_key(call, bound.key == "required")
            if refusal is not None:
                return call.refused(refusal)
        if bound.decoder is not None:
            raw = request.body
            if not raw and bound.body_is_optional:
                raw = b"{}"
            body = decode(raw, bound.decoder)
            if isinstance(body, Refusal):
                return call.refused(body)
            call.body = body
        return await bound.handler(self._parts, call)

    def _unmatched(self, call: Call) -> Response:
        request = call.request
        if request.path == "/" and request.method in ("GET", "HEAD"):
            return _TO_THE_DOCS
        allowed = self._router.allowed(request.path)
        if not allowed:
            return call.refused(_ROUTE_NOT_FOUND)
        call.code = "method_not_allowed"
        return method_not_allowed(
            allowed,
            instance=call.instance,
            request_id=request.request_id,
            meant=self._router.posts_below(request.path) if request.method == "POST" else (),
        )

    def _observed(self, call: Call, route: str, status: int) -> None:
        request = call.request
        self._observe(
            method=request.method,
            route=route,
            status=status,
            code=call.code,
            merchant=call.key.merchant_id,
            request_id=request.request_id,
            payment=call.payment_id,
            took_s=time.monotonic() - request.started_s,
            replayed=call.replayed,
            trace_id=trace_id_of(request.headers.get("traceparent")),
            items=call.items,
            items_failed=call.items_failed,
        )


@lru_cache(maxsize=4)
def _documents(with_simulator: bool, version: str) -> Documents:
    """Made once, however many engines one process holds, as a simulation does."""
    routes = (*ROUTES, *SIMULATOR_ROUTES) if with_simulator else ROUTES
    document = openapi_document(routes, version=version)
    return Documents(openapi_bytes(document), docs_page(document))


def _take_key(call: Call, required: bool) -> Refusal | None:
    """Read the Idempotency-Key into the call, or say why not."""
    value = call.request.headers.get("idempotency-key")
    if value is None:
        return _KEY_MISSING if required else None
    key = read_key(value)
    if isinstance(key, Refusal):
        return key
    call.idempotency_key = key
    return None
