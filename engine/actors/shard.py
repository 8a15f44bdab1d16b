"""A shard: the one writer of every payment whose slot it owns.

It never awaits IO. A message is turned into a step by the pure machine; the step's writes go to
the ledger writer; and only when they are durable does the step take effect: the new state replaces
the old, the gateway is called, the client is answered. While a payment's write is under way,
further messages for that payment wait in line behind it, so every step starts from committed
state and nothing ever has to be taken back.

Only payments with a hold or an open operation live here; a request for another one is parked until
the ledger reader has fetched it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
from anyio.abc import TaskStatus

from engine.actors.directory import Directory
from engine.actors.lines import Lines
from engine.actors.open_payments import OpenPayments
from engine.actors.settings import ActorSettings
from engine.domain.change import Env, Step, gateway_call
from engine.domain.commands import Open
from engine.domain.document import DOCUMENT_ERRORS
from engine.domain.entry import Answer, Claim, Entry, InboxRef, TimerRow
from engine.domain.ids import op_id
from engine.domain.machine import (
    command_payment,
    expire,
    hear,
    look_ups_due,
    not_found,
    open_payment,
    recovered,
    retry,
    review,
    revive,
)
from engine.domain.news import GatewayTraits, Unknown
from engine.domain.operation import Operation
from engine.domain.outcomes import is_early
from engine.domain.payment import Payment
from engine.domain.recording import record
from engine.domain.refusals import Refusal
from engine.domain.representation import refusal_answer
from engine.failpoints import failpoint
from engine.messages import (
    Barrier,
    Committed,
    Heard,
    LoadPayment,
    NewsParked,
    PaymentLoaded,
    Perform,
    Reply,
    Request,
    Scheduled,
    Tick,
    TimerDue,
    ToShard,
    Write,
    WriteRefused,
)
from engine.ports import Clock, Ids, LedgerReader, Telemetry
from engine.supervisor.mailbox import DeadLetter, Mailbox


class _Writing:
    """A step whose entry is with the ledger writer."""

    __slots__ = ("answers", "document", "inbox", "payment", "reply", "request", "step")

    def __init__(
        self,
        *,
        step: Step | None = None,
        payment: Payment | None = None,
        document: bytes | None = None,
        answers: dict[int, Answer] | None = None,
        request: Request | None = None,
        reply: Answer | None = None,
        inbox: InboxRef | None = None,
    ) -> None:
        self.step = step
        self.payment = payment
        self.document = document
        self.answers = answers
        self.request = request
        self.reply = reply
        self.inbox = inbox


class ShardStatistics(msgspec.Struct, frozen=True):
    """A shard at this moment."""

    name: str
    incarnation: int
    open_payments: int
    writing: int
    in_line: int
    waiting_requests: int
    awaiting_gateway: int


class ShardActor:
    """One incarnation after another of one shard; `run` is a life."""

    def __init__(
        self,
        index: int,
        mailbox: Mailbox[ToShard],
        directory: Directory,
        ledger: LedgerReader,
        clock: Clock,
        ids: Ids,
        telemetry: Telemetry,
        settings: ActorSettings,
        traits: dict[str, GatewayTraits],
    ) -> None:
        self._index = index
        self._name = directory.shard_names[index]
        self._mailbox = mailbox
        self._directory = directory
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._telemetry = telemetry
        self._settings = settings
        self._traits = traits
        # A call waits for up to a deadline before it is made, and for another one until it is over.
        slowest_ms = max((each.deadline_ms for each in traits.values()), default=0)
        self._reply_max_ms = max(settings.gateway_reply_max_ms, 2 * slowest_ms + 1_000)
        self._incarnation = 0
        self._envs: dict[tuple[str, str], Env] = {}
        self._line = Lines(mailbox.park)
        self._forget()
        self._handlers: dict[type, Any] = {
            Request: self._on_request,
            Committed: self._on_committed,
            WriteRefused: self._on_refused,
            Heard: self._on_heard,
            TimerDue: self._on_timer,
            PaymentLoaded: self._on_loaded,
            Tick: self._on_tick,
        }

    def _forget(self) -> None:
        """Everything an incarnation knows; the next one learns it from the ledger.

        Only messages in line are not there: they were acknowledged, and are handled again.
        """
        self._line.begin_life()
        self._payments = OpenPayments()
        self._writing: dict[int, _Writing] = {}
        self._busy: set[str] = set()
        self._loading: set[str] = set()
        self._waiting: dict[tuple[str, int], list[str]] = {}
        self._asked: dict[tuple[str, int], int] = {}
        self._token = 0
        self._now_ms = 0
        self._since_ms = 0
        self._steps_left = 0

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Rebuild from the ledger, then handle messages until cancelled."""
        self._incarnation += 1
        self._forget()
        self._since_ms = self._now_ms = self._clock.now_ms()
        await self._flush()
        self._directory.begins_anew(self._index)
        failpoint("recovery_started")
        self._writer = self._directory.mailboxes["ledger-writer"]
        await self._ledger.open_payments(self._directory.slots_of(self._index), self._begin_with)
        self._directory.shard_trouble[self._index] = None
        reader = self._mailbox.attach()
        task_status.started()
        handlers = self._handlers
        gave_way = self._directory.gave_way
        while (left := self._line.left()) is not None:
            self._line.turn(left, handlers[type(left)])
        try:
            while True:
                messages = await reader.receive_all()
                self._begin_turn()
                for message in messages:
                    if self._steps_left <= 0:
                        gave_way.add(self._name)
                        await anyio.lowlevel.checkpoint()
                        self._begin_turn()
                    self._steps_left -= 1
                    handlers[type(message)](message)
                    reader.acknowledge_one()
                gave_way.discard(self._name)
        finally:
            gave_way.discard(self._name)

    def _begin_turn(self) -> None:
        """One reading of the clock for all of a turn: its steps happen now."""
        self._now_ms = self._clock.now_ms()
        self._steps_left = self._settings.turn_steps

    async def _flush(self) -> None:
        """Wait until whatever an earlier life sent to the writer has been settled."""
        name = f"{self._name}#barrier"
        inbox: Mailbox[Committed] = Mailbox(capacity=1, reserved_capacity=16)
        self._directory.add(name, inbox)
        barrier = Barrier(name, self._incarnation, 0)
        self._directory.mailboxes["ledger-writer"].put_reserved_nowait(barrier)
        reader = inbox.attach()
        while not any(m.incarnation == self._incarnation for m in await reader.receive_all()):
            reader.acknowledge()  # The barrier of an earlier life.

    def _begin_with(self, quiet: dict[str, bytes], working: list[bytes]) -> None:
        """Open payments, as the ledger has them; at a start they come in parts."""
        self._payments.keep_quiet(quiet)
        for document in working:
            payment = self._payments.keep_document(document)
            if payment is not None:
                self._recover(payment)

    def _recover(self, payment: Payment) -> None:
        """Ask the gateway what became of everything that was asked and has no answer recorded."""
        for op in recovered(payment):
            self._perform(payment, op, look_up=True)
            failpoint("recovery_asked")

    def statistics(self) -> ShardStatistics:
        """The shard at this moment."""
        return ShardStatistics(
            self._name,
            self._incarnation,
            len(self._payments),
            len(self._writing),
            len(self._line),
            sum(len(requests) for requests in self._waiting.values()),
            len(self._asked),
        )

    # --- steps ------------------------------------------------------------------------------

    def _env(self, merchant_id: str, gateway: str) -> Env:
        """What a step may know; only the time changes between steps."""
        env = self._envs.get((merchant_id, gateway))
        if env is None or env.now_ms != self._now_ms:
            env = Env(
                now_ms=self._now_ms,
                new_transfer=self._ids.transfer,
                new_id=self._ids.new,
                jitter=self._ids.jitter,
                traits=self._traits[gateway],
                fees=self._settings.fees_of(merchant_id),
                since_ms=self._since_ms,
            )
            if len(self._envs) > 1_000:
                self._envs.clear()
            self._envs[merchant_id, gateway] = env
        return env

    def _write(self, writing: _Writing, payment_id: str, entry: Entry) -> None:
        """Hand an entry to the writer; the payment is busy until it is settled."""
        self._token += 1
        self._writing[self._token] = writing
        self._busy.add(payment_id)
        self._writer.put_reserved_nowait(Write(self._name, self._incarnation, self._token, entry))

    def _take_step(
        self,
        step: Step,
        env: Env,
        request: Request | None = None,
        inbox: InboxRef | None = None,
    ) -> None:
        recorded = record(step, env, request.claim if request is not None else None, inbox)
        self._write(
            _Writing(
                step=step,
                payment=recorded.payment,
                document=recorded.entry.document,
                answers=recorded.answers,
                request=request,
                inbox=inbox,
            ),
            step.payment.id,
            recorded.entry,
        )

    def _in_line(self, payment_id: str, message: ToShard) -> bool:
        """Whether the message has to wait: for a write under way, or for those before it."""
        if payment_id in self._busy or payment_id in self._loading:
            self._line.add(payment_id, message)
            return True
        return False

    def _fetch(self, payment_id: str, message: ToShard) -> None:
        """Park the message until the ledger reader has brought the payment."""
        self._line.add(payment_id, message)
        self._load(payment_id)

    def _load(self, payment_id: str) -> None:
        self._loading.add(payment_id)
        self._directory.mailboxes["ledger-reader"].put_reserved_nowait(
            LoadPayment(self._name, self._incarnation, payment_id)
        )

    def _next_in_line(self, payment_id: str, known: Payment | None = None) -> None:
        """Handle what waited until the payment is busy again.

        `known` is its committed state where that is not in memory; a state that is neither known
        nor in memory is fetched first.
        """
        while payment_id not in self._busy and payment_id not in self._loading:
            message = self._line.first(payment_id)
            if message is None:
                return
            payment = self._payments.get(payment_id) or known
            if payment is None and not self._is_new(message):
                self._load(payment_id)
                return
            self._line.next_turn(payment_id, partial(self._handle, payment=payment))

    @staticmethod
    def _is_new(message: ToShard) -> bool:
        return isinstance(message, Request) and isinstance(message.command, Open)

    def _with_payment(self, message: Request | Heard | TimerDue) -> None:
        """Handle a message with its payment, which is fetched where it is not in memory."""
        try:
            payment = self._payments.get(message.payment_id)
        except DOCUMENT_ERRORS as damage:
            self._park(message, str(damage))
            return
        if payment is None:
            self._fetch(message.payment_id, message)
        else:
            self._handle(message, payment)

    def _park(self, message: Request | Heard | TimerDue, damage: str) -> None:
        """A damaged document stops its payment, and not the shard it is in."""
        reason = f"the document of {message.payment_id} can't be read: {damage}"
        if isinstance(message, TimerDue) and message.kind != "revive":
            # It comes again, and is told of again.
            self._telemetry.error("payment_unreadable", reason=reason)
        else:
            self._mailbox.park(DeadLetter(message=message, reason=reason, crashes=0))

    def _handle(self, message: ToShard, payment: Payment | None) -> None:
        """A message together with its payment, whether that is in memory or was fetched."""
        if isinstance(message, Request):
            self._command(message, payment)
        elif isinstance(message, Heard):
            self._hear(message, payment)
        else:
            assert isinstance(message, TimerDue), message
            self._wake(message, payment)

    # --- requests ---------------------------------------------------------------------------

    def _on_request(self, message: Request) -> None:
        failpoint("before_intent")
        payment_id = message.payment_id
        if self._in_line(payment_id, message):
            return
        if isinstance(message.command, Open):
            self._open(message, message.command)
            return
        self._with_payment(message)

    def _open(self, message: Request, command: Open) -> None:
        env = self._env(command.merchant_id, command.gateway)
        key = message.claim.ref.key if message.claim is not None else ""
        step = open_payment(command, message.payment_id, key, message.request_id, message.path, env)
        self._take_step(step, env, message)

    def _command(self, message: Request, payment: Payment | None) -> None:
        claim = message.claim
        if isinstance(message.command, Open):
            self._open(message, message.command)
            return
        if payment is None:
            self._refuse(message, not_found(message.payment_id), None)
            return
        env = self._env(payment.merchant_id, payment.gateway)
        step = command_payment(
            payment,
            message.command,
            claim.ref.key if claim is not None else "",
            message.request_id,
            message.path,
            env,
        )
        if not isinstance(step, Refusal) and step.calls:
            step = self._directory.no_gateway(payment.gateway) or step
        if isinstance(step, Refusal):
            mine = step.code != "payment_not_found"
            self._refuse(message, step, payment if mine else None)
        else:
            if claim is not None:
                op = step.payment.operations[-1]
                message = msgspec.structs.replace(
                    message, claim=msgspec.structs.replace(claim, op=op.n)
                )
            self._take_step(step, env, message)

    def _refuse(self, message: Request, refusal: Refusal, payment: Payment | None) -> None:
        """Answer a refusal; a final one is stored first, under the key of its request."""
        answer = refusal_answer(
            refusal, request_id=message.request_id, path=message.path, payment=payment
        )
        if message.claim is None or not answer.final:
            self._directory.reply(Reply(message.request_id, answer))
            return
        claim: Claim = msgspec.structs.replace(message.claim, answer=answer)
        self._write(_Writing(request=message, reply=answer), message.payment_id, Entry(claim=claim))

    # --- what the writer says ---------------------------------------------------------------

    def _on_committed(self, message: Committed) -> None:
        if message.incarnation != self._incarnation:
            return
        self._steps_left -= len(message.tokens) - 1
        for token in message.tokens:
            writing = self._writing.pop(token)
            if writing.step is None:
                self._settled_without_step(writing)
            else:
                self._took_effect(writing, writing.step)

    def _settled_without_step(self, writing: _Writing) -> None:
        request = writing.request
        if request is not None:
            failpoint("refusal_stored")
            self._busy.discard(request.payment_id)
            self._directory.reply(Reply(request.request_id, writing.reply))
            self._next_in_line(request.payment_id)

    def _took_effect(self, writing: _Writing, step: Step) -> None:
        """The step is durable: replace the state, call the gateway, answer who waits."""
        payment = writing.payment
        assert payment is not None, writing
        payment_id = payment.id
        if writing.inbox is not None:
            failpoint("webhook_applied")
        self._busy.discard(payment_id)
        self._payments.keep(payment, writing.document)
        request = writing.request
        if request is not None:
            op = step.payment.operations[-1] if step.before is not None else payment.origin
            self._waiting.setdefault((payment_id, op.n), []).append(request.request_id)
            self._directory.began(request.request_id)
        for n, call in step.calls:
            failpoint("after_intent")
            self._asked[payment_id, n] = self._now_ms
            self._directory.gateways[payment.gateway].put_reserved_nowait(
                Perform(call, payment_id, n, payment.operations[n - 1].sent_ms)
            )
        if writing.answers:
            self._answer(payment, writing.answers)
        if step.before is not None:
            self._report(step.before, payment)
        self._remind(step, payment)
        if payment_id in self._line:
            # What has been settled is not in memory, but the line may use this last state of it.
            self._next_in_line(payment_id, payment)

    def _answer(self, payment: Payment, answers: dict[int, Answer]) -> None:
        failpoint("after_commit")
        for n, answer in answers.items():
            for request_id in self._waiting.pop((payment.id, n), ()):
                self._directory.reply(Reply(request_id, answer))

    def _report(self, before: Payment, payment: Payment) -> None:
        """The canonical line and the count of every operation whose outcome is a new one."""
        known = before.operations
        for op in payment.operations:
            was = known[op.n - 1].status if op.n <= len(known) else "processing"
            if op.status not in (was, "processing"):
                self._telemetry.payment_outcome(
                    payment, op.n, op.status, self._now_ms - op.created_ms
                )

    def _remind(self, step: Step, payment: Payment) -> None:
        """Tell the timers of what comes due before they next read the ledger."""
        for op in payment.operations:
            due_ms = op.next_check_ms
            if due_ms is not None and op.is_open:
                self._directory.mailboxes["reconciler"].put_reserved_nowait(
                    Scheduled(due_ms, payment.id)
                )

    def _on_refused(self, message: WriteRefused) -> None:
        if message.incarnation != self._incarnation:
            return
        writing = self._writing.pop(message.token)
        request = writing.request
        if request is None:
            # Nobody asked for this write, so nobody can be told but the operator.
            assert writing.step is not None, writing
            payment_id = writing.step.payment.id
            self._telemetry.error("step_refused", payment=payment_id, reason=message.reason)
            self._busy.discard(payment_id)
            payment = self._payments.get(payment_id)
            for op in recovered(payment) if payment is not None else ():
                # What it told is lost; a later tick takes its absence for an unknown outcome.
                self._asked.setdefault((payment_id, op.n), self._clock.now_ms())
            self._next_in_line(payment_id)
            return
        self._busy.discard(request.payment_id)
        if message.reason == "key_taken":
            assert request.claim is not None, request
            self._directory.reply(Reply(request.request_id, None, request.claim.ref))
        elif message.reason == "reference_taken":
            refusal = Refusal(
                "reference_taken",
                "Another payment of this merchant has this reference.",
                param="reference",
            )
            self._refuse(request, refusal, None)
        else:
            self._telemetry.error("request_refused", reason=message.reason)
            refusal = Refusal(
                "parameter_invalid", f"The request cannot be stored ({message.reason})."
            )
            self._refuse(request, refusal, None)
        self._next_in_line(request.payment_id)

    # --- what gateways say ------------------------------------------------------------------

    def _on_heard(self, message: Heard) -> None:
        payment_id = message.payment_id
        if message.via != "webhook":
            self._asked.pop((payment_id, message.op), None)
            if message.via == "look_up":
                failpoint("looked_up")
        if not self._in_line(payment_id, message):
            self._with_payment(message)

    def _hear(self, message: Heard, payment: Payment | None) -> None:
        if (
            payment is None
            or message.op > len(payment.operations)
            or (message.inbox is not None and is_early(payment, message.news))
        ):
            # A webhook can be faster than our own commit, or than the reply to our own call: it
            # stays in the inbox for later.
            if message.inbox is not None:
                self._directory.mailboxes["webhooks"].put_reserved_nowait(NewsParked(message.inbox))
            return
        env = self._env(payment.merchant_id, payment.gateway)
        step = hear(payment, message.op, message.news, message.via, env)
        if step is not None:
            self._take_step(step, env, inbox=message.inbox)
        elif message.inbox is not None:
            done = msgspec.structs.replace(message.inbox, outcome="no_change")
            self._token += 1
            self._writing[self._token] = _Writing()
            self._writer.put_reserved_nowait(
                Write(self._name, self._incarnation, self._token, Entry(inbox_done=done))
            )

    def _perform(self, payment: Payment, op: Operation, *, look_up: bool) -> None:
        if (payment.id, op.n) in self._asked:
            return
        self._asked[payment.id, op.n] = self._now_ms
        call = gateway_call(payment, payment.operations, op, look_up=look_up)
        self._directory.gateways[payment.gateway].put_reserved_nowait(
            Perform(call, payment.id, op.n, self._now_ms)
        )

    # --- time -------------------------------------------------------------------------------

    def _on_timer(self, message: TimerDue) -> None:
        if not self._in_line(message.payment_id, message):
            self._with_payment(message)

    def _wake(self, message: TimerDue, payment: Payment | None) -> None:
        if payment is None:
            self._clear_timer(message)
            return
        env = self._env(payment.merchant_id, payment.gateway)
        step: Step | None
        if message.kind == "look_up":
            for op in look_ups_due(payment, env):
                self._perform(payment, op, look_up=True)
            step = review(payment, env)
        elif message.kind == "expire":
            failpoint("expiry")
            step = expire(payment, env)
        elif message.kind == "revive":
            for op in payment.operations:
                if op.is_open and not op.deferred:
                    self._perform(payment, op, look_up=True)
            step = revive(payment, env)
        else:
            failpoint("retry")
            step = retry(payment, env)
        if step is not None:
            self._take_step(step, env)
        elif payment.id not in self._payments and message.kind != "revive":
            self._clear_timer(message)

    def _clear_timer(self, message: TimerDue) -> None:
        """Nothing is due any more: the row goes, or it would be read for ever."""
        row = TimerRow(message.due_ms, message.payment_id, message.kind)
        self._token += 1
        self._writing[self._token] = _Writing()
        self._writer.put_reserved_nowait(
            Write(self._name, self._incarnation, self._token, Entry(timers_cleared=(row,)))
        )

    def _on_loaded(self, message: PaymentLoaded) -> None:
        if message.incarnation != self._incarnation:
            return
        payment_id = message.payment_id
        self._loading.discard(payment_id)
        if message.payment is not None:
            self._next_in_line(payment_id, message.payment)
            return
        if message.damage is not None:
            while payment_id in self._line:
                self._line.next_turn(payment_id, partial(self._park, damage=message.damage))
            return
        # There is no such payment: everybody in line is told so, and nothing is fetched again.
        while payment_id in self._line:
            self._line.next_turn(payment_id, partial(self._handle, payment=None))

    def _on_tick(self, message: Tick) -> None:
        """A gateway call whose news never came (its actor was restarted) is an unknown outcome."""
        overdue = []
        for key, asked_ms in self._asked.items():
            # Insertion order is time order, so the first young one ends the search.
            if message.now_ms - asked_ms < self._reply_max_ms:
                break
            overdue.append(key)
        for payment_id, n in overdue:
            self._telemetry.warn("gateway_reply_missing", op=op_id(payment_id, n))
            self._on_heard(Heard(payment_id, n, Unknown("no_reply"), "look_up", message.now_ms))
