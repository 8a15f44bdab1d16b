"""The HTTP server: the listening socket, the state its connections share, and their end.

No request starts a timer: one sweep looks at all connections. No answer is written by itself: all
of a turn of the event loop are written together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import anyio
from anyio.abc import TaskStatus

from engine.http.connection import Connection
from engine.http.exchange import Request
from engine.http.limits import Limits, affordable_connections
from engine.http.shell import Handle, Shell, Statistics

_BACKLOG: Final = 1_024
_SWEEP_S_MAX: Final = 0.5
_STOP_POLL_S: Final = 0.01
_STOP_CANCELED_S: Final = 0.1


class HttpServer:
    """The protocol factory of the listening socket, and the state its connections share."""

    def __init__(self, shell: Shell, loop: asyncio.AbstractEventLoop) -> None:
        self.shell = shell
        self.limits = shell.limits
        self.connections_max = affordable_connections(self.limits)
        self.port = 0
        self.open: set[Connection] = set()
        self.busy: set[Connection] = set()
        """Those with a request that is received or answered, also where the client has left."""
        self.stopping = False
        self.requests = 0
        self.gone = 0
        self.unread = 0
        self._loop = loop
        self._answers: list[tuple[asyncio.Transport, bytes]] = []
        self.arrived = 0
        """Requests that move money, read in this turn of the loop; their handlers run next."""

    def __call__(self) -> Connection:
        """Make the protocol of one connection."""
        return Connection(self, self._loop)

    def send(self, transport: asyncio.Transport, raw: bytes) -> None:
        """Write an answer at the end of this turn of the loop, together with all others.

        A commit answers dozens of requests at once. Written one after the other they cost half
        of what they do with a handler's work between any two: a client on the same machine is
        woken once, and the kernel's code stays in the cache.
        """
        if not self._answers:
            self._loop.call_soon(self.flush)
        self._answers.append((transport, raw))

    def flush(self) -> None:
        """Write the answers that wait."""
        answers, self._answers = self._answers, []
        for transport, raw in answers:
            if transport.is_closing():
                self.gone += 1
            else:
                transport.write(raw)

    def arrives(self) -> None:
        """Count a request that moves money until its handler runs.

        Hundreds are read in one turn of the loop under overload, before any of them could take
        the last place there is.
        """
        if not self.arrived:
            # Scheduled before the first handler's task is, so it runs before any of them.
            self._loop.call_soon(self._let_in)
        self.arrived += 1

    def _let_in(self) -> None:
        self.arrived = 0

    def statistics(self) -> Statistics:
        """Return the present figures."""
        return Statistics(
            connections=len(self.open),
            connections_max=self.connections_max,
            running=len(self.busy),
            requests=self.requests,
            refusals=dict(self.shell.refusals),
            failures=self.shell.failures,
            gone=self.gone,
            unread=self.unread,
        )

    async def sweep(self) -> None:
        """Keep every connection to its deadlines, for ever."""
        limits = self.limits
        shortest_s = min(limits.head_s, limits.body_s, limits.write_s, limits.idle_s)
        while True:
            await anyio.sleep(min(_SWEEP_S_MAX, shortest_s / 4))
            now = time.monotonic()
            for connection in tuple(self.open):
                connection.check_deadlines(now)

    async def stop(self) -> None:
        """Close what is idle, let what runs finish by the deadline, then close everything."""
        self.stopping = True
        with anyio.move_on_after(self.limits.drain_s):
            while self.busy or self.open:
                for connection in tuple(self.open):
                    connection.close_idle()
                await anyio.sleep(_STOP_POLL_S)
        for connection in tuple(self.open):
            connection.abort()
        # Handlers that are still waiting; what they asked for goes on without them.
        for connection in tuple(self.busy):
            connection.cancel()
        await anyio.sleep(_STOP_CANCELED_S if self.busy else 0)


async def serve(
    handle: Handle,
    *,
    host: str,
    port: int,
    limits: Limits,
    new_request_id: Callable[[], str],
    on_error: Callable[[Exception, Request], None],
    is_full: Callable[[int], bool] = lambda _: False,
    task_status: TaskStatus[HttpServer] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled, then stop gracefully: accept no more, finish what runs, close.

    A request that moves money is refused before any handler sees it while `is_full(before)`;
    `before` counts those that have arrived and whose handlers have not run yet.
    Runs on asyncio only. Reports the server, which knows its port, once it is listening; the
    stop takes at most `limits.drain_s` and a little. Raises OSError if it cannot listen.
    """
    loop = asyncio.get_running_loop()
    shell = Shell(
        handle, limits=limits, new_request_id=new_request_id, on_error=on_error, is_full=is_full
    )
    server = HttpServer(shell, loop)
    listener = await loop.create_server(server, host, port, backlog=_BACKLOG)
    try:
        server.port = listener.sockets[0].getsockname()[1]
        task_status.started(server)
        await server.sweep()
    finally:
        listener.close()
        with anyio.CancelScope(shield=True):
            await server.stop()
