"""What must hold at the end of a run, and what must hold in the middle of it as well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import msgspec

from engine.domain.ids import gateway_key, op_id
from engine.domain.journal import GENESIS, seal
from engine.domain.payment import Payment, timers
from engine.domain.posting import RULES as POSTING
from engine.domain.posting import books_of
from engine.domain.witness import WitnessEffect
from engine.gateways.simulator_books import Effect
from engine.ledger import verify_rules as rules
from engine.ledger.rows import SIGNS
from engine.ledger.verify_witness import IN_FLIGHT, compare, unknown_payment
from engine.simulation.clients import PAN, Promise
from engine.simulation.watch import OPENS, Violation

if TYPE_CHECKING:
    from engine.simulation.world import World

_COLUMNS: Final = (
    *("id", "merchant_id", "livemode", "open", "slot", "version", "created_ms", "amount"),
    *("authorized", "capturing", "captured", "releasing", "released", "refunding", "refunded"),
    *("excess_captured", "excess_refunded", "status", "currency", "customer", "subscription"),
    *("reference", "doc"),
)


def after_the_storm(world: World) -> Iterator[Violation]:
    """What holds at any moment."""
    payments = _payments(world)
    yield from _books(world, payments)
    yield from _journal(world)
    yield from _documents(world, payments, is_final=False)
    yield from _gateway(world, payments, grace_ms=10**12)
    yield from _promises(world, payments)
    yield from _events(world, payments)


def in_the_end(world: World) -> Iterator[Violation]:
    """What holds when faults have stopped and time has passed."""
    payments = _payments(world)
    yield from _left_over(world, payments)
    yield from _books(world, payments)
    yield from _journal(world)
    yield from _documents(world, payments, is_final=True)
    yield from _gateway(world, payments, grace_ms=0)
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
    yield from _books(world, payments)
    yield from _documents(world, payments, is_final=True)
    yield from _gateway(world, payments, grace_ms=0)


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


# --- the ledger -------------------------------------------------------------------------------


def _books(world: World, payments: list[Payment]) -> Iterator[Violation]:
    store = world.store
    totals: Counter[tuple[int, str]] = Counter()
    for t in store.transfers.values():
        pending, posted = SIGNS[t.phase]
        for account, side in ((t.debit_account, "debits"), (t.credit_account, "credits")):
            totals[account, f"{side}_pending"] += pending * t.amount
            totals[account, f"{side}_posted"] += posted * t.amount
    has: dict[object, rules.Tied] = {}
    balance: Counter[tuple[str, str]] = Counter()
    for key, id_ in store.account_ids.items():
        account = store.accounts[id_]
        for name in ("debits_pending", "debits_posted", "credits_pending", "credits_posted"):
            if getattr(account, name) != totals[id_, name]:
                yield Violation("I1 books balance", f"{name} of account {id_} is off")
        balance[account.book, account.currency] += account.debits_posted - account.credits_posted
        has[key] = rules.Tied(
            account.debits_pending,
            account.credits_pending,
            account.debits_posted - account.credits_posted,
        )
    tied: dict[object, rules.Tied] = {}
    for payment in payments:
        rules.tie(payment, tied)  # type: ignore[arg-type]  # keys are account keys on both sides
    nothing = rules.Tied()
    for key in {**has, **tied}:
        for what in rules.untied(key, has.get(key, nothing), tied.get(key, nothing)):  # type: ignore[arg-type]
            yield Violation("I1 books balance", what)


def _journal(world: World) -> Iterator[Violation]:
    previous = GENESIS
    for number, batch in enumerate(world.store.batches, 1):
        if batch.receipt.number != number or batch.prev_hash != previous:
            yield Violation("I2 journal", f"batch {number} does not follow the one before it")
        previous = seal(
            previous, number, batch.key, batch.recorded_ms, batch.transfers,
            accounts=batch.accounts,
        )  # fmt: skip
        if batch.receipt.hash != previous:
            yield Violation("I2 journal", f"the hash of batch {number} does not cover it")
    epochs = [batch.epoch for batch in world.store.batches]
    if epochs != sorted(epochs):
        yield Violation("I2 journal", "an older epoch wrote after a newer one")


# --- payments ---------------------------------------------------------------------------------


def _documents(
    world: World, payments: list[Payment], *, is_final: bool
) -> Iterator[Violation]:
    moved = _moved(world)
    set_timers: dict[str, set[tuple[str, int]]] = {}
    for kind, due_ms, payment_id in world.store.timers:
        set_timers.setdefault(payment_id, set()).add((kind, due_ms))
    letters: dict[str, int] = {}
    for row, _ in world.store.dead_letters.values():
        letters[row[2]] = max(letters.get(row[2], 0), row[4] if isinstance(row[4], int) else 1)
    now_ms = world.machine_clock.now_ms()
    for payment in payments:
        row = dict(zip(_COLUMNS, world.store.payments[payment.id], strict=True))
        for what in rules.columns(payment, row):
            yield Violation("I4 bounds", f"{payment.id}: {what}")
        for what in rules.bounds(payment):
            yield Violation("I4 bounds", f"{payment.id}: {what}")
        for what in rules.amounts(payment, moved.get(payment.id, {})):
            yield Violation("I1 books balance", f"{payment.id}: {what}")
        due = set_timers.get(payment.id, set())
        if due != set(timers(payment).items()):
            yield Violation("I8 nothing left over", f"{payment.id} has the timers {due}")
        if is_final:
            for id_, what in rules.work(payment, due, letters.get(payment.id, 0), now_ms):
                yield Violation("I8 nothing left over", f"{id_}: {what}")
    names = {key: id_ for key, id_ in world.store.account_ids.items()}
    by_id = {payment.id: payment for payment in payments}
    for t in world.store.transfers.values():
        p = by_id.get(t.payment_id)
        if p is None:
            yield Violation("I1 books balance", f"transfer {t.id} belongs to no payment")
            continue
        books = books_of(p.merchant_id, p.gateway, p.currency, p.livemode)
        debit, credit = (names.get(getattr(books, side)) for side in POSTING[t.kind])
        if (t.debit_account, t.credit_account) != (debit, credit):
            yield Violation("I1 books balance", f"transfer {t.id} is on other accounts")


def _moved(world: World) -> dict[str, dict[tuple[int, str, str], int]]:
    moved: dict[str, dict[tuple[int, str, str], int]] = {}
    for t in world.store.transfers.values():
        sums = moved.setdefault(t.payment_id, {})
        at = (t.op, t.kind, t.phase)
        sums[at] = sums.get(at, 0) + t.amount
    return moved


def _gateway(world: World, payments: list[Payment], *, grace_ms: int) -> Iterator[Violation]:
    """Two books that owe each other nothing."""
    now_ms = world.true_clock.now_ms()
    effects: dict[str, list[WitnessEffect]] = {}
    for line in world.provider.books.lines:
        if isinstance(line, Effect):
            payment_id = line.op_id.partition(".")[0]
            effects.setdefault(payment_id, []).append(_witnessed(line, now_ms))
            if line.key != gateway_key(line.op_id):
                yield Violation("one key", f"{line.op_id} was done under another key")
    moved = _moved(world)
    for payment in payments:
        there = effects.pop(payment.id, [])
        sums = moved.get(payment.id, {})
        for id_, what in compare(payment, sums, there, now_ms=now_ms, grace_ms=grace_ms):
            if what != IN_FLIGHT:
                yield Violation("I3 gateway", f"{id_}: {what}")
    for payment_id in effects:
        for id_, what in unknown_payment(effects[payment_id], now_ms=now_ms + 1):
            yield Violation("I3 gateway", f"{id_}: {what}")


def _witnessed(effect: Effect, now_ms: int) -> WitnessEffect:
    return WitnessEffect(
        op_id=effect.op_id,
        action=effect.action,
        amount=effect.amount,
        currency=effect.currency,
        done=effect.is_done(now_ms),
        at_ms=effect.at_ms,
        changed_ms=effect.at_ms,
        livemode=effect.livemode,
        number=effect.seq,
        replaces=effect.revises,
    )


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
    if router.credits_free != router.credits or router.keys_in_flight or router.waiting:
        yield Violation("I11 healthy", f"the router is not idle: {router}")
    for name, statistics in life.system.statistics().items():
        if name.startswith("mailbox:") and statistics.depth:
            yield Violation("I11 healthy", f"{name} holds {statistics.depth}")
        busy = [
            field
            for field in ("writing", "in_line", "waiting_requests", "awaiting_gateway")
            if name.startswith("shard-") and getattr(statistics, field, 0)
        ]
        if busy:
            yield Violation("I11 healthy", f"{name} is not idle: {busy}")
