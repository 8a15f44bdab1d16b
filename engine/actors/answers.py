"""What a request is told, and every item of a batch: the reply, or what the ledger holds instead.

Without a reply there may be an answer under the request's key, a payment that goes on, or nothing
any more. Nothing is done here but reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import anyio

from engine.actors.directory import LEDGER_DOWN
from engine.actors.settings import ActorSettings
from engine.actors.waiting import Gathering, Waiter, ref_of
from engine.domain.change import Env
from engine.domain.commands import Open
from engine.domain.entry import Answer, KeyRef
from engine.domain.machine import not_found, open_payment
from engine.domain.payment import Payment
from engine.domain.refusals import Refusal
from engine.domain.representation import answer_for, payment_bytes, refund_bytes, refusal_answer
from engine.ports import Ask, Clock, Gateway, Ids, LedgerReader, LedgerUnavailable

_READERS = 8
"""How many look-ups in the ledger one batch makes at a time."""


class Answers:
    """Answers, each with whether it is a replay."""

    def __init__(
        self,
        ledger: LedgerReader,
        gateways: Mapping[str, Gateway],
        clock: Clock,
        ids: Ids,
        settings: ActorSettings,
    ) -> None:
        self._ledger = ledger
        self._gateways = gateways
        self._clock = clock
        self._ids = ids
        self._settings = settings
        self.refused = 0

    def no(self, ask: Ask, refusal: Refusal) -> Answer:
        """Refuse, and count it."""
        self.refused += 1
        return refusal_answer(refusal, request_id=ask.request_id, path=ask.path)

    def reused(self, ask: Ask) -> Answer:
        """The key belongs to another request."""
        return refusal_answer(
            Refusal(
                "idempotency_key_reused",
                "This Idempotency-Key was used for another request. Use a new key for a new one.",
                param="Idempotency-Key",
            ),
            request_id=ask.request_id,
            path=ask.path,
        )

    async def joined(self, running: Waiter, ask: Ask, ref: KeyRef) -> tuple[Answer, bool]:
        """What one who joined is told, at the reply or at the end of the wait."""
        if running.is_woken and running.answer is None and not running.key_taken:
            # The first one was told 202 when its wait ran out, and so is this one.
            return await self._still_running(running, ask), False
        if running.answer is None and not running.key_taken:
            return (
                refusal_answer(
                    Refusal(
                        "idempotency_in_progress",
                        "The first request with this key is still running. Try again shortly.",
                        retry_after_s=1,
                    ),
                    request_id=ask.request_id,
                    path=ask.path,
                ),
                False,
            )
        answer, _ = await self.outcome(running, ask, ref)
        return answer, answer.final

    async def outcome(self, waiter: Waiter, ask: Ask, ref: KeyRef | None) -> tuple[Answer, bool]:
        """What the one is told whose request it is, at the reply or at the end of the wait."""
        answer = waiter.answer
        if answer is not None and (answer.final or ref is None or answer.status < 400):
            return answer, False
        if waiter.key_taken and ref is not None:
            return await self._replay(ask, ref)
        if answer is not None and ref is not None:
            # The key is judged before the state: a refusal that is not stored may be its second.
            replayed = await self._stored(ask, ref)
            return replayed if replayed is not None else (answer, False)
        return await self._still_running(waiter, ask), False

    async def not_admitted(
        self, refusal: Refusal, ask: Ask, ref: KeyRef | None
    ) -> tuple[Answer, bool]:
        """What was answered once needs no gateway to be answered again."""
        if refusal.code == "gateway_unavailable" and ref is not None:
            stored = await self._stored(ask, ref)
            if stored is not None:
                return stored
        return self.no(ask, refusal), False

    async def _stored(self, ask: Ask, ref: KeyRef) -> tuple[Answer, bool] | None:
        """What the ledger holds under a key; None: nothing."""
        try:
            return await self._claimed(ask, ref)
        except LedgerUnavailable:
            return self.no(ask, LEDGER_DOWN), False

    async def _claimed(self, ask: Ask, ref: KeyRef) -> tuple[Answer, bool] | None:
        """The same. Raises LedgerUnavailable."""
        claim = await self._ledger.claim(ref)
        if claim is None:
            return None
        if claim.fingerprint != ask.fingerprint:
            return self.reused(ask), False
        if claim.answer is not None:
            return claim.answer, True
        found = await self._ledger.payments([claim.payment_id])
        payment = found.get(claim.payment_id)
        if payment is None or not 1 <= claim.op <= len(payment.operations):
            return None
        answer = self._present(payment, claim.op)
        if not answer.final:
            return answer, False
        # The outcome came between the two reads, and what it left under the key decides: the
        # bytes of the answer, or nothing where the key was released.
        claim = await self._ledger.claim(ref)
        if claim is None:
            return None
        if claim.fingerprint != ask.fingerprint:
            # It was released, and another request has it now.
            return self.reused(ask), False
        return (answer, False) if claim.answer is None else (claim.answer, True)

    async def _replay(self, ask: Ask, ref: KeyRef) -> tuple[Answer, bool]:
        stored = await self._stored(ask, ref)
        if stored is not None:
            return stored
        # The key was released between our claim and now, so it may run again.
        return self.no(
            ask,
            Refusal(
                "idempotency_in_progress",
                "The key has just become free. Send the same request again.",
                retry_after_s=1,
            ),
        ), False

    def _present(self, payment: Payment, n: int) -> Answer:
        """The state as it is: 202 until the answer is final."""
        op = payment.operations[n - 1]
        answer = answer_for(payment, op)
        if answer is not None:
            return answer
        is_refund = op.refund_id is not None
        return Answer(
            202,
            refund_bytes(payment, op) if is_refund else payment_bytes(payment),
            final=False,
            location=f"/v1/refunds/{op.refund_id}" if is_refund else f"/v1/payments/{payment.id}",
            retry_after_s=1,
        )

    async def _still_running(self, waiter: Waiter, ask: Ask) -> Answer:
        """No final answer came within the wait: 202 with the state as it is."""
        claimed = None
        try:
            found = await self._ledger.payments([waiter.payment_id])
            if waiter.ref is not None:
                # Last, so that what the payment shows as settled has its stored answer by now:
                # its reply may have been lost with an incarnation of its shard.
                claimed = await self._claimed(ask, waiter.ref)
        except LedgerUnavailable:
            found = {}
        if claimed is not None:
            return claimed[0]
        return self._as_it_is(found.get(waiter.payment_id), waiter, ask)

    def _as_it_is(self, payment: Payment | None, waiter: Waiter, ask: Ask) -> Answer:
        if payment is None:
            return self._accepted_unseen(waiter, ask)
        if (
            payment.merchant_id != ask.command.merchant_id
            or payment.livemode != ask.command.livemode
        ):
            return self.no(ask, not_found(payment.id))
        for op in payment.operations:
            if op.request_id == waiter.request_id:
                return self._present(payment, op.n)
        # Nothing of it is durable yet, so nothing can be promised.
        return self._accepted_unseen(waiter, ask)

    def _accepted_unseen(self, waiter: Waiter, ask: Ask) -> Answer:
        """The request is with the writer and cannot be read yet; the same key will tell."""
        if not isinstance(ask.command, Open):
            return self.no(
                ask,
                Refusal(
                    "idempotency_in_progress",
                    "The request was accepted and is still running. Ask again with its key.",
                    retry_after_s=2,
                ),
            )
        env = Env(
            now_ms=self._clock.now_ms(),
            new_transfer=lambda: 1,
            new_id=self._ids.new,
            jitter=self._ids.jitter,
            traits=self._gateways[ask.command.gateway].traits,
            fees=self._settings.fees_of(ask.command.merchant_id),
        )
        step = open_payment(ask.command, waiter.payment_id, "", ask.request_id, ask.path, env)
        return Answer(
            202,
            payment_bytes(step.payment),
            final=False,
            location=f"/v1/payments/{waiter.payment_id}",
            retry_after_s=2,
        )

    # --- batches ----------------------------------------------------------------------------

    async def gathered(self, gathering: Gathering) -> list[tuple[Answer, bool]]:
        """Every item's answer. Nearly always all of them are there."""
        asks, answers = gathering.asks, gathering.answers
        behind = gathering.followers()
        open_: list[tuple[int, Waiter]] = []
        unsure: list[int] = []
        for place, waiter in enumerate(gathering.waiters):
            if answers[place] is not None or place in gathering.copies:
                continue
            if waiter is None:
                if place in gathering.refusals:
                    unsure.append(place)
                else:
                    refusal = BEHIND if place in behind else OVERLOADED
                    answers[place] = (self.no(asks[place], refusal), False)
                continue
            answer = waiter.answer
            is_own = waiter.gathering is gathering
            if answer is not None and (answer.final or answer.status < 400):
                answers[place] = (answer, answer.final and not is_own)
            elif answer is None and not waiter.key_taken and (is_own or waiter.is_woken):
                open_.append((place, waiter))
            else:
                unsure.append(place)
        if open_:
            await self._tell_open(gathering, open_)
        if unsure:
            unsure.reverse()
            async with anyio.create_task_group() as tasks:
                for _ in range(min(len(unsure), _READERS)):
                    tasks.start_soon(self._settle_unsure, gathering, unsure)
        for place, first in gathering.copies.items():
            told = answers[first]
            assert told is not None
            same = asks[place].fingerprint == asks[first].fingerprint
            answers[place] = (told[0], told[0].final) if same else (self.reused(asks[place]), False)
        return cast(list[tuple[Answer, bool]], answers)

    async def _tell_open(self, gathering: Gathering, open_: list[tuple[int, Waiter]]) -> None:
        """202 with the state as it is, for those without an answer within the wait: one read."""
        try:
            found = await self._ledger.payments([waiter.payment_id for _, waiter in open_])
        except LedgerUnavailable:
            found = {}
        for place, waiter in open_:
            answer = self._as_it_is(found.get(waiter.payment_id), waiter, gathering.asks[place])
            gathering.answers[place] = (answer, False)

    async def _settle_unsure(self, gathering: Gathering, places: list[int]) -> None:
        """Answer, from the end, what has to be looked up in the ledger one by one."""
        while places:
            place = places.pop()
            ask = gathering.asks[place]
            ref = ref_of(ask)
            waiter = gathering.waiters[place]
            if waiter is None:
                told = await self.not_admitted(gathering.refusals[place], ask, ref)
            elif waiter.gathering is gathering or ref is None:
                told = await self.outcome(waiter, ask, ref)
            else:
                told = await self.joined(waiter, ask, ref)
            gathering.answers[place] = told


OVERLOADED = Refusal(
    "overloaded",
    "More is under way than this engine admits; nothing was done. Try again shortly.",
    retry_after_s=1,
)

BEHIND = Refusal(
    "operation_unresolved",
    "An earlier item of this payment has no answer yet, so this one was not done. Send it again.",
    retry_after_s=1,
)

IS_STOPPING = Refusal(
    "starting", "The engine is stopping; nothing was done. Try again shortly.", retry_after_s=2
)
