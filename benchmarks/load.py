"""An HTTP/1.1 load generator, cheap enough to leave the server its core.

Run as a process of its own (`python -m benchmarks.load ...`): it prints one JSON line.

Closed loop (the default): each of N connections sends its next request when the answer to the
last one is complete. Open loop (`--rate`): requests are due at times that were fixed beforehand
(`benchmarks/schedule.py`), whatever the server does, and a latency counts from the moment its
request was due, so a stall is felt by all that were due in it (no coordinated omission).

The first `--warm-up` seconds are not counted. Keys are unlike one another from the first byte, as
customers' are, so that they do not fall on neighbouring pages of an index.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import cast

import uvloop

from benchmarks.percentiles import summary_ms
from benchmarks.precise_timer import PreciseTimer
from benchmarks.schedule import arrivals

PAYMENT = b'"amount": 1099, "currency": "USD", "payment_method": "pm_card_visa"'
OPERATION = (
    b'{"op_id":"%b","action":"authorize","amount":1099,"currency":"USD",'
    b'"payment_method":"pm_card_visa","livemode":false}'
)
# An odd constant: its multiples modulo 2**128 visit every number once, in no visible order.
_SPREAD = 0x9E3779B97F4A7C15F39CC0605CEDC835
_ITEM_STATUS = re.compile(rb'"status": ?(\d{3})\b')
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
DRAIN_S = 15.0
TIME_OUT_S = 10.0
"""What a client waits for an answer; a later one is counted as late."""
DONE = ("200", "201")
"""What was asked is done. A 202 is none of them: what became of it is not known yet."""

Next = Callable[[], bytes]


class Keys:
    """Idempotency keys of one run: 32 hexadecimal digits, each only once."""

    def __init__(self, run: int) -> None:
        self._at = run

    def __call__(self) -> bytes:
        """The next key."""
        self._at += 1
        return b"%032x" % ((self._at * _SPREAD) & ((1 << 128) - 1))


def head_of(path: str, length: int) -> bytes:
    """A request's head but for its key."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer sk_test_dev\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n"
    ).encode()


def payments(path: str, keys: Keys) -> Next:
    """One payment a request."""
    body = b"{%b}" % PAYMENT
    head = head_of(path, len(body))
    return lambda: b"%bIdempotency-Key: %b\r\n\r\n%b" % (head, keys(), body)


def batches(path: str, keys: Keys, size: int) -> Next:
    """`size` payments a request, each item with its own key."""

    def item() -> bytes:
        return b'{"idempotency_key": "%b", "operation": "authorize", %b}' % (keys(), PAYMENT)

    def request() -> bytes:
        body = b'{"items": [%b]}' % b",".join([item() for _ in range(size)])
        return b"%b\r\n%b" % (head_of(path, len(body)), body)

    return request


def operations(path: str, keys: Keys) -> Next:
    """What the engine would ask of the gateway, to see what the gateway itself can do."""

    def request() -> bytes:
        key = keys()
        body = OPERATION % key
        return b"%bIdempotency-Key: %b\r\n\r\n%b" % (head_of(path, len(body)), key, body)

    return request


class Tally:
    """What all connections share: what is sent next, and the figures."""

    def __init__(
        self, next_request: Next, warm_up_s: float, seconds: float, *, in_batches: bool = False
    ) -> None:
        self.next_request = next_request
        self.in_batches = in_batches
        self._warm_up_s = warm_up_s
        self._seconds = seconds
        self.latencies_s: dict[str, list[float]] = {}
        self.sent_to_answer_s: dict[str, list[float]] = {}
        self.in_time: Counter[str] = Counter()
        self.items: Counter[str] = Counter()
        self.bodies: dict[str, str] = {}
        self.lost = 0

    def begin(self) -> float:
        """The connections are there: the time runs from now."""
        now = time.perf_counter()
        self.counted_from = now + self._warm_up_s
        self.until = now + self._seconds
        return now

    def count(self, status: str, due: float, sent: float, now: float, body: bytes) -> None:
        """Note an answer: its latency if it was due, its rate if it came, while counting."""
        if self.counted_from <= now < self.until:
            self.in_time[status] += 1
            if self.in_batches and status == "200":
                # Each result is an object with a status of its own, and objects in it have theirs
                # as words.
                self.items.update(found.decode() for found in _ITEM_STATUS.findall(body))
        if due >= self.counted_from:
            found = self.latencies_s.get(status)
            if found is None:
                found = self.latencies_s[status] = []
                self.sent_to_answer_s[status] = []
                self.bodies[status] = body[:300].decode("utf-8", "replace")
            found.append(now - due)
            self.sent_to_answer_s[status].append(now - sent)

    def result(self, unanswered: int = 0) -> dict[str, object]:
        """Rates and latencies by status, and the first body of each that was no success.

        In `latency`, of all requests, one that was not done took as long as a client waits at
        most: to be refused quickly is no way of being quick.
        """
        span = self.until - self.counted_from
        everything = [late for some in self.latencies_s.values() for late in some]
        done = [late for status in DONE for late in self.latencies_s.get(status, ())]
        undone = len(everything) - len(done) + self.lost + unanswered
        return {
            "per_s": {status: count / span for status, count in self.in_time.items()},
            "latency": summary_ms([*done, *[TIME_OUT_S] * undone]),
            "by_status": {s: summary_ms(some) for s, some in self.latencies_s.items()},
            "from_sent": {s: summary_ms(some) for s, some in self.sent_to_answer_s.items()},
            "first_bodies": {s: b for s, b in self.bodies.items() if s not in DONE},
            "items": {status: count / span for status, count in self.items.items()},
            "lost": self.lost,
            "timed_out": sum(late > TIME_OUT_S for late in everything),
        }


class Connection(asyncio.Protocol):
    """One client: a request at a time."""

    def __init__(self, tally: Tally, on_idle: Callable[[Connection], None]) -> None:
        self._tally = tally
        self._on_idle = on_idle
        self._received = b""
        self._parts: list[bytes] = []
        self._missing = 0
        self.due: float | None = None
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; the first request is sent by whoever drives."""
        # uvloop's transports are no subclasses of asyncio's, so an assertion would not do.
        self._transport = cast(asyncio.WriteTransport, transport)
        self.is_open = True

    def send(self, due: float) -> None:
        """Send the next request, which was due at this time."""
        self.due = due
        self._sent = time.perf_counter()
        self._transport.write(self._tally.next_request())

    def data_received(self, data: bytes) -> None:
        """Count a complete answer, then be idle."""
        if self._missing:
            self._parts.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
        else:
            self._received += data
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _LENGTH.search(self._received, 0, end + 2)
            whole = end + 4 + (int(length[1]) if length is not None else 0)
            self._parts = [self._received]
            self._missing = max(0, whole - len(self._received))
            if self._missing:
                return
        first = self._parts[0]
        if self.due is not None:
            whole_answer = b"".join(self._parts) if self._tally.in_batches else first
            body = whole_answer[whole_answer.find(b"\r\n\r\n") + 4 :]
            status, now = first[9:12].decode(), time.perf_counter()
            self._tally.count(status, self.due, self._sent, now, body)
        self._received, self._parts, self._missing, self.due = b"", [], 0, None
        self._on_idle(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """A request without an answer is counted as lost."""
        self.is_open = False
        if self.due is not None:
            self._tally.lost += 1
            self.due = None
            self._on_idle(self)

    def close(self) -> None:
        """End it."""
        self._transport.close()


async def connect(
    tally: Tally, port: int, count: int, on_idle: Callable[[Connection], None]
) -> list[Connection]:
    """Open the connections, some at a time."""
    loop = asyncio.get_running_loop()
    made: list[Connection] = []
    while len(made) < count:
        some = [
            loop.create_connection(lambda: Connection(tally, on_idle), "127.0.0.1", port)
            for _ in range(min(64, count - len(made)))
        ]
        made += [connection for _, connection in await asyncio.gather(*some)]
    return made


async def closed_loop(tally: Tally, port: int, connections: int) -> dict[str, object]:
    """Every connection sends again as soon as it is answered."""
    done = asyncio.Event()
    busy = connections

    def on_idle(connection: Connection) -> None:
        nonlocal busy
        now = time.perf_counter()
        if now < tally.until and connection.is_open:
            connection.send(now)
            return
        busy -= 1
        if not busy:
            done.set()

    made = await connect(tally, port, connections, on_idle)
    tally.begin()
    for connection in made:
        connection.send(time.perf_counter())
    await wait_done(done, tally)
    for connection in made:
        connection.close()
    return tally.result()


async def wait_done(done: asyncio.Event, tally: Tally) -> None:
    """Until all are answered, but not for ever after the end."""
    try:
        await asyncio.wait_for(done.wait(), tally.until - time.perf_counter() + DRAIN_S)
    except TimeoutError:
        tally.lost += 1


async def open_loop(
    tally: Tally, port: int, connections: int, times: list[float]
) -> dict[str, object]:
    """Send at the given times; what finds no idle connection waits, and its latency runs."""
    idle: deque[Connection] = deque()
    waiting: deque[float] = deque()
    finished = asyncio.Event()
    lateness_s: list[float] = []
    at = answered = most_waiting = 0

    def on_idle(connection: Connection) -> None:
        nonlocal answered
        answered += 1
        if not connection.is_open:
            pass
        elif waiting:
            connection.send(waiting.popleft())
        else:
            idle.append(connection)
        if answered == len(times):
            finished.set()

    def send_what_is_due() -> None:
        nonlocal at, most_waiting
        now = time.perf_counter()
        while at < len(times) and times[at] <= now:
            due = times[at]
            at += 1
            lateness_s.append(now - due)
            if idle:
                # The one that rested longest, so that none is closed for being idle.
                idle.popleft().send(due)
            else:
                waiting.append(due)
        most_waiting = max(most_waiting, len(waiting))
        if at < len(times):
            timer.call_at(times[at])

    timer = PreciseTimer(asyncio.get_running_loop(), send_what_is_due)
    made = await connect(tally, port, connections, on_idle)
    idle += made
    began = tally.begin()
    times = [began + moment for moment in times]
    timer.call_at(times[0])
    await wait_done(finished, tally)
    timer.close()
    for connection in made:
        connection.close()
    return {
        **tally.result(len(times) - answered),
        "sent": at,
        "unanswered": len(times) - answered,
        "most_waiting": most_waiting,
        "late": summary_ms(lateness_s),
    }


async def drive(chosen: argparse.Namespace) -> dict[str, object]:
    """Load the server for so many seconds."""
    keys = Keys(time.time_ns() ^ os.getpid() << 40)
    if chosen.batch:
        next_request = batches(chosen.path, keys, chosen.batch)
    elif chosen.path == "/v1/operations":
        next_request = operations(chosen.path, keys)
    else:
        next_request = payments(chosen.path, keys)
    tally = Tally(next_request, chosen.warm_up, chosen.seconds, in_batches=chosen.batch > 0)
    if not chosen.rate:
        return await closed_loop(tally, chosen.port, chosen.connections)
    times = arrivals(chosen.rate, chosen.seconds, chosen.seed)
    return await open_loop(tally, chosen.port, chosen.connections, times)


def main() -> None:
    """Read the arguments, load, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/v1/payments/authorize")
    parser.add_argument("--connections", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=5.0, help="warm-up included")
    parser.add_argument("--warm-up", type=float, default=0.5, help="seconds that do not count")
    parser.add_argument("--rate", type=float, default=0.0, help="open loop: requests a second")
    parser.add_argument("--batch", type=int, default=0, help="payments a request")
    parser.add_argument("--seed", type=int, default=1, help="of the arrival times")
    chosen = parser.parse_args()
    print(json.dumps(uvloop.run(drive(chosen))))


if __name__ == "__main__":
    main()
