"""Bytes on sockets that are nearly HTTP: answered with 4xx or closed, within the deadlines.

Connections are opened by the dozen and waited for together, so that a server that waits for the
rest of a request costs the run one deadline and not one per connection.
"""

from __future__ import annotations

import contextlib
import math
import re
import selectors
import socket
import time
import uuid
from random import Random

from tests.real.fuzz.mutations import HTTP_TOKENS, JSON_TOKENS, mutated
from tests.real.fuzz.tally import Budget, Tally
from tests.real.fuzz.target import ALICE, Target

# The server's own: 10 s for a head, 30 s for a body, and some for a busy machine.
SILENT_S_MAX = 36.0
# A client that is patient for a moment, and then closes its side: nothing more can come of it.
PATIENT_S = 0.4
CLOSED_S_MAX = 14.0
# Long enough for a second answer, where there should be none.
QUIET_S = 0.15
GROUP = 24
READ_MAX = 256 * 1024
STATUS_LINE = re.compile(rb"HTTP/1\.[01] [0-9]{3} ")

BODY = b'{"amount":100,"currency":"USD","payment_method":"pm_card_visa","metadata":{"a":"b"}}'
_AUTH = b"Host: fuzz.example\r\nAuthorization: Bearer " + ALICE.encode() + b"\r\n"
_JSON = _AUTH + b"Content-Type: application/json\r\n"


def requests_of(number: str) -> tuple[bytes, ...]:
    """Requests that are right; `number` makes their keys new."""
    key = b"Idempotency-Key: " + number.encode() + b"\r\n"
    length = b"Content-Length: %d\r\n\r\n" % len(BODY)
    post = b"POST /v1/payments/purchase HTTP/1.1\r\n" + _JSON + key
    chunks = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (20, BODY[:20], len(BODY) - 20, BODY[20:])
    return (
        post + length + BODY,
        post + b"Transfer-Encoding: chunked\r\n\r\n" + chunks,
        b"GET /v1/payments?limit=2 HTTP/1.1\r\n" + _AUTH + b"\r\n",
        b"GET /livez HTTP/1.0\r\n\r\n",
        b"HEAD /readyz HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/webhooks/simulator HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://fuzz.example/v1/payments HTTP/1.1\r\n" + _AUTH + b"\r\n",
    )


HIDDEN = b"GET /v1/hidden HTTP/1.1\r\nHost: x\r\n\r\n"
_POST = b"POST /v1/payments/purchase HTTP/1.1\r\n" + _JSON
_CHUNKED_END = b"0\r\n\r\n"

# Each can be read in two ways by two servers; the second request must never be taken for one.
SMUGGLED: tuple[tuple[str, bytes], ...] = (
    (
        "length and chunks",
        _POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + _CHUNKED_END,
    ),
    (
        "chunks and length",
        _POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + _CHUNKED_END,
    ),
    ("two lengths", _POST + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN)),
    ("a list of lengths", _POST + b"Content-Length: 0, %d\r\n\r\n" % len(HIDDEN)),
    ("a signed length", _POST + b"Content-Length: +0\r\n\r\n"),
    ("a negative length", _POST + b"Content-Length: -1\r\n\r\n"),
    ("a length in hexadecimal", _POST + b"Content-Length: 0x0\r\n\r\n"),
    ("a length beyond 64 bits", _POST + b"Content-Length: 18446744073709551616\r\n\r\n"),
    ("a length with a space", _POST + b"Content-Length : 0\r\n\r\n"),
    ("an unknown coding", _POST + b"Transfer-Encoding: xchunked\r\n\r\n" + _CHUNKED_END),
    ("chunked, but not last", _POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + _CHUNKED_END),
    ("chunked twice", _POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + _CHUNKED_END),
    ("a coding with a space", _POST + b"Transfer-Encoding : chunked\r\n\r\n" + _CHUNKED_END),
    ("a folded coding", _POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + _CHUNKED_END),
    ("a chunk of another size", _POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n"),
    ("a chunk size too long", _POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"F" * 17 + b"\r\n"),
    ("a chunk size of no number", _POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n"),
    ("a bare line feed in chunks", _POST + b"Transfer-Encoding: chunked\r\n\r\n0\n\n"),
    ("a bare return in a header", _POST + b"X: a\rContent-Length: 0\r\n\r\n"),
    ("a NUL in a header", _POST + b"X: a\x00b\r\nContent-Length: 0\r\n\r\n"),
    ("no name", _POST + b": x\r\nContent-Length: 0\r\n\r\n"),
)


class _Talk:
    """One connection, what was sent on it, and what came back."""

    def __init__(self, sent: bytes, *, closes: bool) -> None:
        self.sent = sent
        self.began = time.monotonic()
        self.due = self.began + (CLOSED_S_MAX if closes else SILENT_S_MAX)
        self.closes_at = self.began + PATIENT_S if closes else math.inf
        self.took_s = 0.0
        self.got = b""

    @property
    def is_answered(self) -> bool:
        """Whether a whole head of a final answer has come."""
        head = self.got.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        return b"\r\n\r\n" in head


class Sockets:
    """Sends damaged requests and waits for what becomes of them."""

    def __init__(self, target: Target, tally: Tally, seed: int) -> None:
        self.target = target
        self.tally = tally
        self.random = Random(seed)
        self.counter = 0

    def damaged(self, budget: Budget, *, silent: float = 0.0) -> None:
        """Groups of damaged requests; `silent` is the share that then waits and sends no more."""
        more = True
        while more:
            group = []
            while len(group) < GROUP and (more := budget.take()):
                # Nothing at all is no request: such a connection is only idle.
                group.append(self._damaged_request() or b"\r")
            waits = self.random.random() < silent
            self._send_all(group, closes=not waits)

    def _damaged_request(self) -> bytes:
        self.counter += 1
        whole = self.random.choice(requests_of(f"raw-{uuid.uuid4()}"))
        head, gap, body = whole.partition(b"\r\n\r\n")
        kind = self.random.randrange(6)
        if kind == 0 and body:
            return head + gap + mutated(self.random, body, JSON_TOKENS)
        if kind == 1:
            return mutated(self.random, head, HTTP_TOKENS) + gap + body
        if kind == 2:
            return head + b"\r\n" + self._headers() + gap[2:] + body
        if kind == 3:
            return whole + mutated(self.random, whole, HTTP_TOKENS)
        if kind == 4:
            return self.random.randbytes(self.random.randint(1, 400))
        return mutated(self.random, whole, HTTP_TOKENS, rounds_max=8)

    def _headers(self) -> bytes:
        """Far too many, far too long, or only strange."""
        name = self.random.choice((b"X", b"Cookie", b"X-Forwarded-For", b"Host", b"Accept"))
        count = self.random.choice((1, 10, 63, 64, 65, 500, 5_000))
        value = b"v" * self.random.choice((0, 1, 100, 8_191, 8_193, 40_000))
        return (name + b": " + value[: 200_000 // count] + b"\r\n") * count

    def smuggled(self) -> None:
        """Every ambiguous framing, with a second request behind it: one answer, 4xx, and closed."""
        talks = self._send_all([sent + HIDDEN for _, sent in SMUGGLED], closes=True)
        for (name, _), talk in zip(SMUGGLED, talks, strict=True):
            self.tally.count("ambiguous framings")
            answers = len(STATUS_LINE.findall(talk.got))
            refused = talk.got.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
            if answers > 1 or (answers and not refused) or b"/v1/hidden" in talk.got:
                self.tally.found("sockets", f"{name}: taken as something", talk.sent, talk.got)

    # --- connections --------------------------------------------------------------------------

    def _send_all(self, group: list[bytes], *, closes: bool) -> list[_Talk]:
        """Send each on a connection of its own, and wait until all have been dealt with."""
        talks: list[_Talk] = []
        with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
            for sent in group:
                talk = _Talk(sent, closes=closes)
                talks.append(talk)
                link = stack.enter_context(self._connect(talk))
                selector.register(link, selectors.EVENT_READ, talk)
            while selector.get_map():
                self._wait(selector)
        for talk in talks:
            self._judge(talk)
        return talks

    def _connect(self, talk: _Talk) -> socket.socket:
        link = socket.create_connection(("127.0.0.1", self.target.engine.port), timeout=5.0)
        # The server may refuse and close while this is still being sent.
        with contextlib.suppress(OSError):
            link.sendall(talk.sent)
        link.setblocking(False)
        return link

    def _wait(self, selector: selectors.BaseSelector) -> None:
        for key, _ in selector.select(timeout=0.05):
            talk: _Talk = key.data
            try:
                data = key.fileobj.recv(65_536)  # type: ignore[union-attr]
            except OSError:
                data = b""
            talk.got += data
            if not data or len(talk.got) > READ_MAX:
                self._done(selector, key)
        now = time.monotonic()
        for key in list(selector.get_map().values()):
            talk = key.data
            # An answered connection is kept open for the next request; nothing more is awaited.
            if talk.is_answered and now - talk.began > QUIET_S:
                self._done(selector, key)
            elif now > talk.due:
                self.tally.found("sockets", "neither answered nor closed", talk.sent, talk.got)
                self._done(selector, key)
            elif now > talk.closes_at:
                talk.closes_at = math.inf
                with contextlib.suppress(OSError):
                    key.fileobj.shutdown(socket.SHUT_WR)  # type: ignore[union-attr]

    @staticmethod
    def _done(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        key.data.took_s = time.monotonic() - key.data.began
        selector.unregister(key.fileobj)

    def _judge(self, talk: _Talk) -> None:
        took_s = talk.took_s
        if not talk.got:
            self.tally.answered("sockets", "closed", took_s)
            return
        head, _, body = talk.got.partition(b"\r\n\r\n")
        parts = head.split(b"\r\n")[0].split(b" ")
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
            self.tally.found("sockets", "an answer that is no HTTP", talk.sent, talk.got)
            return
        status = int(parts[1])
        self.tally.answered("sockets", status, took_s)
        retry_after = "1" if b"\r\nretry-after:" in head.lower() else None
        self.tally.judge("sockets", status, retry_after, body, talk.sent)
