"""Card numbers and secrets, planted wherever a request has room, and looked for afterwards.

Looked for in every answer, in the logs, in the simulator's books, in every value of every table,
and in the bytes of every file of the data directory, the write-ahead log and the server's own log
among them.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import asyncpg

from engine.gateways.signatures import secret_key, signed_headers
from engine.ledger.embedded import attached
from tests.real.fuzz.tally import Tally
from tests.real.fuzz.target import (
    ALICE,
    ALICE_LIVE,
    BOB,
    WEBHOOK_SECRET,
    Reply,
    Target,
)

_SEPARATORS = re.compile(rb"[ \-]|\xc2\xa0|\xe2\x80[\x80-\x95\xaf]")
PREFIXES = ("4539", "5425", "3714", "6011", "3530", "3056", "2223")
LENGTHS = {"3714": 15, "3056": 14}
# Whatever is planted is a run of digits, of hexadecimal digits, or one of the keys in use: one look
# for such runs costs the same however much was planted.
_RUN = re.compile(rb"[0-9]{14,400}|[0-9a-f]{24,400}|fuzz[A-Za-z]+0[0-9]|RnV6[A-Za-z0-9+/]+")
_BANNER = re.compile(
    r"^Payment engine is ready\..*?^Stop with Ctrl-C[^\n]*$", re.MULTILINE | re.DOTALL
)
CHUNK = 1024 * 1024
OVERLAP = 64


def card_number(random: Random) -> str:
    """A number that passes every check a card number passes."""
    prefix = random.choice(PREFIXES)
    length = LENGTHS.get(prefix, 16)
    digits = prefix + "".join(random.choices("0123456789", k=length - len(prefix) - 1))
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return digits + str(-total % 10)


_KEYS = {key.rpartition("_")[2] for key in (ALICE, ALICE_LIVE, BOB, WEBHOOK_SECRET)}
_NEEDLE_LENGTHS = sorted({14, 15, 16, 24, *map(len, _KEYS)})


class Sweep:
    """Plants, and looks for what was planted."""

    def __init__(self, target: Target, tally: Tally, seed: int) -> None:
        self.target = target
        self.tally = tally
        self.random = Random(seed)
        self.planted: set[str] = set()
        self.signed: set[str] = set()
        self.replies: list[bytes] = []

    # --- planting -----------------------------------------------------------------------------

    def plant(self, rounds: int) -> None:
        """A new card number and a new secret in every place there is, so many times."""
        for _ in range(rounds):
            for place in (*self._bodies(), *self._elsewhere()):
                self._send(*place)
            self._damaged_http()
            self._webhooks()

    def _written(self) -> str:
        """A card number as people write them; its digits are remembered."""
        digits = card_number(self.random)
        self.planted.add(digits)
        gap = self.random.choice(("", " ", "-", "\u00a0", "\u2011"))
        return gap.join(digits[at : at + 4] for at in range(0, len(digits), 4))

    def _secret(self) -> str:
        text = f"{self.random.getrandbits(96):024x}"
        secret = self.random.choice(("sk_live_", "sk_test_", "whsec_")) + text
        self.planted.add(text)
        return secret

    def _bodies(self) -> Iterator[tuple[str, str, Any, dict[str, str]]]:
        order = {"amount": 500, "currency": "USD", "payment_method": "pm_card_visa"}
        card, secret = self._written, self._secret
        yield from (
            ("POST", f"/v1/payments/{kind}", {**order, **more}, {})
            for kind in ("authorize", "purchase")
            for plant in (card, secret)
            for more in (
                {"description": f"card {plant()} of Bob"},
                {"metadata": {"note": plant()}},
                {"metadata": {plant(): "x"}},
                {"reference": plant()},
                {"statement_descriptor": plant()[:22]},
                {"payment_method": plant()},
                {"customer": plant()},
                {"subscription": plant()},
                {"currency": plant()},
                {"gateway": plant()},
                {"return_url": f"https://shop.example/{plant()}"},
                {plant(): 1},
                {"amount": plant()},
                {"metadata": {"note": f"first line\n{plant()}\r\n\x1b[31m{plant()}"}},
            )
        )
        payment = self.target.pay(ALICE)["id"]
        for plant in (card, secret):
            yield "POST", f"/v1/payments/{payment}/refund", {"amount": 1, "reason": plant()}, {}
            more = {"amount": 1, "metadata": {"note": plant()}}
            yield "POST", f"/v1/payments/{payment}/refund", more, {}
            yield "POST", f"/v1/payments/{payment}/cancel", {"reason": plant()}, {}

    def _elsewhere(self) -> Iterator[tuple[str, str, Any, dict[str, str]]]:
        order = {"amount": 500, "currency": "USD", "payment_method": "pm_card_visa"}
        for plant in (self._written, self._secret):
            for name in ("Idempotency-Key", "User-Agent", "traceparent", "X-Note", "Referer"):
                value = plant().encode("utf-8").decode("latin-1")
                yield "POST", "/v1/payments/authorize", order, {name: value}
            for value in (quote(plant()), plant().replace(" ", "%20").encode().hex()):
                yield "GET", f"/v1/payments/{value}", None, {}
                yield "GET", f"/v1/refunds?payment={value}", None, {}
            yield "GET", f"/v1/payments?{quote(plant())}=1", None, {}
            yield "GET", f"/v1/payments?reference={quote(plant())}", None, {}
            yield "GET", f"/{quote(plant())}", None, {}
        yield "GET", "/v1/payments", None, {"Authorization": f"Bearer {self._secret()}"}
        yield "GET", "/v1/payments", None, {"Authorization": f"Basic {self._secret()}"}

    def _send(self, method: str, path: str, body: Any, headers: dict[str, str]) -> None:
        number = f"sweep-{time.time_ns():x}"
        try:
            reply = self.target.call(
                method, path, body, key=ALICE, headers={"Idempotency-Key": number, **headers}
            )
        except (OSError, http.client.HTTPException, UnicodeError) as trouble:
            self.tally.found("sweep", f"no answer: {trouble!r}", (method, path, body, headers))
            return
        self._keep(reply, (method, path, body, headers))

    def _keep(self, reply: Reply, sent: object) -> None:
        self.tally.answered("sweep", reply.status, reply.took_s)
        retry_after = reply.headers.get("retry-after")
        self.tally.judge("sweep", reply.status, retry_after, reply.body, sent)
        self.replies.append(reply.body)

    def _damaged_http(self) -> None:
        """What is refused before any handler sees it is logged all the same."""
        card, secret = self._written().encode(), self._secret().encode()
        for raw in (
            b"GET /" + card + b" HTTP/9.9\r\n\r\n",
            b"GET /livez HTTP/1.1\r\nBad Header " + card + b": " + secret + b"\r\n\r\n",
            b"POST /v1/payments/authorize HTTP/1.1\r\nHost: " + card + b"\r\nX: " + secret,
        ):
            with contextlib.suppress(OSError), self._link() as link:
                link.sendall(raw)
                link.settimeout(0.3)
                self.replies.append(link.recv(65_536))

    def _link(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.target.engine.port), timeout=5)

    def _webhooks(self) -> None:
        """What is signed is kept as it was signed, but never logged; what is forged is not kept."""
        key = secret_key(WEBHOOK_SECRET)
        before = set(self.planted)
        for plant in (self._written, self._secret):
            raw = json.dumps({"type": plant(), "text": f"declined for {plant()}"}).encode()
            sent = signed_headers([key], f"msg_{time.time_ns():x}", int(time.time()), raw)
            reply = self.target.call("POST", "/v1/webhooks/simulator", raw, key=None, headers=sent)
            self._keep(reply, raw)
        self.signed |= self.planted - before
        self.planted = before
        for plant in (self._written, self._secret):
            raw = json.dumps({"type": plant(), "text": f"declined for {plant()}"}).encode()
            sent = signed_headers([b"another key"], plant(), int(time.time()), raw)
            fields = {name: text.encode().decode("latin-1") for name, text in sent.items()}
            reply = self.target.call(
                "POST", "/v1/webhooks/simulator", raw, key=None, headers=fields
            )
            self._keep(reply, raw)

    # --- looking ------------------------------------------------------------------------------

    def look(self) -> int:
        """Look everywhere; returns how many bytes were looked at."""
        time.sleep(0.3)  # what is logged is written within 20 ms
        seen = 0
        kept = {text.encode() for text in self.planted | _KEYS}
        told = kept | {text.encode() for text in self.signed}
        for place, content in self._told():
            seen += len(content)
            self._search(told, place, content)
        for place, content in self._kept():
            seen += len(content)
            self._search(kept, place, content)
        self.tally.count("bytes swept", seen)
        return seen

    def _search(self, needles: set[bytes], place: str, content: bytes) -> None:
        # The bytes of files hold what the tables hold, so they are searched as they are.
        texts = [content] if place.startswith("file") else [_SEPARATORS.sub(b"", content), content]
        for text in texts:
            for run in _RUN.finditer(text):
                found = _within(run[0], needles)
                if found:
                    at = max(0, text.find(found) - 200)
                    self.tally.found("sweep", f"{found!r} in {place}", "", text[at : at + 500])
                    return

    def _told(self) -> Iterable[tuple[str, bytes]]:
        yield "the answers", b"\n".join(self.replies)
        yield "the log", self.target.engine.logs().encode()

    def _kept(self) -> Iterable[tuple[str, bytes]]:
        yield from asyncio.run(self._tables())
        for path in sorted(self.target.engine.data_dir.rglob("*")):
            if path.is_file():
                yield from _pieces(path, self.target.engine.data_dir)

    async def _tables(self) -> list[tuple[str, bytes]]:
        with attached(self.target.engine.data_dir) as dsn:
            connection = await asyncpg.connect(dsn)
            try:
                tables = await connection.fetch(
                    "SELECT table_name FROM information_schema.tables WHERE table_type = "
                    "'BASE TABLE' AND table_schema NOT IN ('pg_catalog', 'information_schema')"
                )
                assert len(tables) > 10, "the look into the tables has gone blind"
                return [(f"table {name}", await self._rows(connection, name)) for (name,) in tables]
            finally:
                await connection.close()

    async def _rows(self, connection: asyncpg.Connection, table: str) -> bytes:
        rows = await connection.fetch(f'SELECT * FROM "{table}"')
        return b"\n".join(_bytes_of(value) for row in rows for value in row.values())


def log_faults(target: Target) -> list[str]:
    """Lines of the log that are no JSON, or tell of a failure; the banner is no part of it."""
    log = _BANNER.sub("", target.engine.logs())
    return [line for line in log.splitlines() if line and not _is_sound(line)]


def _is_sound(line: str) -> bool:
    try:
        value = json.loads(line)
    except ValueError:
        return False
    return isinstance(value, dict) and value.get("level") in ("info", "warning", "debug")


def _within(run: bytes, needles: set[bytes]) -> bytes:
    """What was planted and stands anywhere in a run of letters and digits, or nothing."""
    for length in _NEEDLE_LENGTHS:
        for at in range(len(run) - length + 1):
            if run[at : at + length] in needles:
                return run[at : at + length]
    return b""


def _bytes_of(value: object) -> bytes:
    """Any value of a row, as bytes one can look into."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, (list, tuple, asyncpg.Record)):
        return b"\n".join(_bytes_of(part) for part in value)
    return str(value).encode("utf-8", "surrogatepass")


def _pieces(path: Path, root: Path) -> Iterator[tuple[str, bytes]]:
    name = f"file {path.relative_to(root)}"
    try:
        with path.open("rb") as file:
            last = b""
            while piece := file.read(CHUNK):
                yield name, last + piece
                last = piece[-OVERLAP:]
    except OSError:
        # Sockets, and what Postgres has just recycled.
        return
