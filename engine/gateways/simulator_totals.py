"""Folds of the simulator's books, to be compared with the ledger. Pure.

Take the effects from `simulator_books.read_books`, and the time from a clock: what was pending
when it was written may be done by now.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from engine.domain.news import Action
from engine.gateways.simulator_books import Effect


class OperationTotal(msgspec.Struct):
    """What the books say of one operation of ours.

    `times` counts how often it took effect (more than once is a double charge), `waiting` how
    often it still may. `amount` is that of the latest execution.
    """

    op_id: str
    action: Action
    amount: int
    currency: str
    livemode: bool
    times: int = 0
    waiting: int = 0


class ChargeTotal(msgspec.Struct):
    """What the books say of one charge, in minor units."""

    reference: str
    op_id: str
    currency: str
    livemode: bool
    authorized: int
    captured: int = 0
    released: int = 0
    refunded: int = 0


def _latest(effects: Iterable[Effect]) -> dict[int, Effect]:
    """The effects by number, each revision in the place of what it revises."""
    latest: dict[int, Effect] = {}
    first: dict[int, int] = {}
    for effect in effects:
        place = first.get(effect.revises, effect.revises) if effect.revises else effect.seq
        first[effect.seq] = place
        latest[place] = effect
    return latest


def totals_by_operation(effects: Iterable[Effect], now_ms: int) -> dict[str, OperationTotal]:
    """Every operation the books have heard of, by our operation id."""
    totals: dict[str, OperationTotal] = {}
    for effect in _latest(effects).values():
        total = totals.get(effect.op_id)
        if total is None:
            total = totals[effect.op_id] = OperationTotal(
                effect.op_id, effect.action, effect.amount, effect.currency, effect.livemode
            )
        if effect.is_done(now_ms):
            total.times += 1
            total.amount = effect.amount
        elif effect.is_waiting(now_ms):
            total.waiting += 1
    return totals


def totals_by_charge(effects: Iterable[Effect], now_ms: int) -> dict[str, ChargeTotal]:
    """Every charge that was made, by its reference."""
    totals: dict[str, ChargeTotal] = {}
    for effect in _latest(effects).values():
        if not effect.is_done(now_ms):
            continue
        if effect.action in ("authorize", "purchase"):
            totals[effect.reference] = ChargeTotal(
                effect.reference,
                effect.op_id,
                effect.currency,
                effect.livemode,
                effect.amount,
                effect.amount if effect.action == "purchase" else 0,
            )
            continue
        total = totals.get(effect.charge)
        if total is None:
            # The void of something that was still waiting: there never was a charge.
            continue
        if effect.action == "capture":
            total.captured += effect.amount
            if effect.final:
                total.released = total.authorized - total.captured
        elif effect.action == "void":
            total.released = total.authorized - total.captured
        else:
            total.refunded += effect.amount
    return totals
