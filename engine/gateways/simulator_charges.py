"""What the simulator allows on a charge, and how an effect reads at a given time. Pure.

These limits are the simulator's own. They know nothing of the ledger, so that an engine that
captures or refunds too much is refused here and found out.
"""

from __future__ import annotations

from typing import Final

import msgspec

from engine.domain.news import (
    ActionRequired,
    Approved,
    Declined,
    Expired,
    Failed,
    GatewayCall,
    NextAction,
    NotFound,
    OperationNews,
    StillPending,
)
from engine.gateways.simulator_books import Effect
from engine.gateways.simulator_methods import ADVICE, ADVICE_OTHERWISE, card_of

CHARGING: Final = ("authorize", "purchase")
"""The actions that make a charge; all others act on one."""

REFERENCE_PREFIXES: Final = {
    "authorize": "ch_",
    "purchase": "ch_",
    "capture": "cp_",
    "void": "vd_",
    "refund": "rf_",
}
"""All of one length, so that a reference leads back to the key it was made from."""


class Charge(msgspec.Struct, gc=False):
    """The running amounts of one charge, in minor units.

    `returns` are refunds that come back, as (when, how much).
    """

    authorized: int
    captured: int = 0
    released: int = 0
    refunded: int = 0
    is_closed: bool = False
    is_disputed: bool = False
    returns: tuple[tuple[int, int], ...] = ()

    def refundable(self, now_ms: int) -> int:
        """What may still be refunded, refunds that have come back included."""
        returned = sum(amount for when_ms, amount in self.returns if when_ms <= now_ms)
        return self.captured - self.refunded + returned


def new_charge(effect: Effect) -> Charge:
    """The state right after an authorize or purchase."""
    if effect.action == "purchase":
        return Charge(effect.amount, captured=effect.amount, is_closed=True)
    return Charge(effect.amount)


def refusal_of(made: Effect, charge: Charge, call: GatewayCall, now_ms: int) -> str:
    """Why a capture, void or refund is refused, as a code; empty when it may be done.

    `made` is the authorize or purchase, `charge` what has come of it since.
    """
    if call.livemode is not made.livemode:
        return "charge_not_found"
    if made.is_waiting(now_ms) and call.action == "void":
        return ""
    if not made.is_done(now_ms):
        return "charge_not_approved"
    if call.currency != made.currency:
        return "currency_mismatch"
    if call.action == "refund":
        if call.amount < 1 or call.amount > charge.refundable(now_ms):
            return "amount_exceeds_refundable"
        return ""
    if charge.is_closed:
        return "already_captured" if charge.captured else "already_voided"
    if call.action == "void":
        return ""
    if made.expires_ms and now_ms >= made.expires_ms:
        return "authorization_expired"
    if call.amount < 1 or call.amount > charge.authorized - charge.captured:
        return "amount_exceeds_capturable"
    return ""


def apply(charge: Charge, effect: Effect) -> None:
    """Count a capture, void or refund that was done (or will be) against its charge."""
    if effect.outcome not in ("done", "pending"):
        return
    if effect.action == "refund":
        charge.refunded += effect.amount
        if effect.fails_ms:
            charge.returns = (*charge.returns, (effect.fails_ms, effect.amount))
        return
    if effect.action == "capture":
        charge.captured += effect.amount
    if effect.action == "void" or effect.final:
        charge.released = charge.authorized - charge.captured
        charge.is_closed = True


def news_of(effect: Effect, now_ms: int) -> OperationNews:
    """What became of an effect, as of `now_ms`: the answer to a replay or a look-up."""
    card = card_of(effect.method)
    if effect.is_done(now_ms):
        return Approved(
            effect.amount, effect.currency, effect.reference, effect.expires_ms or None, card
        )
    if effect.is_waiting(now_ms):
        return StillPending(effect.reference, card)
    if effect.outcome == "declined":
        advice = ADVICE.get(effect.code, ADVICE_OTHERWISE)
        return Declined(effect.code, advice, effect.reference, card)
    if effect.outcome == "open":
        return Expired()
    if effect.outcome == "canceled":
        return Failed("canceled")
    if effect.fails_ms:
        return Failed("refund_failed")
    return Failed(effect.code)


def action_required(effect: Effect, url: str) -> ActionRequired:
    """The reply to a request the customer has to complete at `url`."""
    return ActionRequired(
        effect.reference,
        NextAction("redirect", url),
        effect.expires_ms,
        card_of(effect.method),
    )


def looked_up(effect: Effect | None, call: GatewayCall, now_ms: int) -> OperationNews:
    """The answer to a look-up, given what the books hold under its key."""
    if effect is None or effect.action != call.action or effect.livemode is not call.livemode:
        return NotFound()
    if now_ms < effect.visible_ms:
        return NotFound()
    return news_of(effect, now_ms)


def is_same_request(effect: Effect, call: GatewayCall, charge: str) -> bool:
    """Whether a key comes back with what it came with first.

    A void has no amount of its own: it releases whatever is left.
    """
    if (
        effect.action != call.action
        or effect.livemode is not call.livemode
        or effect.currency != call.currency
    ):
        return False
    if call.action == "void":
        return effect.charge == charge
    if effect.amount != call.amount:
        return False
    if call.action in CHARGING:
        return effect.method == call.payment_method
    return effect.charge == charge and (call.action == "refund" or effect.final == call.final)
