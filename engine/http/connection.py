"""One connection of the HTTP server: aiohttp's parser in a protocol of our own.

This is the only module that imports aiohttp. From aiohttp come the parser, its body streams and
their flow control; what stands here is the life of a connection: one request after the other,
deadlines for a head, a body and an unread answer, checks before a body is read, and problem
documents for whatever goes wrong. (aiohttp's own request handler starts a task per request beside
one per connection, and asks its streams to be resumed three times for each.)
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from socket import SO_LINGER, SOL_SOCKET
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError, HttpRequestParser
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from engine.domain.refusals import Refusal
from engine.http import wire
from engine.http.exchange import Request
from engine.http.shell import malformed, moves_money, too_large

if TYPE_CHECKING:
    from engine.http.server import HttpServer

_READ_BYTES: Final = 64 * 1_024
# A client may send this many requests ahead of their answers; then it is not read from.
_PIPELINED_MAX: Final = 16
# A close with this linger option, on for 0 s, is a reset (socket(7)).
_RESET: Final = struct.pack("ii", 1, 0)

_Message = tuple[RawRequestMessage | HttpProcessingError, StreamReader]


class _BodyLateError(Exception):
    """The body did not arrive by its deadline."""


class _BodyBrokenError(Exception):
    """The body's transfer coding is not valid, or the next request began inside it."""


class Connection(BaseProtocol):
    """One connection: requests are answered one after the other, in a task while there are any."""

    __slots__ = (
        "_body_due",
        "_head_bytes",
        "_head_since",
        "_idle_since",
        "_last",
        "_newest",
        "_payload",
        "_queue",
        "_requests",
        "_task",
        "_unread_since",
        "peer",
        "server",
    )

    _parser: HttpRequestParser | None
    _task: asyncio.Task[None] | None

    def __init__(self, server: HttpServer, loop: asyncio.AbstractEventLoop) -> None:
        limits = server.limits
        parser = HttpRequestParser(
            self,
            loop,
            _READ_BYTES,
            max_line_size=limits.line_bytes_max,
            max_field_size=limits.field_bytes_max,
            max_headers=limits.headers_max,
            payload_exception=_BodyBrokenError,
            auto_decompress=False,
            max_msg_queue_size=_PIPELINED_MAX,
        )
        super().__init__(loop, parser)
        self.server = server
        self.peer = ""
        self._queue: deque[_Message] = deque()
        self._task = None
        # Whether the present request is the last one: nothing more is read.
        self._last = False
        # The body of the request that is being handled.
        self._payload: StreamReader = EMPTY_PAYLOAD
        # The body of the newest request: while it is not whole, bytes belong to it.
        self._newest: StreamReader = EMPTY_PAYLOAD
        # Times are seconds of `time.monotonic`; 0.0 says that nothing is awaited.
        self._head_since = 0.0
        self._head_bytes = 0
        self._body_due = 0.0
        self._unread_since = 0.0
        self._idle_since = 0.0

    # --- what the event loop calls ----------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or answer 503 unasked where there are too many."""
        server = self.server
        super().connection_made(transport)
        if len(server.open) >= server.connections_max or server.stopping:
            self._say(Refusal("overloaded", "There are too many connections.", None, 1))
            self._hang_up()
            return
        server.open.add(self)
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else ""

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection. What its client asked for goes on."""
        self.server.open.discard(self)
        self._last = True
        self._queue.clear()
        super().connection_lost(exc)
        self._parser = None
        if not self._payload.is_eof():
            self._payload.set_exception(ConnectionResetError("the client has left"))

    def data_received(self, data: bytes) -> None:
        """Parse, hand over whole heads, and note since when a head is incomplete."""
        parser = self._parser
        if self._last or parser is None:
            return
        # What completes a body belongs to it; only what comes after a whole one begins a head.
        begins_head = self._newest.is_eof()
        messages: Any
        try:
            messages, upgraded, _ = parser.feed_data(data)
        except HttpProcessingError as error:
            messages, upgraded = ((error, EMPTY_PAYLOAD),), True
        if messages:
            if not self._newest.is_eof():
                # The next message of a connection whose last body is not whole is an error.
                self._newest.set_exception(_BodyBrokenError())
            self._newest = messages[-1][1]
            self._idle_since = 0.0
            self._head_since = 0.0
            self._head_bytes = 0
            if self._task is None:
                if self._is_shed(messages):  # What it counts is forgotten before the task runs.
                    return
                self.server.busy.add(self)
                self._task = self._loop.create_task(self._serve())
            queue = self._queue
            queue.extend(messages)
            if len(queue) >= _PIPELINED_MAX and not self._buffer_paused:
                self._pause_reading_for_buffer()
        elif data and begins_head:
            if not self._head_since:
                self._head_since = time.monotonic()
            self._head_bytes += len(data)
            if self._head_bytes > self.server.limits.head_bytes_max:
                self._refuse_head(Refusal("headers_too_large", "The head is too large."))
        if upgraded:
            # What follows is no HTTP/1.1 that could be read.
            self._upgraded = True
            self._last = True

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Go on after a pause. Body streams ask for it at every turn, nearly always in vain."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def resume_writing(self) -> None:
        """Note that the client reads: its deadline starts anew."""
        self._unread_since = 0.0
        super().resume_writing()

    # --- what the server calls --------------------------------------------------------------

    def check_deadlines(self, now: float) -> None:
        """Act on every deadline that has passed; `now` is in seconds of `time.monotonic`."""
        limits = self.server.limits
        if self.transport is not None and self.transport.get_write_buffer_size():
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
        if self._task is not None:
            # A half-sent head behind a running request waits for that one's answer.
            self._idle_since = 0.0
        elif self._head_since:
            if now - self._head_since > limits.head_s:
                self._refuse_head(
                    Refusal("request_timeout", f"A head must arrive within {limits.head_s:g} s.")
                )
        elif not self._idle_since:
            self._idle_since = now
        elif now - self._idle_since > limits.idle_s:
            self._hang_up()

    def close_idle(self) -> None:
        """Close, unless a request is being received or answered."""
        if self._task is None:
            self._hang_up()

    def cancel(self) -> None:
        """Give up the request that is being handled."""
        if self._task is not None:
            self._task.cancel()

    def abort(self) -> None:
        """Drop the connection and what was not sent, also what the kernel holds of it."""
        self._last = True
        if self.transport is not None:
            with suppress(OSError):
                linger = self.transport.get_extra_info("socket")
                linger.setsockopt(SOL_SOCKET, SO_LINGER, _RESET)
            self.transport.abort()

    # --- requests and answers ---------------------------------------------------------------

    def _hang_up(self) -> None:
        """Close when what was written has been sent."""
        self._last = True
        self.server.flush()
        if self.transport is not None:
            self.transport.close()

    def _say(self, refusal: Refusal) -> None:
        """Answer what could not be read, behind whatever waits to be written."""
        request_id = self.server.shell.new_request_id()
        response = self.server.shell.refuse(refusal, request_id)
        assert self.transport is not None
        self.server.send(self.transport, wire.write_response(response, request_id, "close"))

    def _refuse_head(self, refusal: Refusal) -> None:
        if self._task is None:
            self._say(refusal)
            self._hang_up()
        else:
            self._last = True

    def _is_shed(self, messages: Sequence[_Message]) -> bool:
        """Refuse at once what would be refused: without a task, a handler, a log line.

        Under three times the load it can carry, the engine would otherwise spend half of its
        time on refusals. What is not the plain case goes the usual way.
        """
        message, body = messages[0]
        if isinstance(message, HttpProcessingError) or not moves_money(
            message.method, message.path
        ):
            return False
        server, shell = self.server, self.server.shell
        if (
            not shell.is_full(server.arrived)
            or len(messages) > 1
            or not body.is_eof()
            or message.should_close
            or message.upgrade
            or message.version[1] == 0
            or self._paused
            or self.transport is None
        ):
            server.arrives()
            return False
        server.requests += 1
        server.send(self.transport, shell.refuse_full(message.path, shell.new_request_id()))
        self._parsed_one()
        return True

    async def _serve(self) -> None:
        """Answer what has arrived, in order, until nothing more is there."""
        server = self.server
        queue = self._queue
        try:
            while queue:
                if self._paused:
                    # The client does not read; what it asks for next can wait.
                    await self._drain_helper()
                    continue
                message, self._payload = queue.popleft()
                self._parsed_one()
                server.requests += 1
                if not await self._answer(message, self._payload):
                    self._hang_up()
                    return
        except ConnectionError:
            server.gone += 1
            self._hang_up()
        except BaseException:
            # A bug of ours, or the end of the server.
            self.abort()
            raise
        finally:
            self._payload = EMPTY_PAYLOAD
            self._task = None
            server.busy.discard(self)

    def _parsed_one(self) -> None:
        """Give the parser room for one more request, and read on where it had none."""
        if self._parser is None:
            return
        self._parser.message_consumed()
        if self._buffer_paused and len(self._queue) <= _PIPELINED_MAX // 2:
            self.data_received(b"")
            if len(self._queue) < _PIPELINED_MAX:
                self._resume_reading_for_buffer()

    async def _answer(
        self, message: RawRequestMessage | HttpProcessingError, payload: StreamReader
    ) -> bool:
        """Answer one request, and say whether the connection goes on.

        Raises ConnectionError where the client has left.
        """
        shell = self.server.shell
        request_id = shell.new_request_id()
        if isinstance(message, HttpProcessingError):
            response = shell.refuse(malformed(message, shell.limits), request_id)
            self._write(wire.write_response(response, request_id, "close"))
            return False
        request, response = await shell.take(
            message.method,
            message.path,
            message.headers.items(),
            peer=self.peer,
            request_id=request_id,
            receive=None if payload is EMPTY_PAYLOAD else partial(self._receive, payload),
        )
        is_whole = payload.is_eof()
        keep = not (message.should_close or message.upgrade or self._last) and is_whole
        keep = keep and not self.server.stopping
        connection = "" if keep else "close"
        if keep and message.version[1] == 0:
            connection = "keep-alive"
        bare = message.method == "HEAD"
        try:
            raw = wire.write_response(response, request_id, connection, bare)
        except Exception as error:
            # Only a handler's answer can fail to be written, so there is a request.
            response = shell.failed(error, cast(Request, request))
            raw = wire.write_response(response, request_id, connection, bare)
        self._write(raw)
        if not is_whole:
            self.server.flush()
            await self._linger(payload)
        return keep

    def _write(self, raw: bytes) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError
        self.server.send(transport, raw)

    async def _linger(self, payload: StreamReader) -> None:
        """Discard the rest of a refused body: a close with bytes unread would reset the
        connection and take the answer with it (RFC 9112, 9.6).
        """
        self._body_due = time.monotonic() + self.server.limits.linger_s
        with suppress(_BodyLateError, _BodyBrokenError, ConnectionError, RuntimeError):
            while await payload.readany():
                pass
        self._body_due = 0.0

    async def _receive(
        self, payload: StreamReader, headers: Mapping[str, str], size_max: int
    ) -> bytes | Refusal:
        """Read a body to its end. Raises ConnectionError if the client left."""
        if payload.is_eof():
            body = payload.read_nowait()
            return body if len(body) <= size_max else too_large(size_max)
        if headers.get("expect", "").lower() == "100-continue":
            self._write(wire.CONTINUE)
            self.server.flush()
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
        except _BodyBrokenError:
            return Refusal("malformed_http", "The body's transfer coding is not valid.")
        finally:
            self._body_due = 0.0
        return b"".join(chunks)
