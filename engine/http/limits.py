"""Limits of the HTTP server: what a client may take of time, memory and connections."""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Final

import msgspec

_KIB: Final = 1_024
# Files a process needs beside its connections to clients.
_FILES_RESERVED: Final = 128


def _body_limit(path: str) -> int:
    return 1_024 * _KIB if path == "/v1/payments/batch" else 64 * _KIB


def _takes_any_type(path: str) -> bool:
    return path.startswith("/v1/webhooks/")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a client may take of time and memory. Raises ValueError for what contradicts itself."""

    head_s: float = 10.0
    """From the first byte of a head to its last."""
    body_s: float = 30.0
    """From the moment a body is awaited to its last byte."""
    write_s: float = 30.0
    """An answer, or a part of it, may stay unread this long."""
    idle_s: float = 75.0
    """A connection without any request is kept this long."""
    linger_s: float = 1.0
    """After refusing a body the rest is discarded this long, so that the answer gets through."""
    drain_s: float = 8.0
    """At a stop, what runs may take this long."""
    connections_max: int = 4_000
    line_bytes_max: int = 4 * _KIB
    field_bytes_max: int = 8 * _KIB
    head_bytes_max: int = 32 * _KIB
    headers_max: int = 64
    body_limit: Callable[[str], int] = _body_limit
    """The most bytes a body may have, by path."""
    takes_any_type: Callable[[str], bool] = _takes_any_type
    """Whether a path takes bodies that are not JSON, because their sender decides."""

    def __post_init__(self) -> None:
        """Check the limits once, where settings are read."""
        durations = (self.head_s, self.body_s, self.write_s, self.idle_s, self.drain_s)
        if min(durations) <= 0 or self.linger_s < 0:
            raise ValueError("deadlines must be more than 0 s")
        if self.connections_max < 1 or self.headers_max < 8:
            raise ValueError("at least 1 connection and 8 headers must be allowed")
        # aiohttp reports both with one error, told apart only by the limit that was exceeded.
        if not 0 < self.line_bytes_max < self.field_bytes_max <= self.head_bytes_max:
            raise ValueError("0 < line_bytes_max < field_bytes_max <= head_bytes_max must hold")


def affordable_connections(limits: Limits) -> int:
    """How many connections the limits and the process's limit of open files both allow."""
    files_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(1, min(limits.connections_max, files_max - _FILES_RESERVED))
