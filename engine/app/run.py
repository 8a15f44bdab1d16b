"""Running an engine: database, takeover, actors, HTTP, and the way down."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import anyio
from anyio.abc import TaskStatus

from engine.app.parts import SIMULATOR, STANDING_BY, Engine
from engine.app.telemetry import FLUSH_EVERY_S, StructlogTelemetry
from engine.config import DEV_KEY, Settings
from engine.failpoints import failpoint
from engine.http.api import Api
from engine.http.exchange import Request
from engine.http.limits import Limits
from engine.http.server import HttpServer, serve
from engine.ledger.lock import LockTaken
from engine.ledger.migrate import check_migrated, migrate
from engine.ledger.postgres import PostgresLedger
from engine.ports import LedgerUnavailable

DRAIN_S = 8.0
TAKE_OVER_AGAIN_S = 1.0
OWNER = f"{socket.gethostname()}:{os.getpid()}"


async def run_engine(
    settings: Settings,
    *,
    dsn: str,
    dev: bool,
    telemetry: StructlogTelemetry,
    books: Path | None,
    ready: Callable[[int], None],
) -> None:
    """Serve until SIGINT or SIGTERM, then drain. `ready` is called with the port, once.

    Raises LedgerUnavailable when the database cannot be reached at the start, and Fenced (within
    an exception group) when another engine has taken over.
    """
    if dev:
        await migrate(dsn)
    else:
        await check_migrated(dsn)
    ledger = PostgresLedger(dsn)
    await ledger.open()

    async def deliver(headers: Mapping[str, str], raw: bytes) -> bool:
        # In one process a webhook need not leave it; it takes the same way from the door on.
        request_id = engine.ids.new("req")
        answer = await engine.system.router.webhook(SIMULATOR, headers, raw, request_id)
        return answer.status == 200

    engine = Engine(
        settings, ledger=ledger, telemetry=telemetry, books=books, deliver=deliver, dev=dev
    )
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_flush_logs, telemetry)
            server: HttpServer = await tasks.start(_serve_http, engine)
            engine.http_statistics = server.statistics
            tasks.start_soon(_report_refusals, engine, server)
            await tasks.start(_watch_signals, engine, tasks.cancel_scope)
            tasks.start_soon(_take_over_and_run, engine, lambda: ready(server.port))
    finally:
        with anyio.CancelScope(shield=True):
            for gateway, _ in engine.gateways.values():
                await gateway.close()
            await ledger.close()
            telemetry.log("stopped")
            telemetry.flush()


async def _take_over_and_run(engine: Engine, ready: Callable[[], None]) -> None:
    """Become the one engine that writes, as soon as no other one is; then run the actors."""
    engine.standing_by = "taking over: another engine may still have the database"
    epoch, last_transfer = await _take_over(engine)
    engine.ids.continue_after(last_transfer)
    engine.telemetry.log("took_over", epoch=epoch)
    failpoint("took_over")
    async with anyio.create_task_group() as tasks:
        if engine.simulator is not None:
            await tasks.start(engine.simulator.run)
        tasks.start_soon(_keep_lock, engine)
        await tasks.start(engine.system.run)
        calm_collector()
        engine.standing_by = None
        engine.telemetry.log("ready")
        ready()


async def _take_over(engine: Engine) -> tuple[int, int]:
    """The epoch, and the last transfer before it. Stands by for as long as it takes.

    Whoever stands by outlives a restart of the database, or nobody would be left after it.
    """
    ledger = engine.ledger
    takes_over: Callable[[str], Awaitable[int]] = ledger.take_over
    while True:
        try:
            return await takes_over(OWNER), await ledger.last_transfer()
        except LockTaken as taken:
            engine.standing_by = f"{STANDING_BY}: {taken}"
            engine.telemetry.warn("standing_by", reason=str(taken))
            takes_over = ledger.stand_by
        except LedgerUnavailable as trouble:
            engine.standing_by = f"waiting for the database: {trouble}"
            engine.telemetry.warn("waiting_for_database", reason=str(trouble))
            await anyio.sleep(TAKE_OVER_AGAIN_S)


def calm_collector() -> None:
    """Tell the cyclic collector that this process makes many objects and hardly any cycles.

    What exists now lives as long as the process, and open payments live for days: walking over
    them every few thousand requests costs throughput and finds nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


async def _keep_lock(engine: Engine) -> None:
    """The lock goes with its connection: take it again, or be fenced by whoever was faster."""
    while True:
        await engine.ledger.wait_lock_lost()
        engine.telemetry.warn(
            "lock_lost",
            meaning="the connection that keeps other engines standing by has ended; this engine "
            "takes the lock again, or ends itself where another one was faster",
        )
        while True:
            try:
                await engine.ledger.retake()
                break
            except LedgerUnavailable:
                await anyio.sleep(1)
        engine.telemetry.warn("lock_regained")


async def _serve_http(
    engine: Engine, *, task_status: TaskStatus[HttpServer] = anyio.TASK_STATUS_IGNORED
) -> None:
    api = Api(engine.http_parts())

    def on_error(error: Exception, request: Request) -> None:
        engine.telemetry.error("handler_failed", path=request.path, error=error)

    await serve(
        api.handle,
        host=engine.settings.host,
        port=engine.settings.port,
        limits=Limits(
            connections_max=engine.settings.connections_max,
            drain_s=DRAIN_S,
            takes_any_type=api.takes_any_type,
        ),
        new_request_id=lambda: engine.ids.new("req"),
        on_error=on_error,
        is_full=engine.system.router.is_full,
        task_status=task_status,
    )


async def _report_refusals(engine: Engine, server: HttpServer) -> None:
    """What is refused before a handler sees it has no line of its own: one a second for all."""
    before: Mapping[str, int] = {}
    while True:
        await anyio.sleep(1)
        now = server.statistics().refusals
        if now != before:
            counts = {code: count - before.get(code, 0) for code, count in now.items()}
            engine.telemetry.log("http_refused", **{code: n for code, n in counts.items() if n})
            before = now


async def _watch_signals(
    engine: Engine,
    scope: anyio.CancelScope,
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """SIGTERM and SIGINT: not ready any more, finish what runs, stop.

    Cancelling stops HTTP first (it drains by itself), then the actors in reverse order. Whatever
    is still open is durable and is resolved by the next start.
    """
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            engine.stopping = True
            engine.system.router.close()
            under_way = engine.system.router.statistics().waiting
            requests = "request" if under_way == 1 else "requests"
            engine.telemetry.log(
                "stopping",
                requests=under_way,
                detail=f"waiting for {under_way} {requests}, up to {DRAIN_S:g} s"
                if under_way
                else "no request is under way",
            )
            engine.telemetry.flush()
            failpoint("draining")
            with anyio.move_on_after(DRAIN_S):
                await engine.system.router.wait_idle()
            break
    # Whoever forwards a signal may send it twice; the way down is bounded and goes on.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    scope.cancel()


async def wait_signal() -> None:
    """Wait for SIGINT or SIGTERM."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            return


async def _flush_logs(telemetry: StructlogTelemetry) -> None:
    """Write the log lines out, and by the same clock see how late the event loop is.

    What is written here counts as well: a pipe that takes nothing holds everything up.
    """
    now, thread_s = anyio.current_time(), time.thread_time()
    while True:
        telemetry.flush()
        await anyio.sleep_until(now + FLUSH_EVERY_S)
        before, thread_before_s = now, thread_s
        now, thread_s = anyio.current_time(), time.thread_time()
        late_s = max(0.0, now - before - FLUSH_EVERY_S)
        telemetry.loop_lag(now, late_s, cpu_s=thread_s - thread_before_s)


def banner(settings: Settings, port: int, data_dir: Path) -> str:
    """What `engine dev` prints once it is ready."""
    address = f"http://{settings.host}:{port}"
    return f"""
Payment engine is ready.

  address   {address}
  API key   {DEV_KEY}
  data      {data_dir}
  API docs  {address}/docs

Authorise a payment:

  curl -s -w '\\n' {address}/v1/payments/authorize \\
    -H 'Authorization: Bearer {DEV_KEY}' \\
    -H "Idempotency-Key: $(date +%s%N)" \\
    -H 'Content-Type: application/json' \\
    -d '{{"amount": 1099, "currency": "USD", "payment_method": "pm_card_visa"}}'

Stop with Ctrl-C; the data stays.
"""


def say(text: str) -> None:
    """Print for a person, now."""
    sys.stdout.write(text)
    sys.stdout.flush()
