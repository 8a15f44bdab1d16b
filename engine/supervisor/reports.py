"""What a supervisor says about itself: endings, events and statistics, all frozen values."""

from enum import StrEnum
from typing import Any

import msgspec

from engine.supervisor.spec import ChildType, Strategy


class ChildState(StrEnum):
    """Where a child stands. `ABANDONED`: it ignored its cancellation and may still be running."""

    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"
    STOPPED = "stopped"
    ABANDONED = "abandoned"


class EndingKind(StrEnum):
    """How an incarnation of a child ended; all but `NORMAL` and `STOPPED` are abnormal."""

    NORMAL = "normal"
    CRASHED = "crashed"
    CANCELLED = "cancelled"
    START_FAILED = "start_failed"
    START_TIMED_OUT = "start_timed_out"
    STOPPED = "stopped"
    ABANDONED = "abandoned"


class Ending(msgspec.Struct, frozen=True):
    """How and why an incarnation ended. `error` is what it raised, kept for its traceback."""

    kind: EndingKind
    reason: str
    error: BaseException | None = None


class ChildStarted(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A child signalled that it started; `value` is what it passed to `started()`."""

    supervisor_id: str
    child_id: str
    value: Any = None


class ChildDidNotStart(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A child ended, or took too long, before it signalled that it started."""

    supervisor_id: str
    child_id: str
    ending: Ending


class ChildEnded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A child ended by itself."""

    supervisor_id: str
    child_id: str
    ending: Ending


class ChildStopped(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The supervisor stopped a child; `ending` tells if its clean-up crashed."""

    supervisor_id: str
    child_id: str
    ending: Ending


class ChildAbandoned(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A cancelled child did not end in time; its mailbox is revoked and nobody waits for it."""

    supervisor_id: str
    child_id: str
    reason: str


class AbandonedChildEnded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A child that had been abandoned ended after all."""

    supervisor_id: str
    child_id: str
    ending: Ending


class ChildDeleted(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The spec of a stopped child was removed."""

    supervisor_id: str
    child_id: str


class RestartScheduled(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The failure of `child_id` restarts `affected` (ids in start order) after `delay_s`."""

    supervisor_id: str
    child_id: str
    affected: tuple[str, ...]
    delay_s: float
    reason: str


class Escalated(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """More restarts were needed than allowed; the supervisor stops its children and raises."""

    supervisor_id: str
    child_id: str
    reason: str


class ShutDownBySignificantChild(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A significant child ended, so the supervisor ends normally."""

    supervisor_id: str
    child_id: str


class Parked(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A parking supervisor's children are down until it tries again in `retry_s`."""

    supervisor_id: str
    reason: str
    retry_s: float


class Resumed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A parked supervisor runs again."""

    supervisor_id: str


SupervisionEvent = (
    ChildStarted
    | ChildDidNotStart
    | ChildEnded
    | ChildStopped
    | ChildAbandoned
    | AbandonedChildEnded
    | ChildDeleted
    | RestartScheduled
    | Escalated
    | ShutDownBySignificantChild
    | Parked
    | Resumed
)


class ChildInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `which_children()`; `value` is what the child passed to `started()`."""

    id: str
    type: ChildType
    state: ChildState
    value: Any


class ChildCounts(msgspec.Struct, frozen=True, kw_only=True):
    """`count_children()`, as in OTP: `active` children run, the other counts are of specs."""

    specs: int
    active: int
    supervisors: int
    workers: int


class ChildStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """One child: `restarts` counts its starts after the first, `last_reason` its last ending."""

    id: str
    state: ChildState
    restarts: int
    last_reason: str


class SupervisorStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a supervisor at this moment.

    `restarts` counts all it made since it was created, `restarts_in_period` those that count
    against its intensity, `abandoned` the tasks that were given up and still run.
    """

    id: str
    strategy: Strategy
    is_running: bool
    restarts: int
    restarts_in_period: int
    abandoned: int
    observer_failures: int
    children: tuple[ChildStatistics, ...]


class ParkingStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """`parked_because` is None while it runs; `retry_at_s` is on the clock of the event loop."""

    parked_because: str | None
    retry_at_s: float | None
    parkings: int
    supervisor: SupervisorStatistics
