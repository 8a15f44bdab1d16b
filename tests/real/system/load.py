"""Clients that mix every command, whatever happens to the engine, and remember what they were told.

Each request has a key and is sent until it gets a final answer, across kills and restarts. What a
client was told is kept, so that it can be compared with what the engine knows afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import aiohttp

from tests.real.system.agreement import UNRESOLVED
from tests.real.system.client import NOT_YET, POLL_S, Answer, Client, new_key, order

METHODS = ("pm_card_visa",) * 8 + (
    "pm_card_mastercard",
    "pm_card_declined",
    "pm_card_5xx_after_charge",
    "pm_card_garbage_reply",
    "pm_card_unreachable",
    "pm_card_webhook_twice",
)
FINAL_S = 45.0
RESOLVED_S = 30.0


class Told:
    """One request, and its first final answer."""

    def __init__(self, path: str, body: Any, key: str, answer: Answer) -> None:
        self.path = path
        self.body = body
        self.key = key
        self.answer = answer


class Load:
    """Clients on one engine. `told` holds every final answer that any of them got."""

    def __init__(self, client: Client, seed: int, *, final_s: float = FINAL_S) -> None:
        """`final_s`: for how long a client sends the same request again before it gives up."""
        self.client = client
        self.told: list[Told] = []
        self.sent = 0
        self.surprises: list[str] = []
        self._random = random.Random(seed)
        self._stopping = False
        self._final_s = final_s

    async def run(self, clients: int) -> None:
        """Send until told to stop; what was begun is brought to its end."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(clients):
                tasks.create_task(self._customer())

    def stop(self) -> None:
        """Begin no further payment."""
        self._stopping = True

    async def _customer(self) -> None:
        while not self._stopping:
            await self._payment()

    async def _payment(self) -> None:
        pick = self._random
        kind = pick.choice(("authorize", "purchase"))
        amount = pick.randrange(100, 10_000)
        opened = await self._ask(f"/v1/payments/{kind}", order(amount, pick.choice(METHODS)))
        if opened.status != 201:
            return
        path = f"/v1/payments/{opened.json['id']}"
        if kind == "authorize" and pick.random() < 0.2:
            await self._ask(f"{path}/cancel", {})
            return
        if kind == "authorize":
            body = {"amount": pick.randrange(1, amount), "final": pick.random() < 0.5}
            await self._ask(f"{path}/capture", body)
        # Together they ask for more than there is, so one of them may be refused.
        part = max(1, amount // 2)
        await asyncio.gather(
            *(self._ask(f"{path}/refund", {"amount": part}) for _ in range(pick.randrange(3)))
        )

    async def _ask(self, path: str, body: Any) -> Answer:
        """Send until the answer is final; an engine that is down is waited for."""
        key = new_key("load")
        self.sent += 1
        deadline = asyncio.get_running_loop().time() + self._final_s
        while True:
            answer = None
            with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
                answer = await self.client.post(path, body, key=key)
            if answer is not None and answer.status != 202 and answer.code not in NOT_YET:
                if answer.status not in (200, 201, 402, 409, 422, 502):
                    self.surprises.append(f"{path} {body} {key}: {answer}")
                self.told.append(Told(path, body, key, answer))
                return answer
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"{path} with {key} has no final answer: {answer}")
            await asyncio.sleep(POLL_S)


async def assert_told_holds(load: Load) -> None:
    """Every answer that was given is still true, and is given again byte for byte."""
    client = load.client
    assert load.surprises == []
    limit = asyncio.Semaphore(8)

    async def check(told: Told) -> None:
        async with limit:
            again = await client.post(told.path, told.body, key=told.key)
            first = told.answer
            assert (again.status, again.body) == (first.status, first.body), (first, again)
            assert again.is_replayed, again
            if told.path.endswith("/refund") and first.status == 201:
                refund = await client.get(f"/v1/refunds/{first.json['id']}")
                assert refund.body == first.body, (first, refund)
            elif first.status in (200, 201):
                assert_goes_on_from(first.json, await client.payment(first.json["id"]))

    await asyncio.gather(*(check(told) for told in load.told))


def assert_goes_on_from(told: Any, now: Any) -> None:
    """What was said of a payment is there, or what has been done since follows from it."""
    same = ("id", "created", "amount", "currency", "payment_method", "gateway_reference")
    assert [told[name] for name in same] == [now[name] for name in same], (told, now)
    grown = ("amount_authorized", "amount_captured", "amount_refunded", "amount_released")
    assert all(told[name] <= now[name] for name in grown), (told, now)
    for before, after in zip(told["operations"], now["operations"], strict=False):
        if before["status"] in ("succeeded", "failed"):
            assert before == after, (before, after)
    assert len(told["operations"]) <= len(now["operations"])


async def wait_all_resolved(client: Client) -> None:
    """Nothing stays without an outcome for longer than is promised."""
    deadline = asyncio.get_running_loop().time() + RESOLVED_S
    while True:
        payments = await client.list_all("/v1/payments")
        open_ones = [
            (payment["id"], payment["status"], op["type"], op["status"])
            for payment in payments
            for op in payment["operations"]
            if op["status"] in UNRESOLVED
        ]
        if not open_ones:
            return
        assert asyncio.get_running_loop().time() < deadline, f"still open: {open_ones}"
        await asyncio.sleep(0.5)
