"""The simulator as a process of its own: a provider's HTTP API, with its faults on the wire.

A reply that never comes leaves the connection open, a garbled one is JSON cut in the middle, a
refused one is a reset connection; nothing is pretended. Where the process is killed, the next
one finds the books.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import anyio
import anyio.abc
import msgspec
from aiohttp import web

from engine.domain.news import GatewayCall, NotFound, Unknown
from engine.gateways.http_client import HttpClient, Request
from engine.gateways.simulator import Reply, Simulator
from engine.gateways.simulator_complaints import Complaints
from engine.gateways.simulator_config import SimulatorConfig
from engine.gateways.simulator_wire import (
    DONE_PAGE,
    OutageRequest,
    completion_page,
    read_request,
    write_reply,
)

_BODY_MAX_BYTES = 65_536
_WEBHOOK_TIMEOUT_S = 10.0
_SHUTDOWN_S = 1.0
_outage_decoder = msgspec.json.Decoder(OutageRequest)


class WallClock:
    """Unix time that never goes back within the process."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def now_ms(self) -> int:
        """Unix time in milliseconds."""
        return (self._offset_ns + time.monotonic_ns()) // 1_000_000


async def serve_simulator(
    host: str,
    port: int,
    books_path: Path | None,
    config: SimulatorConfig,
    webhook_url: str | None,
    *,
    say: Callable[[str], None] = lambda _: None,
    task_status: anyio.abc.TaskStatus[int] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. Port 0 takes a free one; the port is what is reported as started.

    Webhooks go to `webhook_url` (None: they are made and dropped); what happens to them there is
    told by `say`, where somebody should look. Raises BooksInUse,
    BooksCorrupt or OSError.
    """
    http = HttpClient(
        connections_max=32, connect_timeout_s=_WEBHOOK_TIMEOUT_S, timeout_s=_WEBHOOK_TIMEOUT_S
    )

    clock = WallClock()
    complaints = Complaints(webhook_url or "", say)

    async def deliver(headers: Mapping[str, str], raw: bytes) -> bool:
        if webhook_url is None:
            return True
        answer = await http.send(Request("POST", webhook_url, headers, raw))
        return complaints.note(answer, clock.now_ms())

    simulator = Simulator(books_path, clock=clock, config=config, deliver=deliver)
    try:
        async with (
            _listening(_application(simulator), host, port) as actual_port,
            anyio.create_task_group() as tasks,
        ):
            await tasks.start(simulator.run)
            task_status.started(actual_port)
    finally:
        with anyio.CancelScope(shield=True):
            await http.close()
            await simulator.close()


@contextlib.asynccontextmanager
async def _listening(app: web.Application, host: str, port: int) -> AsyncIterator[int]:
    # A client that gives up ends its handler, or those that never answer would pile up.
    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=60.0,
        shutdown_timeout=_SHUTDOWN_S,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, reuse_address=True).start()
        yield runner.addresses[0][1]
    finally:
        with anyio.CancelScope(shield=True):
            await runner.cleanup()


def _application(simulator: Simulator) -> web.Application:
    routes = _Routes(simulator)
    app = web.Application(client_max_size=_BODY_MAX_BYTES)
    app.add_routes(
        [
            web.post("/v1/operations", routes.perform),
            web.get("/v1/operations/{key}", routes.look_up),
            web.post("/v1/operations/{reference}/complete", routes.complete),
            web.get("/simulator/authentications/{reference}/complete", routes.page),
            web.post("/simulator/authentications/{reference}/complete", routes.complete),
            web.post("/v1/outage", routes.outage),
            web.get("/v1/statistics", routes.statistics),
            web.get("/healthz", routes.health),
        ]
    )
    return app


class _Routes:
    """The handlers: each decodes, asks the simulator, and answers."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    async def perform(self, request: web.Request) -> web.StreamResponse:
        call = read_request(request.headers.get("Idempotency-Key", ""), await request.read())
        if isinstance(call, str):
            return web.json_response({"error": call}, status=400)
        return await self._answer(request, call)

    async def look_up(self, request: web.Request) -> web.StreamResponse:
        action = request.query.get("action", "")
        if action not in ("authorize", "purchase", "capture", "void", "refund"):
            return web.json_response({"error": "action is missing or unknown"}, status=400)
        call = GatewayCall(
            gateway="simulator",
            op_id="",
            key=request.match_info["key"],
            action=action,  # type: ignore[arg-type]  # the line above has narrowed it
            amount=0,
            currency="",
            payment_method="",
            livemode=request.query.get("livemode") == "true",
            look_up=True,
        )
        return await self._answer(request, call)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        approve = request.query.get("outcome", "approved") != "declined"
        news = self._simulator.complete(request.match_info["reference"], approve=approve)
        status = 404 if isinstance(news, NotFound) else 200
        if status == 200 and "text/html" in request.headers.get("Accept", ""):
            return web.Response(text=DONE_PAGE, content_type="text/html")
        return _json(status, msgspec.json.encode({"result": news}))

    async def page(self, request: web.Request) -> web.StreamResponse:
        page = completion_page(request.match_info["reference"])
        return web.Response(text=page, content_type="text/html")

    async def outage(self, request: web.Request) -> web.StreamResponse:
        try:
            wanted = _outage_decoder.decode(await request.read())
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return web.json_response({"error": str(error)}, status=400)
        self._simulator.set_outage(wanted.on)
        return _json(200, msgspec.json.encode(wanted))

    async def statistics(self, request: web.Request) -> web.StreamResponse:
        return _json(200, msgspec.json.encode(self._simulator.statistics()))

    async def health(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text="ok")

    async def _answer(self, request: web.Request, call: GatewayCall) -> web.StreamResponse:
        reply = self._simulator.act(call)
        await self._simulator.hold_back(reply)
        return self._on_the_wire(request, call, reply)

    def _on_the_wire(
        self, request: web.Request, call: GatewayCall, reply: Reply
    ) -> web.StreamResponse:
        if reply.kind == "unreachable":
            if request.transport is not None:
                request.transport.abort()
            # Never arrives; aiohttp takes a write to a lost connection for what it is.
            return web.Response(status=503)
        if reply.kind == "garbage":
            return _json(200, b'{"key": "' + call.key.encode()[:8])
        if reply.kind == "server_error" or isinstance(reply.news, Unknown):
            return _json(500, b'{"error": "internal"}')
        status, body = write_reply(call, reply.news)
        return _json(status, body)


def _json(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json")
