"""The books of a run: against themselves, against the payments, and against the gateway's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from engine.domain.ids import gateway_key, op_id
from engine.domain.journal import GENESIS, seal
from engine.domain.payment import Payment, timers
from engine.domain.posting import RULES as POSTING
from engine.domain.posting import AccountKey, books_of
from engine.domain.witness import WitnessEffect
from engine.gateways.simulator_books import Effect
from engine.ledger import verify_rules as rules
from engine.ledger.rows import SIGNS
from engine.ledger.verify_witness import IN_FLIGHT, REVERSAL_FAILED, compare, unknown_payment
from engine.simulation.watch import Violation

if TYPE_CHECKING:
    from engine.simulation.world import World

_COLUMNS: Final = (
    *("id", "merchant_id", "livemode", "open", "slot", "version", "created_ms", "amount"),
    *("authorized", "capturing", "captured", "releasing", "released", "refunding", "refunded"),
    *("excess_captured", "excess_refunded", "status", "currency", "customer", "subscription"),
    *("reference", "doc", "reference_held", "has_work"),
)


# --- the ledger -------------------------------------------------------------------------------


def balances(world: World, payments: list[Payment]) -> Iterator[Violation]:
    """Totals against transfers, and accounts against payments."""
    store = world.store
    totals: Counter[tuple[int, str]] = Counter()
    for t in store.transfers.values():
        pending, posted = SIGNS[t.phase]
        for id_, side in ((t.debit_account, "debits"), (t.credit_account, "credits")):
            totals[id_, f"{side}_pending"] += pending * t.amount
            totals[id_, f"{side}_posted"] += posted * t.amount
    has: dict[AccountKey, rules.Tied] = {}
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
    tied: dict[AccountKey, rules.Tied] = {}
    for payment in payments:
        rules.tie(payment, tied)
    nothing = rules.Tied()
    for key in {**has, **tied}:
        for what in rules.untied(key, has.get(key, nothing), tied.get(key, nothing)):
            yield Violation("I1 books balance", what)


def journal(world: World) -> Iterator[Violation]:
    """The chain of batches."""
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


def documents(world: World, payments: list[Payment], *, is_final: bool) -> Iterator[Violation]:
    """Each payment against its columns, its transfers and its timers."""
    moved = _moved(world)
    set_timers: dict[str, set[tuple[str, int]]] = {}
    for kind, due_ms, payment_id in world.store.timers:
        set_timers.setdefault(payment_id, set()).add((kind, due_ms))
    letters: dict[str, int] = {}
    for letter, _ in world.store.dead_letters.values():
        letters[letter[2]] = max(letters.get(letter[2], 0), letter[4])
    now_ms = world.machine_clock.now_ms()
    for payment in payments:
        row = dict(zip(_COLUMNS, world.store.payments[payment.id], strict=True))
        for what in rules.columns(payment, row):
            yield Violation("I4 bounds", f"{payment.id}: {what}")
        if row["has_work"] is not payment.has_work:
            yield Violation("I4 bounds", f"{payment.id}: has_work is {row['has_work']}")
        for what in rules.bounds(payment):
            yield Violation("I4 bounds", f"{payment.id}: {what}")
        for what in rules.amounts(payment, moved.get(payment.id, {})):
            yield Violation("I1 books balance", f"{payment.id}: {what}")
        yield from _operations(payment)
        due = set_timers.get(payment.id, set())
        if due != set(timers(payment).items()):
            yield Violation("I8 nothing left over", f"{payment.id} has the timers {due}")
        if is_final:
            for id_, what in rules.work(payment, due, letters.get(payment.id, 0), now_ms):
                yield Violation("I8 nothing left over", f"{id_}: {what}")
    yield from _accounts_of_transfers(world, payments)


def _operations(payment: Payment) -> Iterator[Violation]:
    """What was captured and refunded is what its operations did, unless a person has to look."""
    if payment.needs_review:
        return
    done = [op for op in payment.operations if op.status == "succeeded"]
    captured = sum(op.amount for op in done if op.type in ("capture", "purchase"))
    refunded = sum(
        op.amount if op.counted is None else op.counted for op in done if op.type == "refund"
    )
    if (payment.captured, payment.refunded) != (captured, refunded):
        what = f"{payment.captured} is captured and {payment.refunded} refunded"
        yield Violation(
            "I1 books balance",
            f"{payment.id}: {what}, by its operations {captured} and {refunded}",
        )


def _accounts_of_transfers(world: World, payments: list[Payment]) -> Iterator[Violation]:
    names = world.store.account_ids
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


def gateway(world: World, payments: list[Payment], *, grace_ms: int) -> Iterator[Violation]:
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
            if what != IN_FLIGHT and not _is_with_a_person(payment, id_, what):
                yield Violation("I3 gateway", f"{id_}: {what}")
    for payment_id in effects:
        for id_, what in unknown_payment(effects[payment_id], now_ms=now_ms + 1):
            yield Violation("I3 gateway", f"{id_}: {what}")


def _is_with_a_person(payment: Payment, id_: str, what: str) -> bool:
    """A reversal that the gateway refused, or took back, has nobody else who could decide.

    What it should have undone stays done for so long; nothing else is excused of that.
    """
    if what.endswith(REVERSAL_FAILED):
        return payment.needs_review
    return payment.needs_review and any(
        op.type == "reversal" for op in payment.operations if op_id(payment.id, op.n) == id_
    )


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
