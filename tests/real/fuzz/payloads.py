"""Valid requests with damage in one place: bodies, keys, cursors, queries, paths, webhooks."""

from __future__ import annotations

import http.client
import json
import time
import uuid
from collections.abc import Callable
from random import Random
from typing import Any
from urllib.parse import quote_from_bytes

from engine.gateways.signatures import secret_key, signed_headers
from tests.real.fuzz.mutations import JSON_TOKENS, mutated
from tests.real.fuzz.tally import Budget, Tally
from tests.real.fuzz.target import ALICE, WEBHOOK_SECRET, Reply, Target

ORDER: dict[str, Any] = {
    "amount": 1_099,
    "currency": "USD",
    "payment_method": "pm_card_visa",
    "customer": "cus_06gzv2h2668mcytmmyvpx9qy",
    "description": "two bottles",
    "statement_descriptor": "SHOP 17",
    "metadata": {"basket": "17", "größe": "✓"},
    "return_url": "https://shop.example/return?a=b",
}
AMOUNTS = (
    *(b"0", b"-1", b"1", b"999999999999", b"1000000000000", b"9223372036854775807"),
    *(b"9223372036854775808", b"18446744073709551616", b"9" * 400, b"9" * 5_000, b"-" + b"9" * 99),
    *(b"1.0", b"1e2", b"1E+2", b"0.1", b'"10"', b"true", b"null", b"[]", b"{}", b"01", b"+1"),
    *(b"NaN", b"Infinity", b"-0", b"1_000", b"0x10", b"1,000"),
)
QUERIES = (
    *("limit", "cursor", "status", "customer", "subscription", "reference", "type", "object"),
    *("created[gte]", "created[lte]", "payment", "at", "order_by", "limit; DROP TABLE payments"),
)
INJECTIONS = (
    *(b"' OR 1=1 --", b"1; DROP TABLE payments; --", b"%' OR '1'='1", b"_%", b"\\", b"$1", b"%%"),
    *(b"' UNION SELECT body FROM events --", b"pg_sleep(20)", b"'||pg_sleep(20)||'", b"{$ne:null}"),
    *(b"created_ms DESC, (SELECT 1)", b"-1", b"0", b"1e9", b"99999999999999999999", b"1970-01-01"),
    *(
        b"2026-02-30T00:00:00Z",
        b"9999-12-31T23:59:60Z",
        b"0000-01-01T00:00:00Z",
        b"\xff\xfe",
        b"\0",
    ),
)
LISTS = ("payments", "refunds", "events", "accounts")
PREFIXES = {
    "payments": "pay",
    "refunds": "re",
    "events": "evt",
    "accounts": "acct",
    "transfers": "tr",
}


class Payloads:
    """Sends damaged payloads over sound HTTP, and judges every answer."""

    def __init__(self, target: Target, tally: Tally, seed: int) -> None:
        self.target = target
        self.tally = tally
        self.random = Random(seed)
        self.key = secret_key(WEBHOOK_SECRET)
        self.attacks: tuple[Callable[[], None], ...] = (
            *(self.body, self.body, self.amount, self.command, self.idempotency_key),
            *(self.cursor, self.query, self.path, self.webhook, self.headers),
        )

    def all(self, budget: Budget) -> None:
        """One attack after the other until the budget ends."""
        while budget.take():
            self.random.choice(self.attacks)()

    def each(self) -> None:
        """Each attack once."""
        for attack in self.attacks:
            attack()

    # --- attacks ------------------------------------------------------------------------------

    def body(self) -> None:
        """An order, damaged."""
        raw = json.dumps(ORDER, ensure_ascii=self.random.random() < 0.5).encode()
        self._post("bodies", "authorize", mutated(self.random, raw, JSON_TOKENS))

    def amount(self) -> None:
        """An order over an amount that may be none. Only whole numbers within bounds are taken."""
        text = self.random.choice(AMOUNTS)
        raw = json.dumps({**ORDER, "amount": 0}).encode().replace(b": 0", b": " + text)
        reply = self._post("amounts", "purchase", raw)
        good = text.isdigit() and text[:1] != b"0" and 1 <= len(text) <= 12
        if reply is not None and (reply.status == 201) != good:
            self.tally.found("amounts", f"answered {reply.status}", raw, reply)

    def command(self) -> None:
        """A command on a payment that is there, or nearly."""
        payment = self.target.some_id(self.random, "pay").encode()
        if self.random.random() < 0.3:
            payment = mutated(self.random, payment, INJECTIONS)
        command = self.random.choice(("capture", "cancel", "refund"))
        raw = b'{"amount": 10, "reason": "a"}' if self.random.random() < 0.5 else b'{"amount": 7}'
        if self.random.random() < 0.7:
            raw = mutated(self.random, raw, JSON_TOKENS)
        self._send("commands", "POST", _path(b"/v1/payments/", payment, command), raw)

    def idempotency_key(self) -> None:
        """A key, damaged, with an order that is sound."""
        key = mutated(self.random, b'"key-%d"' % self.random.randrange(50), JSON_TOKENS)
        printable = key.translate(None, bytes((*range(32), 127)))[:300].decode("latin-1")
        self._send(
            "keys", "POST", "/v1/payments/authorize", _order(), {"Idempotency-Key": printable}
        )

    def cursor(self) -> None:
        """A cursor that was given out, damaged, or at another list."""
        path = f"/v1/{self.random.choice(LISTS)}"
        first = self._send("cursors", "GET", f"{path}?limit=1")
        given = first.json.get("next_cursor") if first and first.status == 200 else None
        cursor = (given or "x").encode()
        other = f"/v1/{self.random.choice(LISTS)}"
        if self.random.random() < 0.6:
            cursor, other = mutated(self.random, cursor, INJECTIONS), path
        reply = self._send("cursors", "GET", f"{other}?cursor={quote_from_bytes(cursor)}")
        # The last letter of base 64 may hold bits that say nothing.
        is_same = other == path and given is not None and cursor[:-1] == given.encode()[:-1]
        if reply is not None and reply.status == 200 and not is_same:
            self.tally.found("cursors", "a cursor of another making was taken", cursor, reply)

    def query(self) -> None:
        """Some parameters with values that mean something elsewhere."""
        parts = []
        for _ in range(self.random.randint(1, 3)):
            value = self.random.choice(INJECTIONS + JSON_TOKENS)[:1_000]
            name = self.random.choice(QUERIES).encode()
            parts.append(quote_from_bytes(name) + "=" + quote_from_bytes(value))
        self._send("queries", "GET", f"/v1/{self.random.choice(LISTS)}?{'&'.join(parts)}")

    def path(self) -> None:
        """An id that is nearly one."""
        place = self.random.choice(list(PREFIXES))
        known = self.target.some_id(self.random, PREFIXES[place]).encode()
        id_ = mutated(self.random, known, INJECTIONS)[:2_000]
        self._send("paths", "GET", _path(f"/v1/{place}/".encode(), id_, ""))

    def webhook(self) -> None:
        """A webhook that is signed, and damaged before or after."""
        now_s = int(time.time()) + self.random.choice((0, 0, 0, -299, 299, -360, 360, 10**10))
        message = f"msg_{uuid.uuid4()}"
        reference = self.target.some_id(self.random, "pay")
        value = {"type": "payment.updated", "data": {"operation": f"{reference}.1", "amount": 5}}
        raw = json.dumps(value).encode()
        inside = self.random.random() < 0.5
        if inside:
            raw = mutated(self.random, raw, JSON_TOKENS)
        sent = signed_headers([self.key], message, now_s, raw)
        damaged = not inside and self.random.random() < 0.9
        if damaged and self.random.random() < 0.5:
            changed = mutated(self.random, raw, JSON_TOKENS)
            damaged, raw = changed != raw, changed
        elif damaged:
            name = self.random.choice(list(sent))
            value_ = mutated(self.random, sent[name].encode(), INJECTIONS)
            text = value_.translate(None, bytes((*range(32), 127))).decode("latin-1").strip()
            damaged, sent[name] = text != sent[name], text
        reply = self._send("webhooks", "POST", "/v1/webhooks/simulator", raw, sent)
        if damaged and reply is not None and reply.status not in (400, 401, 413, 431):
            self.tally.found("webhooks", f"a forged one: {reply.status}", (sent, raw), reply)

    def headers(self) -> None:
        """Headers that are read by somebody, with values that nobody expects."""
        name = self.random.choice(
            ("traceparent", "Content-Type", "Authorization", "Accept", "Content-Encoding", "Expect")
        )
        good = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        value = mutated(self.random, good, INJECTIONS + JSON_TOKENS)[:4_000]
        text = value.translate(None, bytes((*range(32), 127))).decode("latin-1").strip()
        self._send("headers", "POST", "/v1/payments/authorize", _order(), {name: text})

    # --- sending ------------------------------------------------------------------------------

    def _post(self, attack: str, kind: str, raw: bytes) -> Reply | None:
        return self._send(attack, "POST", f"/v1/payments/{kind}", raw)

    def _send(
        self,
        attack: str,
        method: str,
        path: str,
        raw: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply | None:
        sent = {"Idempotency-Key": f"fuzz-{uuid.uuid4()}"} | (headers or {})
        try:
            reply = self.target.call(method, path, raw, key=ALICE, headers=sent)
        except (OSError, http.client.HTTPException) as trouble:
            self.tally.found(attack, f"no answer: {trouble!r}", (method, path, sent, raw))
            return None
        self.tally.answered(attack, reply.status, reply.took_s)
        self.tally.judge(
            attack,
            reply.status,
            reply.headers.get("retry-after"),
            reply.body,
            (method, path, sent, raw),
        )
        if reply.status == 201 and reply.body.startswith(b'{"id":"pay_'):
            self.target.learn("pay", reply.json["id"])
        return reply


def _order() -> bytes:
    return json.dumps(ORDER).encode()


def _path(before: bytes, id_: bytes, command: str) -> str:
    whole = (before + quote_from_bytes(id_, safe="").encode()).decode()
    return f"{whole}/{command}" if command else whole
