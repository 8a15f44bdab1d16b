"""One payment against a gateway's own books: what both say must be the same. Pure.

Both sides are read one after the other while the engine runs, the witness last. So what the
witness has done just now may not have been heard here: within the grace period it is in flight.
What succeeded here had been done there before, so that has no grace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from engine.domain.change import ACTIONS
from engine.domain.ids import op_id
from engine.domain.operation import Operation
from engine.domain.payment import Payment
from engine.domain.witness import WitnessEffect

Moved = Mapping[tuple[int, str, str], int]
"""(operation, kind of transfer, phase) -> the sum of its transfers, in minor units."""

IN_FLIGHT: Final = ""
REVERSAL_FAILED: Final = "and its reversal failed"
"""Stands for a sentence where two sides differ and may still agree by themselves."""

Found = tuple[str, str]
"""An id, and what is wrong with it (or IN_FLIGHT)."""


def compare(
    payment: Payment,
    moved: Moved,
    effects: Sequence[WitnessEffect],
    *,
    now_ms: int,
    grace_ms: int,
) -> Iterator[Found]:
    """What differs. `now_ms` is a time before the payment was read."""
    by_op = _current(effects)
    for op in payment.operations:
        operation_id = op_id(payment.id, op.n)
        there = by_op.pop(operation_id, [])
        if op.type == "refund" and not op.transfer:
            # Made at the gateway itself, which knows it under an id of its own.
            continue
        newest_ms = max((effect.changed_ms for effect in there), default=0)
        # While the next look-up is still to come, an open operation is nobody's oversight.
        known_ms = max(newest_ms, op.next_check_ms or 0) if op.is_open else newest_ms
        is_young = known_ms >= now_ms - grace_ms
        what = _compare(payment, op, moved, there, is_young=is_young)
        if what is not None:
            yield operation_id, what
    for operation_id, there in by_op.items():
        yield from unknown(operation_id, there, now_ms=now_ms)


def unknown(operation_id: str, there: Sequence[WitnessEffect], *, now_ms: int) -> Iterator[Found]:
    """Effects for an operation that we do not have.

    An operation is durable before it is sent, so only what was asked for after `now_ms` can be
    missing here without anything being wrong.
    """
    for effect in there:
        if effect.done:
            yield (
                operation_id,
                f"{effect.action} of {effect.amount} {effect.currency} was done there, and is not "
                f"known here"
                if effect.at_ms < now_ms
                else IN_FLIGHT,
            )


def unknown_payment(effects: Sequence[WitnessEffect], *, now_ms: int) -> Iterator[Found]:
    """Effects whose payment we do not have."""
    for operation_id, there in _current(effects).items():
        yield from unknown(operation_id, there, now_ms=now_ms)


def _current(effects: Sequence[WitnessEffect]) -> dict[str, list[WitnessEffect]]:
    """By operation, without what was replaced by a later line."""
    replaced = {effect.replaces for effect in effects if effect.replaces}
    by_op: dict[str, list[WitnessEffect]] = {}
    for effect in effects:
        if not effect.number or effect.number not in replaced:
            by_op.setdefault(effect.op_id, []).append(effect)
    return by_op


def _compare(
    payment: Payment,
    op: Operation,
    moved: Moved,
    there: Sequence[WitnessEffect],
    *,
    is_young: bool,
) -> str | None:
    done = [effect for effect in there if effect.done]
    if len(done) > 1:
        amounts = ", ".join(str(effect.amount) for effect in done)
        return f"the {op.type} was done {len(done)} times there ({amounts} {done[0].currency})"
    effect = done[0] if done else None
    if effect is not None:
        wrong = _wrong_kind(payment, op, effect)
        if wrong is not None:
            return wrong
    if op.is_open:
        if effect is not None and not is_young:
            return f"the {op.type} is {op.status} here, but it was done there, and not just now"
        return IN_FLIGHT
    if op.status == "succeeded":
        return _succeeded(op, moved, effect, is_young=is_young)
    return None if effect is None else _undone(payment, op, moved, effect, is_young=is_young)


def _wrong_kind(payment: Payment, op: Operation, effect: WitnessEffect) -> str | None:
    """Amounts aside: is what was done there the thing that was asked for?"""
    if op.type == "reversal":
        action: str = "refund" if payment.origin.type == "purchase" else "void"
    else:
        action = ACTIONS[op.type]
    if effect.action != action:
        return f"the {op.type} was done there as another action: {effect.action}"
    if effect.currency != payment.currency:
        return f"the {op.type} is in {payment.currency} here and in {effect.currency} there"
    if effect.livemode is not payment.livemode:
        return f"the {op.type} was done there in the other mode"
    return None


def _succeeded(
    op: Operation, moved: Moved, effect: WitnessEffect | None, *, is_young: bool
) -> str | None:
    amount = recorded(op, moved)
    if effect is None:
        if op.type == "cancel" and not amount:
            # It had nothing left to release, and may never have been sent.
            return None
        if is_young:
            return IN_FLIGHT
        return f"the {op.type} of {amount} succeeded here, but was not done there"
    if effect.amount == amount or (op.type == "cancel" and not amount):
        return None
    return f"the {op.type} is {amount} here and {effect.amount} there"


def _undone(
    payment: Payment, op: Operation, moved: Moved, effect: WitnessEffect, *, is_young: bool
) -> str | None:
    """It is final and not a success here, and was done there."""
    if op.type == "cancel" and payment.capturable == 0:
        # What it released there had been captured or released here anyway.
        return None
    if op.status == "canceled" and any(
        other.type == "cancel" and other.status == "succeeded" for other in payment.operations
    ):
        # Approved there just before it was voided; the void is compared by itself.
        return None
    reversals = [other for other in payment.operations if other.type == "reversal"]
    if op.n == 1 and reversals:
        reversal = reversals[-1]
        if reversal.is_open or reversal.retry_ms is not None:
            return IN_FLIGHT
        if reversal.status != "succeeded":
            return f"the {op.type} is {op.status} here, was done there, {REVERSAL_FAILED}"
        amount = recorded(op, moved) if op.type == "purchase" else reversal.amount
        if effect.amount == amount:
            return None
        return f"the {op.type} that was reversed is {amount} here and {effect.amount} there"
    if is_young or op.retry_ms is not None:
        return IN_FLIGHT
    return f"the {op.type} is {op.status} here, but was done there ({effect.amount})"


def recorded(op: Operation, moved: Moved) -> int:
    """What the ledger has for an operation, in minor units: its transfers, where it makes any.

    A refund that came back and was then made after all counts once.
    """
    n = op.n
    if op.type in ("purchase", "capture"):
        return moved.get((n, "hold", "post_pending"), 0) + moved.get((n, "suspended", "posted"), 0)
    if op.type == "refund":
        return (
            moved.get((n, "refund", "post_pending"), 0)
            + moved.get((n, "refund_elsewhere", "posted"), 0)
            + moved.get((n, "refund_excess", "posted"), 0)
            - moved.get((n, "refund_returned", "posted"), 0)
        )
    if op.type == "cancel":
        return moved.get((n, "hold", "void_pending"), 0)
    return op.amount
