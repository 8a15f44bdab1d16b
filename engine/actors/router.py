"""The router: the way in and the way out.

It admits a request by a credit, or refuses it at once; joins requests that carry the same
idempotency key; sends the request to its payment's shard; and hands the reply to whoever waits.
A client that has gone away stops nothing: its reply finds nobody, and its key keeps the answer.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping

import anyio
import msgspec
from anyio.abc import TaskStatus

from engine.actors.directory import Directory
from engine.actors.settings import ActorSettings
from engine.domain.change import Env
from engine.domain.commands import Open
from engine.domain.entry import Answer, Claim, InboxRow, KeyRef
from engine.domain.machine import not_found, open_payment
from engine.domain.payment import Payment
from engine.domain.refusals import Refusal
from engine.domain.representation import answer_for, payment_bytes, refund_bytes, refusal_answer
from engine.messages import Reply, Request, Tick, WebhookReceived
from engine.ports import (
    Ask,
    Clock,
    Event,
    Gateway,
    Ids,
    LedgerReader,
    LedgerUnavailable,
    WebhookRefused,
)
from engine.supervisor.errors import MailboxFull, MailboxRevoked

SWEEP_S = 0.1
CREDIT_LIFE_FACTOR = 6


class _Waiter:
    """Somebody (or several, joined by a key) waiting for one reply."""

    __slots__ = (
        "answer",
        "deadline",
        "done",
        "fingerprint",
        "key_taken",
        "payment_id",
        "ref",
        "request_id",
    )

    def __init__(
        self,
        request_id: str,
        payment_id: str,
        ref: KeyRef | None,
        fingerprint: bytes,
        deadline: float,
        done: Event,
    ) -> None:
        self.request_id = request_id
        self.payment_id = payment_id
        self.ref = ref
        self.fingerprint = fingerprint
        self.deadline = deadline
        self.done = done
        self.answer: Answer | None = None
        self.key_taken = False


class RouterStatistics(msgspec.Struct, frozen=True):
    """The router at this moment."""

    credits: int
    credits_free: int
    waiting: int
    keys_in_flight: int
    keys_remembered: int
    refused: int


class Router:
    """Implements `ports.Front`. Its `run` sweeps deadlines: no timer per request."""

    def __init__(
        self,
        directory: Directory,
        ledger: LedgerReader,
        gateways: Mapping[str, Gateway],
        clock: Clock,
        ids: Ids,
        settings: ActorSettings,
        new_event: Callable[[], Event] = anyio.Event,
    ) -> None:
        self._new_event = new_event
        self._directory = directory
        self._ledger = ledger
        self._gateways = gateways
        self._clock = clock
        self._ids = ids
        self._settings = settings
        self._credits = settings.credits
        self._waiters: dict[str, _Waiter] = {}
        self._by_deadline: deque[_Waiter] = deque()
        self._lingering: deque[_Waiter] = deque()
        self._in_flight: dict[KeyRef, _Waiter] = {}
        self._answered: OrderedDict[KeyRef, tuple[bytes, Answer]] = OrderedDict()
        self._refused = 0
        self._is_closed = False
        self._idle: anyio.Event | None = None
        self._wait_s = settings.wait_ms / 1000
        # Deadlines of seconds need no clock reading per request: the sweep's is exact enough.
        self._now = 0.0

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Sweep until cancelled: wake those past their wait, and tick the shards."""
        ticked = self._now = anyio.current_time()
        task_status.started()
        while True:
            await anyio.sleep(SWEEP_S)
            now = self._now = anyio.current_time()
            self._sweep(now)
            if now - ticked >= 1.0:
                ticked = now
                tick = Tick(self._clock.now_ms())
                for shard in self._directory.shards:
                    shard.put_reserved_nowait(tick)

    def _sweep(self, now: float) -> None:
        """Both queues are in order of deadline, since every wait is equally long."""
        waiting, lingering = self._by_deadline, self._lingering
        while waiting and waiting[0].deadline <= now:
            waiter = waiting.popleft()
            if waiter.request_id in self._waiters:
                waiter.done.set()
                waiter.deadline = now + self._wait_s * CREDIT_LIFE_FACTOR
                lingering.append(waiter)
        while lingering and lingering[0].deadline <= now:
            # Its reply was lost with an incarnation of its shard: the credit comes back.
            self._forget(lingering.popleft())

    def _forget(self, waiter: _Waiter) -> None:
        if self._waiters.pop(waiter.request_id, None) is None:
            return
        self._credits += 1
        if waiter.ref is not None:
            self._in_flight.pop(waiter.ref, None)
        if self._idle is not None and not self._waiters:
            self._idle.set()

    def close(self) -> None:
        """Admit nothing more; what was admitted is answered."""
        self._is_closed = True

    async def wait_idle(self) -> None:
        """Wait until nobody waits for a reply (a drain does, for as long as it may)."""
        while self._waiters:
            self._idle = anyio.Event()
            await self._idle.wait()

    def statistics(self) -> RouterStatistics:
        """The router at this moment."""
        return RouterStatistics(
            self._settings.credits,
            self._credits,
            len(self._waiters),
            len(self._in_flight),
            len(self._answered),
            self._refused,
        )

    # --- the way out ------------------------------------------------------------------------

    def resolve(self, reply: Reply) -> None:
        """A shard's reply; nobody may be waiting any more."""
        waiter = self._waiters.get(reply.request_id)
        if waiter is None:
            return
        self._forget(waiter)
        waiter.answer = reply.answer
        waiter.key_taken = reply.key_taken is not None
        answer = reply.answer
        if waiter.ref is not None and answer is not None and answer.final:
            self._answered[waiter.ref] = (waiter.fingerprint, answer)
            if len(self._answered) > self._settings.answered_keys_max:
                self._answered.popitem(last=False)
        waiter.done.set()

    # --- the way in -------------------------------------------------------------------------

    async def ask(self, ask: Ask) -> tuple[Answer, bool]:
        """Do it, join it or replay it: the answer, and whether it is a replay."""
        ref = None
        if ask.key is not None:
            command = ask.command
            ref = KeyRef(command.merchant_id, command.livemode, ask.key)
            known = self._answered.get(ref)
            if known is not None:
                if known[0] != ask.fingerprint:
                    return self._reused(ask), False
                return known[1], True
            running = self._in_flight.get(ref)
            if running is not None:
                return await self._join(running, ask, ref)
        waiter = self._admit(ask, ref)
        if isinstance(waiter, Answer):
            if waiter.code == "gateway_unavailable" and ref is not None:
                # What was answered once needs no gateway to be answered again.
                return await self._stored(ask, ref) or (waiter, False)
            return waiter, False
        await waiter.done.wait()
        return await self._outcome(waiter, ask, ref)

    def _admit(self, ask: Ask, ref: KeyRef | None) -> _Waiter | Answer:
        """Take a credit and send the request, or say at once why not. Nothing was done then."""
        trouble = self._trouble(ask)
        if trouble is not None:
            return self._no(ask, trouble)
        payment_id = ask.payment_id or self._new_payment_id(ask.command)
        refusal = self._shard_trouble(payment_id)
        if refusal is not None:
            return self._no(ask, refusal)
        claim = None
        now_ms = self._clock.now_ms()
        if ref is not None:
            claim = Claim(
                ref, ask.fingerprint, now_ms, payment_id, 0 if ask.payment_id is not None else 1
            )
        request = Request(ask.request_id, payment_id, ask.command, claim, ask.path, now_ms)
        waiter = _Waiter(
            ask.request_id,
            payment_id,
            ref,
            ask.fingerprint,
            self._now + self._wait_s,
            self._new_event(),
        )
        try:
            self._directory.shard_of(payment_id).put_nowait(request)
        except (MailboxFull, MailboxRevoked):
            return self._no(ask, _OVERLOADED)
        self._credits -= 1
        self._waiters[ask.request_id] = waiter
        self._by_deadline.append(waiter)
        if ref is not None:
            self._in_flight[ref] = waiter
        return waiter

    def _no(self, ask: Ask, refusal: Refusal) -> Answer:
        self._refused += 1
        return refusal_answer(refusal, request_id=ask.request_id, path=ask.path)

    def _trouble(self, ask: Ask) -> Refusal | None:
        if self._is_closed:
            return _STOPPING
        if self._credits <= 0:
            return _OVERLOADED
        if self._directory.ledger_trouble is not None:
            return Refusal(
                "ledger_unavailable",
                "The ledger cannot be reached; nothing was done. Try again shortly.",
                retry_after_s=1,
            )
        if isinstance(ask.command, Open):
            return self._directory.gateway_trouble(ask.command.gateway)
        return None

    def _new_payment_id(self, command: object) -> str:
        """A new payment goes to a shard that is in service, unless its subscription decides."""
        assert isinstance(command, Open), command
        payment_id = self._ids.payment(command.subscription)
        if command.subscription is None:
            for _ in range(16):
                if self._directory.shard_trouble[self._directory.shard_index(payment_id)] is None:
                    break
                payment_id = self._ids.payment(None)
        return payment_id

    def _shard_trouble(self, payment_id: str) -> Refusal | None:
        trouble = self._directory.shard_trouble[self._directory.shard_index(payment_id)]
        if trouble is None:
            return None
        code = "starting" if trouble == "starting" else "shard_parked"
        return Refusal(
            code, "This payment's shard is not in service; nothing was done.", retry_after_s=2
        )

    # --- keys -------------------------------------------------------------------------------

    def _reused(self, ask: Ask) -> Answer:
        return refusal_answer(
            Refusal(
                "idempotency_key_reused",
                "This Idempotency-Key was used for another request. Use a new key for a new one.",
                param="Idempotency-Key",
            ),
            request_id=ask.request_id,
            path=ask.path,
        )

    async def _join(self, running: _Waiter, ask: Ask, ref: KeyRef) -> tuple[Answer, bool]:
        """The same key is under way: wait for the same answer."""
        if running.fingerprint != ask.fingerprint:
            return self._reused(ask), False
        with anyio.move_on_after(self._wait_s):
            await running.done.wait()
        if running.done.is_set() and running.answer is None and not running.key_taken:
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
        answer, _ = await self._outcome(running, ask, ref)
        return answer, answer.final

    async def _outcome(self, waiter: _Waiter, ask: Ask, ref: KeyRef | None) -> tuple[Answer, bool]:
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

    async def _stored(self, ask: Ask, ref: KeyRef) -> tuple[Answer, bool] | None:
        """What the ledger holds under a key; None: nothing."""
        try:
            claim = await self._ledger.claim(ref)
            if claim is None:
                return None
            if claim.fingerprint != ask.fingerprint:
                return self._reused(ask), False
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
        except LedgerUnavailable:
            return self._no(ask, _LEDGER_DOWN), False
        if claim is None:
            return None
        return (answer, False) if claim.answer is None else (claim.answer, True)

    async def _replay(self, ask: Ask, ref: KeyRef) -> tuple[Answer, bool]:
        stored = await self._stored(ask, ref)
        if stored is not None:
            return stored
        # The key was released between our claim and now, so it may run again.
        return self._no(
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

    async def _still_running(self, waiter: _Waiter, ask: Ask) -> Answer:
        """No final answer came within the wait: 202 with the state as it is."""
        try:
            found = await self._ledger.payments([waiter.payment_id])
        except LedgerUnavailable:
            found = {}
        payment = found.get(waiter.payment_id)
        if payment is None:
            return self._accepted_unseen(waiter, ask)
        if (
            payment.merchant_id != ask.command.merchant_id
            or payment.livemode != ask.command.livemode
        ):
            return self._no(ask, not_found(payment.id))
        for op in payment.operations:
            if op.request_id == waiter.request_id:
                return self._present(payment, op.n)
        return Answer(
            202,
            payment_bytes(payment),
            final=False,
            location=f"/v1/payments/{payment.id}",
            retry_after_s=1,
        )

    def _accepted_unseen(self, waiter: _Waiter, ask: Ask) -> Answer:
        """The request is with the writer and cannot be read yet; the same key will tell."""
        if not isinstance(ask.command, Open):
            return self._no(
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

    # --- webhooks ---------------------------------------------------------------------------

    async def webhook(
        self, gateway: str, headers: Mapping[str, str], raw: bytes, request_id: str
    ) -> Answer:
        """Verify and store a gateway's webhook; answered when it is durable."""
        path = f"/v1/webhooks/{gateway}"

        def refuse(refusal: Refusal) -> Answer:
            return refusal_answer(refusal, request_id=request_id, path=path)

        adapter = self._gateways.get(gateway)
        if adapter is None:
            return refuse(Refusal("gateway_not_found", "There is no gateway of this name."))
        now_ms = self._clock.now_ms()
        event = adapter.verify_webhook(headers, raw, now_ms)
        if isinstance(event, WebhookRefused):
            return refuse(Refusal(event.code, event.detail))
        if self._directory.ledger_trouble is not None:
            return refuse(_LEDGER_DOWN)
        kept = {name: value for name, value in headers.items() if name.startswith("webhook-")} | {
            "content-type": headers.get("content-type", "")
        }
        row = InboxRow(gateway, event.event_id, now_ms, kept, raw)
        waiter = _Waiter(request_id, "", None, b"", self._now + self._wait_s, self._new_event())
        try:
            self._directory.mailboxes["webhooks"].put_nowait(WebhookReceived(request_id, row))
        except (MailboxFull, MailboxRevoked):
            return refuse(_OVERLOADED)
        self._credits -= 1
        self._waiters[request_id] = waiter
        self._by_deadline.append(waiter)
        await waiter.done.wait()
        # Without a reply it is not known to be durable, so the gateway must send it again.
        return waiter.answer if waiter.answer is not None else refuse(_LEDGER_DOWN)


_OVERLOADED = Refusal(
    "overloaded",
    "More is under way than this engine admits; nothing was done. Try again shortly.",
    retry_after_s=1,
)

_STOPPING = Refusal(
    "starting", "The engine is stopping; nothing was done. Try again shortly.", retry_after_s=2
)

_LEDGER_DOWN = Refusal(
    "ledger_unavailable",
    "The ledger cannot be reached; nothing was done. Try again shortly.",
    retry_after_s=1,
)
