"""A closed-loop HTTP/1.1 load generator, cheap enough to leave the server its core.

Run as a process of its own (`python -m benchmarks.load ...`): it prints one JSON line. Every
connection sends its next request when the answer to the last one is complete. With `--items` a
request is a batch of so many authorisations.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import time
from collections import Counter
from typing import cast

import uvloop

BODY = b'{"amount": 1099, "currency": "USD", "payment_method": "pm_card_visa"}'
_STATUS = re.compile(rb'"status":(\d{3})[,}]')
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class Load:
    """What all connections share: the target, the end, and the figures."""

    def __init__(self, path: str, until: float, run: str, items: int) -> None:
        self.until = until
        self.items = items
        self.run = run
        self.sent = 0
        self.latencies_s: list[float] = []
        self.statuses: Counter[str] = Counter()
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer sk_test_dev\r\n"
            f"Content-Type: application/json\r\nContent-Length: "
        ).encode()

    def next_request(self) -> bytes:
        """A request with a key of its own, or with keys for its items."""
        self.sent += 1
        key = b"k-%b-%d" % (self.run.encode(), self.sent)
        if not self.items:
            return b"%b%d\r\nIdempotency-Key: %b\r\n\r\n%b" % (self._head, len(BODY), key, BODY)
        item = b'{"idempotency_key":"%b-%d","operation":"authorize",%b'
        items = b",".join(item % (key, n, BODY[1:]) for n in range(self.items))
        body = b'{"items":[%b]}' % items
        return b"%b%d\r\n\r\n%b" % (self._head, len(body), body)


class Connection(asyncio.Protocol):
    """One client: a request at a time."""

    def __init__(self, load: Load, done: asyncio.Future[None]) -> None:
        self._load = load
        self._done = done
        self._received = bytearray()
        self._whole = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # uvloop's transports are no subclasses of asyncio's, so an assertion would not do.
        self._transport = cast(asyncio.WriteTransport, transport)
        self._send()

    def _send(self) -> None:
        self._began = time.perf_counter()
        self._transport.write(self._load.next_request())

    def data_received(self, data: bytes) -> None:
        """Count a complete answer and send the next request."""
        self._received += data
        if len(self._received) < self._whole:
            return
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._received, 0, end + 2)
        if length is None:
            return
        self._whole = end + 4 + int(length[1])
        if len(self._received) < self._whole:
            return
        now = time.perf_counter()
        load = self._load
        load.latencies_s.append(now - self._began)
        if load.items:
            found = _STATUS.findall(self._received)
            load.statuses.update(status.decode() for status in found)
        else:
            load.statuses[self._received[9:12].decode()] += 1
        self._received = bytearray()
        self._whole = 0
        if now < load.until:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if not self._done.done():
            self._done.set_result(None)


async def drive(
    port: int, path: str, connections: int, seconds: float, items: int = 0
) -> dict[str, object]:
    """Load the server for so many seconds."""
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    load = Load(path, began + seconds, f"{os.getpid():x}{time.time_ns():x}", items)
    waits = []
    for _ in range(connections):
        done: asyncio.Future[None] = loop.create_future()
        await loop.create_connection(lambda done=done: Connection(load, done), "127.0.0.1", port)
        waits.append(done)
    await asyncio.gather(*waits)
    took_s = time.perf_counter() - began
    ordered = sorted(load.latencies_s)
    return {
        "requests": len(ordered),
        "per_s": len(ordered) * max(1, items) / took_s,
        "p50_ms": ordered[len(ordered) // 2] * 1000,
        "p99_ms": ordered[len(ordered) * 99 // 100] * 1000,
        "statuses": dict(load.statuses),
    }


def main() -> None:
    """Read the arguments, load, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/v1/payments/authorize")
    parser.add_argument("--connections", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--items", type=int, default=0, help="of a batch; 0 for single requests")
    chosen = parser.parse_args()
    path = "/v1/payments/batch" if chosen.items else chosen.path
    uvloop.install()
    driving = drive(chosen.port, path, chosen.connections, chosen.seconds, chosen.items)
    print(json.dumps(asyncio.run(driving)))


if __name__ == "__main__":
    main()
