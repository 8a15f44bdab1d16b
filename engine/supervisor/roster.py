"""The children of one supervisor, in start order: starting, stopping and reporting on them.

The roster knows how; when and whom is the supervisor's business.
"""

from collections.abc import Callable, Iterable, Iterator

from anyio.abc import TaskGroup

from engine.supervisor.child import Child, Incarnation
from engine.supervisor.reports import (
    AbandonedChildEnded,
    ChildAbandoned,
    ChildCounts,
    ChildDidNotStart,
    ChildInfo,
    ChildStarted,
    ChildState,
    ChildStatistics,
    ChildStopped,
    Ending,
    EndingKind,
    SupervisionEvent,
)
from engine.supervisor.spec import ChildSpec


class Roster:
    """`on_end` is called, in the child's task, for each end except that of an abandoned one.

    That includes ends the supervisor brought about or already knows of; it ignores those.
    """

    def __init__(
        self,
        supervisor_id: str,
        *,
        host: TaskGroup,
        on_end: Callable[[Incarnation], None],
        on_event: Callable[[SupervisionEvent], None] | None,
    ) -> None:
        self.observer_failures = 0
        self._supervisor_id = supervisor_id
        self._host = host
        self._on_end = on_end
        self._on_event = on_event
        self._children: dict[str, Child] = {}
        self._abandoned: set[Incarnation] = set()

    def __iter__(self) -> Iterator[Child]:
        """The children in start order, as they are now; the roster may change meanwhile."""
        return iter(tuple(self._children.values()))

    def find(self, child_id: str) -> Child | None:
        """The child of this id, if there is one."""
        return self._children.get(child_id)

    def add(self, spec: ChildSpec) -> Child:
        """Append a child, not started."""
        child = self._children[spec.id] = Child(spec)
        return child

    def remove(self, child: Child) -> None:
        """Forget a child that is not running."""
        del self._children[child.spec.id]

    def clear(self) -> None:
        """Forget all children; abandoned tasks are still known, because they may still run."""
        self._children.clear()

    def emit(self, event: SupervisionEvent) -> None:
        """Hand an event to the observer, which may not bring down what it observes."""
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except Exception:
            self.observer_failures += 1

    async def start(self, child: Child) -> ChildStarted | Ending:
        """Start a child; an Ending tells why it did not start."""
        incarnation, failure = await child.start(self._host, self._note_end)
        if failure is None:
            event = ChildStarted(
                supervisor_id=self._supervisor_id, child_id=child.spec.id, value=child.value
            )
            self.emit(event)
            return event
        if incarnation.is_abandoned:
            self._note_abandoned(incarnation, failure)
        self.emit(
            ChildDidNotStart(
                supervisor_id=self._supervisor_id, child_id=child.spec.id, ending=failure
            )
        )
        return failure

    async def stop(self, child: Child) -> ChildStopped | ChildAbandoned:
        """Stop a child within its shutdown limit; one that does not run counts as stopped."""
        stopped = await child.stop()
        if stopped is None:
            nothing = Ending(EndingKind.STOPPED, "was not running")
            return ChildStopped(
                supervisor_id=self._supervisor_id, child_id=child.spec.id, ending=nothing
            )
        incarnation, ending = stopped
        if incarnation.is_abandoned:
            return self._note_abandoned(incarnation, ending)
        event = ChildStopped(
            supervisor_id=self._supervisor_id, child_id=child.spec.id, ending=ending
        )
        self.emit(event)
        return event

    async def stop_in_reverse(self, children: Iterable[Child]) -> None:
        """Stop children one after the other, the last one first."""
        for child in reversed(list(children)):
            await self.stop(child)

    def _note_abandoned(self, incarnation: Incarnation, ending: Ending) -> ChildAbandoned:
        # It may have ended while a cancelled stop was being cleaned up; then nothing is left over.
        if not incarnation.ended.is_set():
            self._abandoned.add(incarnation)
        event = ChildAbandoned(
            supervisor_id=self._supervisor_id, child_id=incarnation.spec.id, reason=ending.reason
        )
        self.emit(event)
        return event

    def _note_end(self, incarnation: Incarnation) -> None:
        """Runs in the child's task when it ends, possibly long after it was abandoned."""
        if incarnation in self._abandoned:
            assert incarnation.ending is not None
            self._abandoned.discard(incarnation)
            event = AbandonedChildEnded(
                supervisor_id=self._supervisor_id,
                child_id=incarnation.spec.id,
                ending=incarnation.ending,
            )
            self.emit(event)
        else:
            self._on_end(incarnation)

    def which(self) -> tuple[ChildInfo, ...]:
        """One row per child, in start order."""
        return tuple(
            ChildInfo(id=child.spec.id, type=child.spec.type, state=child.state, value=child.value)
            for child in self
        )

    def count(self) -> ChildCounts:
        """How many children there are and how many run."""
        supervisors = sum(child.spec.type == "supervisor" for child in self)
        return ChildCounts(
            specs=len(self._children),
            active=sum(child.state is ChildState.RUNNING for child in self),
            supervisors=supervisors,
            workers=len(self._children) - supervisors,
        )

    @property
    def abandoned(self) -> int:
        """How many abandoned tasks still run."""
        return len(self._abandoned)

    def statistics(self) -> tuple[ChildStatistics, ...]:
        """One frozen row per child, in start order."""
        return tuple(
            ChildStatistics(
                id=child.spec.id,
                state=child.state,
                restarts=child.restarts,
                last_reason=child.last_reason,
            )
            for child in self
        )
