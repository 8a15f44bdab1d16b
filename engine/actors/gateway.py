"""A gateway's actor: bulkhead, deadline and breaker in front of one provider.

What the adapter can answer at once is answered at once; the rest is performed by tasks that make
one call after the other, at most `inflight_max` at a time. Whatever happens to a call, its shard
hears of it: a call that ran into the deadline is `Unknown`, one that was never sent is
`Failed(sent=False)`.

The breaker is asked before a call is sent. While it is open nothing is sent; when its rest is over
exactly one call goes as a trial and the others wait for its outcome.

A call that could not be sent within the provider's deadline is not sent at all. "Not found" counts
as an answer a deadline and a look-up lag after the asking, so nothing may leave later than that:
not behind a slow commit, not from a queue, and not from a process that stood still while another
one took over and asked what had become of it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import anyio
import anyio.lowlevel
import msgspec
from anyio.abc import TaskGroup, TaskStatus

from engine.actors.directory import Directory
from engine.actors.settings import ActorSettings
from engine.domain.breaker import OUTCOME_IS_OK, counts_as_failure
from engine.domain.news import (
    NEWS_KIND,
    TIMED_OUT,
    Failed,
    GatewayCall,
    NotFound,
    OperationNews,
    Unknown,
)
from engine.failpoints import failpoint
from engine.messages import Heard, Perform, ToGateway
from engine.ports import Breaker, Clock, Event, Gateway, Telemetry
from engine.supervisor.mailbox import Mailbox

_MAY_OPEN = frozenset(kind for kind in OUTCOME_IS_OK if counts_as_failure(kind))
"""A closed breaker stays closed whatever else is heard."""

_NEVER_SENT = Failed("gateway_unavailable", sent=False)


class GatewayStatistics(msgspec.Struct, frozen=True):
    """A gateway's actor at this moment."""

    name: str
    breaker: str
    in_flight: int
    waiting: int
    calls: int
    not_sent: int


class _Caller:
    """A task that makes calls, and the one it is at; without one it waits for `wake`."""

    __slots__ = ("is_trial", "message", "wake")

    def __init__(self, message: Perform, is_trial: bool, wake: Event) -> None:
        self.message: Perform | None = message
        self.is_trial = is_trial
        self.wake = wake


class GatewayActor:
    """Owns one provider's adapter and its breaker."""

    def __init__(
        self,
        mailbox: Mailbox[ToGateway],
        directory: Directory,
        gateway: Gateway,
        breaker: Breaker,
        clock: Clock,
        telemetry: Telemetry,
        settings: ActorSettings,
        new_event: Callable[[], Event] = anyio.Event,
    ) -> None:
        self._new_event = new_event
        self._mailbox = mailbox
        self._turn = settings.turn_steps
        self._directory = directory
        self._gateway = gateway
        self._breaker = breaker
        self._clock = clock
        self._telemetry = telemetry
        self._traits = gateway.traits
        self._waiting: deque[Perform] = deque()
        self._free: list[_Caller] = []
        self._in_flight = 0
        self._calls = 0
        self._not_sent = 0
        self._resting = False
        self._state = breaker.state
        directory.gateway_admits[self._traits.name] = self._refuses_for_s

    def _refuses_for_s(self) -> float | None:
        """None: requests are admitted. Otherwise for how many seconds the gateway rests."""
        # As last noted: pybreaker's own property costs as much as half an admission.
        state = self._state
        if state == "closed":
            return None
        if state == "half-open":
            # Somebody has to be the trial; whoever comes while it is out waits for its outcome.
            return None if not self._in_flight and not self._waiting else 1.0
        return self._breaker.retry_in_s(anyio.current_time())

    def statistics(self) -> GatewayStatistics:
        """The actor at this moment."""
        return GatewayStatistics(
            self._traits.name,
            self._breaker.state.replace("-", "_"),
            self._in_flight,
            len(self._waiting),
            self._calls,
            self._not_sent,
        )

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Send calls until cancelled. Calls cut off by that are looked up by the reconciler."""
        free: list[_Caller] = []
        self._free = free
        self._in_flight = 0
        self._resting = False
        self._waiting.clear()
        gave_way, name = self._directory.gave_way, f"gateway-{self._traits.name}"
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks: TaskGroup = tasks
                if self._breaker.state == "open":
                    self._rest()
                elif self._breaker.state == "half-open":
                    # A trial that was out is lost: let another one through.
                    self._breaker.half_open()
                reader = self._mailbox.attach()
                task_status.started()
                try:
                    while True:
                        messages = await reader.receive_all()
                        for start in range(0, len(messages), self._turn):
                            if start:
                                gave_way.add(name)
                                await anyio.lowlevel.checkpoint()
                            turn = messages[start : start + self._turn]
                            self._send(turn)
                            for _ in turn:
                                reader.acknowledge_one()
                        gave_way.discard(name)
                finally:
                    gave_way.discard(name)
        finally:
            # An abandoned life ends when the next one has begun, and has no say in that.
            if self._free is free:
                self._in_flight = 0

    def _send(self, messages: list[Perform]) -> None:
        if self._state != "closed" or self._waiting or any(map(self._is_late, messages)):
            self._waiting.extend(messages)
            self._pump()
            return
        began = anyio.current_time()
        answers = self._gateway.perform_now([message.call for message in messages])
        now = anyio.current_time()
        for message, news in zip(messages, answers, strict=True):
            if news is None:
                self._waiting.append(message)
            else:
                self._calls += 1
                self._heard(message, news, now - began, now)
        if self._waiting:
            self._pump()

    def _pump(self) -> None:
        """Start what may start: as far as the bulkhead and the breaker allow."""
        while self._waiting and self._in_flight < self._traits.inflight_max:
            if self._is_late(self._waiting[0]):
                self._refuse(self._waiting.popleft())
                continue
            if not self._breaker.admits():
                if self._breaker.state == "open":
                    self._refuse_waiting()
                return
            self._in_flight += 1
            self._calls += 1
            is_trial = self._breaker.state == "half-open"
            self._start(self._waiting.popleft(), is_trial)

    def _start(self, message: Perform, is_trial: bool) -> None:
        """Give a call to a task that has none, or to a new one."""
        if self._free:
            caller = self._free.pop()
            caller.message, caller.is_trial = message, is_trial
            caller.wake.set()
        else:
            caller = _Caller(message, is_trial, self._new_event())
            self._tasks.start_soon(self._make_calls, caller, self._free)

    def _is_late(self, message: Perform) -> bool:
        """Whether the call has waited for longer than the provider gets for its answer."""
        return self._in_time_s(message) < 0

    def _in_time_s(self, message: Perform) -> float:
        """For how long it may still leave; what is concluded of it counts on its not leaving later.

        A look-up may at any time.
        """
        if message.call.look_up:
            return math.inf
        until_ms = message.asked_ms + self._traits.deadline_ms
        return (until_ms - self._clock.now_ms()) / 1000

    def _refuse_waiting(self) -> None:
        """The breaker is open."""
        while self._waiting:
            self._refuse(self._waiting.popleft())

    def _refuse(self, message: Perform) -> None:
        """It was never sent, which is a definite answer."""
        self._not_sent += 1
        news: OperationNews = (
            # An unsent look-up says nothing about what it asks for.
            Unknown("gateway_unavailable") if message.call.look_up else _NEVER_SENT
        )
        self._tell(message, news)

    async def _make_calls(self, caller: _Caller, free: list[_Caller]) -> None:
        """Make one call after the other: a task and a scope for each would cost half of it."""
        began = 0.0
        with anyio.CancelScope() as scope:
            while True:
                assert caller.message is not None, "a caller is woken with a call to make"
                began = anyio.current_time()
                # Asked once more, because the process may have stood still since it was let
                # through. It may at any moment; once the call is being made, its own time-out
                # ends it.
                in_time_s = self._in_time_s(caller.message)
                if in_time_s < 0:
                    self._end(caller, _NEVER_SENT, began, is_sent=False)
                else:
                    scope.deadline = began + self._traits.deadline_ms / 1000
                    news = await self._attempt(caller.message.call, in_time_s)
                    scope.deadline = math.inf
                    self._end(caller, news, began)
                if scope.cancel_called:
                    # The reply came with the deadline: it counts, and the scope is used up.
                    return
                caller.wake = self._new_event()
                free.append(caller)
                await caller.wake.wait()
        if caller.message is not None:
            self._end(caller, Unknown(TIMED_OUT), began)

    def _end(
        self, caller: _Caller, news: OperationNews, began: float, *, is_sent: bool = True
    ) -> None:
        """A call is over. What waits is for another task, so that this one gives way."""
        message, caller.message = caller.message, None
        assert message is not None
        self._in_flight -= 1
        now = anyio.current_time()
        if not is_sent and not caller.is_trial:
            self._refuse(message)
        else:
            self._heard(message, news, now - began, now, is_trial=caller.is_trial)
        if self._waiting:
            self._pump()

    async def _attempt(self, call: GatewayCall, in_time_s: float) -> OperationNews:
        failpoint("gateway_sent")
        try:
            return await self._gateway.perform(call, in_time_s)
        except Exception as broken:
            # A fault in an adapter says nothing about what the provider did.
            self._telemetry.error(
                "gateway_adapter_broken", gateway=self._traits.name, reason=repr(broken)
            )
            return Unknown("adapter_broken")

    def _heard(
        self,
        message: Perform,
        news: OperationNews,
        took_s: float,
        now: float,
        *,
        is_trial: bool = False,
    ) -> None:
        failpoint("after_gateway")
        kind = NEWS_KIND[type(news)]
        self._telemetry.gateway_call(
            self._traits.name,
            "look_up" if message.call.look_up else message.call.action,
            kind,
            took_s,
        )
        self._breaker.record(kind, now, is_trial=is_trial)
        if (self._state != "closed" or kind in _MAY_OPEN) and self._breaker.state != self._state:
            self._note_state()
        self._tell(message, news)

    def _note_state(self) -> None:
        was, self._state = self._state, self._breaker.state
        self._telemetry.warn("breaker_changed", gateway=self._traits.name, was=was, now=self._state)
        if self._state == "open":
            self._rest()
            self._refuse_waiting()

    def _tell(self, message: Perform, news: OperationNews) -> None:
        if isinstance(news, NotFound):
            news = NotFound(message.asked_ms)
        self._directory.shard_of(message.payment_id).put_reserved_nowait(
            Heard(
                message.payment_id,
                message.op,
                news,
                "look_up" if message.call.look_up else "reply",
                self._clock.now_ms(),
            )
        )

    def _rest(self) -> None:
        if not self._resting:
            self._resting = True
            self._tasks.start_soon(self._wait_out)

    async def _wait_out(self) -> None:
        """The breaker's reset timer."""
        await anyio.sleep(self._breaker.retry_in_s(anyio.current_time()))
        self._resting = False
        if self._breaker.state == "open":
            self._breaker.half_open()
            self._note_state()
            self._pump()
