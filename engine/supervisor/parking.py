"""A supervisor that parks instead of escalating: one crash loop never takes its siblings down.

OTP has no such thing; there a supervisor that gives up takes its parent's intensity with it. Here
a shard that can't run must leave the other shards alone, so its own small supervisor is retried
slowly, each time with a fresh restart window, while its parent sees a child that runs.
"""

from collections.abc import Callable
from random import Random

import anyio
from anyio.abc import TaskGroup, TaskStatus

from engine.supervisor.errors import ChildStartFailed, MaxIntensityReached
from engine.supervisor.reports import Parked, ParkingStatistics, Resumed, SupervisionEvent
from engine.supervisor.spec import SupervisorSpec
from engine.supervisor.supervisor import Supervisor


class ParkingSupervisor:
    """Runs a Supervisor; when that gives up, parks it and starts it again `park_retry_s` later.

    `on_parked(reason)` is called each time it is parked, also when a retry failed, and
    `on_resumed()` when all children run again. Both are called in the supervisor's task, must not
    wait, and bring this supervisor down when they raise: readiness must not go on telling lies.
    `supervisor` is the one inside, for requests and looking; while parked it is not running.
    """

    def __init__(
        self,
        spec: SupervisorSpec,
        *,
        host: TaskGroup,
        random: Random,
        on_parked: Callable[[str], None],
        on_resumed: Callable[[], None],
        park_retry_s: float = 30.0,
        on_event: Callable[[SupervisionEvent], None] | None = None,
    ) -> None:
        """Raises SpecRefused for the spec and ValueError for a retry that would not be slow."""
        if not park_retry_s > 0:
            raise ValueError(f"park_retry_s is {park_retry_s!r}; set seconds greater than 0")
        self.supervisor = Supervisor(spec, host=host, random=random, on_event=on_event)
        self._park_retry_s = park_retry_s
        self._on_parked = on_parked
        self._on_resumed = on_resumed
        self._parked_because: str | None = None
        self._retry_at_s: float | None = None
        self._parkings = 0

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Supervise until cancelled; return when a significant child shut the inside down.

        Signals started when the children run or when they are parked for the first time, so that
        a broken shard does not hold up the start of its siblings.
        """
        start = _FirstStart(task_status)
        while True:
            try:
                await self.supervisor.run(task_status=_Relay(lambda: self._note_running(start)))
            except (MaxIntensityReached, ChildStartFailed) as error:
                self._park(str(error))
                start.signal()
                await anyio.sleep(self._park_retry_s)
            else:
                return

    def _note_running(self, start: "_FirstStart") -> None:
        if self._parked_because is not None:
            self._parked_because = None
            self._retry_at_s = None
            self._on_resumed()
            self.supervisor.report(Resumed(supervisor_id=self.supervisor.spec.id))
        start.signal()

    def _park(self, reason: str) -> None:
        self._parked_because = reason
        self._retry_at_s = anyio.current_time() + self._park_retry_s
        self._parkings += 1
        self._on_parked(reason)
        self.supervisor.report(
            Parked(supervisor_id=self.supervisor.spec.id, reason=reason, retry_s=self._park_retry_s)
        )

    def statistics(self) -> ParkingStatistics:
        """The state at this moment."""
        return ParkingStatistics(
            parked_because=self._parked_because,
            retry_at_s=self._retry_at_s,
            parkings=self._parkings,
            supervisor=self.supervisor.statistics(),
        )


class _FirstStart:
    """Signals a start once, however often the inside starts."""

    def __init__(self, task_status: TaskStatus[None]) -> None:
        self._task_status = task_status
        self._is_signalled = False

    def signal(self) -> None:
        if not self._is_signalled:
            self._is_signalled = True
            self._task_status.started()


class _Relay:
    """A `task_status` that calls a function when its task has started."""

    def __init__(self, on_started: Callable[[], None]) -> None:
        self._on_started = on_started

    def started(self, value: None = None) -> None:
        self._on_started()
