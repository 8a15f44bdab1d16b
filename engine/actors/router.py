"""The router: the way in and the way out.

It admits a request by a credit, or refuses it at once; joins requests that carry the same
idempotency key; sends the request to its payment's shard; and hands the reply to whoever waits.
The items of a batch come in as there is room, and never take the room of single requests.
A client that has gone away stops nothing: its reply finds nobody, and its key keeps the answer.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import cast

import anyio
import msgspec
from anyio.abc import TaskStatus

from engine.actors.directory import STARTING, Directory
from engine.actors.settings import ActorSettings
from engine.actors.waiting import Gathering, Remembered, Waiter
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

_READERS = 8
"""How many look-ups in the ledger one batch makes at a time."""


class RouterStatistics(msgspec.Struct, frozen=True):
    """The router at this moment."""

    credits: int
    credits_free: int
    waiting: int
    keys_in_flight: int
    keys_remembered: int
    refused: int
    batches: int = 0
    batch_items: int = 0


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
        # Both in order of deadline, since every wait is equally long; by request.
        self._waiters: dict[str, Waiter] = {}
        self._lingering: dict[str, Waiter] = {}
        self._in_flight: dict[KeyRef, Waiter] = {}
        self._answered: OrderedDict[KeyRef, Remembered] = OrderedDict()
        self._refused = 0
        self._gatherings: deque[Gathering] = deque()
        self._batch_items = 0
        self._batch_answered = 0
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
        """What is overdue stands at the front."""
        for gathering in self._gatherings:
            if gathering.deadline <= now:
                # Before its items are woken, or the next in line would start now.
                gathering.end()
        for waiter in _overdue(self._waiters, now):
            del self._waiters[waiter.request_id]
            waiter.wake()
            waiter.deadline = now + self._wait_s * CREDIT_LIFE_FACTOR
            self._lingering[waiter.request_id] = waiter
        for waiter in _overdue(self._lingering, now):
            # Its reply was lost with an incarnation of its shard: the credit comes back.
            del self._lingering[waiter.request_id]
            self._forget(waiter)
        self._pace()

    def _forget(self, waiter: Waiter) -> None:
        """Nothing more is expected for it; it has left both queues."""
        self._credits += 1
        if waiter.gathering is not None:
            self._batch_items -= 1
            self._batch_answered += 1
        if waiter.ref is not None:
            self._in_flight.pop(waiter.ref, None)
        if self._idle is not None and not self._waiters and not self._lingering:
            self._idle.set()

    def close(self) -> None:
        """Admit nothing more; what was admitted is answered."""
        self._is_closed = True

    async def wait_idle(self) -> None:
        """Wait until nobody waits for a reply (a drain does, for as long as it may)."""
        while self._waiters or self._lingering:
            self._idle = anyio.Event()
            await self._idle.wait()

    def statistics(self) -> RouterStatistics:
        """The router at this moment."""
        return RouterStatistics(
            self._settings.credits,
            self._credits,
            len(self._waiters) + len(self._lingering),
            len(self._in_flight),
            len(self._answered),
            self._refused,
            len(self._gatherings),
            self._batch_items,
        )

    def is_full(self) -> bool:
        """Whether nothing more can be admitted at the moment."""
        return self._credits <= 0

    # --- the way out ------------------------------------------------------------------------

    def resolve(self, reply: Reply) -> None:
        """A shard's reply; nobody may be waiting any more."""
        request_id = reply.request_id
        waiter = self._waiters.pop(request_id, None) or self._lingering.pop(request_id, None)
        if waiter is None:
            return
        self._forget(waiter)
        waiter.answer = reply.answer
        waiter.key_taken = reply.key_taken is not None
        answer = reply.answer
        if waiter.ref is not None and answer is not None and answer.final:
            self._answered[waiter.ref] = Remembered(waiter.fingerprint, answer)
            if len(self._answered) > self._settings.answered_keys_max:
                self._answered.popitem(last=False)
        waiter.wake()
        if self._gatherings:
            self._start_items(self._settings.batch_window)

    # --- the way in -------------------------------------------------------------------------

    async def ask(self, ask: Ask) -> tuple[Answer, bool]:
        """Do it, join it or replay it: the answer, and whether it is a replay."""
        ref = _ref_of(ask)
        if ref is not None:
            known = self._answered.get(ref)
            if known is not None:
                if known.fingerprint != ask.fingerprint:
                    return self._reused(ask), False
                return known.answer, True
            running = self._in_flight.get(ref)
            if running is not None:
                return await self._join(running, ask, ref)
        done = self._new_event()
        waiter = self._admit(ask, ref, done)
        if isinstance(waiter, Refusal):
            return await self._not_admitted(waiter, ask, ref)
        await done.wait()
        return await self._outcome(waiter, ask, ref)

    async def _not_admitted(
        self, refusal: Refusal, ask: Ask, ref: KeyRef | None
    ) -> tuple[Answer, bool]:
        """What was answered once needs no gateway to be answered again."""
        if refusal.code == "gateway_unavailable" and ref is not None:
            stored = await self._stored(ask, ref)
            if stored is not None:
                return stored
        return self._no(ask, refusal), False

    def _admit(self, ask: Ask, ref: KeyRef | None, done: Event | None) -> Waiter | Refusal:
        """Take a credit and send the request, or say at once why not. Nothing was done then."""
        trouble = self._trouble(ask)
        if trouble is not None:
            return trouble
        payment_id = ask.payment_id or self._new_payment_id(ask.command)
        refusal = self._shard_trouble(payment_id)
        if refusal is not None:
            return refusal
        claim = None
        now_ms = self._clock.now_ms()
        if ref is not None:
            claim = Claim(
                ref, ask.fingerprint, now_ms, payment_id, 0 if ask.payment_id is not None else 1
            )
        request = Request(ask.request_id, payment_id, ask.command, claim, ask.path, now_ms)
        waiter = Waiter(
            ask.request_id,
            payment_id,
            ref,
            ask.fingerprint,
            self._now + self._wait_s,
            done,
        )
        try:
            self._directory.shard_of(payment_id).put_nowait(request)
        except (MailboxFull, MailboxRevoked):
            return _OVERLOADED
        self._credits -= 1
        self._waiters[ask.request_id] = waiter
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
            return self._no_ledger()
        if isinstance(ask.command, Open):
            return self._directory.gateway_trouble(ask.command.gateway)
        return None

    def _no_ledger(self) -> Refusal:
        """A ledger that was not asked for yet is not one that cannot be reached."""
        if self._directory.ledger_trouble != STARTING:
            return _LEDGER_DOWN
        return _STANDING_BY if self._directory.is_standing_by() else _STARTING

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
        code = "starting" if trouble == STARTING else "shard_parked"
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

    async def _join(self, running: Waiter, ask: Ask, ref: KeyRef) -> tuple[Answer, bool]:
        """The same key is under way: wait for the same answer."""
        if running.fingerprint != ask.fingerprint:
            return self._reused(ask), False
        if not running.is_woken:
            done = running.done
            if done is None:
                done = running.done = self._new_event()
            with anyio.move_on_after(self._wait_s):
                await done.wait()
        return await self._joined(running, ask, ref)

    async def _joined(self, running: Waiter, ask: Ask, ref: KeyRef) -> tuple[Answer, bool]:
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
        answer, _ = await self._outcome(running, ask, ref)
        return answer, answer.final

    async def _outcome(self, waiter: Waiter, ask: Ask, ref: KeyRef | None) -> tuple[Answer, bool]:
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
            return await self._claimed(ask, ref)
        except LedgerUnavailable:
            return self._no(ask, _LEDGER_DOWN), False

    async def _claimed(self, ask: Ask, ref: KeyRef) -> tuple[Answer, bool] | None:
        """The same. Raises LedgerUnavailable."""
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
            return self._no(ask, not_found(payment.id))
        for op in payment.operations:
            if op.request_id == waiter.request_id:
                return self._present(payment, op.n)
        # Nothing of it is durable yet, so nothing can be promised.
        return self._accepted_unseen(waiter, ask)

    def _accepted_unseen(self, waiter: Waiter, ask: Ask) -> Answer:
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

    # --- batches ----------------------------------------------------------------------------

    async def ask_many(self, asks: Sequence[Ask]) -> list[tuple[Answer, bool]]:
        """Do many at once, each as `ask` would: the answers in order.

        Those of one payment run in the order given. What there is no room for waits for room.
        """
        gathering = Gathering(asks, self._now + self._wait_s, self._new_event())
        self._gatherings.append(gathering)
        try:
            self._start_items(self._settings.batch_window)
            await gathering.done.wait()
        finally:
            # What has not started by now never will.
            gathering.end()
            self._gatherings.remove(gathering)
        return await self._gathered(gathering)

    def _pace(self) -> None:
        """Let more in where what runs is slow to be answered: half a window a sweep at least.

        So all of a batch is under way within two seconds, whatever its gateway is like.
        """
        missing = (self._settings.batch_window + 1) // 2 - self._batch_answered
        self._batch_answered = 0
        if self._gatherings:
            window = self._settings.batch_window
            self._start_items(max(window, self._batch_items + missing))

    def _start_items(self, most: int) -> None:
        """Start items, of each batch in turn, until `most` of them are under way."""
        gatherings = self._gatherings
        most = min(most, self._settings.batch_credits)
        empty = 0
        while empty < len(gatherings) and self._batch_items < most and self._credits > 0:
            gathering = gatherings[0]
            gatherings.rotate(-1)
            if not gathering.ready:
                empty += 1
                continue
            empty = 0
            place = gathering.ready.popleft()
            if not self._start(gathering, place):
                gathering.ready.append(place)
                return

    def _start(self, gathering: Gathering, place: int) -> bool:
        """Replay, join, admit or refuse an item. False: its shard has no room at the moment."""
        ask = gathering.asks[place]
        ref = _ref_of(ask)
        if ref is not None:
            known = self._answered.get(ref)
            running = self._in_flight.get(ref)
            if known is not None:
                same = known.fingerprint == ask.fingerprint
                gathering.answer(place, known.answer if same else self._reused(ask), replayed=same)
                return True
            if running is not None:
                if running.fingerprint == ask.fingerprint:
                    gathering.wait_for(place, running)
                else:
                    gathering.answer(place, self._reused(ask))
                return True
        waiter = self._admit(ask, ref, None)
        if isinstance(waiter, Refusal):
            if waiter is _OVERLOADED:
                return False
            gathering.refuse(place, waiter)
            return True
        self._batch_items += 1
        waiter.gathering = gathering
        gathering.wait_for(place, waiter)
        return True

    async def _gathered(self, gathering: Gathering) -> list[tuple[Answer, bool]]:
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
                    refusal = _BEHIND if place in behind else _OVERLOADED
                    answers[place] = (self._no(asks[place], refusal), False)
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
            answers[place] = (
                (told[0], told[0].final) if same else (self._reused(asks[place]), False)
            )
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
            ref = _ref_of(ask)
            waiter = gathering.waiters[place]
            if waiter is None:
                told = await self._not_admitted(gathering.refusals[place], ask, ref)
            elif waiter.gathering is gathering or ref is None:
                told = await self._outcome(waiter, ask, ref)
            else:
                told = await self._joined(waiter, ask, ref)
            gathering.answers[place] = told

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
            return refuse(self._no_ledger())
        kept = {name: value for name, value in headers.items() if name.startswith("webhook-")} | {
            "content-type": headers.get("content-type", "")
        }
        row = InboxRow(gateway, event.event_id, now_ms, kept, raw)
        done = self._new_event()
        waiter = Waiter(request_id, "", None, b"", self._now + self._wait_s, done)
        try:
            self._directory.mailboxes["webhooks"].put_nowait(WebhookReceived(request_id, row))
        except (MailboxFull, MailboxRevoked):
            return refuse(_OVERLOADED)
        self._credits -= 1
        self._waiters[request_id] = waiter
        await done.wait()
        # Without a reply it is not known to be durable, so the gateway must send it again.
        return waiter.answer if waiter.answer is not None else refuse(_LEDGER_DOWN)


def _overdue(queue: dict[str, Waiter], now: float) -> list[Waiter]:
    return list(takewhile(lambda waiter: waiter.deadline <= now, queue.values()))


def _ref_of(ask: Ask) -> KeyRef | None:
    """The key of a request, among those of its merchant and mode."""
    if ask.key is None:
        return None
    return KeyRef(ask.command.merchant_id, ask.command.livemode, ask.key)


_OVERLOADED = Refusal(
    "overloaded",
    "More is under way than this engine admits; nothing was done. Try again shortly.",
    retry_after_s=1,
)

_BEHIND = Refusal(
    "operation_unresolved",
    "An earlier item of this payment has no answer yet, so this one was not done. Send it again.",
    retry_after_s=1,
)

_STOPPING = Refusal(
    "starting", "The engine is stopping; nothing was done. Try again shortly.", retry_after_s=2
)

_STARTING = Refusal(
    "starting", "The engine is starting; nothing was done. Try again shortly.", retry_after_s=2
)

_STANDING_BY = Refusal(
    "starting",
    "This engine stands by: another one has the database and takes the work. Nothing was done.",
    retry_after_s=5,
)

_LEDGER_DOWN = Refusal(
    "ledger_unavailable",
    "The ledger cannot be reached; nothing was done. Try again shortly.",
    retry_after_s=1,
)
