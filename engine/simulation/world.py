"""One run: everything there is, under a virtual clock and a seeded scheduler.

First a storm, in which anything may fail and nothing may be wrong. Then it is calm, and everything
must converge. Real: the actors, the machines, the HTTP handlers, the simulator gateway and the
in-memory ledger. Virtual: time, chance, the wire to the gateway, and what dies and when.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import date
from random import Random
from typing import Any, Final

import msgspec
import trio
import trio._core._run as scheduler
from trio.testing import MockClock

from engine.domain.fees import FeeRule, FeeSchedule, fee_schedule
from engine.domain.ids import op_id
from engine.domain.operation import Operation
from engine.gateways.simulator_config import FailureRates
from engine.http.exchange import Request, Response
from engine.ledger.memory import Faults
from engine.ledger.memory_store import MemoryStore
from engine.simulation import checkers
from engine.simulation.clients import Client, Promise, attempt
from engine.simulation.faults import Weather, run_events
from engine.simulation.gateway import Provider
from engine.simulation.life import MERCHANTS, Life, api_key
from engine.simulation.plan import Plan
from engine.simulation.surroundings import MachineClock, TrueClock
from engine.simulation.trace import Trace
from engine.simulation.watch import RunEnded, Violation, Watch

_STEPS_S: Final = (1, 1, 2, 4, 8, 15, 30, 60, 120, 240, 480, *[900] * 30)
"""How far the clock is moved on between two looks, once it is calm."""
_HOLD_S: Final = 8 * 86_400
_RESTART_MAX_S: Final = 1.0
_CLOCK_OFF_MAX_MS: Final = 60_000
"""Beyond it signatures of webhooks look stale, and an operator would notice."""


class Outcome(msgspec.Struct):
    """What came of a run."""

    seed: int
    violations: list[Violation]
    faults: dict[str, int]
    sometimes: dict[str, int]
    payments: int
    requests: int
    virtual_s: float
    cpu_s: float
    trace: list[str]


class World:
    """Everything that outlives an engine, and the engines that come and go."""

    def __init__(self, plan: Plan, clock: MockClock, *, is_traced: bool) -> None:
        self.plan = plan
        self.clock = clock
        self.trace = Trace(is_kept=is_traced)
        self.true_clock = TrueClock()
        self.machine_clock = MachineClock()
        self.store = MemoryStore()
        self.ledger_faults = Faults()
        self.weather = Weather()
        self.watch = Watch(self)
        self.over = trio.Event()
        self.faults: Counter[str] = Counter()
        self.sometimes: Counter[str] = Counter()
        self.former: dict[str, tuple[Operation, ...]] = {}
        self.promises: list[Promise] = []
        self.known: dict[str, list[str]] = {merchant: [] for merchant in MERCHANTS}
        self.is_stormy = True
        self.was_poisoned = False
        self.requests = 0
        self.provider = Provider(self)
        self.lives: list[Life] = []
        self._random = plan.random("world")
        self.background: trio.Nursery
        self.fees = _fees()
        self.ended_s = 0.0

    # --- counting -----------------------------------------------------------------------------

    def count(self, kind: str, what: str | None) -> None:
        """A fault has been injected."""
        self.faults[kind] += 1
        if what is not None:
            self.trace.say("FAULT", "{}: {}", kind, what)

    def note(self, what: str) -> None:
        """Something happened that should happen sometimes."""
        self.sometimes[what] += 1

    # --- engines ------------------------------------------------------------------------------

    def up(self) -> Life | None:
        """The newest engine that is up."""
        return next((life for life in reversed(self.lives) if life.is_up), None)

    def lives_alive(self) -> list[Life]:
        """The engines that have not ended."""
        return [life for life in self.lives if not life.is_dead]

    def start_life(self) -> Life:
        """Start another engine; it waits for the ledger's lock."""
        life = Life(self, len(self.lives) + 1)
        self.lives.append(life)
        self.background.start_soon(life.run)
        return life

    async def _keep_alive(self) -> None:
        """What a service manager does: where no engine lives, start one after a moment."""
        while True:
            alive = self.lives_alive()
            if not alive:
                await trio.sleep(_RESTART_MAX_S * self._random.random())
                self.note("an engine was started again")
                alive = [self.start_life()]
            await alive[-1].died.wait()

    # --- requests -----------------------------------------------------------------------------

    async def ask(
        self,
        who: str,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        merchant: str | None = None,
        key: str | None = None,
        query: Mapping[str, str] | None = None,
        patience_s: float = 120.0,
    ) -> Response | None:
        """Send a request to an engine; None: the connection was refused, broke, or was left."""
        headers = {} if merchant is None else {"authorization": f"Bearer {api_key(merchant)}"}
        if key is not None:
            headers["idempotency-key"] = key
        raw = b"" if body is None else msgspec.json.encode(body)
        self.trace.say(who, "{} {} {} {}", method, path, key or "", raw.decode())
        response = await self._exchange(method, path, query or {}, headers, raw, patience_s)
        if response is None:
            self.trace.say(who, "{} hears nothing", key or path)
        else:
            self.trace.say(who, "{} is answered {} {}", key or path, response.status,
                           response.body[:60].decode())  # fmt: skip
        return response

    async def _exchange(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        raw: bytes,
        patience_s: float,
    ) -> Response | None:
        self.requests += 1
        up = [life for life in self.lives if life.is_up]
        if not up:
            await trio.sleep(0.05)
            return None
        life = up[-1] if self._random.random() < 0.7 else up[0]
        request = Request(
            method=method,
            path=path,
            query=query,
            headers=headers,
            body=raw,
            peer="192.0.2.1",
            request_id=f"req_{self.requests}",
            started_s=0.0,
        )
        response = None
        with trio.CancelScope(deadline=trio.current_time() + patience_s) as scope:
            life.connections[request.request_id] = scope
            try:
                response = await life.api.handle(request)
            except Exception as error:
                self.watch.fail("no errors of its own", f"{method} {path}: {error!r}")
            finally:
                del life.connections[request.request_id]
        if life.is_dead:
            return None
        if response is None and patience_s >= 120.0 and not self.over.is_set():
            self.watch.fail("answers in time", f"{method} {path} has no answer")
        elif response is None:
            self.count("client_leaves", None)
            self.note("a client left, and the work went on")
        return response

    async def webhook(self, headers: Mapping[str, str], raw: bytes, late_s: float = 0.0) -> bool:
        """Deliver a webhook; True when it was accepted."""
        await trio.sleep(late_s)
        path = "/v1/webhooks/simulator"
        response = await self._exchange("POST", path, {}, headers, raw, 120.0)
        status = None if response is None else response.status
        self.trace.say("webhook", "{} is answered {}", headers["webhook-id"], status)
        self.note(f"a webhook was answered {status}")
        if status == 200 and ("simulator", headers["webhook-id"]) not in self.store.inbox:
            self.watch.fail("I5 durable answers", f"{headers['webhook-id']} is not stored")
        return status == 200

    def settled_operations(self, payment_id: str) -> list[str]:
        """Ids of the operations that succeeded for good."""
        return [
            op_id(payment_id, op.n)
            for op in self.watch.payment(payment_id).operations
            if op.status == "succeeded" and op.type != "refund"
        ]

    # --- the run ------------------------------------------------------------------------------

    async def run(self) -> None:
        """The storm, the calm, and what must hold after each."""
        async with trio.open_nursery() as background:
            self.background = background
            background.start_soon(self.provider.simulator.run)
            self.start_life()
            background.start_soon(self._keep_alive)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._course, nursery.cancel_scope)
                await self.over.wait()
                nursery.cancel_scope.cancel()
            background.cancel_scope.cancel()
            for life in self.lives:
                life.kill()

    async def _course(self, scope: trio.CancelScope) -> None:
        await self.lives[0].started.wait()
        await self._storm()
        self._find(checkers.after_the_storm(self))
        await self._calm()
        self._find(checkers.in_the_end(self))
        if not self.over.is_set():
            await self._expire()
        self.over.set()

    def _find(self, found: Iterator[Violation]) -> None:
        for violation in found:
            self.watch.fail(violation.rule, violation.what)
        if self.over.is_set():
            raise RunEnded

    async def _storm(self) -> None:
        plan, weather = self.plan, self.weather
        weather.lost_share, weather.commit_s = plan.ledger.lost_share, plan.ledger.commit_s
        weather.read_s, weather.latency_s = plan.ledger.read_s, plan.gateway.latency_s
        weather.lag_share = plan.gateway.lag_share
        weather.overdue_share = plan.gateway.overdue_share
        weather.webhook_lost = plan.gateway.webhook_lost
        weather.webhook_twice = plan.gateway.webhook_twice
        weather.webhook_late = plan.gateway.webhook_late
        with trio.move_on_after(plan.duration_s):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run_events, self)
                for number in range(plan.clients):
                    nursery.start_soon(Client(self, number).run)
        self.trace.say("world", "the storm is over")
        self.is_stormy = False
        self.weather = Weather()
        self.ledger_faults.read_only = self.ledger_faults.down = False
        self.ledger_faults.outcomes.clear()
        self.provider.simulator.set_outage(False)
        self.provider.simulator.set_rates(FailureRates())
        self.machine_clock.offset_ms = 0
        for life in self.lives:
            life.ids.crash_in = None
            life.telemetry.crashes_outcome = False
            if abs(life.clock.now_ms() - self.true_clock.now_ms()) > _CLOCK_OFF_MAX_MS:
                # Whoever sets the machine's clock right starts the engine again.
                self.background.start_soon(life.stop)

    async def _calm(self) -> None:
        """Time passes, and clients ask again for what they have no final answer to."""
        for step_s in _STEPS_S:
            await trio.sleep(1.0)
            async with trio.open_nursery() as nursery:
                for promise in self.promises:
                    if not promise.is_settled:
                        nursery.start_soon(attempt, self, promise)
            await trio.sleep(0.5)
            if checkers.is_quiet(self):
                return
            self.clock.jump(step_s)

    async def _expire(self) -> None:
        """A week passes: no hold is left."""
        self.trace.say("world", "a week passes")
        self.clock.jump(_HOLD_S)
        for _ in range(10):
            await trio.sleep(6.0)
            if checkers.is_expired(self):
                break
        await trio.sleep(1.0)
        self._find(checkers.after_a_week(self))


def _fees() -> FeeSchedule:
    schedule = fee_schedule(
        [FeeRule(valid_from=date(2020, 1, 1), basis_points=290, fixed_minor=3, currency="USD")]
    )
    assert isinstance(schedule, FeeSchedule)
    return schedule


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The scheduler's order of tasks from the seed, and no collector that runs when it likes.

    trio has no public name for this: it is what its plugin for Hypothesis does.
    """
    was = scheduler._ALLOW_DETERMINISTIC_SCHEDULING
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    scheduler._r = Random(f"{seed}:scheduler")
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = was  # type: ignore[misc]
        scheduler._r = Random()
        if collects:
            gc.enable()


def simulate(plan: Plan, *, is_traced: bool = False) -> Outcome:
    """Carry a plan out. The same plan gives the same outcome, to the byte, in every process."""
    clock = MockClock(autojump_threshold=0)
    worlds: list[World] = []

    async def main() -> None:
        world = World(plan, clock, is_traced=is_traced)
        worlds.append(world)
        try:
            await world.run()
        except* RunEnded:
            pass
        except* Exception:
            # After a finding the run goes on for a moment, and may stumble over what was found.
            if not world.watch.violations:
                raise
        world.ended_s = trio.current_time()

    began = time.process_time()
    with _seeded(plan.seed):
        trio.run(main, clock=clock)
    (world,) = worlds
    return Outcome(
        seed=plan.seed,
        violations=world.watch.violations,
        faults=dict(sorted(world.faults.items())),
        sometimes=dict(sorted(world.sometimes.items())),
        payments=len(world.store.payments),
        requests=world.requests,
        virtual_s=world.ended_s,
        cpu_s=time.process_time() - began,
        trace=world.trace.lines,
    )
