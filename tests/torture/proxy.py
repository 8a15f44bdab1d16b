"""A proxy between the engine and Postgres that knows a group commit when it sees one.

It reads the frontend's messages (https://www.postgresql.org/docs/18/protocol-message-formats.html):
a Bind of a statement that was parsed from `append_batch` is a commit, its answer ends with
ReadyForQuery. What happens to a commit is told by `faults`, first come, first served; everything
else passes, delayed by `delay_s`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections import deque
from typing import Literal

Fault = Literal[
    "lost_before",  # never reaches the server; both sides are reset
    "lost_after",  # done by the server; its answer never comes back, both sides are reset
    "held",  # done by the server; its answer is kept until `release` or the end
]

RESET = struct.pack("ii", 1, 0)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close without a word: the peer gets a reset, not an end."""
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.family != socket.AF_UNIX:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


class Proxy:
    """Listens on a port of loopback; `target` is the path of the server's unix socket."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.port = 0
        self.delay_s = 0.0
        self.faults: deque[Fault] = deque()
        self.done: list[Fault] = []
        self.commits = 0
        self.is_held = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._release = asyncio.Event()
        self._links: set[asyncio.Task[None]] = set()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Proxy:
        """Listen; returns when the port is known."""
        self._thread.start()
        assert self._started.wait(10)
        return self

    def stop(self) -> None:
        """Cut everything, and end."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def release(self) -> None:
        """Let go of what is held."""
        self._loop.call_soon_threadsafe(self._release.set)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._link, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server = await asyncio.open_unix_connection(self.target)
        except OSError:
            reset(writer)
            return
        await Link(self, (reader, writer), server).run()


class Link:
    """One connection of the engine's, and ours to the server for it."""

    def __init__(
        self,
        proxy: Proxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._client, self._to_client = client
        self._server, self._to_server = server
        self._commits: set[bytes] = set()
        self._fault: Fault | None = None

    async def run(self) -> None:
        """Pass on until one side ends."""
        ways = [asyncio.ensure_future(self._requests()), asyncio.ensure_future(self._answers())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            reset(self._to_client)
            reset(self._to_server)

    async def _requests(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            length = await self._client.readexactly(4)
            body = await self._client.readexactly(int.from_bytes(length, "big") - 4)
            self._to_server.write(length + body)
            while True:
                head = await self._client.readexactly(5)
                body = await self._client.readexactly(int.from_bytes(head[1:], "big") - 4)
                if self._is_commit(head[:1], body):
                    self._proxy.commits += 1
                    if self._proxy.faults:
                        self._fault = self._proxy.faults.popleft()
                        self._proxy.done.append(self._fault)
                    if self._fault == "lost_before":
                        return
                self._to_server.write(head + body)
                await self._to_server.drain()

    def _is_commit(self, kind: bytes, body: bytes) -> bool:
        if kind == b"P":
            name, query, _ = body.split(b"\0", 2)
            if b"append_batch" in query:
                self._commits.add(name)
        if kind != b"B":
            return False
        _portal, statement, _ = body.split(b"\0", 2)
        return statement in self._commits

    async def _answers(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await self._server.readexactly(5)
                body = await self._server.readexactly(int.from_bytes(head[1:], "big") - 4)
                if self._fault is not None:
                    if head[:1] != b"Z":
                        continue
                    # The transaction has ended; what it said stays here.
                    if self._fault == "held":
                        self._proxy.is_held.set()
                        await self._proxy._release.wait()
                    return
                if self._proxy.delay_s:
                    await asyncio.sleep(self._proxy.delay_s if head[:1] == b"Z" else 0)
                self._to_client.write(head + body)
                await self._to_client.drain()
