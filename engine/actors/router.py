"""The router: the way in and the way out.

It admits a request by a credit, or refuses it at once; joins requests that carry the same
idempotency key; sends the request to its payment's shard; and hands the reply to whoever waits.
The items of a batch come in as there is room, and never take the room of single requests.
A client that has gone away stops nothing: its reply finds nobody, and its key keeps the answer.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence

import anyio
import msgspec
from anyio.abc import TaskStatus

from engine.actors.admission import Admission
from engine.actors.answers import IS_STOPPING, OVERLOADED, Answers
from engine.actors.directory import LEDGER_DOWN, Directory
from engine.actors.settings import ActorSettings
from engine.actors.waiting import Gathering, Remembered, Waiter, overdue, ref_of
from engine.domain.commands import Open
from engine.domain.entry import Answer, Claim, InboxRow, KeyRef
from engine.domain.refusals import Refusal
from engine.domain.representation import refusal_answer
from engine.messages import Reply, Request, Tick, WebhookReceived
from engine.ports import (
    Ask,
    Clock,
    Event,
    Gateway,
    Ids,
    LedgerReader,
    WebhookRefused,
)
from engine.supervisor.errors import MailboxFull, MailboxRevoked

SWEEP_S = 0.1
CREDIT_LIFE_FACTOR = 6
_MISSES_MAX = 16
"""How many items of a batch are tried at a time although their shards have no room."""


class RouterStatistics(msgspec.Struct, frozen=True):
    """The router at this moment. `queue`: of all shards; a limited one has more than it can do."""

    credits: int
    credits_free: int
    waiting: int
    keys_in_flight: int
    keys_remembered: int
    refused: int
    queue: int
    limited_shards: int
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
        self._gateways = gateways
        self._clock = clock
        self._ids = ids
        self._settings = settings
        self._answers = Answers(ledger, gateways, clock, ids, settings)
        self._admission = Admission(settings)
        # Both in order of deadline, since every wait is equally long; by request.
        self._waiters: dict[str, Waiter] = {}
        self._lingering: dict[str, Waiter] = {}
        self._in_flight: dict[KeyRef, Waiter] = {}
        self._answered: OrderedDict[KeyRef, Remembered] = OrderedDict()
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
        for waiter in overdue(self._waiters, now):
            del self._waiters[waiter.request_id]
            waiter.wake()
            waiter.deadline = now + self._wait_s * CREDIT_LIFE_FACTOR
            self._lingering[waiter.request_id] = waiter
        for waiter in overdue(self._lingering, now):
            # Its reply was lost with an incarnation of its shard: the credit comes back.
            del self._lingering[waiter.request_id]
            self._forget(waiter)
        self._admission.look(now, self._directory.commit_s)
        self._pace()

    def _forget(self, waiter: Waiter) -> None:
        """Nothing more is expected for it; it has left both queues."""
        self._admission.credits += 1
        waiter.begin()
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
            self._admission.credits,
            len(self._waiters) + len(self._lingering),
            len(self._in_flight),
            len(self._answered),
            self._answers.refused,
            sum(queue.length for queue in self._admission.queues),
            sum(queue.is_limited for queue in self._admission.queues),
            len(self._gatherings),
            self._batch_items,
        )

    def is_full(self, before: int = 0) -> bool:
        """Whether nothing more is admitted, after `before` others, and for no other reason."""
        return self._admission.is_full(before) and self._directory.ledger_trouble is None

    def began(self, request_id: str) -> None:
        """A request's intent is durable: what it waits for now is its gateway."""
        if waiter := self._waiters.get(request_id) or self._lingering.get(request_id):
            waiter.begin()

    def begins_anew(self, shard: int) -> None:
        """A shard has lost what it knew: nobody will say of its requests that they have begun."""
        queue = self._admission.queues[shard]
        for waiter in (*self._waiters.values(), *self._lingering.values()):
            if waiter.queue is queue:
                waiter.begin()

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
        ref = ref_of(ask)
        if ref is not None:
            known = self._answered.get(ref)
            if known is not None:
                if known.fingerprint != ask.fingerprint:
                    return self._answers.reused(ask), False
                return known.answer, True
            running = self._in_flight.get(ref)
            if running is not None:
                return await self._join(running, ask, ref)
        done = self._new_event()
        waiter = self._admit(ask, ref, done)
        if isinstance(waiter, Refusal):
            return await self._answers.not_admitted(waiter, ask, ref)
        await done.wait()
        return await self._answers.outcome(waiter, ask, ref)

    def _admit(self, ask: Ask, ref: KeyRef | None, done: Event | None) -> Waiter | Refusal:
        """Take a credit and send the request, or say at once why not. Nothing was done then."""
        trouble = self._trouble(ask)
        if trouble is not None:
            return trouble
        payment_id = ask.payment_id or self._new_payment_id(ask.command)
        shard = self._directory.shard_index(payment_id)
        refusal = self._directory.no_shard(shard)
        if refusal is not None:
            return refusal
        if not self._admission.has_room(shard):
            return OVERLOADED
        claim = None
        now_ms = self._clock.now_ms()
        if ref is not None:
            claim = Claim(
                ref, ask.fingerprint, now_ms, payment_id, 0 if ask.payment_id is not None else 1
            )
        request = Request(ask.request_id, payment_id, ask.command, claim, ask.path, now_ms)
        deadline = self._now + self._wait_s
        waiter = Waiter(ask.request_id, payment_id, ref, ask.fingerprint, deadline, done)
        try:
            self._directory.shards[shard].put_nowait(request)
        except (MailboxFull, MailboxRevoked):
            return OVERLOADED
        waiter.queue = self._admission.enter(shard)
        self._waiters[ask.request_id] = waiter
        if ref is not None:
            self._in_flight[ref] = waiter
        return waiter

    def _trouble(self, ask: Ask) -> Refusal | None:
        if self._is_closed:
            return IS_STOPPING
        trouble = self._directory.no_ledger()
        if trouble is None and self._admission.is_full():
            return OVERLOADED
        if trouble is None and isinstance(ask.command, Open):
            return self._directory.no_gateway(ask.command.gateway)
        return trouble

    def _new_payment_id(self, command: object) -> str:
        """A new payment goes to a shard that can take it, unless its subscription decides."""
        assert isinstance(command, Open), command
        payment_id = self._ids.payment(command.subscription)
        if command.subscription is None:
            for _ in range(16):
                shard = self._directory.shard_index(payment_id)
                if self._directory.shard_trouble[shard] is None and self._admission.has_room(shard):
                    break
                payment_id = self._ids.payment(None)
        return payment_id

    # --- keys -------------------------------------------------------------------------------

    async def _join(self, running: Waiter, ask: Ask, ref: KeyRef) -> tuple[Answer, bool]:
        """The same key is under way: wait for the same answer."""
        if running.fingerprint != ask.fingerprint:
            return self._answers.reused(ask), False
        if not running.is_woken:
            done = running.done
            if done is None:
                done = running.done = self._new_event()
            with anyio.move_on_after(self._wait_s):
                await done.wait()
        return await self._answers.joined(running, ask, ref)

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
        return await self._answers.gathered(gathering)

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
        missed: dict[Gathering, int] = {}
        idle = 0
        while idle < len(gatherings) and self._batch_items < most and not self.is_full():
            gathering = gatherings[0]
            gatherings.rotate(-1)
            if not gathering.ready or missed.get(gathering) == _MISSES_MAX:
                idle += 1
                continue
            idle = 0
            place = gathering.ready.popleft()
            if not self._start(gathering, place):
                gathering.ready.append(place)
                missed[gathering] = missed.get(gathering, 0) + 1

    def _start(self, gathering: Gathering, place: int) -> bool:
        """Replay, join, admit or refuse an item. False: its shard has no room at the moment."""
        ask = gathering.asks[place]
        ref = ref_of(ask)
        if ref is not None:
            known = self._answered.get(ref)
            running = self._in_flight.get(ref)
            if known is not None:
                same = known.fingerprint == ask.fingerprint
                gathering.answer(
                    place, known.answer if same else self._answers.reused(ask), replayed=same
                )
                return True
            if running is not None:
                if running.fingerprint == ask.fingerprint:
                    gathering.wait_for(place, running)
                else:
                    gathering.answer(place, self._answers.reused(ask))
                return True
        waiter = self._admit(ask, ref, None)
        if isinstance(waiter, Refusal):
            if waiter is OVERLOADED:
                return False
            gathering.refuse(place, waiter)
            return True
        self._batch_items += 1
        waiter.gathering = gathering
        gathering.wait_for(place, waiter)
        return True

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
        no_ledger = self._directory.no_ledger()
        if no_ledger is not None:
            return refuse(no_ledger)
        kept = {name: value for name, value in headers.items() if name.startswith("webhook-")} | {
            "content-type": headers.get("content-type", "")
        }
        row = InboxRow(gateway, event.event_id, now_ms, kept, raw)
        done = self._new_event()
        waiter = Waiter(request_id, "", None, b"", self._now + self._wait_s, done)
        try:
            self._directory.mailboxes["webhooks"].put_nowait(WebhookReceived(request_id, row))
        except (MailboxFull, MailboxRevoked):
            return refuse(OVERLOADED)
        self._admission.credits -= 1
        self._waiters[request_id] = waiter
        await done.wait()
        # Without a reply it is not known to be durable, so the gateway must send it again.
        return waiter.answer if waiter.answer is not None else refuse(LEDGER_DOWN)
