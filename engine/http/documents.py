"""The OpenAPI document and its page, as they are served."""

from __future__ import annotations

from engine.http.calls import Call, Parts
from engine.http.exchange import Response

PAGE_TYPE = "text/html; charset=utf-8"

# The page holds everything it needs, so nothing from elsewhere may run in it or be loaded by it.
PAGE_HEADERS = (
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)


async def serve_openapi(parts: Parts, call: Call) -> Response:
    """The OpenAPI document."""
    return Response(200, call.documents.openapi)


async def serve_docs(parts: Parts, call: Call) -> Response:
    """The page."""
    return Response(200, call.documents.page, PAGE_TYPE, PAGE_HEADERS)
