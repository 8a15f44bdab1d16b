"""What must hold at the end of a run, and what must hold in the middle of it as well."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from engine.domain.ids import op_id
from engine.domain.payment import Payment
from engine.simulation import check_books
from engine.simulation.clients import PAN, Promise
from engine.simulation.watch import OPENS, Violation

if TYPE_CHECKING:
    from engine.simulation.world import World


def after_the_storm(world: World) -> Iterator[Violation]:
    """What holds at any moment."""
    payments = _payments(world)
    yield from check_books.balances(world, payments)
    yield from check_books.journal(world)
    yield from check_books.documents(world, payments, is_final=False)
    yield from check_books.gateway(world, payments, grace_ms=10**12)
    yield from _promises(world, payments)
    yield from _events(world, payments)


def in_the_end(world: World) -> Iterator[Violation]:
    """What holds when faults have stopped and time has passed."""
    payments = _payments(world)
    yield from _left_over(world, payments)
    yield from check_books.balances(world, payments)
    yield from check_books.journal(world)
    yield from check_books.documents(world, payments, is_final=True)
    yield from check_books.gateway(world, payments, grace_ms=0)
    yield from _promises(world, payments)
    yield from _kept(world, payments)
    yield from _events(world, payments)
    yield from _secrets(world)
    yield from _healthy(world)


def after_a_week(world: World) -> Iterator[Violation]:
    """What holds when every authorisation has lapsed."""
    payments = _payments(world)
    for payment in payments:
        if payment.capturable and not payment.needs_review:
            yield Violation("I8 nothing left over", f"{payment.id} holds {payment.capturable}")
    yield from check_books.balances(world, payments)
    yield from check_books.documents(world, payments, is_final=True)
    yield from check_books.gateway(world, payments, grace_ms=0)


def is_quiet(world: World) -> bool:
    """Whether nothing is under way, and every client knows where it is."""
    if world.up() is None or any(not promise.is_settled for promise in world.promises):
        return False
    if any(outcome is None for _, outcome in world.store.inbox.values()):
        return False
    if world.provider.simulator.statistics().webhooks_waiting:
        return False
    if any(_unresolved(payment) for payment in _payments(world)):
        return False
    return not any(True for _ in _healthy(world))


def is_expired(world: World) -> bool:
    """Whether no hold is left."""
    return not any(payment.capturable for payment in _payments(world))


def _payments(world: World) -> list[Payment]:
    return [world.watch.payment(payment_id) for payment_id in world.store.payments]


def _unresolved(payment: Payment) -> list[str]:
    return [
        op_id(payment.id, op.n)
        for op in payment.operations
        if (op.is_open and not op.needs_review) or op.retry_ms is not None
    ]


# --- clients ----------------------------------------------------------------------------------


def _promises(world: World, payments: list[Payment]) -> Iterator[Violation]:
    """Each key has had an effect at most once, and a refusal has had none."""
    by_key: dict[tuple[str, str], list[tuple[Payment, int]]] = {}
    for payment in payments:
        for op in payment.operations:
            if op.key and op.code != "abandoned":
                by_key.setdefault((payment.merchant_id, op.key), []).append((payment, op.n))
    for promise in world.promises:
        done = by_key.get((promise.merchant, promise.key), [])
        if len(done) > 1:
            ids = ", ".join(op_id(payment.id, n) for payment, n in done)
            yield Violation("I6 idempotency", f"{promise.key} was done more than once: {ids}")
        if promise.final is not None and not promise.is_reuse:
            yield from _promise(promise, done)


def _promise(promise: Promise, done: list[tuple[Payment, int]]) -> Iterator[Violation]:
    assert promise.final is not None
    status, body = promise.final
    name = f"{promise.key} ({promise.what}, answered {status})"
    if not done:
        if status < 400:
            yield Violation("I5 durable answers", f"{name} is not there")
        return
    payment, n = done[0]
    op = payment.operations[n - 1]
    if status in (400, 404, 409, 422):
        yield Violation("I5 durable answers", f"{name} has an effect: {op.status}")
        return
    if op.type != promise.what or promise.payment_id not in (None, payment.id):
        yield Violation("I6 idempotency", f"{name} became a {op.type} of {payment.id}")
    if payment.merchant_id != promise.merchant:
        yield Violation("own payments only", f"{name} is about another merchant's payment")
    amount = promise.body.get("amount", op.amount)
    if promise.what != "cancel" and op.amount != amount:
        yield Violation("I5 durable answers", f"{name} is over {op.amount}, not {amount}")
    if promise.what in OPENS and payment.currency.lower() != promise.body["currency"]:
        yield Violation("I5 durable answers", f"{name} is in {payment.currency}")
    if status == 200 and op.status != "succeeded":
        yield Violation("I5 durable answers", f"{name} is {op.status}")
    shown = msgspec.json.decode(body)
    if status == 201 and op.type != "refund":
        came_true = {"authorized": "succeeded", "captured": "succeeded"}.get(shown["status"])
        if came_true is not None and op.status != came_true:
            yield Violation("I5 durable answers", f"{name} is {op.status}")
    if status in (402, 502) and op.status == "succeeded" and not _came_late(payment, n):
        yield Violation("I5 durable answers", f"{name} has succeeded")


def _came_late(payment: Payment, n: int) -> bool:
    """A capture, cancel or refund that had failed may turn out to be done after all."""
    return n > 1


def _kept(world: World, payments: list[Payment]) -> Iterator[Violation]:
    """Every client knows in the end, and every key that did something has its answer."""
    for promise in world.promises:
        if not promise.is_settled:
            what = f"{promise.key}: {promise.what} has no final answer, last {promise.last}"
            yield Violation("answers in time", what)
    by_id = {payment.id: payment for payment in payments}
    for (merchant, _, key), row in world.store.claims.items():
        payment = by_id.get(row[5])
        if payment is None:
            if row[7] is None:
                yield Violation("I6 idempotency", f"{key} of {merchant} is held by nothing")
            continue
        if row[7] is not None or not 1 <= row[6] <= len(payment.operations):
            continue
        op = payment.operations[row[6] - 1]
        if not op.is_open:
            yield Violation("I6 idempotency", f"{key} is {op.status}, and has no stored answer")


def _events(world: World, payments: list[Payment]) -> Iterator[Violation]:
    numbers: dict[str, list[int]] = {}
    last: dict[str, bytes] = {}
    for row in world.store.events.values():
        numbers.setdefault(row[6], []).append(row[2])
        if max(numbers[row[6]]) == row[2]:
            last[row[6]] = row[7]
    for object_id, found in numbers.items():
        if sorted(found) != list(range(1, len(found) + 1)):
            yield Violation("I7 events", f"{object_id} has the events {sorted(found)}")
    for payment in payments:
        if len(numbers.get(payment.id, ())) != payment.sequence:
            yield Violation("I7 events", f"{payment.id} has lost events")
        if payment.status == "processing":
            continue
        body = last.get(payment.id)
        told = None if body is None else msgspec.json.decode(body)["data"]["object"]["status"]
        if told != payment.status:
            yield Violation("I7 events", f"{payment.id} is {payment.status}, was told {told}")
        for op in payment.operations:
            if op.refund_id is not None and len(numbers.get(op.refund_id, ())) != op.events:
                yield Violation("I7 events", f"{op.refund_id} has lost events")


# --- the engine -------------------------------------------------------------------------------


def _left_over(world: World, payments: list[Payment]) -> Iterator[Violation]:
    for payment in payments:
        for operation in _unresolved(payment):
            yield Violation("I8 nothing left over", f"{operation} is unresolved")
    for (_, event_id), (_, outcome) in world.store.inbox.items():
        if outcome is None:
            yield Violation("I8 nothing left over", f"webhook {event_id} was not dealt with")
    if world.provider.simulator.statistics().webhooks_given_up:
        yield Violation("I8 nothing left over", "a webhook was never accepted")


def _secrets(world: World) -> Iterator[Violation]:
    store = world.store
    claims = [(*row[:3], *row[4:]) for row in store.claims.values()]  # without the fingerprint
    for name, rows in (
        ("payments", store.payments),
        ("events", store.events),
        ("claims", claims),
        ("refunds", store.refunds),
        ("dead letters", store.dead_letters),
    ):
        text = repr(rows)
        if any(secret in text for secret in (PAN, "\\x00", "\\u0000")):
            yield Violation("I10 no secrets", f"a card number or NUL is in the {name}")


def _healthy(world: World) -> Iterator[Violation]:
    life = world.up()
    if life is None:
        yield Violation("I11 healthy", "no engine is up")
        return
    for reason in life.not_ready_because():
        yield Violation("I11 healthy", f"not ready: {reason}")
    router = life.system.router.statistics()
    is_busy = router.keys_in_flight or router.waiting or router.queue
    if router.credits_free != router.credits or is_busy:
        yield Violation("I11 healthy", f"the router is not idle: {router}")
    for name, statistics in life.system.statistics().items():
        if name.startswith("mailbox:") and statistics.depth:
            yield Violation("I11 healthy", f"{name} holds {statistics.depth}")
        busy = [
            field
            for field in ("writing", "in_line", "waiting_requests", "awaiting_gateway")
            if name.startswith("shard-") and getattr(statistics, field, False)
        ]
        if busy:
            yield Violation("I11 healthy", f"{name} is not idle: {busy}")
