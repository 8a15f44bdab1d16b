"""The HTTP server: aiohttp's low-level server around one callable, with a limit on everything.

This is the only module that imports aiohttp. From aiohttp come the parser, its flow control and
the task of each connection; what stands here is what it lacks: deadlines for a head, a body and
an unread answer, one maximum of connections, checks before a body is read, and problem documents
for whatever goes wrong. No request starts a timer: one sweep looks at all connections.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from socket import SO_LINGER, SOL_SOCKET
from types import SimpleNamespace
from typing import Any, Final, cast

import anyio
from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestPayloadError
from anyio.abc import TaskStatus

from engine.domain.refusals import Refusal
from engine.http import wire
from engine.http.exchange import Request, Response
from engine.http.limits import Limits, affordable_connections
from engine.http.shell import Handle, Shell, Statistics, malformed, too_large

_BACKLOG: Final = 1_024
_READ_BYTES: Final = 64 * 1_024
_SWEEP_S_MAX: Final = 0.5
_STOP_POLL_S: Final = 0.01
# A close with this linger option, on for 0 s, is a reset (socket(7)).
_RESET: Final = struct.pack("ii", 1, 0)


class _BodyLateError(Exception):
    """The body did not arrive by its deadline."""


class _Exchange:
    """One request on a connection: what `web.RequestHandler.start` needs of one, and no more."""

    __slots__ = ("_task", "connection", "message", "payload", "request", "request_id")

    def __init__(
        self, message: Any, payload: StreamReader, protocol: _Connection, _writer: Any, task: Any
    ) -> None:
        self.message = message
        self.payload = payload
        self.connection = protocol
        self.request_id = protocol.server.shell.new_request_id()
        self.request: Request | None = None
        self._task = task

    def _cancel(self, error: BaseException) -> None:
        """Wake who waits for the rest of the body: the connection is lost."""
        self.payload.set_exception(ConnectionResetError(str(error)))


# Tells `web.RequestHandler.start` whether the connection goes on.
_KEEP: Final = cast(web.StreamResponse, SimpleNamespace(keep_alive=True))
_CLOSE: Final = cast(web.StreamResponse, SimpleNamespace(keep_alive=False))


class HttpServer(web.Server):
    """The protocol factory of the listening socket, and the state its connections share."""

    def __init__(self, shell: Shell) -> None:
        super().__init__(cast(Any, _take), request_factory=cast(Any, _Exchange))
        self.shell = shell
        self.limits = shell.limits
        self.connections_max = affordable_connections(self.limits)
        self.port = 0
        self.open: set[_Connection] = set()
        self.running = 0
        self.stopping = False
        self.gone = 0
        self.unread = 0

    def __call__(self) -> _Connection:
        """Make the protocol of one connection."""
        return _Connection(self, self._loop)

    def statistics(self) -> Statistics:
        """Return the present figures."""
        return Statistics(
            connections=len(self.open),
            connections_max=self.connections_max,
            running=self.running,
            requests=self.requests_count,
            refusals=dict(self.shell.refusals),
            failures=self.shell.failures,
            gone=self.gone,
            unread=self.unread,
        )

    async def sweep(self) -> None:
        """Keep every connection to its deadlines, for ever."""
        limits = self.limits
        every_s = min(_SWEEP_S_MAX, min(limits.head_s, limits.body_s, limits.write_s) / 4)
        while True:
            await anyio.sleep(every_s)
            now = time.monotonic()
            for connection in tuple(self.open):
                connection.check_deadlines(now)

    async def stop(self) -> None:
        """Close what is idle, let what runs finish by the deadline, then close everything."""
        self.stopping = True
        with anyio.move_on_after(self.limits.drain_s):
            while self.running or self.open:
                for connection in tuple(self.open):
                    connection.close_idle()
                await anyio.sleep(_STOP_POLL_S)
        for connection in tuple(self.open):
            connection.abort()
        # Cancels handlers that are still waiting; what they asked for goes on without them.
        await self.shutdown(0.1)


class _Connection(web.RequestHandler):
    """One connection: aiohttp's, with our deadlines, our way to answer and our error pages."""

    __slots__ = (
        "_body_due",
        "_head_bytes",
        "_head_since",
        "_link",
        "_newest",
        "_unread_since",
        "peer",
        "server",
    )

    def __init__(self, server: HttpServer, loop: asyncio.AbstractEventLoop) -> None:
        limits = server.limits
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=limits.idle_s,
            access_log=cast(Any, None),
            max_line_size=limits.line_bytes_max,
            max_field_size=limits.field_bytes_max,
            max_headers=limits.headers_max,
            lingering_time=0,
            read_bufsize=_READ_BYTES,
            auto_decompress=False,
        )
        self.server = server
        self._link: asyncio.Transport | None = None
        self.peer = ""
        # The body of the newest request: while it is not whole, bytes belong to it.
        self._newest: StreamReader = EMPTY_PAYLOAD
        # Times are seconds of `time.monotonic`; 0.0 says that nothing is awaited.
        self._head_since = 0.0
        self._head_bytes = 0
        self._body_due = 0.0
        self._unread_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or answer 503 unasked where there are too many."""
        server = self.server
        self._link = cast(asyncio.Transport, transport)
        if len(server.open) >= server.connections_max or server.stopping:
            self.close()
            self._say(Refusal("overloaded", "There are too many connections.", None, 1))
            self._link.close()
            return
        server.open.add(self)
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else ""
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection. What its client asked for goes on."""
        self.server.open.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and note since when a head is incomplete."""
        if self._close or self._force_close:
            return
        before = self._request_count
        # What completes a body belongs to it; only what comes after a whole one begins a head.
        begins_head = self._newest.is_eof()
        super().data_received(data)
        if self._request_count != before:
            if not self._newest.is_eof():
                # The next message of a connection whose last body is not whole is an error.
                self._newest.set_exception(RequestPayloadError())
            self._newest = self._messages[-1][1]
            self._head_since = 0.0
            self._head_bytes = 0
        elif data and begins_head:
            if not self._head_since:
                self._head_since = time.monotonic()
            self._head_bytes += len(data)
            if self._head_bytes > self.server.limits.head_bytes_max:
                self._refuse_head(Refusal("headers_too_large", "The head is too large."))

    @property
    def _is_idle(self) -> bool:
        return not self._messages and self._waiter is not None and not self._waiter.done()

    def check_deadlines(self, now: float) -> None:
        """Act on every deadline that has passed; `now` is in seconds of `time.monotonic`."""
        limits = self.server.limits
        link = self._link
        if link is not None and link.get_write_buffer_size():
            if not self._unread_since:
                self._unread_since = now
            elif now - self._unread_since > limits.write_s:
                self.server.unread += 1
                self.abort()
                return
        else:
            self._unread_since = 0.0
        if self._body_due and now > self._body_due and not self._newest.is_eof():
            self._body_due = 0.0
            self._newest.set_exception(_BodyLateError())
        # A half-sent head behind a running request waits for that one's answer.
        if self._head_since and now - self._head_since > limits.head_s and self._is_idle:
            self._refuse_head(
                Refusal("request_timeout", f"A head must arrive within {limits.head_s:g} s.")
            )

    def resume_writing(self) -> None:
        """Note that the client reads: its deadline starts anew."""
        self._unread_since = 0.0
        super().resume_writing()

    def close_idle(self) -> None:
        """Close, unless a request is being received or answered."""
        if self._is_idle:
            self.force_close()

    def abort(self) -> None:
        """Drop the connection and what was not sent, also what the kernel holds of it."""
        if self._link is not None:
            with suppress(OSError):
                self._link.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, _RESET)
            self._link.abort()

    def _say(self, refusal: Refusal) -> None:
        """Write an answer to no request that could be read."""
        request_id = self.server.shell.new_request_id()
        response = self.server.shell.refuse(refusal, request_id)
        assert self._link is not None
        self._link.write(wire.write_response(response, request_id, "close"))

    def _refuse_head(self, refusal: Refusal) -> None:
        if self._is_idle:
            self._say(refusal)
            self.force_close()
        else:
            self.close()

    def _make_error_handler(self, err_info: Any) -> Any:
        """Answer what aiohttp could not parse."""

        async def answer(exchange: _Exchange) -> Response:
            refusal = malformed(err_info.exc, self.server.limits)
            return self.server.shell.refuse(refusal, exchange.request_id)

        return answer

    async def _handle_request(
        self, request: Any, start_time: float | None, request_handler: Any
    ) -> tuple[web.StreamResponse, bool]:
        """Answer one request. Returns whether the connection goes on, and False."""
        server = self.server
        server.running += 1
        self._current_request = request
        try:
            response = await request_handler(request)
            return await self._send(request, response), False
        except ConnectionError:
            server.gone += 1
            raise
        finally:
            self._current_request = None
            server.running -= 1

    async def _send(self, exchange: _Exchange, response: Response) -> web.StreamResponse:
        transport = self.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError
        message = exchange.message
        payload = exchange.payload
        keep = not (
            message.should_close
            or message.upgrade
            or self._close
            or self.server.stopping
            or not payload.is_eof()
        )
        connection = "" if keep else "close"
        if keep and message.version[1] == 0:
            connection = "keep-alive"
        bare = message.method == "HEAD"
        try:
            raw = wire.write_response(response, exchange.request_id, connection, bare)
        except Exception as error:
            # Only a handler's answer can fail to be written, so there is a request.
            response = self.server.shell.failed(error, cast(Request, exchange.request))
            raw = wire.write_response(response, exchange.request_id, connection, bare)
        transport.write(raw)
        if self._paused:
            await self._drain_helper()
        if not payload.is_eof():
            await self._linger(payload)
        return _KEEP if keep else _CLOSE

    async def _linger(self, payload: StreamReader) -> None:
        """Discard the rest of a refused body: a close with bytes unread would reset the
        connection and take the answer with it (RFC 9112, 9.6).
        """
        self._body_due = time.monotonic() + self.server.limits.linger_s
        with suppress(_BodyLateError, ConnectionError, RequestPayloadError, RuntimeError):
            while await payload.readany():
                pass
        self._body_due = 0.0

    async def receive(
        self, payload: StreamReader, headers: Mapping[str, str], size_max: int
    ) -> bytes | Refusal:
        """Read a body to its end. Raises ConnectionError if the client left."""
        if payload.is_eof():
            body = payload.read_nowait()
            return body if len(body) <= size_max else too_large(size_max)
        if headers.get("expect", "").lower() == "100-continue":
            if self.transport is None or self.transport.is_closing():
                raise ConnectionResetError
            self.transport.write(wire.CONTINUE)
        body_s = self.server.limits.body_s
        self._body_due = time.monotonic() + body_s
        chunks: list[bytes] = []
        size = 0
        try:
            while chunk := await payload.readany():
                size += len(chunk)
                if size > size_max:
                    return too_large(size_max)
                chunks.append(chunk)
        except _BodyLateError:
            return Refusal("request_timeout", f"A body must arrive within {body_s:g} s.")
        except RequestPayloadError:
            return Refusal("malformed_http", "The body's transfer coding is not valid.")
        finally:
            self._body_due = 0.0
        return b"".join(chunks)


async def _take(exchange: _Exchange) -> Response:
    connection = exchange.connection
    message = exchange.message
    payload = exchange.payload
    exchange.request, response = await connection.server.shell.take(
        message.method,
        message.path,
        message.headers.items(),
        peer=connection.peer,
        request_id=exchange.request_id,
        receive=None if payload is EMPTY_PAYLOAD else partial(connection.receive, payload),
    )
    return response


async def serve(
    handle: Handle,
    *,
    host: str,
    port: int,
    limits: Limits,
    new_request_id: Callable[[], str],
    on_error: Callable[[Exception, Request], None],
    task_status: TaskStatus[HttpServer] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled, then stop gracefully: accept no more, finish what runs, close.

    Runs on asyncio only. Reports the server, which knows its port, once it is listening; the
    stop takes at most `limits.drain_s` and a little. Raises OSError if it cannot listen.
    """
    shell = Shell(handle, limits=limits, new_request_id=new_request_id, on_error=on_error)
    server = HttpServer(shell)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(server, host, port, backlog=_BACKLOG)
    try:
        server.port = listener.sockets[0].getsockname()[1]
        task_status.started(server)
        await server.sweep()
    finally:
        listener.close()
        with anyio.CancelScope(shield=True):
            await server.stop()
