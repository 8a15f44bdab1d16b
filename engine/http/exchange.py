"""What a handler is given and what it gives back: plain values, so that anything can drive it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

JSON: Final = "application/json"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP request, whole: its body has arrived and is within the limit of its route."""

    method: str
    """Upper case, as sent."""
    path: str
    """Without the query; percent-decoded once, or as sent where decoding would be ambiguous."""
    query: Mapping[str, str]
    """Percent-decoded; no name occurs twice."""
    headers: Mapping[str, str]
    """By lower-case name; a list-valued header sent several times is joined with commas."""
    body: bytes
    """As sent; empty where there was none."""
    peer: str
    """The address of the other end of the connection, without its port; empty where unknown."""
    request_id: str
    """Goes into the `Request-Id` header of the answer, error bodies, logs and events."""
    started_s: float
    """When it was taken up, in seconds of `time.monotonic`."""


class Response(msgspec.Struct, frozen=True):
    """One HTTP answer. The shell adds `Request-Id`, `Date` and what frames the message."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    """More headers, in order. No value may hold a control character."""
