"""Clients: they ask, give up, ask again with the same key, and remember what they were told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from engine.gateways.simulator_methods import METHODS
from engine.http.exchange import Response
from engine.simulation.life import MERCHANTS
from engine.simulation.watch import OPENS

if TYPE_CHECKING:
    from engine.simulation.world import World

PAN: Final = "4242424242424242"
PATIENCE_S: Final = 120.0
"""Longer than any request may take; who waits that long in vain has found a bug."""

_ODD: Final = (
    *sorted(METHODS),
    *("pm_card_3ds", "pm_card_pending", "pm_card_webhook_early", "pm_card_timeout_after_charge"),
    *("pm_card_settles_late", "pm_card_refund_fails_late") * 3,
)
"""Every method, and more often those after which most can happen."""
_TO_BE_REFUNDED: Final = frozenset({"pm_card_refund_fails", "pm_card_refund_fails_late"})
_ATTEMPTS_MAX: Final = 3


class Promise(msgspec.Struct):
    """Something a client wants done under one key, and what it was told of it."""

    who: str
    merchant: str
    key: str
    what: str
    path: str
    body: dict[str, Any]
    payment_id: str | None = None
    is_foreign: bool = False
    """It is about another merchant's payment."""
    is_reuse: bool = False
    """Its key belongs to another request."""
    attempts: int = 0
    last: str = "nothing"
    final: tuple[int, bytes] | None = None
    is_settled: bool = False


class Client:
    """One client of one merchant, sending one thing after the other."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._random = world.plan.random(f"client:{number}")
        self._name = f"client-{number}"
        self._merchant = MERCHANTS[number % len(MERCHANTS)]
        self._other = MERCHANTS[(number + 1) % len(MERCHANTS)]
        self._count = 0

    async def run(self) -> None:
        """Send what the plan wants."""
        plan = self._world.plan
        while self._count < plan.requests:
            await self._turn()
            await trio.sleep(plan.pause_s * 2 * self._random.random())

    async def _turn(self) -> None:
        random, known = self._random, self._world.known[self._merchant]
        drawn = random.random()
        foreign = self._world.known[self._other]
        if drawn < 0.4 or not known:
            await self._open()
        elif drawn < 0.78:
            await self._act(random.choice(known[-3:] if random.random() < 0.7 else known))
        elif drawn < 0.81 and foreign:
            await self._act(random.choice(foreign), is_foreign=True)
        elif drawn < 0.91 and self._world.promises:
            await self._reuse()
        else:
            await self._read(random.choice(known))

    # --- what is asked ------------------------------------------------------------------------

    async def _open(self) -> None:
        random, plan = self._random, self._world.plan
        method = "pm_card_visa"
        if random.random() < plan.odd_methods:
            method = random.choice(_ODD)
        body: dict[str, Any] = {
            "amount": random.randint(1, 2_000),
            "currency": random.choice(("usd", "usd", "eur", "jpy")),
            "payment_method": method,
        }
        if random.random() < plan.references:
            body["reference"] = f"order-{random.randint(1, 4)}"
        if random.random() < 0.05:
            body["metadata"] = {"note": random.choice((f"card {PAN}", "a\0b", "fine"))}
        what = "purchase" if method in _TO_BE_REFUNDED else random.choice(OPENS)
        promise = self._promise(what, f"/v1/payments/{what}", body)
        payment_id = await self._send(promise)
        if payment_id is not None and (method in _TO_BE_REFUNDED or random.random() < 0.6):
            await self._act(payment_id)

    async def _act(self, payment_id: str, *, is_foreign: bool = False) -> None:
        random = self._random
        view = self._world.watch.seen.get(payment_id)
        if view is not None and view["status"] == "requires_action" and random.random() < 0.7:
            await self._authenticate(view)
        what = random.choice(("capture", "capture", "refund", "refund", "cancel"))
        if view is not None and view["amount_refundable"] and random.random() < 0.7:
            what = "refund"
        body: dict[str, Any] = {}
        if what != "cancel" and random.random() < 0.7:
            amount = 500 if view is None else view["amount"]
            body["amount"] = random.randint(1, max(1, round(amount * random.choice((0.5, 1.1)))))
        if what == "capture" and random.random() < 0.5:
            body["final"] = False
        promise = self._promise(what, f"/v1/payments/{payment_id}/{what}", body)
        promise.payment_id = payment_id
        promise.is_foreign = is_foreign
        await self._send(promise)
        if not is_foreign and random.random() < 0.4:
            await self._read(payment_id)

    async def _reuse(self) -> None:
        """A key that was used for something else before."""
        first = self._random.choice(self._world.promises)
        if first.is_reuse or first.final is None or first.merchant != self._merchant:
            return
        if first.final[0] in (400, 404) or b'"code":"pan_not_allowed"' in first.final[1]:
            return  # What was refused at the door has no claim on its key.
        if b'"failure_code":"abandoned"' in first.final[1]:
            return
        promise = self._promise("authorize", "/v1/payments/authorize", {
            "amount": 4_999, "currency": "usd", "payment_method": "pm_card_visa",
        })  # fmt: skip
        promise.key = first.key
        promise.is_reuse = True
        await self._send(promise)

    async def _authenticate(self, view: dict[str, Any]) -> None:
        """The customer acts on a 3-D Secure request, at the issuer's page."""
        outcome = "declined" if self._random.random() < 0.2 else "approved"
        reference = view["gateway_reference"]
        await self._world.ask(
            self._name, "POST", f"/simulator/authentications/{reference}/complete",
            query={"outcome": outcome},
        )  # fmt: skip

    async def _read(self, payment_id: str) -> None:
        world, random = self._world, self._random
        before = world.watch.seen.get(payment_id)
        path = f"/v1/payments/{payment_id}"
        if random.random() < 0.15:
            path += "/timeline"
        response = await world.ask(
            self._name, "GET", path, merchant=self._merchant, patience_s=PATIENCE_S
        )
        if response is None or response.status == 503:
            return
        if response.status != 200:
            world.watch.fail("reads own writes", f"GET {path} is answered {response.status}")
        elif not path.endswith("/timeline"):
            world.watch.read(before, msgspec.json.decode(response.body))

    # --- how it is asked ----------------------------------------------------------------------

    def _promise(self, what: str, path: str, body: dict[str, Any]) -> Promise:
        self._count += 1
        key = f"{self._name}-{self._count}"
        promise = Promise(self._name, self._merchant, key, what, path, body)
        self._world.promises.append(promise)
        return promise

    async def _send(self, promise: Promise) -> str | None:
        """Send it until the answer is final, or the client has had enough for now."""
        random, plan = self._random, self._world.plan
        if random.random() < plan.storm_share:
            self._world.count("client_storm", promise.key)
            async with trio.open_nursery() as nursery:
                for _ in range(random.randint(1, 3)):
                    nursery.start_soon(self._attempt, promise, PATIENCE_S)
                nursery.start_soon(self._attempt, promise, PATIENCE_S)
        found = None
        for _ in range(random.randint(1, _ATTEMPTS_MAX)):
            patience_s = PATIENCE_S
            if random.random() < plan.leave_share and self._world.is_stormy:
                patience_s = random.choice((0.001, 0.1, 2.0)) * random.random()
            found = await self._attempt(promise, patience_s) or found
            if promise.is_settled:
                break
            await trio.sleep(plan.pause_s * random.random())
        return found

    async def _attempt(self, promise: Promise, patience_s: float) -> str | None:
        return await attempt(self._world, promise, patience_s)


async def attempt(world: World, promise: Promise, patience_s: float = PATIENCE_S) -> str | None:
    """Send a promise's request once; the id of the payment that the answer names."""
    promise.attempts += 1
    response = await world.ask(
        promise.who, "POST", promise.path, promise.body, merchant=promise.merchant,
        key=promise.key, patience_s=patience_s,
    )  # fmt: skip
    if response is None:
        return None
    world.watch.answered(promise, response)
    return _payment_of(world, promise, response)


def _payment_of(world: World, promise: Promise, response: Response) -> str | None:
    if response.status >= 400 or promise.what not in OPENS or promise.is_reuse:
        return None
    payment_id: str = msgspec.json.decode(response.body)["id"]
    known = world.known[promise.merchant]
    if payment_id in world.store.payments and payment_id not in known:
        known.append(payment_id)
    return payment_id if payment_id in world.store.payments else None
