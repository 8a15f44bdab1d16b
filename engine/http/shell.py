"""What surrounds every handler: checks before a body is read, error answers, counters.

Nothing here knows sockets; `server.py` moves the bytes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final

import msgspec

from engine.domain.refusals import Refusal
from engine.http import wire
from engine.http.exchange import Request, Response
from engine.http.limits import Limits
from engine.http.problems import problem, refused

_PATHS_MAX: Final = 64

Handle = Callable[[Request], Awaitable[Response]]
Receive = Callable[[Mapping[str, str], int], Awaitable[bytes | Refusal]]


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """What the server is doing and has done since it started."""

    connections: int
    connections_max: int
    running: int
    requests: int
    refusals: Mapping[str, int]
    """Requests refused before any handler saw them, by code."""
    failures: int
    """Handlers that raised."""
    gone: int
    """Clients that left before their answer was sent."""
    unread: int
    """Clients dropped because they did not read."""


class Shell:
    """One handler for all requests, and what is answered without it or in its place."""

    def __init__(
        self,
        handle: Handle,
        *,
        limits: Limits,
        new_request_id: Callable[[], str],
        on_error: Callable[[Exception, Request], None],
        is_full: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self.limits = limits
        self.is_full = is_full
        """Whether a request that moves money is refused, were so many before it let in."""
        self.new_request_id = new_request_id
        self.refusals: Counter[str] = Counter()
        self._full: dict[tuple[str, int], list[bytes]] = {}
        self._full_date = ""
        self.failures = 0
        self._handle = handle
        self._on_error = on_error

    def refuse(self, refusal: Refusal, request_id: str, instance: str = "/") -> Response:
        """Answer, and count, what no handler is to see."""
        self.refusals[refusal.code] += 1
        return refused(refusal, instance=instance, request_id=request_id)

    def refuse_full(self, target: str, request_id: str) -> bytes:
        """Write, and count, the answer to what moves money while nothing can be admitted.

        Under overload that is most answers there are. Those of one second and path differ in
        their ids alone, which stand twice in each.
        """
        self.refusals[FULL.code] += 1
        date = wire.date_now()
        if date != self._full_date:
            self._full.clear()
            self._full_date = date
        path = wire.split_target(target)[0]
        id_ = request_id.encode()
        between = self._full.get((path, len(id_)))
        if between is None:
            response = refused(FULL, instance=path, request_id=request_id)
            between = wire.write_response(response, request_id).split(id_)
            if len(self._full) < _PATHS_MAX:
                self._full[path, len(id_)] = between
        return id_.join(between)

    def judge(self, method: str, path: str, headers: Mapping[str, str]) -> int | Refusal:
        """Judge a body by its head alone, the size first. Returns the bytes it may have."""
        limits = self.limits
        size_max = limits.body_limit(path)
        length = headers.get("content-length")
        # The parser has seen to it that the number fits 64 bits; zeros before it are without end,
        # and Python makes no number of more than some thousand digits.
        if length is not None and int(length.lstrip("0") or "0") > size_max:
            return too_large(size_max)
        if headers.get("content-encoding", "identity").lower() not in ("identity", ""):
            return Refusal("content_encoding_not_supported", "A body must not be compressed.")
        if (
            not wire.is_json(headers.get("content-type", ""))
            and method not in ("GET", "HEAD")
            and not limits.takes_any_type(path)
        ):
            return Refusal("unsupported_media_type", "A body must be application/json.")
        return size_max

    async def take(
        self,
        method: str,
        target: str,
        fields: Iterable[tuple[str, str]],
        *,
        peer: str,
        request_id: str,
        receive: Receive | None,
    ) -> tuple[Request | None, Response]:
        """Make a request of what arrived and have it handled, or refuse it without a request.

        `receive` reads the body, given the headers and the bytes it may have; None if there is
        no body. Whatever the handler raises is answered 500.
        """
        started_s = time.monotonic()
        path, raw_query = wire.split_target(target)
        headers = wire.read_headers(fields)
        if isinstance(headers, Refusal):
            return None, self.refuse(headers, request_id, path)
        body = b""
        if receive is not None:
            size_max = self.judge(method, path, headers)
            if isinstance(size_max, Refusal):
                return None, self.refuse(size_max, request_id, path)
            received = await receive(headers, size_max)
            if isinstance(received, Refusal):
                return None, self.refuse(received, request_id, path)
            body = received
        query = wire.read_query(raw_query)
        if isinstance(query, Refusal):
            return None, self.refuse(query, request_id, path)
        request = Request(
            method=method,
            path=path,
            query=query,
            headers=headers,
            body=body,
            peer=peer,
            request_id=request_id,
            started_s=started_s,
        )
        try:
            return request, await self._handle(request)
        except Exception as error:
            return request, self.failed(error, request)

    def failed(self, error: Exception, request: Request) -> Response:
        """Answer in place of a handler; its error itself goes to `on_error` only."""
        self.failures += 1
        # A broken log must not cost the client its answer.
        with suppress(Exception):
            self._on_error(error, request)
        return problem(
            "internal_error",
            detail="The request failed here; with its Idempotency-Key it is safe to send again.",
            instance=request.path,
            request_id=request.request_id,
        )


def moves_money(method: str, target: str) -> bool:
    """Whether a request needs room among those under way: reading needs none."""
    return method == "POST" and target.startswith("/v1/payments")


FULL = Refusal(
    "overloaded",
    "More is under way than this engine admits; nothing was done. Try again shortly.",
    None,
    1,
)


def too_large(size_max: int) -> Refusal:
    """Refuse a body for its size, in bytes."""
    return Refusal("body_too_large", f"A body here may have {size_max} bytes.")


def malformed(error: BaseException, limits: Limits) -> Refusal:
    """Say what aiohttp's parser refused, without repeating any of it."""
    # Only its LineTooLong has more than one argument: the second is the limit that was exceeded.
    limit = error.args[1] if len(error.args) > 1 else None
    if limit == limits.line_bytes_max:
        return Refusal("uri_too_long", f"A target may have {limit} bytes.")
    if limit is not None:
        return Refusal("headers_too_large", f"A header may have {limit} bytes.")
    if error.args and str(error.args[0]).startswith("Too many headers"):
        return Refusal("headers_too_large", f"There may be {limits.headers_max} headers.")
    return Refusal("malformed_http", "The request does not follow HTTP/1.1.")
