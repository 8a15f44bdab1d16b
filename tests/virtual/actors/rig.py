"""A whole engine under trio's virtual clock: the actors, the in-memory ledger, the simulator.

The store and the simulator outlive the engine, as a database and a gateway do. What a test waits
for is looked at again after each commit and each answer of the gateway, never after some time.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import msgspec
import trio
import trio.testing

from engine.actors.settings import ActorSettings
from engine.actors.system import ActorSystem
from engine.domain.breaker import BreakerSettings
from engine.domain.commands import Cancel, Capture, Open, Refund
from engine.domain.document import from_document
from engine.domain.entry import Answer, Batch
from engine.domain.news import GatewayCall, OperationNews
from engine.domain.payment import Payment, timers
from engine.domain.posting import AccountKey
from engine.gateways.breaker import GatewayBreaker
from engine.gateways.simulator import Simulator
from engine.gateways.simulator_books import read_books
from engine.gateways.simulator_config import SimulatorConfig
from engine.gateways.simulator_totals import totals_by_operation
from engine.ledger.memory import MemoryLedger
from engine.ledger.memory_store import MemoryStore
from engine.ports import Ask, Receipt
from tests.virtual.actors.surroundings import Lines, SeededIds, VirtualClock

CALM = BreakerSettings(consecutive_failures=1_000, calls_min=50)


class Killed(BaseException):
    """The process dies here: nothing runs after it."""


class WatchedLedger(MemoryLedger):
    """The in-memory ledger; every commit is news, and a test may stop, spoil or outlive it."""

    def __init__(self, world: "World") -> None:
        super().__init__(world.store)
        self.world = world
        self.gate: trio.Event | None = None
        self.batches: list[Batch] = []

    async def commit(self, batch: Batch, following: Batch | None = None) -> Receipt:
        self.world.point("before commit")
        if self.gate is not None:
            with trio.CancelScope(shield=True):
                await self.gate.wait()
        self.world.spoil(batch)
        receipt = await super().commit(batch, following)
        self.batches.append(batch)
        self.world.point("after commit")
        self.world.tell()
        return receipt


class WatchedGateway:
    """The simulator, seen by somebody who knows the ledger too."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.traits = world.simulator.traits
        self.verify_webhook = world.simulator.verify_webhook
        self.read_webhook = world.simulator.read_webhook
        self.asked: list[tuple[float, GatewayCall]] = []
        self.gate: trio.Event | None = None
        self.answer: Callable[[GatewayCall], OperationNews | None] = lambda call: None
        self.in_flight = 0
        self.in_flight_most = 0

    def perform_now(self, calls: Sequence[GatewayCall]) -> list[OperationNews | None]:
        for call in calls:
            self._look_at(call)
            self.world.tell()
        if self.gate is not None:
            return [None for _ in calls]
        found: list[OperationNews | None] = []
        for call in calls:
            self.world.point("before call")
            found.append(self.answer(call) or self.world.simulator.perform_now([call])[0])
            self.world.point("after call")
        self.world.tell()
        return found

    async def perform(self, call: GatewayCall, in_time_s: float) -> OperationNews:
        self.in_flight += 1
        self.in_flight_most = max(self.in_flight, self.in_flight_most)
        try:
            if self.gate is not None:
                await self.gate.wait()
            self.world.point("before call")
            news = self.answer(call) or await self.world.simulator.perform(call)
            self.world.point("after call")
            return news
        finally:
            self.in_flight -= 1
            self.world.tell()

    def _look_at(self, call: GatewayCall) -> None:
        """Nothing is asked of a gateway that is not durable already."""
        payment_id, _, n = call.op_id.partition(".")
        payment = self.world.payment(payment_id)
        assert payment.operations[int(n) - 1].status in ("processing", "unknown") or call.look_up
        self.asked.append((trio.current_time(), call))

    async def close(self) -> None:
        pass

    def made(self, action: str | None = None, *, look_up: bool = False) -> list[GatewayCall]:
        return [
            call
            for _, call in self.asked
            if call.look_up is look_up and action in (None, call.action)
        ]


class World:
    """Everything there is. `start` brings an engine up, `stop` and `kill` take it down."""

    def __init__(self, nursery: trio.Nursery, path: Any, clock: Any, **config: Any) -> None:
        self.nursery = nursery
        self.mock = clock
        self.clock = VirtualClock()
        self.store = MemoryStore()
        self.telemetry = Lines()
        self.path = path
        self.simulator = Simulator(
            path, clock=self.clock, config=SimulatorConfig(**config), deliver=self.deliver
        )
        self.settings: dict[str, Any] = {"shards": 2, "credits": 50, "shard_capacity": 50}
        self.breaker_settings = CALM
        self.ids = SeededIds(self.clock, 7)
        self.count = 0
        self.bell = trio.Event()
        self.system: ActorSystem | None = None
        self.ended: trio.Event | None = None
        self.error: BaseException | None = None
        self.kill_at: int | None = None
        self.points: list[str] = []
        self.poison: Callable[[Batch], None] = lambda batch: None
        self.gateway = WatchedGateway(self)

    # --- the engine's life ------------------------------------------------------------------

    async def start(self) -> None:
        self.gateway = WatchedGateway(self)
        self.ledger = WatchedLedger(self)
        await self.ledger.take_over("test")
        random = Random(3)
        self.breaker = GatewayBreaker(
            self.breaker_settings, name="simulator", now_s=trio.current_time(), jitter=random.random
        )
        self.system = ActorSystem(
            ledger_writer=self.ledger,
            ledger_reader=self.ledger,
            ledger_upkeep=self.ledger,
            gateways={"simulator": (self.gateway, self.breaker)},
            clock=self.clock,
            ids=self.ids,
            telemetry=self.telemetry,
            random=random,
            settings=ActorSettings(**self.settings),
        )
        self.ended = trio.Event()
        self.error = None
        self.scope = trio.CancelScope()
        started = trio.Event()
        self.nursery.start_soon(self._live, self.system, started)
        await started.wait()

    async def _live(self, system: ActorSystem, started: trio.Event) -> None:
        class Status:
            def started(self, value: object = None) -> None:
                started.set()

        ended = self.ended
        try:
            with self.scope:
                await system.run(task_status=Status())
        except BaseException as error:
            if isinstance(error, trio.Cancelled):
                raise
            self.error = error
        finally:
            started.set()
            ended.set()
            self.ledger.lose_lock()
            self.tell()

    async def stop(self) -> None:
        """Cancel the engine and wait until it has ended."""
        self.scope.cancel()
        await self.ended.wait()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def point(self, name: str) -> None:
        """A place where a process can die; it does at the one that was chosen."""
        self.points.append(name)
        self.tell()
        if self.kill_at is not None and len(self.points) == self.kill_at + 1:
            raise Killed(name)

    def spoil(self, batch: Batch) -> None:
        self.poison(batch)

    # --- waiting ----------------------------------------------------------------------------

    def tell(self) -> None:
        self.bell.set()
        self.bell = trio.Event()

    async def until(self, condition: Callable[[], Any], within_s: float = 120.0) -> None:
        """Wait for a condition, looking after each commit and each answer of the gateway."""
        with trio.fail_after(within_s):
            while not condition():
                await self.bell.wait()

    async def skip(self, seconds: float) -> None:
        """Time passes at once, without the thousands of sweeps in between."""
        self.mock.jump(seconds)
        await trio.testing.wait_all_tasks_blocked()

    # --- asking -----------------------------------------------------------------------------

    async def ask(
        self, command: Any, payment_id: str | None = None, key: str | None = None
    ) -> tuple[Answer, bool]:
        with trio.fail_after(600):
            return await self.system.router.ask(self.asking(command, payment_id, key))

    def asking(self, command: Any, payment_id: str | None = None, key: str | None = None) -> Ask:
        self.count += 1
        key = f"key-{self.count}" if key is None else key
        path = f"/v1/payments/{payment_id or 'authorize'}"
        fingerprint = msgspec.json.encode((path, command))
        return Ask(f"req_{self.count}", command, payment_id, key, fingerprint, path)

    async def ask_many(self, asks: Sequence[Ask]) -> list[tuple[Answer, bool]]:
        with trio.fail_after(600):
            return await self.system.router.ask_many(asks)

    async def open(
        self,
        method: str = "pm_card_visa",
        *,
        purchase: bool = False,
        key: str | None = None,
        amount: int = 1_000,
        **more: Any,
    ) -> tuple[Answer, bool]:
        command = Open("m_a", False, purchase, amount, "USD", method, "simulator", **more)
        return await self.ask(command, None, key)

    async def authorized(self, method: str = "pm_card_visa", **more: Any) -> str:
        """The id of a new payment that was answered with 201."""
        answer, _ = await self.open(method, **more)
        assert answer.status == 201, answer
        return body(answer)["id"]

    async def capture(self, payment_id: str, amount: int | None = None, **more: Any) -> Answer:
        key = more.pop("key", None)
        return (await self.ask(Capture("m_a", False, amount, **more), payment_id, key))[0]

    async def cancel(self, payment_id: str) -> Answer:
        return (await self.ask(Cancel("m_a", False), payment_id))[0]

    async def refund(self, payment_id: str, amount: int | None = None) -> Answer:
        refund_id = self.ids.new("re", payment_id)
        return (await self.ask(Refund("m_a", False, refund_id, amount), payment_id))[0]

    async def deliver(self, headers: Mapping[str, str], raw: bytes) -> bool:
        if self.system is None or self.ended.is_set():
            return False
        self.count += 1
        answer = await self.system.router.webhook(
            "simulator", headers, raw, f"req_hook_{self.count}"
        )
        return answer.status == 200

    # --- looking ----------------------------------------------------------------------------

    def payment(self, payment_id: str) -> Payment:
        return from_document(self.store.payments[payment_id][22])

    def payments(self) -> list[Payment]:
        return [self.payment(payment_id) for payment_id in self.store.payments]

    def status(self, payment_id: str) -> str | None:
        return self.payment(payment_id).status if payment_id in self.store.payments else None

    def events(self) -> list[str]:
        """The events in the order in which they were committed."""
        return [row[5] for row in self.store.events.values()]

    def letters(self) -> list[str]:
        return [row[3] for row, done in self.store.dead_letters.values() if not done]

    def charges(self, op_id: str) -> int:
        """How often the gateway did this operation (its own books say so)."""
        total = totals_by_operation(read_books(self.path), self.clock.now_ms()).get(op_id)
        return 0 if total is None else total.times

    # --- what holds after every test ----------------------------------------------------------

    async def check(self) -> None:
        """The books agree with each other, with the payments and with the gateway."""
        router = self.system.router
        if not self.ended.is_set():
            with trio.fail_after(300):
                # What nobody waits for, such as a webhook, holds no credit, but stands in line.
                while (
                    router.statistics().credits_free != router.statistics().credits
                    or self.system.directory.gave_way
                    or any(shard.statistics().in_line for shard in self.system._shards)
                ):
                    await trio.sleep(1)
            assert router.statistics().keys_in_flight == 0
            assert router.statistics().queue == 0
        self._accounts_are_the_fold_of_the_transfers()
        for payment in self.payments():
            self._gateway_agrees(payment)
            due = timers(payment)
            rows = {kind: at for kind, at, id_ in self.store.timers if id_ == payment.id}
            assert rows == due
        for (merchant, _, key), claim in self.store.claims.items():
            assert merchant == "m_a"
            assert claim[5] == "" or claim[5] in self.store.payments or claim[7] is not None, key

    def _accounts_are_the_fold_of_the_transfers(self) -> None:
        totals: Counter[tuple[int, str]] = Counter()
        for t in self.store.transfers.values():
            pending = {"pending": 1, "posted": 0}.get(t.phase, -1)
            posted = 1 if t.phase in ("posted", "post_pending") else 0
            for account, side in ((t.debit_account, "debits"), (t.credit_account, "credits")):
                totals[account, f"{side}_pending"] += pending * t.amount
                totals[account, f"{side}_posted"] += posted * t.amount
        for account in self.store.accounts.values():
            for name in ("debits_pending", "debits_posted", "credits_pending", "credits_posted"):
                assert getattr(account, name) == totals[account.id, name]
                assert getattr(account, name) >= 0
        payments = [p for p in self.payments() if not p.livemode]
        held = sum(
            (p.amount if p.origin.is_open else p.authorized - p.captured - p.released)
            for p in payments
        )
        refunding = sum(p.refunding for p in payments)
        receivable = self.store.account_ids.get(
            AccountKey("platform", "gateway_receivable", "simulator", "USD", False)
        )
        if receivable is not None:
            account = self.store.accounts[receivable]
            assert (account.debits_pending, account.credits_pending) == (held, refunding)

    def _gateway_agrees(self, payment: Payment) -> None:
        for op in payment.operations:
            if op.is_open or op.type == "reversal":
                continue
            done = self.charges(f"{payment.id}.{op.n}")
            if op.status == "succeeded" and op.sent_ms:
                assert done == 1 or op.type == "cancel", (payment.id, op)
            elif op.n == 1 and any(o.type == "reversal" for o in payment.operations):
                assert done == 1
            else:
                assert done == 0, (payment.id, op)


def body(answer: Answer) -> dict[str, Any]:
    return msgspec.json.decode(answer.body)


@asynccontextmanager
async def a_world(path: Any, clock: Any, **config: Any):
    """A world with its gateway running; the engine is started by the test, or by `running`."""
    async with trio.open_nursery() as nursery:
        world = World(nursery, path / "books.jsonl", clock, **config)
        await nursery.start(world.simulator.run)
        try:
            yield world
            if world.system is not None:
                await world.check()
                await world.stop()
        finally:
            nursery.cancel_scope.cancel()
