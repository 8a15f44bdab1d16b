"""A merchant's client: JSON over HTTP, keys, and the retries that keys make safe."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp

from tests.real.system.process import API_KEY, EngineProcess

PATIENCE_S = 30.0
POLL_S = 0.05
_numbers = itertools.count(1)

# What a client that sends the same request with the same key may see on its way to the answer.
NOT_YET = frozenset(
    {
        "idempotency_in_progress",
        "operation_unresolved",
        "overloaded",
        "starting",
        "ledger_unavailable",
        "gateway_unavailable",
        "shard_parked",
    }
)


def new_key(name: str = "key") -> str:
    """A key that was never used, also not in an earlier run on the same data."""
    return f"{name}-{time.time_ns():x}-{next(_numbers)}"


class Answer:
    """One response, whole."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """The code of a problem document."""
        is_problem = self.headers.get("Content-Type") == "application/problem+json"
        return self.json["code"] if is_problem else None

    @property
    def is_replayed(self) -> bool:
        """Whether the answer had been given before."""
        return self.headers.get("Idempotent-Replayed") == "true"

    def assert_problem(self, status: int, code: str) -> None:
        """Fail unless it is this problem, and says the same in body and headers."""
        assert (self.status, self.code) == (status, code), self
        assert self.json["status"] == status, self
        assert self.json["request_id"] == self.headers["Request-Id"], self

    def __repr__(self) -> str:
        """Short enough for an assertion's message."""
        return f"{self.status} {dict(self.headers)} {self.body[:2_000]!r}"


class Client:
    """Calls one engine. Nothing here is retried unless the name says so."""

    def __init__(self, engine: EngineProcess, session: aiohttp.ClientSession) -> None:
        self.engine = engine
        self.session = session

    async def send(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request in its bytes, without the API key. Raises aiohttp.ClientError, OSError."""
        async with self.session.request(
            method, f"{self.engine.address}{path}", data=body, headers=headers or {}
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str) -> Answer:
        """Read something."""
        return await self.send("GET", path, headers={"Authorization": f"Bearer {API_KEY}"})

    async def post(self, path: str, body: Any = None, *, key: str | None = None) -> Answer:
        """Send a command, under a new key where none is given; `body` is JSON, or its bytes."""
        raw = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        headers = {
            "Authorization": f"Bearer {API_KEY}",
            "Idempotency-Key": key or new_key(),
            "Content-Type": "application/json",
        }
        return await self.send("POST", path, body=raw, headers=headers)

    async def authorize(
        self,
        amount: int = 1_000,
        method: str = "pm_card_visa",
        *,
        key: str | None = None,
        **more: Any,
    ) -> Answer:
        """Reserve an amount."""
        return await self.post("/v1/payments/authorize", order(amount, method, **more), key=key)

    async def purchase(
        self,
        amount: int = 1_000,
        method: str = "pm_card_visa",
        *,
        key: str | None = None,
        **more: Any,
    ) -> Answer:
        """Reserve and capture an amount."""
        return await self.post("/v1/payments/purchase", order(amount, method, **more), key=key)

    async def command(
        self, payment: str, command: str, body: Any = None, *, key: str | None = None
    ) -> Answer:
        """Capture, cancel or refund a payment."""
        return await self.post(f"/v1/payments/{payment}/{command}", body, key=key)

    async def payment(self, payment: str) -> Any:
        """A payment as it is now."""
        answer = await self.get(f"/v1/payments/{payment}")
        assert answer.status == 200, answer
        return answer.json

    async def list_all(self, path: str) -> list[Any]:
        """Every object of a list, page by page."""
        found: list[Any] = []
        cursor = ""
        joint = "&" if "?" in path else "?"
        while True:
            answer = await self.get(f"{path}{joint}limit=100{cursor}")
            assert answer.status == 200, answer
            found += answer.json["data"]
            if not answer.json["has_more"]:
                return found
            cursor = f"&cursor={answer.json['next_cursor']}"

    async def wait_payment(
        self, payment: str, holds: Callable[[Any], bool], within_s: float = PATIENCE_S
    ) -> Any:
        """The payment, once `holds` is true of it."""
        deadline = time.monotonic() + within_s
        while not holds(found := await self.payment(payment)):
            assert time.monotonic() < deadline, f"not within {within_s:g} s: {found}"
            await asyncio.sleep(POLL_S)
        return found

    async def until_final(
        self, path: str, body: Any, key: str, within_s: float = PATIENCE_S
    ) -> Answer:
        """Send the same request with its key until the answer is final, whatever comes between."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                answer = await self.post(path, body, key=key)
            except (aiohttp.ClientError, OSError):
                answer = None
            if answer is not None and answer.status != 202 and answer.code not in NOT_YET:
                return answer
            assert time.monotonic() < deadline, f"not final within {within_s:g} s: {answer}"
            await asyncio.sleep(POLL_S)


def order(amount: int, method: str, **more: Any) -> dict[str, Any]:
    """The body of an authorize or purchase."""
    return {"amount": amount, "currency": "USD", "payment_method": method, **more}


@contextlib.asynccontextmanager
async def client_of(engine: EngineProcess, *, keep_alive: bool = True) -> AsyncIterator[Client]:
    """A client with connections of its own, as many as it asks for."""
    connector = aiohttp.TCPConnector(limit=0, force_close=not keep_alive)
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield Client(engine, session)
