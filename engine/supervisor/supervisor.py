"""A supervisor with the semantics of Erlang/OTP's `supervisor`, on anyio.

It is one task that handles one thing at a time, like OTP's gen_server: the end of a child, a
restart that is due, or a request. What happens meanwhile waits in its inbox. It differs from OTP
in three points, each because tasks are not processes: restarts wait for a backoff, starts are
bounded in time, and a child that can't be stopped is abandoned (see `child.py`).
"""

import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Generic, TypeVar

import anyio
from anyio.abc import TaskGroup, TaskStatus

from engine.supervisor.child import Child, Incarnation
from engine.supervisor.errors import (
    ChildRefused,
    ChildStartFailed,
    MaxIntensityReached,
    Refusal,
    SupervisorNotRunning,
)
from engine.supervisor.intensity import add_restart, delay_s, is_exceeded
from engine.supervisor.reports import (
    ChildAbandoned,
    ChildCounts,
    ChildDeleted,
    ChildEnded,
    ChildInfo,
    ChildStarted,
    ChildState,
    ChildStopped,
    Ending,
    EndingKind,
    Escalated,
    RestartScheduled,
    ShutDownBySignificantChild,
    SupervisionEvent,
    SupervisorStatistics,
)
from engine.supervisor.roster import Roster
from engine.supervisor.spec import (
    ChildSpec,
    SupervisorSpec,
    check_supervisor,
    child_problems,
    must_restart,
)

R = TypeVar("R")


class _Request(Generic[R]):
    """A request in the inbox; its operation runs in the supervisor's task, so they never mix."""

    def __init__(self, operation: Callable[[], Awaitable[R]]) -> None:
        self.answer: R | None = None
        self.is_answered = False
        self.closed = anyio.Event()
        self._operation = operation

    async def handle(self) -> None:
        self.answer = await self._operation()
        self.is_answered = True
        self.closed.set()


@dataclass(eq=False)
class _DueRestart:
    """Children to start again together at `due_s`, in start order."""

    due_s: float
    children: list[Child]


class Supervisor:
    """Starts its children in order, restarts them by the strategy, stops them in reverse.

    Children run in `host`, a task group that must outlive the supervisor: to stop everything,
    cancel what runs `run()`, not the host. `random` spreads the restarts. `on_event` sees every
    SupervisionEvent; when it raises, that is counted and otherwise ignored.

    A child may use the requests (`start_child`, ...) only after it has started: before, the
    supervisor is waiting for it, and both would wait until the start times out (as in OTP).
    """

    def __init__(
        self,
        spec: SupervisorSpec,
        *,
        host: TaskGroup,
        random: Random,
        on_event: Callable[[SupervisionEvent], None] | None = None,
    ) -> None:
        """Raises SpecRefused with every problem of the spec."""
        check_supervisor(spec)
        self.spec = spec
        self._random = random
        self._roster = Roster(spec.id, host=host, on_end=self._put, on_event=on_event)
        self._is_running = False
        self._is_shutting_down = False
        self._inbox: deque[_Request[Any] | Incarnation] = deque()
        self._due_restarts: list[_DueRestart] = []
        self._bell: anyio.Event | None = None
        self._restarts_s: tuple[float, ...] = ()
        self._restart_count = 0

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Supervise until cancelled, or until a significant child ends it (then it returns).

        Signals started when all children have. Ends only after every child was stopped or
        abandoned. May be called again after it ended, with the children of the spec. Raises
        ChildStartFailed when a child fails at boot (there is no retry then, as in OTP), and
        MaxIntensityReached to escalate.
        """
        assert not self._is_running, "a supervisor runs once at a time"
        self._is_running = True
        self._is_shutting_down = False
        self._restarts_s = ()
        self._roster.clear()
        for child in self.spec.children:
            self._roster.add(child)
        try:
            await self._boot()
            task_status.started()
            await self._serve()
        finally:
            # The stop must not be cut short by the cancellation that asked for it. It is bounded
            # by the children's own shutdown limits.
            with anyio.CancelScope(shield=True):
                self._due_restarts.clear()
                await self._roster.stop_in_reverse(self._roster)
            self._is_running = False
            for item in self._inbox:
                if isinstance(item, _Request):
                    item.closed.set()
            self._inbox.clear()

    async def _boot(self) -> None:
        for child in self._roster:
            started = await self._roster.start(child)
            if isinstance(started, Ending):
                raise ChildStartFailed(
                    self.spec.id, child.spec.id, started.reason
                ) from started.error

    async def _serve(self) -> None:
        while not self._is_shutting_down:
            due = min(self._due_restarts, key=lambda restart: restart.due_s, default=None)
            if due is not None and due.due_s <= anyio.current_time():
                self._due_restarts.remove(due)
                await self._start_again(due.children)
            elif self._inbox:
                # The item stays in the inbox while it is handled, so that the requester is told
                # when the supervisor ends in the middle.
                item = self._inbox[0]
                if isinstance(item, Incarnation):
                    await self._handle_end(item)
                else:
                    await item.handle()
                self._inbox.popleft()
            else:
                self._bell = anyio.Event()
                with anyio.CancelScope(deadline=math.inf if due is None else due.due_s):
                    await self._bell.wait()

    def _put(self, item: _Request[Any] | Incarnation) -> None:
        self._inbox.append(item)
        if self._bell is not None:
            self._bell.set()

    # -- the ends of children ---------------------------------------------------------------

    async def _handle_end(self, incarnation: Incarnation) -> None:
        child = self._roster.find(incarnation.spec.id)
        ending = incarnation.ending
        assert ending is not None
        if child is None or child.incarnation is not incarnation:
            return  # It was stopped, or did not start, and whoever did that has dealt with it.
        if child.uptime_s >= self.spec.period_s:
            child.failures_in_a_row = 0
        child.settle(ending)
        self._roster.emit(
            ChildEnded(supervisor_id=self.spec.id, child_id=child.spec.id, ending=ending)
        )
        is_normal_exit = ending.kind is EndingKind.NORMAL
        if must_restart(child.spec.restart, is_normal_exit=is_normal_exit):
            await self._restart(child, ending)
            return
        if child.spec.restart == "temporary":
            self._roster.remove(child)
        if child.spec.significant and self._is_last_significant():
            self._is_shutting_down = True
            self._roster.emit(
                ShutDownBySignificantChild(supervisor_id=self.spec.id, child_id=child.spec.id)
            )

    def _is_last_significant(self) -> bool:
        if self.spec.auto_shutdown == "any_significant":
            return True
        return not any(
            child.spec.significant and child.state in (ChildState.RUNNING, ChildState.RESTARTING)
            for child in self._roster
        )

    async def _restart(self, child: Child, ending: Ending) -> None:
        """Count a restart; escalate, or stop what the strategy says and schedule its start."""
        spec = self.spec
        now_s = anyio.current_time()
        self._restarts_s = add_restart(self._restarts_s, now_s=now_s, period_s=spec.period_s)
        if is_exceeded(self._restarts_s, intensity=spec.intensity):
            self._roster.emit(
                Escalated(supervisor_id=spec.id, child_id=child.spec.id, reason=ending.reason)
            )
            raise MaxIntensityReached(
                spec.id, child.spec.id, ending.reason, spec.intensity, spec.period_s
            ) from ending.error
        self._restart_count += 1
        group = await self._stop_affected(child)
        wait_s = delay_s(
            child.failures_in_a_row,
            initial_s=spec.backoff.initial_s,
            max_s=spec.backoff.max_s,
            jitter=spec.backoff.jitter,
            chance=self._random.random(),
        )
        child.failures_in_a_row += 1
        for member in group:
            member.state = ChildState.RESTARTING
        self._due_restarts.append(_DueRestart(anyio.current_time() + wait_s, group))
        self._roster.emit(
            RestartScheduled(
                supervisor_id=spec.id,
                child_id=child.spec.id,
                affected=tuple(member.spec.id for member in group),
                delay_s=wait_s,
                reason=ending.reason,
            )
        )

    async def _stop_affected(self, failed: Child) -> list[Child]:
        """Stop the siblings that restart with the failed child; answer with all to start again.

        Temporary siblings are stopped and forgotten, as in OTP, because they never restart.
        """
        if self.spec.strategy == "one_for_one":
            return [failed]
        affected = list(self._roster)
        if self.spec.strategy == "rest_for_one":
            affected = affected[affected.index(failed) :]
        for child in affected:
            self._drop_due_restart(child)
        await self._roster.stop_in_reverse(child for child in affected if child is not failed)
        for child in affected:
            if child.spec.restart == "temporary":
                self._roster.remove(child)
        return [child for child in affected if child.spec.restart != "temporary"]

    async def _start_again(self, children: list[Child]) -> None:
        for child in children:
            started = await self._roster.start(child)
            child.restarts += 1
            if isinstance(started, Ending):
                # A failed start is one more restart (OTP's `try_again_restart`), and under a group
                # strategy it takes the children that were to follow with it.
                await self._restart(child, started)
                return

    def _drop_due_restart(self, child: Child) -> None:
        for restart in self._due_restarts:
            if child in restart.children:
                restart.children.remove(child)
        self._due_restarts = [restart for restart in self._due_restarts if restart.children]

    # -- requests ---------------------------------------------------------------------------

    async def start_child(self, spec: ChildSpec) -> ChildStarted | ChildRefused:
        """Add a child at the end and start it. A child that fails to start is not added.

        Refuses INVALID_SPEC, ALREADY_STARTED, ALREADY_PRESENT (stopped or restarting) and
        START_FAILED. Like every request it raises SupervisorNotRunning when the supervisor is not
        running or ends first, and is carried out even if the caller stops waiting.
        """
        return await self._ask(lambda: self._start_new(spec))

    async def terminate_child(self, child_id: str) -> ChildStopped | ChildAbandoned | ChildRefused:
        """Stop a child, or call off its restart; its spec stays unless it is temporary.

        Refuses NOT_FOUND. A child that is not running counts as stopped.
        """
        return await self._ask(lambda: self._terminate(child_id))

    async def restart_child(self, child_id: str) -> ChildStarted | ChildRefused:
        """Start a stopped child again; refuses NOT_FOUND, RUNNING, RESTARTING, START_FAILED."""
        return await self._ask(lambda: self._start_stopped(child_id))

    async def delete_child(self, child_id: str) -> ChildDeleted | ChildRefused:
        """Forget a stopped child; refuses NOT_FOUND, RUNNING and RESTARTING."""
        return await self._ask(lambda: self._delete(child_id))

    async def _ask(self, operation: Callable[[], Awaitable[R]]) -> R:
        if not self._is_running or self._is_shutting_down:
            raise SupervisorNotRunning(f"{self.spec.id} is not running")
        request = _Request(operation)
        self._put(request)
        await request.closed.wait()
        if not request.is_answered:
            raise SupervisorNotRunning(f"{self.spec.id} ended before it could answer")
        return request.answer  # type: ignore[return-value]  # it is set when it is answered

    async def _start_new(self, spec: ChildSpec) -> ChildStarted | ChildRefused:
        problems = tuple(child_problems(spec, auto_shutdown=self.spec.auto_shutdown))
        if problems:
            detail = "; ".join(str(problem) for problem in problems)
            return ChildRefused(spec.id, Refusal.INVALID_SPEC, detail)
        present = self._roster.find(spec.id)
        if present is not None:
            is_started = present.state is ChildState.RUNNING
            refusal = Refusal.ALREADY_STARTED if is_started else Refusal.ALREADY_PRESENT
            return ChildRefused(spec.id, refusal, f"a child of this id is {present.state}")
        child = self._roster.add(spec)
        started = await self._roster.start(child)
        if isinstance(started, Ending):
            self._roster.remove(child)
            return ChildRefused(spec.id, Refusal.START_FAILED, started.reason)
        return started

    async def _terminate(self, child_id: str) -> ChildStopped | ChildAbandoned | ChildRefused:
        child = self._roster.find(child_id)
        if child is None:
            return _not_found(child_id)
        self._drop_due_restart(child)
        child.failures_in_a_row = 0
        event = await self._roster.stop(child)
        if child.spec.restart == "temporary":
            self._roster.remove(child)
        return event

    async def _start_stopped(self, child_id: str) -> ChildStarted | ChildRefused:
        child = self._roster.find(child_id)
        if child is None:
            return _not_found(child_id)
        if child.state in (ChildState.RUNNING, ChildState.RESTARTING):
            return _not_stopped(child)
        started = await self._roster.start(child)
        child.restarts += 1
        if isinstance(started, Ending):
            return ChildRefused(child_id, Refusal.START_FAILED, started.reason)
        return started

    async def _delete(self, child_id: str) -> ChildDeleted | ChildRefused:
        child = self._roster.find(child_id)
        if child is None:
            return _not_found(child_id)
        if child.state in (ChildState.RUNNING, ChildState.RESTARTING):
            return _not_stopped(child)
        self._roster.remove(child)
        event = ChildDeleted(supervisor_id=self.spec.id, child_id=child_id)
        self._roster.emit(event)
        return event

    def which_children(self) -> tuple[ChildInfo, ...]:
        """The children in start order, at this moment."""
        return self._roster.which()

    def count_children(self) -> ChildCounts:
        """How many children there are, at this moment."""
        return self._roster.count()

    def report(self, event: SupervisionEvent) -> None:
        """Tell the observer something about this supervisor; used by what wraps it."""
        self._roster.emit(event)

    def statistics(self) -> SupervisorStatistics:
        """The state at this moment; after the end of `run()`, the state it left."""
        return SupervisorStatistics(
            id=self.spec.id,
            strategy=self.spec.strategy,
            is_running=self._is_running,
            restarts=self._restart_count,
            restarts_in_period=len(self._restarts_s),
            abandoned=self._roster.abandoned,
            observer_failures=self._roster.observer_failures,
            children=self._roster.statistics(),
        )


def _not_found(child_id: str) -> ChildRefused:
    return ChildRefused(child_id, Refusal.NOT_FOUND, "there is no child of this id")


def _not_stopped(child: Child) -> ChildRefused:
    is_running = child.state is ChildState.RUNNING
    refusal = Refusal.RUNNING if is_running else Refusal.RESTARTING
    return ChildRefused(child.spec.id, refusal, f"the child is {child.state}")
