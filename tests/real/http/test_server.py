"""The server over real sockets: what it answers, what it refuses, and when it hangs up."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream

from engine.http import wire
from engine.http.exchange import Request, Response
from engine.http.limits import Limits
from engine.http.problems import refused
from engine.http.server import HttpServer, serve
from engine.http.shell import FULL

pytestmark = pytest.mark.anyio

FAST = Limits(head_s=0.1, body_s=0.1, write_s=0.1, idle_s=5.0, linger_s=0.05, drain_s=2.0)
PATIENT = Limits()


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


async def echo(request: Request) -> Response:
    answer = {
        "method": request.method,
        "path": request.path,
        "query": dict(request.query),
        "body": request.body.decode(),
        "peer": request.peer,
        "request_id": request.request_id,
        "key": request.headers.get("idempotency-key"),
    }
    return Response(200, json.dumps(answer).encode())


class Running:
    def __init__(self, server: HttpServer, errors: list[tuple[Exception, Request]]) -> None:
        self.server = server
        self.errors = errors
        self.scope = anyio.CancelScope()
        self.stopped = anyio.Event()
        self.clients: list[Client] = []

    async def connect(self) -> Client:
        self.clients.append(Client(await anyio.connect_tcp("127.0.0.1", self.server.port)))
        return self.clients[-1]


@asynccontextmanager
async def running(
    handle: Callable[[Request], Awaitable[Response]] = echo,
    limits: Limits = PATIENT,
    is_full: Callable[[int], bool] = lambda _: False,
) -> AsyncIterator[Running]:
    errors: list[tuple[Exception, Request]] = []
    numbers = itertools.count(1)
    async with anyio.create_task_group() as group:
        state: list[Running] = []

        async def run(*, task_status: Any) -> None:
            scope = anyio.CancelScope()
            with scope:
                async with anyio.create_task_group() as inner:
                    server = await inner.start(start)
                    state.append(Running(server, errors))
                    state[0].scope = scope
                    task_status.started()
            state[0].stopped.set()

        async def start(*, task_status: Any) -> None:
            await serve(
                handle,
                host="127.0.0.1",
                port=0,
                limits=limits,
                new_request_id=lambda: f"req_{next(numbers)}",
                on_error=lambda error, request: errors.append((error, request)),
                is_full=is_full,
                task_status=task_status,
            )

        await group.start(run)
        try:
            with anyio.fail_after(20):
                yield state[0]
        finally:
            state[0].scope.cancel()
            for client in state[0].clients:
                await anyio.aclose_forcefully(client.stream)


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def assert_problem(self, status: int, code: str) -> None:
        assert self.status == status, self.body
        assert self.headers["content-type"] == "application/problem+json"
        assert self.json["code"] == code
        assert self.json["status"] == status
        assert self.json["request_id"] == self.headers["request-id"]


class Client:
    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.buffer = b""

    async def send(self, raw: bytes) -> None:
        await self.stream.send(raw)

    async def post(
        self, body: bytes, *headers: str, path: str = "/x", length: int | None = None
    ) -> None:
        lines = [f"POST {path} HTTP/1.1", "Host: t", f"Content-Length: {length or len(body)}"]
        if not any(header.lower().startswith("content-type") for header in headers):
            lines.append("Content-Type: application/json")
        await self.send("\r\n".join([*lines, *headers, "", ""]).encode() + body)

    async def read(self, *, head_only: bool = False) -> Answer:
        while b"\r\n\r\n" not in self.buffer:
            self.buffer += await self.stream.receive()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        length = 0 if head_only else int(headers.get("content-length", 0))
        while len(self.buffer) < length:
            self.buffer += await self.stream.receive()
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return Answer(int(first.split()[1]), headers, body)

    async def wait_closed(self) -> bytes:
        """Everything that still comes before the other end hangs up."""
        try:
            while True:
                self.buffer += await self.stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return self.buffer


async def test_a_request_reaches_the_handler_and_its_answer_the_client() -> None:
    async with running() as engine:
        client = await engine.connect()
        await client.post(b'{"a":1}', "Idempotency-Key: k1", path="/v1/%70ay?limit=5&x=%C3%A9")
        answer = await client.read()
    assert answer.status == 200
    assert answer.headers["request-id"] == "req_1"
    assert answer.headers["date"].endswith(" GMT")
    assert answer.headers["content-type"] == "application/json"
    assert "connection" not in answer.headers
    assert answer.json == {
        "method": "POST",
        "path": "/v1/pay",
        "query": {"limit": "5", "x": "é"},
        "body": '{"a":1}',
        "peer": "127.0.0.1",
        "request_id": "req_1",
        "key": "k1",
    }


async def test_pipelined_requests_are_answered_in_order_on_one_connection() -> None:
    async with running() as engine:
        client = await engine.connect()
        await client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: t\r\n\r\n" % n for n in range(100)))
        paths = [(await client.read()).json["path"] for _ in range(100)]
        assert engine.server.statistics().connections == 1
    assert paths == [f"/{n}" for n in range(100)]


async def test_answers_of_one_moment_all_arrive_also_on_connections_that_close() -> None:
    together = anyio.Event()

    async def wait(request: Request) -> Response:
        await together.wait()
        return Response(200, request.path.encode())

    async with running(wait) as engine:
        clients = [await engine.connect() for _ in range(20)]
        for n, client in enumerate(clients):
            connection = b"close" if n % 2 else b"keep-alive"
            await client.send(
                b"GET /%d HTTP/1.1\r\nHost: t\r\nConnection: %b\r\n\r\n" % (n, connection)
            )
        while len(engine.server.busy) < len(clients):
            await anyio.sleep(0.001)
        together.set()
        answers = [await client.read() for client in clients]
        assert [answer.body for answer in answers] == [b"/%d" % n for n in range(20)]
        for client in clients[1::2]:
            assert await client.wait_closed() == b""
        assert len(engine.server.open) == 10


async def test_a_head_that_arrives_byte_by_byte_is_a_request() -> None:
    async with running() as engine:
        client = await engine.connect()
        for byte in b"GET /slow HTTP/1.1\r\nHost: t\r\n\r\n":
            await client.send(bytes([byte]))
        assert (await client.read()).json["path"] == "/slow"


async def test_a_chunked_body_is_read_whole() -> None:
    async with running() as engine:
        client = await engine.connect()
        await client.send(
            b"POST /x HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"
        )
        await client.send(b"1\r\n \r\n0\r\n\r\n")
        assert (await client.read()).json["body"] == "{} "


@pytest.mark.parametrize(("size", "count"), [(1, 50_000), (100_000, 10)])
async def test_flow_control_does_not_stall_a_chunked_body(size: int, count: int) -> None:
    async with running() as engine:
        client = await engine.connect()
        chunk = b"%x\r\n%s\r\n" % (size, b" " * size)
        await client.send(
            b"POST /v1/payments/batch HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" + chunk * count + b"0\r\n\r\n"
        )
        assert len((await client.read()).json["body"]) == size * count


async def test_a_client_that_expects_100_is_told_to_continue() -> None:
    async with running() as engine:
        client = await engine.connect()
        await client.post(b"", "Expect: 100-continue", length=2)
        assert (await client.read()).status == 100
        await client.send(b"{}")
        assert (await client.read()).json["body"] == "{}"


async def test_head_is_answered_without_a_body() -> None:
    async with running() as engine:
        client = await engine.connect()
        await client.send(b"HEAD /a HTTP/1.1\r\nHost: t\r\n\r\nGET /b HTTP/1.1\r\nHost: t\r\n\r\n")
        assert int((await client.read(head_only=True)).headers["content-length"]) > 0
        assert (await client.read()).json["path"] == "/b"


async def test_http_1_0_is_closed_unless_it_asks_to_be_kept() -> None:
    async with running() as engine:
        kept = await engine.connect()
        await kept.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (await kept.read()).headers["connection"] == "keep-alive"
        closed = await engine.connect()
        await closed.send(b"GET / HTTP/1.0\r\n\r\n")
        assert (await closed.read()).headers["connection"] == "close"
        assert await closed.wait_closed() == b""


async def test_a_post_that_offers_http_2_is_answered_in_http_1() -> None:
    async with running() as engine:
        client = await engine.connect()
        await client.post(b"{}", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c")
        answer = await client.read()
        assert (answer.status, answer.json["body"]) == (200, "{}")


async def test_an_upgrade_is_not_followed() -> None:
    async with running() as engine:
        client = await engine.connect()
        await client.send(
            b"GET /x HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\n\r\nbytes of another protocol"
        )
        answer = await client.read()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await client.wait_closed() == b""


# --- Limits -----------------------------------------------------------------------------------


async def test_a_body_is_refused_by_its_length_alone() -> None:
    async with running(limits=FAST) as engine:
        client = await engine.connect()
        await client.post(b"", length=65_537)
        (await client.read()).assert_problem(413, "body_too_large")
        await client.wait_closed()


@pytest.mark.parametrize(
    ("path", "size", "status"),
    [
        ("/v1/payments/authorize", 65_536, 200),
        ("/v1/payments/authorize", 65_537, 413),
        ("/v1/payments/batch", 1_048_576, 200),
        ("/v1/payments/batch", 1_048_577, 413),
    ],
)
async def test_the_size_of_a_body_is_limited_by_route(path: str, size: int, status: int) -> None:
    async with running(limits=FAST) as engine:
        client = await engine.connect()
        await client.post(b" " * size, path=path)
        assert (await client.read()).status == status


async def test_a_chunked_body_over_the_limit_is_not_read_to_its_end() -> None:
    async with running(limits=FAST) as engine:
        client = await engine.connect()
        await client.send(
            b"POST /x HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b" " * 65_536 + b"\r\n") * 2
        )
        (await client.read()).assert_problem(413, "body_too_large")
        await client.wait_closed()


@pytest.mark.parametrize("zeros", [1, 4_299, 5_000])
async def test_a_length_may_begin_with_zeros(zeros: int) -> None:
    length = b"Content-Length: " + b"0" * zeros + b"2\r\n"
    head = b"POST /x HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n" + length
    async with running() as server:
        client = await server.connect()
        await client.send(head + b"\r\n{}")
        answer = await client.read()
        assert (answer.status, answer.json["body"]) == (200, "{}")


async def test_the_size_is_judged_before_the_encoding_and_the_type() -> None:
    async with running(limits=FAST) as engine:
        client = await engine.connect()
        await client.post(b"", "Content-Encoding: gzip", "Content-Type: text/plain", length=70_000)
        (await client.read()).assert_problem(413, "body_too_large")


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd", "gzip, identity", "x"])
async def test_an_encoded_body_is_refused_unopened(encoding: str) -> None:
    async with running() as engine:
        client = await engine.connect()
        await client.post(b"{}", f"Content-Encoding: {encoding}")
        (await client.read()).assert_problem(415, "content_encoding_not_supported")
        # Its body had arrived, so the connection is good for the next request.
        await client.post(b"{}", "Content-Encoding: identity")
        assert (await client.read()).status == 200


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ('Application/JSON;charset="UTF-8"', 200),
        ("application/json; charset=utf-16", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/jsonp", 415),
        ("", 415),
    ],
)
async def test_a_body_must_be_json(content_type: str, status: int) -> None:
    async with running() as engine:
        client = await engine.connect()
        await client.post(b"{}", f"Content-Type: {content_type}")
        answer = await client.read()
        if status == 415:
            answer.assert_problem(415, "unsupported_media_type")
        else:
            assert answer.status == status


async def test_a_webhook_may_have_any_type_and_no_body_needs_none() -> None:
    async with running() as engine:
        client = await engine.connect()
        await client.post(b"a=1", "Content-Type: text/plain", path="/v1/webhooks/stripe")
        assert (await client.read()).json["body"] == "a=1"
        await client.send(b"POST /x HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n")
        assert (await client.read()).status == 200


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"nonsense\r\n\r\n", 400, "malformed_http"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "malformed_http"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "malformed_http"),
        (b"GET / HTTP/1.1\r\nHost: t\r\nA b: c\r\n\r\n", 400, "malformed_http"),
        (b"GET / HTTP/1.1\r\nHost: t\r\nX: a\0b\r\n\r\n", 400, "malformed_http"),
        (
            b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 1\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n",
            400,
            "malformed_http",
        ),
        (
            b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            400,
            "malformed_http",
        ),
        (b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: -1\r\n\r\n", 400, "malformed_http"),
        (
            b"POST / HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            400,
            "malformed_http",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: t\r\nIdempotency-Key: a\r\nIdempotency-Key: b\r\n\r\n",
            400,
            "malformed_http",
        ),
        (b"GET /?a=1&a=2 HTTP/1.1\r\nHost: t\r\n\r\n", 400, "duplicate_parameter"),
        (b"GET /?a=%FF HTTP/1.1\r\nHost: t\r\n\r\n", 400, "bad_utf8"),
        (b"GET /?a=%00 HTTP/1.1\r\nHost: t\r\n\r\n", 400, "nul_not_allowed"),
        (b"GET /" + b"a" * 5_000 + b" HTTP/1.1\r\nHost: t\r\n\r\n", 414, "uri_too_long"),
        (
            b"GET / HTTP/1.1\r\nHost: t\r\nX: " + b"a" * 9_000 + b"\r\n\r\n",
            431,
            "headers_too_large",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: t\r\n" + b"X: y\r\n" * 100 + b"\r\n",
            431,
            "headers_too_large",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: t\r\n" + (b"X: " + b"y" * 4_000 + b"\r\n") * 9,
            431,
            "headers_too_large",
        ),
    ],
)
async def test_what_is_not_proper_http_is_a_problem(raw: bytes, status: int, code: str) -> None:
    async with running(limits=FAST) as engine:
        client = await engine.connect()
        await client.send(raw)
        answer = await client.read()
        answer.assert_problem(status, code)
        assert engine.server.statistics().refusals == {code: 1}
        if answer.headers.get("connection") == "close":
            await client.wait_closed()


async def test_a_transfer_coding_that_breaks_in_the_middle_is_a_problem() -> None:
    async with running() as engine:
        client = await engine.connect()
        await client.send(
            b"POST / HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"
        )
        await client.send(b"zz\r\n")
        (await client.read()).assert_problem(400, "malformed_http")
        await client.wait_closed()


# --- Deadlines --------------------------------------------------------------------------------


async def test_a_half_sent_head_is_closed_at_its_deadline() -> None:
    async with running(limits=FAST) as engine:
        client = await engine.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost:")
        (await client.read()).assert_problem(408, "request_timeout")
        assert await client.wait_closed() == b""


async def test_a_half_sent_head_after_a_request_is_closed_too() -> None:
    async with running(limits=FAST) as engine:
        client = await engine.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
        assert (await client.read()).status == 200
        await client.send(b"G")
        (await client.read()).assert_problem(408, "request_timeout")
        assert await client.wait_closed() == b""


async def test_that_a_head_is_late_is_told_behind_the_answer_that_is_about_to_be_written() -> None:
    async def answer_and_look_at_the_clock(request: Request) -> Response:
        (connection,) = engine.server.open
        while not connection._head_since:
            await anyio.sleep(0.001)
        # It runs before the answers of this turn are written.
        asyncio.get_running_loop().call_soon(connection.check_deadlines, time.monotonic() + 100)
        return Response(200, b"first")

    async with running(answer_and_look_at_the_clock, limits=FAST) as engine:
        client = await engine.connect()
        await client.send(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
        while not engine.server.busy:
            await anyio.sleep(0.001)
        await client.send(b"GET / HT")
        assert (await client.read()).body == b"first"
        (await client.read()).assert_problem(408, "request_timeout")
        assert await client.wait_closed() == b""


async def test_a_body_that_came_after_its_head_is_no_half_sent_head() -> None:
    """Most clients send the two in two writes, and keep the connection."""
    async with running(limits=FAST) as server:
        client = await server.connect()
        head = b"POST /x HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
        for _ in range(2):
            await client.send(head + b"Content-Length: 2\r\n\r\n")
            await anyio.sleep(0.02)
            await client.send(b"{}")
            assert (await client.read()).status == 200
            await anyio.sleep(FAST.head_s * 4)


async def test_trickling_a_head_does_not_move_its_deadline() -> None:
    async with running(limits=FAST) as engine:
        client = await engine.connect()
        await client.send(b"GET / HTTP/1.1\r\n")

        async def trickle() -> None:
            # Until the other end hangs up.
            while True:
                await client.send(b"X: y\r\n")
                with anyio.move_on_after(0.02):
                    client.buffer += await client.stream.receive()

        with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
            await trickle()
        assert engine.server.statistics().refusals == {"request_timeout": 1}


async def test_a_slow_body_is_answered_408_and_closed() -> None:
    async with running(limits=FAST) as engine:
        client = await engine.connect()
        await client.post(b"{", length=2)
        answer = await client.read()
        answer.assert_problem(408, "request_timeout")
        assert answer.json["retryable"] is True
        assert await client.wait_closed() == b""


async def test_an_idle_connection_is_closed() -> None:
    limits = Limits(idle_s=0.1)
    async with running(limits=limits) as engine:
        silent = await engine.connect()
        used = await engine.connect()
        await used.send(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
        assert (await used.read()).status == 200
        assert await used.wait_closed() == b""
        assert await silent.wait_closed() == b""


@pytest.mark.parametrize("full", [False, True])
async def test_a_connection_that_is_used_between_two_checks_is_not_idle(
    full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.http.server._SWEEP_S_MAX", 3_600.0)  # It is checked here.
    patient = Limits(head_s=3_600, body_s=3_600, write_s=3_600, idle_s=3_600)
    async with running(limits=patient, is_full=lambda _: full) as engine:
        client = await engine.connect()
        now = time.monotonic()
        for _ in range(3):
            await client.post(b"{}", path="/v1/payments/authorize")
            assert (await client.read()).status == (503 if full else 200)
            (connection,) = engine.server.open
            connection.check_deadlines(now)
            now += patient.idle_s + 1
        connection.check_deadlines(now)
        assert await client.wait_closed() == b""


async def test_a_client_that_does_not_read_is_dropped() -> None:
    async def large(_: Request) -> Response:
        return Response(200, b"x" * 20_000_000)

    async with running(large, FAST) as engine:
        client = await engine.connect()
        client.stream.extra(anyio.abc.SocketAttribute.raw_socket).setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096
        )
        await client.send(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")
        while engine.server.statistics().unread == 0 or engine.server.open:
            await anyio.lowlevel.checkpoint()
        assert len(await client.wait_closed()) < 20_000_000


async def test_many_stuck_clients_do_not_delay_another() -> None:
    async with running() as engine:
        stuck = [await engine.connect() for _ in range(300)]
        for number, client in enumerate(stuck):
            await client.send(b"GET / HT" if number % 2 else b"")
        client = await engine.connect()
        with anyio.fail_after(5):
            for _ in range(100):
                await client.post(b"{}")
                assert (await client.read()).status == 200


async def test_too_many_connections_are_told_to_come_back() -> None:
    async with running(limits=Limits(connections_max=2)) as engine:
        first = await engine.connect()
        await first.post(b"{}")
        await first.read()
        second = await engine.connect()
        await second.post(b"{}")
        await second.read()
        third = await engine.connect()
        answer = await third.read()
        answer.assert_problem(503, "overloaded")
        assert answer.headers["retry-after"] == "1"
        await third.wait_closed()
        await first.stream.aclose()
        await second.post(b"{}")
        assert (await second.read()).status == 200


# --- Handlers ---------------------------------------------------------------------------------


async def test_a_full_engine_refuses_what_moves_money_and_answers_the_rest() -> None:
    full = [True]
    async with running(is_full=lambda _: full[0]) as engine:
        client = await engine.connect()
        for _ in range(40):
            await client.post(b"{}", path="/v1/payments/authorize?x=1")
            answer = await client.read()
            answer.assert_problem(503, "overloaded")
            assert answer.json["instance"] == "/v1/payments/authorize"
            assert answer.json["retryable"] is True
            assert answer.headers["retry-after"] == "1"
        await client.send(b"GET /v1/payments HTTP/1.1\r\nHost: t\r\n\r\n")
        assert (await client.read()).status == 200
        await client.post(b"{}", path="/v1/webhooks/simulator")
        assert (await client.read()).status == 200
        assert engine.server.statistics().refusals == {"overloaded": 40}
        full[0] = False
        await client.post(b"{}", path="/v1/payments/authorize")
        assert (await client.read()).status == 200


async def test_those_who_come_together_are_let_in_as_far_as_there_is_room() -> None:
    seen: list[str] = []

    async def handle(request: Request) -> Response:
        seen.append(request.path)
        return await echo(request)

    with ExitStack() as stack:
        async with running(handle, is_full=lambda before: before >= 2) as engine:
            clients = [
                stack.enter_context(
                    socket.create_connection(("127.0.0.1", engine.server.port), timeout=10)
                )
                for _ in range(5)
            ]
            while len(engine.server.open) < len(clients):
                await anyio.lowlevel.checkpoint()
            for turn in (1, 2):
                # Nobody yields meanwhile, so all of it is there when the server next reads.
                for client in clients:
                    client.sendall(
                        b"POST /v1/payments/authorize HTTP/1.1\r\nHost: t\r\n"
                        b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
                    )
                answers = [await anyio.to_thread.run_sync(client.recv, 4_096) for client in clients]
                statuses = sorted(int(answer[9:12]) for answer in answers)
                assert statuses == [200, 200, 503, 503, 503]
                assert len(seen) == 2 * turn, "the others were refused without a handler"


async def test_what_a_full_engine_answers_is_what_any_other_refusal_looks_like(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "date_now", lambda: "Sun, 22 Nov 2026 12:00:00 GMT")
    async with running(is_full=lambda _: True) as engine:
        shell = engine.server.shell
        for target in ("/v1/payments/authorize", "/v1/payments/pay_1/capture?x=4242424242424242"):
            for request_id in ("req_1", "req_22", "req_1"):
                path = target.partition("?")[0]
                wanted = wire.write_response(
                    refused(FULL, instance=path, request_id=request_id), request_id
                )
                assert shell.refuse_full(target, request_id) == wanted
        for n in range(1_000):
            shell.refuse_full(f"/v1/payments/{n}/capture", "req_1")
        assert len(shell._full) <= 64, "paths are the clients' to choose"


async def test_a_client_that_leaves_does_not_stop_the_work() -> None:
    begun, left, done = anyio.Event(), anyio.Event(), anyio.Event()

    async def slow(_: Request) -> Response:
        begun.set()
        await left.wait()
        # Cancelled work would not get past a checkpoint.
        await anyio.lowlevel.checkpoint()
        done.set()
        return Response(200)

    async with running(slow) as engine:
        client = await engine.connect()
        await client.post(b"{}")
        await begun.wait()
        await client.stream.aclose()
        while engine.server.open:
            await anyio.lowlevel.checkpoint()
        left.set()
        await done.wait()
        while engine.server.busy:
            await anyio.lowlevel.checkpoint()
        assert engine.server.statistics().gone == 1
        assert engine.errors == []


async def test_a_client_that_leaves_in_its_body_never_reaches_the_handler() -> None:
    seen: list[Request] = []

    async def note(request: Request) -> Response:
        seen.append(request)
        return Response(200)

    async with running(note) as engine:
        client = await engine.connect()
        await client.post(b"{", length=10)
        while not engine.server.busy:
            await anyio.lowlevel.checkpoint()
        await client.stream.aclose()
        while engine.server.busy or engine.server.open:
            await anyio.lowlevel.checkpoint()
        assert engine.server.statistics().gone == 1
    assert seen == []


async def test_a_handler_that_raises_is_a_500_that_tells_nothing() -> None:
    async def broken(_: Request) -> Response:
        raise LookupError("secret")

    async with running(broken) as engine:
        client = await engine.connect()
        await client.post(b"{}", path="/y")
        answer = await client.read()
        answer.assert_problem(500, "internal_error")
        assert answer.json["instance"] == "/y"
        assert b"secret" not in answer.body
        error, request = engine.errors[0]
        assert isinstance(error, LookupError)
        assert request.request_id == answer.headers["request-id"]
        await client.post(b"{}")
        assert (await client.read()).status == 500


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "☃"])
async def test_a_header_that_cannot_be_written_is_a_500(value: str) -> None:
    async def injected(_: Request) -> Response:
        return Response(200, b"{}", headers=(("Location", value),))

    async with running(injected) as engine:
        client = await engine.connect()
        await client.post(b"{}")
        answer = await client.read()
        answer.assert_problem(500, "internal_error")
        assert "set-cookie" not in answer.headers
        assert len(engine.errors) == 1


async def test_an_answer_without_content_has_no_length() -> None:
    async def empty(_: Request) -> Response:
        return Response(204, headers=(("X-A", "b"),))

    async with running(empty) as engine:
        client = await engine.connect()
        await client.post(b"{}")
        answer = await client.read()
        assert (answer.status, answer.headers["x-a"]) == (204, "b")
        assert "content-length" not in answer.headers


# --- Stopping ---------------------------------------------------------------------------------


async def test_a_stop_finishes_what_runs_and_closes_what_is_idle() -> None:
    begun, go = anyio.Event(), anyio.Event()

    async def slow(_: Request) -> Response:
        begun.set()
        await go.wait()
        return Response(200, b"done")

    async with running(slow) as engine:
        idle = await engine.connect()
        busy = await engine.connect()
        await busy.post(b"{}")
        await begun.wait()
        engine.scope.cancel()
        assert await idle.wait_closed() == b""
        with pytest.raises(OSError, match="connect"):
            await engine.connect()
        assert not engine.stopped.is_set()
        go.set()
        answer = await busy.read()
        assert (answer.body, answer.headers["connection"]) == (b"done", "close")
        assert await busy.wait_closed() == b""
        await engine.stopped.wait()


async def test_a_stop_does_not_wait_past_its_deadline() -> None:
    begun = anyio.Event()

    async def endless(_: Request) -> Response:
        begun.set()
        await anyio.sleep_forever()
        raise AssertionError

    async with running(endless, Limits(drain_s=0.1)) as engine:
        client = await engine.connect()
        await client.post(b"{}")
        await begun.wait()
        engine.scope.cancel()
        assert await client.wait_closed() == b""
        await engine.stopped.wait()
