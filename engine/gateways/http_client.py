"""The HTTP client of all gateways: one request, and one of three things that can come of it.

An adapter builds a `Request` and reads a `Response`; whether anything was sent when there is no
response is decided here, once, because a refused connection is a definite failure and everything
later is not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Final

import aiohttp
import msgspec
from aiohttp.abc import AbstractStreamWriter

BODY_MAX_BYTES: Final = 1_048_576
_CHUNK_BYTES: Final = 65_536
# Where there is one, a clock that also counts while the machine is suspended.
_ELAPSED: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Request(msgspec.Struct, frozen=True):
    """What is sent. `url` is absolute."""

    method: str
    url: str
    headers: Mapping[str, str] = {}
    body: bytes = b""


class Response(msgspec.Struct, frozen=True):
    """A whole response. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class NotSent(msgspec.Struct, frozen=True):
    """No connection came about: not a byte of the request has left."""

    reason: str


class Lost(msgspec.Struct, frozen=True):
    """The request may have arrived; no (whole) response came back."""

    reason: str


class _InTime(aiohttp.BytesPayload):
    """A body that is not sent any more once its time has passed.

    A process may stand still between deciding to send and sending, and what was concluded of the
    call meanwhile counts on its not leaving later. This is the last moment at which that can be
    seen: headers and body leave together.
    """

    def __init__(self, body: bytes, not_after: float) -> None:
        super().__init__(body)
        self._not_after = not_after

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        # Not the event loop's time, which is as old as its turn.
        if time.clock_gettime(_ELAPSED) > self._not_after:
            raise TimeoutError("the process stood still before the request was sent")
        await super().write_with_length(writer, content_length)


class HttpClient:
    """A pool of connections to one gateway. Under asyncio only, as aiohttp is."""

    def __init__(self, *, connections_max: int, connect_timeout_s: float, timeout_s: float) -> None:
        """The caller's own deadline should be the shorter; `timeout_s` only bounds a leak."""
        self._connections_max = connections_max
        self._timeout = aiohttp.ClientTimeout(
            total=timeout_s, connect=connect_timeout_s, sock_connect=connect_timeout_s
        )
        self._client: aiohttp.ClientSession | None = None

    async def send(
        self, request: Request, in_time_s: float = math.inf
    ) -> Response | NotSent | Lost:
        """Send it once. Never raises for what the network or the peer does.

        A request with a body does not leave later than `in_time_s` from now.
        Cancelled, it closes its connection: whether the request arrived is then unknown.
        """
        client = self._client or self._open()
        body = request.body
        data = _InTime(body, time.clock_gettime(_ELAPSED) + in_time_s) if body else None
        try:
            async with client.request(
                request.method,
                request.url,
                headers=request.headers,
                data=data,
                # A redirect would repeat the request somewhere that nobody configured.
                allow_redirects=False,
            ) as response:
                received = bytearray()
                async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                    received += chunk
                    if len(received) > BODY_MAX_BYTES:
                        return Lost("response_too_large")
                headers = {name.lower(): value for name, value in response.headers.items()}
                return Response(response.status, headers, bytes(received))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            # Both can only happen before there is a connection to send anything over.
            return NotSent(type(error).__name__)
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            return NotSent(type(error).__name__)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return Lost(type(error).__name__)

    async def close(self) -> None:
        """Let the connections go."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _open(self) -> aiohttp.ClientSession:
        # Only now, because aiohttp binds itself to the event loop that runs.
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections_max),
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"accept-encoding": "identity"},
            # A proxy from the environment would decide what "not sent" means.
            trust_env=False,
        )
        return self._client
