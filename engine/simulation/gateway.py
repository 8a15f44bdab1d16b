"""The gateway, the wire to it, and one engine's end of that wire."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
import trio

from engine.domain.news import (
    Approved,
    Failed,
    GatewayCall,
    GatewayTraits,
    NotFound,
    OperationNews,
)
from engine.gateways.simulator import Simulator
from engine.gateways.simulator_books import MemoryBooks
from engine.gateways.simulator_config import FailureRates, SimulatorConfig
from engine.gateways.simulator_methods import AUTHORIZATION_MS, METHODS
from engine.ports import WebhookEvent, WebhookRefused

if TYPE_CHECKING:
    from engine.simulation.life import Life
    from engine.simulation.world import World

_HOOK_LATE_MAX_S = 20.0
_OVERDUE_S = 60.0


class _About(msgspec.Struct):
    op_id: str


class _Wire:
    """One call under way. Whoever waits for it may have died."""

    __slots__ = ("done", "news")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.news: OperationNews | None = None


class Provider:
    """What is on the other side: the simulator with its books. It outlives every engine."""

    def __init__(self, world: World) -> None:
        plan = world.plan.gateway
        self._world = world
        self._random = world.plan.random("provider")
        self._hooks_random = world.plan.random("webhooks")
        self.books = MemoryBooks()
        self._hidden_until: dict[str, float] = {}
        self._overdue: set[str] = set()
        self.sent: dict[str, int] = {}
        self.simulator = Simulator(
            self.books,
            clock=world.true_clock,
            deliver=self._deliver,
            config=SimulatorConfig(
                seed=world.plan.seed,
                rates=FailureRates(
                    unreachable=plan.unreachable,
                    timeout_before=plan.timeout_before,
                    timeout_after=plan.timeout_after,
                    server_error=plan.server_error,
                    decline=plan.decline,
                ),
                faults_on=("authorize", "purchase", "capture", "void", "refund")
                if "gateway_faults" in world.plan.kinds
                else ("authorize", "purchase"),
                send_webhooks=plan.send_webhooks,
                deadline_ms=plan.deadline_ms,
                lookup_lag_ms=max(plan.lookup_lag_ms, 3_500),
                inflight_max=plan.inflight_max,
            ),
        )

    # --- calls --------------------------------------------------------------------------------

    async def exchange(self, call: GatewayCall) -> OperationNews:
        """Send a call and wait for its reply; where none comes, for ever."""
        wire = _Wire()
        self._world.background.start_soon(self._carry, call, wire)
        await wire.done.wait()
        assert wire.news is not None
        return wire.news

    async def _carry(self, call: GatewayCall, wire: _Wire) -> None:
        """What is on the wire arrives, also where nobody waits for the reply any more."""
        latency_s, random = self._world.weather.latency_s, self._random
        if latency_s:
            self._world.count("gateway_slow", None)
            # It is worked on within the deadline, or it has been dropped on the way.
            deadline_s = self.simulator.traits.deadline_ms / 1_000
            await trio.sleep(min(latency_s * random.random(), deadline_s * 0.8))
        news = self.found(call) if call.look_up else self.objection(call)
        if news is None:
            self.arrived(call)
            reply = self.simulator.act(call)
            self._world.trace.say("gateway", "{} {}: {} {}", _verb(call), call.op_id, reply.kind,
                                  reply.news)  # fmt: skip
            if reply.kind != "news":
                self._world.count("gateway_faults", None)
            is_lost = reply.kind == "none" or self._is_reply_lost(call)
            await self.simulator.hold_back(msgspec.structs.replace(reply, kind="news"))
            if is_lost:
                self._world.note("a reply was lost on its way")
                return
            news = reply.news
        if latency_s:
            await trio.sleep(latency_s * random.random())
        wire.news = news
        wire.done.set()

    def found(self, call: GatewayCall) -> OperationNews | None:
        """What a look-up is told while what was done is not to be found yet; None: the truth."""
        if trio.current_time() < self._hidden_until.get(call.op_id, 0.0):
            self._world.count("lookup_lag", f"{call.op_id} is not found yet")
            return NotFound()
        return None

    def objection(self, call: GatewayCall) -> OperationNews | None:
        """What is refused for now, without effect: the engine's own work is not always welcome."""
        _, op = self._world.watch.operation(call.op_id)
        if op.type != "reversal" or op.attempts > 2 or self._random.random() < 0.5:
            return None
        self._world.note("the gateway refused a reversal for now")
        return Failed("try_later")

    def _is_reply_lost(self, call: GatewayCall) -> bool:
        """Where look-ups are to matter, replies do not come."""
        if call.look_up or trio.current_time() >= self._hidden_until.get(call.op_id, 0.0):
            return False
        return call.op_id in self._overdue or self._random.random() < 0.5

    def arrived(self, call: GatewayCall) -> None:
        """A request has come in; decide how long look-ups will not find it."""
        if call.look_up:
            return
        self.sent[call.op_id] = self.sent.get(call.op_id, 0) + 1
        if call.op_id in self._hidden_until:
            return
        plan, weather, random = self._world.plan.gateway, self._world.weather, self._random
        hidden_s = 0.0
        if random.random() < weather.lag_share:
            hidden_s = random.random() * plan.lookup_lag_ms / 1_000
        elif self._has_a_webhook(call) and random.random() < weather.overdue_share:
            hidden_s = _OVERDUE_S
            self._overdue.add(call.op_id)
            self._world.count("lookup_overdue", f"{call.op_id} will not be found for a minute")
        self._hidden_until[call.op_id] = trio.current_time() + hidden_s

    # --- webhooks -----------------------------------------------------------------------------

    async def _deliver(self, headers: Mapping[str, str], raw: bytes) -> bool:
        """Carry one webhook; True when the gateway believes that it has arrived."""
        weather, random, world = self._world.weather, self._hooks_random, self._world
        op_id = msgspec.json.decode(raw, type=_About).op_id
        is_only_word = op_id in self._overdue or b"refund_failed" in raw
        if op_id in self._overdue:
            await trio.sleep(random.random() * _OVERDUE_S)
        if random.random() < weather.webhook_lost and not is_only_word:
            world.count("webhook_lost", headers["webhook-id"])
            return True
        if random.random() < weather.webhook_twice:
            world.count("webhook_twice", headers["webhook-id"])
            for _ in range(random.randint(1, 3)):
                world.background.start_soon(world.webhook, headers, raw, random.random())
        if random.random() < weather.webhook_late:
            world.count("webhook_late", headers["webhook-id"])
            await trio.sleep(random.random() * _HOOK_LATE_MAX_S)
        return await world.webhook(headers, raw)

    @staticmethod
    def _has_a_webhook(call: GatewayCall) -> bool:
        if call.action not in ("authorize", "purchase"):
            return False
        method = METHODS.get(call.payment_method)
        return method is not None and method.webhook != "never"


class GatewayEnd:
    """One engine's end of the wire. Implements `engine.ports.Gateway`."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._world = life.world
        self._provider = life.world.provider
        self._hold_ms = round(life.world.plan.gateway.hold_s * 1_000)
        self._trials = 0

    @property
    def traits(self) -> GatewayTraits:
        """Its numbers."""
        return self._provider.simulator.traits

    def perform_now(self, calls: Sequence[GatewayCall]) -> list[OperationNews | None]:
        """Answer at once where the plan's gateway does."""
        if self._life.is_dead or not self._world.plan.gateway.is_instant:
            return [None] * len(calls)
        answers: list[OperationNews | None] = []
        for call in calls:
            self._world.watch.called(call)
            news = self._provider.found(call) if call.look_up else self._provider.objection(call)
            if news is None:
                (news,) = self._provider.simulator.perform_now([call])
                if news is not None:
                    self._provider.arrived(call)
            if news is not None:
                self._world.trace.say("gateway", "{} {}: {}", _verb(call), call.op_id, news)
                news = self._as_planned(news)
            answers.append(news)
        return answers

    async def perform(self, call: GatewayCall, in_time_s: float = math.inf) -> OperationNews:
        """Make the call; where no reply comes, this waits for ever."""
        if self._life.is_dead:
            await trio.sleep_forever()
        self._world.trace.say(self._life.name, "sends {} {}", _verb(call), call.op_id)
        self._world.watch.called(call)
        is_trial = self._life.breaker.state == "half-open"
        if is_trial:
            self._trials += 1
            self._world.note("a trial went through the half-open breaker")
            if self._trials > 1:
                self._world.watch.fail("one trial", f"{self._trials} trials are out at once")
        try:
            return self._as_planned(await self._provider.exchange(call))
        finally:
            if is_trial:
                self._trials -= 1

    def verify_webhook(
        self, headers: Mapping[str, str], raw: bytes, now_ms: int
    ) -> WebhookEvent | WebhookRefused:
        """Check signature and time stamp, and read it."""
        return self._provider.simulator.verify_webhook(headers, raw, now_ms)

    def read_webhook(self, event_id: str, raw: bytes) -> WebhookEvent | WebhookRefused:
        """Read one whose signature has been checked."""
        return self._provider.simulator.read_webhook(event_id, raw)

    async def close(self) -> None:
        """Nothing is held here."""

    def _as_planned(self, news: OperationNews) -> OperationNews:
        """The same, with the lifetime of authorisations that the plan wants."""
        if isinstance(news, Approved) and news.expires_ms is not None:
            expires_ms = news.expires_ms - AUTHORIZATION_MS + self._hold_ms
            return msgspec.structs.replace(news, expires_ms=expires_ms)
        return news


def _verb(call: GatewayCall) -> str:
    return f"look-up of {call.action}" if call.look_up else f"{call.action} of {call.amount}"
