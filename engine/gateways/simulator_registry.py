"""What the simulator has done, in memory and in its books: effects by key, charges, and uses.

One function (`_take`) counts an effect, whether it happens now or is read back at the start, so
that a restarted simulator can't know anything else than the one that died.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from engine.domain.news import GatewayCall, OperationNews
from engine.gateways.simulator_books import Books, Effect, Notice
from engine.gateways.simulator_charges import (
    CHARGING,
    REFERENCE_PREFIXES,
    Charge,
    apply,
    new_charge,
    news_of,
    refusal_of,
)
from engine.gateways.simulator_methods import (
    AUTHORIZATION_MS,
    METHODS,
    OPEN_MS,
    REFUND_FAILS_AFTER_MS,
    RENEWAL_DECLINES,
    Method,
)

_FAULTS_OF_THE_CALLER: Final = frozenset(
    {"payment_method_unknown", "charge_not_found", "currency_mismatch"}
)
"""Refusals that say something is broken on the caller's side; any other is a decline."""

_NO_CHANGES: Final[Mapping[str, Any]] = {}


class Registry:
    """The state behind the simulator. Whatever it adds to the books, the caller flushes."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self.effects: dict[str, Effect] = {}
        self.seq = 0
        self._superseded: dict[str, Effect] = {}  # by reference, where the key was used again
        self._charges: dict[str, Charge] = {}  # only those something was done to
        self._renewals = {False: 0, True: 0}

    def load(self) -> list[Notice]:
        """Rebuild everything from the books; the webhooks that are still to be sent.

        Raises BooksCorrupt.
        """
        unsent: dict[str, Notice] = {}
        for line in self._books.load():
            if isinstance(line, Effect):
                previous = self.effects.get(line.key)
                if line.revises:
                    self._put_in_place(line)
                    continue
                if previous is not None:
                    self._superseded[previous.reference] = previous
                self._take(line, self.by_reference(line.charge) if line.charge else None)
            elif isinstance(line, Notice):
                unsent[line.event_id] = line
                if line.kind == "dispute":
                    self.open_dispute(self.effects[line.key])
            else:
                unsent.pop(line.event_id, None)
        return list(unsent.values())

    # --- finding ------------------------------------------------------------------------------

    def by_reference(self, reference: str) -> Effect | None:
        """The effect a reference was given for."""
        effect = self.effects.get(reference[3:].partition("~")[0])
        if effect is not None and effect.reference == reference:
            return effect
        return self._superseded.get(reference)

    def target_of(self, call: GatewayCall) -> Effect | None:
        """The authorize or purchase that a capture, void or refund acts on."""
        effect = None
        if call.action in CHARGING:
            return None
        if call.target is not None:
            effect = self.by_reference(call.target)
        elif call.target_key is not None:
            effect = self.effects.get(call.target_key)
        if effect is not None and effect.action not in CHARGING:
            return self.by_reference(effect.charge)
        return effect

    def _charge(self, effect: Effect) -> Charge:
        charge = self._charges.get(effect.reference)
        if charge is None:
            charge = self._charges[effect.reference] = new_charge(effect)
        return charge

    # --- doing --------------------------------------------------------------------------------

    def do(
        self, call: GatewayCall, method: Method, target: Effect | None, now_ms: int, wait_ms: int
    ) -> Effect:
        """Carry a request out, or refuse it: one effect. `wait_ms` is its reply's latency."""
        if call.action not in CHARGING:
            changes = self._on_charge(call, method, target, now_ms, wait_ms)
        elif call.payment_method not in METHODS:
            changes = {"outcome": "failed", "code": "payment_method_unknown"}
        else:
            changes = self._on_card(call, method, now_ms)
        # Only now: canceling something that waits has taken a number of its own.
        self.seq = seq = self.seq + 1
        reference = REFERENCE_PREFIXES[call.action] + call.key
        superseded = self.effects.get(call.key)
        if superseded is not None:
            self._superseded[superseded.reference] = superseded
            reference = f"{reference}~{seq}"
        effect = Effect(
            now_ms,
            seq,
            call.key,
            call.op_id,
            call.action,
            call.amount,
            call.currency,
            method.name,
            call.livemode,
            reference,
            "done",
            final=call.final,
            charge=target.reference if target is not None else "",
            visible_ms=now_ms + method.hidden_for_ms if method.hidden_for_ms else 0,
        )
        if changes:
            effect = msgspec.structs.replace(effect, **changes)
        self._take(effect, target)
        self._books.add(effect)
        return effect

    def complete(self, effect: Effect, *, approve: bool, now_ms: int) -> Effect:
        """The customer has acted on an open request."""
        hold_ms = now_ms + AUTHORIZATION_MS if effect.action == "authorize" else 0
        return self._revise(
            effect,
            at_ms=now_ms,
            outcome="done" if approve else "declined",
            code="" if approve else "authentication_failed",
            expires_ms=hold_ms,
        )

    def open_dispute(self, effect: Effect) -> bool:
        """Whether a purchase or capture is the first of its charge to be disputed."""
        made = self.by_reference(effect.charge) if effect.charge else effect
        assert made is not None, effect
        charge = self._charge(made)
        is_first = not charge.is_disputed
        charge.is_disputed = True
        return is_first

    def news_of_notice(self, notice: Notice, now_ms: int) -> OperationNews | None:
        """What became of the effect a notice tells of; None where it is out of date."""
        effect = self.effects.get(notice.key)
        if effect is None or effect.seq != notice.seq or effect.is_waiting(now_ms):
            return None
        return news_of(effect, now_ms)

    def _on_charge(
        self, call: GatewayCall, method: Method, target: Effect | None, now_ms: int, wait_ms: int
    ) -> Mapping[str, Any]:
        """What a capture, void or refund comes to, as changes of a plain effect."""
        if target is None:
            return _refused("charge_not_found")
        charge = self._charge(target)
        refusal = refusal_of(target, charge, call, now_ms)
        if refusal:
            return _refused(refusal)
        if method.course == "declined":
            return _refused(method.code)
        if call.action == "void":
            if target.is_waiting(now_ms):
                self._revise(target, outcome="canceled", expires_ms=0)
                return {"amount": target.amount}
            return {"amount": charge.authorized - charge.captured}
        if call.action == "refund":
            if method.refunds == "fail":
                return _refused("refund_failed")
            if method.refunds == "fail_late":
                return {"fails_ms": now_ms + wait_ms + REFUND_FAILS_AFTER_MS}
        if method.course == "pending":
            return {"outcome": "pending", "settles_ms": now_ms + method.settles_after_ms}
        return _NO_CHANGES

    def _on_card(self, call: GatewayCall, method: Method, now_ms: int) -> Mapping[str, Any]:
        """What an authorize or purchase comes to, as changes of a plain effect."""
        if method.course == "declined":
            return _refused(method.code)
        if method.declines_renewals:
            use = self._renewals[call.livemode]
            if RENEWAL_DECLINES[use % len(RENEWAL_DECLINES)]:
                return _refused("insufficient_funds")
        if method.course == "open":
            return {"outcome": "open", "expires_ms": now_ms + OPEN_MS}
        settles_ms = now_ms + method.settles_after_ms
        changes: dict[str, Any] = {}
        if call.action == "authorize":
            changes["expires_ms"] = settles_ms + AUTHORIZATION_MS
        if method.course == "pending":
            changes |= {"outcome": "pending", "settles_ms": settles_ms}
        return changes

    def _take(self, effect: Effect, target: Effect | None) -> None:
        """Count an effect: in the same way when it happens and when the books are read."""
        self.effects[effect.key] = effect
        self.seq = effect.seq
        if effect.action in CHARGING:
            method = METHODS.get(effect.method)
            if method is not None and method.declines_renewals:
                self._renewals[effect.livemode] += 1
        elif target is not None:
            apply(self._charge(target), effect)

    def _revise(self, effect: Effect, **changes: Any) -> Effect:
        """Write a new version of an effect that was waiting."""
        revised = msgspec.structs.replace(effect, seq=self.seq + 1, revises=effect.seq, **changes)
        self._put_in_place(revised)
        self._books.add(revised)
        return revised

    def _put_in_place(self, revised: Effect) -> None:
        self.seq = revised.seq
        if revised.reference in self._superseded:
            self._superseded[revised.reference] = revised
        else:
            self.effects[revised.key] = revised


def _refused(code: str) -> Mapping[str, Any]:
    return {"outcome": "failed" if code in _FAULTS_OF_THE_CALLER else "declined", "code": code}
