"""The OpenAPI document and its page, as they are served."""

from __future__ import annotations

import re
from typing import Final

from engine.http.calls import Call, Parts
from engine.http.docs_page import EXAMPLE_ADDRESS
from engine.http.exchange import Response

# A name or an address, with or without a port: nothing that means something in HTML or in a shell.
_HOST: Final = re.compile(
    r"(?:[0-9A-Za-z](?:[0-9A-Za-z.-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?"
)

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
    """The page; its examples name the address it was asked for at."""
    host = call.request.headers.get("host", "")
    page = call.documents.page
    if _HOST.fullmatch(host) is not None:
        scheme = "https" if call.request.headers.get("x-forwarded-proto") == "https" else "http"
        page = page.replace(EXAMPLE_ADDRESS.encode(), f"{scheme}://{host}".encode())
    return Response(200, page, PAGE_TYPE, PAGE_HEADERS)
