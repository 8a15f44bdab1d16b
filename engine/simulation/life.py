"""One life of the engine: a process with its connections, from its start to its death."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import trio

from engine.actors.settings import ActorSettings
from engine.actors.system import ActorSystem
from engine.domain.breaker import BreakerSettings
from engine.domain.fees import FeeSchedule
from engine.domain.ids import parse_op_id
from engine.domain.news import NotFound
from engine.gateways.breaker import GatewayBreaker
from engine.gateways.simulator_methods import knows
from engine.http.api import Api
from engine.http.calls import Parts
from engine.http.cursors import CursorSeal
from engine.http.keys import ApiKey, key_digest
from engine.ports import Breaker, Fenced, Gateway, LedgerUnavailable
from engine.simulation.gateway import GatewayEnd
from engine.simulation.ledger import Killed, SimulatedLedger
from engine.simulation.surroundings import (
    ProcessClock,
    SeededIds,
    WatchedTelemetry,
    is_injected,
)
from engine.simulation.watch import RunEnded
from engine.supervisor.errors import MaxIntensityReached

if TYPE_CHECKING:
    from engine.simulation.world import World

MERCHANTS = ("m_alder", "m_birch")
DRAIN_S = 8.0
LOCK_RETRY_S = 1.0
KEYS_KEPT_MS = 2 * 24 * 3_600_000
"""Longer than any client asks again, and shorter than a run: keys are forgotten in it."""


def api_key(merchant: str) -> str:
    """The API key of a merchant of the simulation."""
    return f"sk_test_{merchant}"


_KEYS = {
    key_digest(api_key(merchant)): ApiKey(merchant, False, frozenset({"merchant", "operator"}))
    for merchant in MERCHANTS
}


class Life:
    """The parts of one engine process, wired as `engine serve` wires them."""

    def __init__(self, world: World, number: int) -> None:
        plan = world.plan
        self.world = world
        self.number = number
        self.name = f"engine-{number}"
        self.is_dead = False
        self.is_up = False
        self.started = trio.Event()
        self.died = trio.Event()
        self.ended = trio.Event()
        self.error: BaseException | None = None
        self.clock = ProcessClock(world.machine_clock)
        self.ids = SeededIds(self.clock, f"{plan.seed}:ids:{number}", 0)
        self.telemetry = WatchedTelemetry(self)
        self.ledger = SimulatedLedger(self)
        self.gateway = GatewayEnd(self)
        self.random = plan.random(f"engine:{number}")
        self.breaker = GatewayBreaker(
            BreakerSettings(
                consecutive_failures=plan.tuning.breaker_failures,
                calls_min=20 if plan.tuning.breaker_failures < 1_000 else 50,
            ),
            name="simulator",
            now_s=trio.current_time(),
            jitter=self.random.random,
        )
        self.scope = trio.CancelScope()
        self.connections: dict[str, trio.CancelScope] = {}
        self.system = self._system(world.fees)
        self.api = Api(self._parts())

    def _system(self, fees: FeeSchedule) -> ActorSystem:
        tuning = self.world.plan.tuning
        gateways: dict[str, tuple[Gateway, Breaker]] = {"simulator": (self.gateway, self.breaker)}
        return ActorSystem(
            ledger_writer=self.ledger,
            ledger_reader=self.ledger,
            ledger_upkeep=self.ledger,
            gateways=gateways,
            clock=self.clock,
            ids=self.ids,
            telemetry=self.telemetry,
            random=self.random,
            settings=ActorSettings(
                shards=tuning.shards,
                credits=tuning.credits,
                shard_capacity=tuning.credits,
                wait_ms=tuning.wait_ms,
                batch_entries_max=tuning.batch_entries_max,
                turn_steps=tuning.turn_steps,
                queue_least=tuning.queue_least,
                gateway_reply_max_ms=tuning.gateway_reply_max_ms,
                timer_poll_ms=tuning.timer_poll_ms,
                inbox_retry_ms=tuning.inbox_retry_ms,
                answered_keys_max=tuning.answered_keys_max,
                park_retry_s=tuning.park_retry_s,
                keys_kept_ms=KEYS_KEPT_MS,
                fees=dict.fromkeys(MERCHANTS, fees),
            ),
        )

    def _parts(self) -> Parts:
        return Parts(
            front=self.system.router,
            reader=self.ledger,
            clock=self.clock,
            ids=self.ids,
            telemetry=self.telemetry,
            keys=_KEYS,
            gateways={"simulator": knows},
            default_gateway="simulator",
            cursors=CursorSeal(hashlib.sha256(b"simulation").digest()),
            readiness=self.not_ready_because,
            health=list,
            statistics=self.system.statistics,
            metrics=lambda: ("text/plain", b""),
            verification=lambda: None,
            retry_dead_letter=self.system.retry_dead_letter,
            complete_authentication=self._complete_authentication,
        )

    def not_ready_because(self) -> list[str]:
        """Why no work is taken; empty when it is."""
        return self.system.not_ready_because() if self.is_up else ["not up"]

    async def _complete_authentication(self, reference: str, approve: bool) -> bool:
        simulator = self.world.provider.simulator
        if isinstance(simulator.complete(reference, approve=approve), NotFound):
            return False
        operation = parse_op_id(simulator.operation_of(reference) or "")
        if operation is not None:
            self.system.look_up_now(operation[0])
        return True

    # --- living and dying ---------------------------------------------------------------------

    async def run(self) -> None:
        """Take the ledger over, run the actors, and end in one way or another."""
        try:
            with self.scope:
                await self.ledger.stand_by(self.name)
                self.ids.continue_after(max(self.world.store.transfers, default=0))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keep_lock)
                    await nursery.start(_started, self.system)
                    self.is_up = True
                    self.started.set()
                    self.world.trace.say(self.name, "is up, epoch {}", self.world.store.epoch)
        except BaseException as error:
            self.error = _worst_of(error)
            if self.scope.cancel_called and is_injected(repr(self.error)):
                self.error = None  # A crash on purpose, just as it was stopped.
            if self.error is not None and not isinstance(self.error, Fenced | MaxIntensityReached):
                self.world.watch.fail("no errors of its own", f"the engine died: {self.error!r}")
        finally:
            self._note_end()

    def _note_end(self) -> None:
        if isinstance(self.error, Fenced):
            self.world.note("an engine that had been taken over was fenced")
        elif isinstance(self.error, MaxIntensityReached):
            self.world.note("an engine gave up, and was started again from outside")
        self.world.trace.say(self.name, "has ended{}", f": {self.error!r}" if self.error else "")
        self.is_up = False
        self.kill()
        self.ended.set()

    def kill(self) -> None:
        """Die at once: nothing of it reaches the ledger, the gateway or a client any more."""
        if self.is_dead:
            return
        self.is_dead = True
        self.is_up = False
        self.died.set()
        self.scope.cancel()
        for connection in tuple(self.connections.values()):
            connection.cancel()
        self.ledger.lose_lock()

    async def stop(self) -> None:
        """End in good order, as on SIGTERM."""
        self.is_up = False
        self.system.router.close()
        with trio.move_on_after(DRAIN_S):
            await self.system.router.wait_idle()
        self.scope.cancel()
        with trio.move_on_after(DRAIN_S):
            await self.ended.wait()
        self.kill()

    async def _keep_lock(self) -> None:
        while True:
            await self.ledger.wait_lock_lost()
            while True:
                try:
                    await self.ledger.retake()
                    break
                except LedgerUnavailable:
                    await trio.sleep(LOCK_RETRY_S)


async def _started(
    system: ActorSystem, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    await system.run(task_status=task_status)


def _worst_of(error: BaseException) -> BaseException | None:
    """What an end was about: nothing where it was killed or cancelled."""
    if isinstance(error, BaseExceptionGroup):
        found = [_worst_of(inner) for inner in error.exceptions]
        return next((inner for inner in found if inner is not None), None)
    return None if isinstance(error, Killed | RunEnded | trio.Cancelled) else error
