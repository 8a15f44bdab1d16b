"""The customers. `python -m loadtests` starts locust with this file and the name of one of them.

A customer who is told to come again (202, 409 with a key that runs, 503, or no connection) comes
again with the same key, after a 502 with a new one, until it is done or patience ends. Every
attempt is a request of locust's; an attempt that was put off is not a failure, a payment without
an end is. Where an answer contradicts what is known of the payment, that is a failure too.
"""

from __future__ import annotations

import json
import os
import random
import time
import uuid
from collections import Counter, deque
from pathlib import Path
from typing import Any

import gevent  # type: ignore[import-untyped]
from locust import FastHttpUser, constant_throughput, events, task
from locust.env import Environment

PATIENCE_S = 25.0
PAUSE_S = 0.5
UNSHIPPED_MAX = 25
PUT_OFF = frozenset({0, 202, 409, 502, 503})
KEYS = os.environ.get("LOADTEST_KEYS", "sk_test_dev").split(",")
RESULT = os.environ.get("LOADTEST_RESULT")


class Tally:
    """Attempts by second and kind, for what locust's own statistics do not tell."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.seconds: dict[int, Counter[str]] = {}
        self.statuses: Counter[int] = Counter()
        self.latencies_ms: list[float] = []
        self.failures: Counter[str] = Counter()
        self.payments = 0
        self.under_way = 0
        """Requests that have had no final answer yet; at the end they never will."""

    def attempt(self, status: int, kind: str, took_ms: float) -> None:
        """Note an attempt: `good` or `put_off` or `failed`."""
        second = int(time.monotonic() - self.began)
        self.seconds.setdefault(second, Counter())[kind] += 1
        self.statuses[status] += 1
        if kind == "good":
            self.latencies_ms.append(took_ms)


tally = Tally()


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def begin(environment: Environment, **_: Any) -> None:
    """The time runs from here."""
    tally.began = time.monotonic()


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def finish(environment: Environment, **_: Any) -> None:
    """Write what was seen to where the runner looks for it."""
    environment.process_exit_code = 0  # whether it was good is for the thresholds to say
    if RESULT is None:
        return
    seen = {
        "seconds": {second: dict(kinds) for second, kinds in sorted(tally.seconds.items())},
        "statuses": dict(tally.statuses),
        "latencies_ms": tally.latencies_ms,
        "failures": dict(tally.failures),
        "payments": tally.payments,
        "under_way": tally.under_way,
    }
    Path(RESULT).write_text(json.dumps(seen))


class Shopper(FastHttpUser):
    """What every customer can do. Each kind has one task of its own: locust adds those of bases."""

    abstract = True
    wait_time = constant_throughput(2)
    connection_timeout = 5.0
    network_timeout = 15.0

    def on_start(self) -> None:
        """Buy at one of the merchants."""
        self.key = random.choice(KEYS)

    def create(self, method: str = "pm_card_visa", status: int = 201) -> dict[str, Any] | None:
        """An authorisation; None where it has no end."""
        tally.payments += 1
        order = {"amount": 1_099, "currency": "USD", "payment_method": method}
        payment = self.send("/v1/payments/authorize", order, "authorize", status)
        if payment is not None and status == 201 and payment["status"] != "authorized":
            self.fail("authorize", f"is {payment['status']}")
            return None
        return payment if status == 201 else None

    def step(
        self, payment: dict[str, Any], step: str, body: dict[str, Any], becomes: str
    ) -> dict[str, Any] | None:
        """A capture or cancel."""
        after = self.send(f"/v1/payments/{payment['id']}/{step}", body, step, 200)
        if after is not None and after["status"] != becomes:
            self.fail(step, f"is {after['status']}")
            return None
        return after

    def send(
        self, path: str, body: dict[str, Any], name: str, wanted: int
    ) -> dict[str, Any] | None:
        """A POST until it gets a final answer.

        The same key each time, but for 502: that is final, nothing was done, and only a new key
        tries again.
        """
        tally.under_way += 1
        began = time.monotonic()
        try:
            answer = self.persist(path, body, name, wanted)
        except gevent.GreenletExit:
            # At the end locust sends away who waits, also whose wait is over at that moment.
            if time.monotonic() - began < PAUSE_S:
                tally.under_way -= 1
            raise
        tally.under_way -= 1
        return answer

    def persist(
        self, path: str, body: dict[str, Any], name: str, wanted: int
    ) -> dict[str, Any] | None:
        """Again and again, as long as patience lasts."""
        until = time.monotonic() + PATIENCE_S
        key = uuid.uuid4().hex
        while True:
            status, answer = self.attempt("POST", path, name, wanted, body, key)
            if status == wanted:
                return answer
            if status not in PUT_OFF:
                self.fail(name, f"status {status}: {answer.get('code')}")
                return None
            if time.monotonic() > until:
                self.fail(name, f"no final answer, at last {status}")
                return None
            if status == 502:
                key = uuid.uuid4().hex
            gevent.sleep(PAUSE_S * random.uniform(0.5, 1.5))

    def attempt(
        self, method: str, path: str, name: str, wanted: int,
        body: dict[str, Any] | None = None, key: str | None = None,
    ) -> tuple[int, dict[str, Any]]:  # fmt: skip
        """One request: its status (0: no connection) and its body."""
        headers = {"Authorization": f"Bearer {self.key}"}
        if key is not None:
            headers["Idempotency-Key"] = key
        began = time.perf_counter()
        with self.client.request(
            method, path, json=body, headers=headers, name=name, catch_response=True
        ) as response:
            status = response.status_code or 0
            kind = "good" if status == wanted else "put_off" if status in PUT_OFF else "failed"
            tally.attempt(status, kind, (time.perf_counter() - began) * 1_000)
            if kind == "failed":
                response.failure(f"status {status}")
            else:
                response.success()
            try:
                return status, json.loads(response.text or "{}")
            except json.JSONDecodeError:
                return status, {}

    def retrieve(self, payment: dict[str, Any]) -> None:
        """Read it: a captured payment is seen at once by who captured it."""
        path = f"/v1/payments/{payment['id']}"
        status, found = self.attempt("GET", path, "retrieve", 200)
        if status == 200 and found["status"] != "captured":
            self.fail("retrieve", f"is {found['status']}")

    def fail(self, name: str, why: str) -> None:
        """A payment that did not end as it should."""
        tally.failures[f"{name} {why}"] += 1


class Customer(Shopper):
    """Authorises, and now and then captures, over and over."""

    @task
    def buy(self) -> None:
        """One purchase in two steps."""
        payment = self.create()
        if payment is not None and random.random() < 0.5:
            self.step(payment, "capture", {}, "captured")


class CreateCaptureRetrieve(Shopper):
    """The shape that payment switches publish."""

    @task
    def buy(self) -> None:
        """Create, capture, retrieve; what is retrieved is what was captured."""
        payment = self.create()
        if payment is None or self.step(payment, "capture", {}, "captured") is None:
            return
        self.retrieve(payment)


class Mix(Shopper):
    """A bit of everything a merchant's customers do."""

    def on_start(self) -> None:
        """Nothing waits to be shipped yet."""
        super().on_start()
        self.unshipped: deque[dict[str, Any]] = deque()

    @task
    def buy(self) -> None:
        """Captured wholly or in parts, refunded, canceled, declined."""
        chance = random.random()
        if chance < 0.06:
            self.create("pm_card_declined", 402)
            return
        payment = self.create()
        if payment is None:
            return
        if chance < 0.3:
            # Captured when it is shipped: so many wait for that at a time, and no more.
            self.unshipped.append(payment)
            if len(self.unshipped) > UNSHIPPED_MAX:
                self.step(self.unshipped.popleft(), "capture", {}, "captured")
            return
        if chance < 0.4:
            self.step(payment, "cancel", {}, "canceled")
            return
        if chance < 0.5:
            if self.step(payment, "capture", {"amount": 500, "final": False}, "partially_captured"):
                self.step(payment, "capture", {"amount": 599}, "captured")
        elif self.step(payment, "capture", {}, "captured") is None:
            return
        if chance < 0.7:
            self.retrieve(payment)
        elif chance < 0.85:
            path = f"/v1/payments/{payment['id']}/refund"
            self.send(path, {"amount": 300}, "refund", 201)
