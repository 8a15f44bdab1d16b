"""One child and its lives: starting it within bounds, and stopping it without waiting forever.

A task can't be killed. Every incarnation therefore runs in a task group that outlives its
supervisor, and one that ignores its cancellation is abandoned there: its mailbox is revoked, so
that whatever it still does can take no further message, and its supervisor goes on.
"""

import math
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from engine.supervisor.reports import ChildState, Ending, EndingKind
from engine.supervisor.spec import ChildSpec, ShutdownWord

# A brutally stopped child gets this many turns of the scheduler, and no time: enough for the
# cancellation to unwind some nested task groups, too little for a clean-up that waits.
BRUTAL_TURNS = 16

# Of the exceptions of a group that a child raised, so many are named.
CAUSES_MAX = 3


def describe(error: BaseException) -> str:
    """An exception as one line of a reason; a group as what is in it, the first few."""
    if isinstance(error, BaseExceptionGroup):
        causes = [describe(cause) for cause in error.exceptions[:CAUSES_MAX]]
        if len(error.exceptions) > CAUSES_MAX:
            causes.append(f"{len(error.exceptions) - CAUSES_MAX} more")
        return "; ".join(causes)
    return f"{type(error).__name__}: {error}"


class Incarnation:
    """One life of a child, from its start to its end. It is the child's own `task_status`."""

    def __init__(self, spec: ChildSpec, on_end: "Callable[[Incarnation], None]") -> None:
        self.spec = spec
        self.value: Any = None
        self.is_started = False
        self.is_stopping = False
        self.is_abandoned = False
        self.ending: Ending | None = None
        self.ended = anyio.Event()
        self._started_or_ended = anyio.Event()
        self._scope = anyio.CancelScope()
        self._on_end = on_end

    def started(self, value: Any = None) -> None:
        """Called by the child when it is ready. Raises RuntimeError when called twice."""
        if self.is_started:
            raise RuntimeError(f"child {self.spec.id!r} called task_status.started() twice")
        self.is_started = True
        self.value = value
        self._started_or_ended.set()

    async def live(self) -> None:
        """Run the child; whatever it raises ends here, except what must reach the host."""
        try:
            with self._scope:
                await self.spec.start(task_status=self)
        except BaseException as error:
            # The host itself is being cancelled if this task's scopes say so. A cancellation with
            # no such scope was aimed at the child alone (on asyncio: `task.cancel()`), and its
            # supervisor deals with it like with a crash.
            is_host_closing = anyio.current_effective_deadline() == -math.inf
            is_cancelled = isinstance(error, anyio.get_cancelled_exc_class())
            if isinstance(error, Exception) or not (is_cancelled or is_host_closing):
                kind = EndingKind.CRASHED
            else:
                kind = EndingKind.CANCELLED
            self._end(Ending(kind, describe(error), error))
            if not isinstance(error, Exception) and (is_host_closing or not is_cancelled):
                raise
        else:
            if self._scope.cancel_called:
                self._end(Ending(EndingKind.STOPPED, "stopped by its supervisor"))
            else:
                self._end(Ending(EndingKind.NORMAL, "returned"))

    def _end(self, ending: Ending) -> None:
        self.ending = ending
        mailbox = self.spec.mailbox
        # An abandoned incarnation lost its mailbox already; a newer one may be reading it.
        if mailbox is not None and not self.is_abandoned:
            is_blamed = ending.kind is EndingKind.CRASHED and not self.is_stopping
            mailbox.requeue_unacknowledged(crash_reason=ending.reason if is_blamed else None)
        self._started_or_ended.set()
        self.ended.set()
        self._on_end(self)

    async def wait_started_or_ended(self) -> None:
        """Wait for whichever comes first."""
        await self._started_or_ended.wait()

    async def stop(self, shutdown: float | ShutdownWord) -> Ending:
        """Cancel it and wait at most `shutdown` seconds; after that it is abandoned."""
        self.is_stopping = True
        self._scope.cancel()
        if shutdown == "brutal":
            for _ in range(BRUTAL_TURNS):
                if self.ended.is_set():
                    break
                await anyio.lowlevel.checkpoint()
        else:
            with anyio.move_on_after(math.inf if shutdown == "infinity" else shutdown):
                await self.ended.wait()
        if self.ending is not None:
            return self.ending
        return self._abandon(shutdown)

    def _abandon(self, shutdown: float | ShutdownWord) -> Ending:
        self.is_abandoned = True
        patience = shutdown if isinstance(shutdown, str) else f"{shutdown:g} s"
        reason = f"ignored its cancellation (shutdown: {patience})"
        if self.spec.mailbox is not None:
            self.spec.mailbox.revoke(reason)
        return Ending(EndingKind.ABANDONED, reason)


class Child:
    """A child as its supervisor sees it, over all its incarnations."""

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.state = ChildState.STOPPED
        self.incarnation: Incarnation | None = None
        self.restarts = 0
        self.last_reason = ""
        self.failures_in_a_row = 0
        self._started_at_s = math.inf

    @property
    def value(self) -> Any:
        """What the running incarnation passed to `started()`, else None."""
        return self.incarnation.value if self.incarnation is not None else None

    @property
    def uptime_s(self) -> float:
        """Seconds since the last incarnation signalled that it started, 0 if it never did."""
        return max(0.0, anyio.current_time() - self._started_at_s)

    async def start(
        self, host: TaskGroup, on_end: Callable[[Incarnation], None]
    ) -> tuple[Incarnation, Ending | None]:
        """Start it in `host` and wait until it has started; an ending tells why it did not.

        A start that hangs for `start_timeout_s` is stopped like a child at shutdown.
        """
        incarnation = Incarnation(self.spec, on_end)
        host.start_soon(incarnation.live, name=self.spec.id)
        self.incarnation = incarnation
        self.state = ChildState.STARTING
        self._started_at_s = math.inf
        with anyio.move_on_after(self.spec.start_timeout_s):
            await incarnation.wait_started_or_ended()
        if incarnation.is_started:
            self.state = ChildState.RUNNING
            self._started_at_s = anyio.current_time()
            return incarnation, None
        failure = _start_failure(incarnation)
        if incarnation.ending is None:
            await incarnation.stop(self.spec.shutdown)
        self.settle(failure)
        return incarnation, failure

    async def stop(self) -> tuple[Incarnation, Ending] | None:
        """Stop it within its `shutdown` limit; None when there was nothing to stop."""
        incarnation = self.incarnation
        if incarnation is None:
            if self.state is ChildState.RESTARTING:
                self.state = ChildState.STOPPED
            return None
        ending = await incarnation.stop(self.spec.shutdown)
        self.settle(ending)
        return incarnation, ending

    def settle(self, ending: Ending) -> None:
        """Note that the current incarnation is over."""
        incarnation, self.incarnation = self.incarnation, None
        is_abandoned = incarnation is not None and incarnation.is_abandoned
        self.state = ChildState.ABANDONED if is_abandoned else ChildState.STOPPED
        self.last_reason = ending.reason


def _start_failure(incarnation: Incarnation) -> Ending:
    ending = incarnation.ending
    if ending is None:
        limit_s = incarnation.spec.start_timeout_s
        return Ending(EndingKind.START_TIMED_OUT, f"did not start within {limit_s:g} s")
    if ending.kind is EndingKind.NORMAL:
        return Ending(EndingKind.START_FAILED, "returned before task_status.started()")
    return Ending(EndingKind.START_FAILED, ending.reason, ending.error)
