"""Child specs are data: written down, checked as a whole, and only then started.

The fields and their defaults are those of OTP's `supervisor` (`child_spec()`, `sup_flags()`), with
times in seconds and three additions: a bounded start, a backoff, and the child's mailbox.
"""

import math
from collections.abc import Awaitable, Iterator
from typing import Any, Literal, Protocol, TypeGuard, get_args

import anyio
import msgspec
from anyio.abc import TaskStatus

from engine.supervisor.errors import SpecProblem, SpecRefused
from engine.supervisor.intensity import crash_loop_span_s
from engine.supervisor.mailbox import Mailbox

Restart = Literal["permanent", "transient", "temporary"]
Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
ChildType = Literal["worker", "supervisor"]
AutoShutdown = Literal["never", "any_significant", "all_significant"]
ShutdownWord = Literal["brutal", "infinity"]

WORKER_SHUTDOWN_S = 5.0


class Start(Protocol):
    """What a child is: runs until the child ends, and says when it is ready.

    It must call `task_status.started(value)` once. Returning is a normal exit, raising a crash.
    """

    def __call__(
        self, *, task_status: TaskStatus[Any] = anyio.TASK_STATUS_IGNORED
    ) -> Awaitable[object]: ...


class ChildSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How one child is started, restarted and stopped.

    `restart`: `permanent` always, `transient` unless it ended normally, `temporary` never.
    `shutdown_s`: how long a cancelled child may take to end before it is abandoned; `"brutal"`
    gives it no time at all, `"infinity"` all it needs. None means 5 s for a worker and infinity
    for a supervisor, as in OTP.
    `start_timeout_s`: how long it may take to signal that it started; `math.inf` is allowed for
    child supervisors, whose own children are bounded.
    `significant`: its end may shut its supervisor down, see `SupervisorSpec.auto_shutdown`.
    `mailbox`: put in order after each end of the child, and revoked when it is abandoned.
    """

    id: str
    start: Start
    restart: Restart = "permanent"
    shutdown_s: float | ShutdownWord | None = None
    start_timeout_s: float = 30.0
    type: ChildType = "worker"
    significant: bool = False
    mailbox: Mailbox[Any] | None = None

    @property
    def shutdown(self) -> float | ShutdownWord:
        """`shutdown_s` with the default of the child's type filled in."""
        if self.shutdown_s is not None:
            return self.shutdown_s
        return "infinity" if self.type == "supervisor" else WORKER_SHUTDOWN_S


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """The wait before a restart: doubles from `initial_s` to `max_s`, less a random share.

    `jitter` (0 to 1) is the largest share that is taken off. A child that stayed up for a whole
    `period_s` of its supervisor starts again at `initial_s`.
    """

    initial_s: float = 0.1
    max_s: float = 5.0
    jitter: float = 0.5


class SupervisorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A supervisor: its strategy, how many restarts it may make, and its children in order.

    More than `intensity` restarts within `period_s` seconds make it give up. The defaults (1 in
    5 s) are OTP's. `auto_shutdown` ends the supervisor normally when any, or the last running, of
    its significant children has ended by itself (OTP 24).
    """

    id: str
    children: tuple[ChildSpec, ...] = ()
    strategy: Strategy = "one_for_one"
    intensity: int = 1
    period_s: float = 5.0
    backoff: Backoff = Backoff()
    auto_shutdown: AutoShutdown = "never"


def must_restart(restart: Restart, *, is_normal_exit: bool) -> bool:
    """Whether a child that ended by itself is started again."""
    return restart == "permanent" or (restart == "transient" and not is_normal_exit)


def check_supervisor(spec: SupervisorSpec) -> None:
    """Raise SpecRefused with every problem of the spec, or return when there is none."""
    problems = tuple(supervisor_problems(spec))
    if problems:
        raise SpecRefused(problems)


def supervisor_problems(spec: SupervisorSpec) -> Iterator[SpecProblem]:
    """Every problem of a supervisor's spec and of its children's."""
    where = f"supervisor {spec.id!r}"
    if not _is_name(spec.id):
        yield SpecProblem(where, "the id is not a non-empty string", "name the supervisor")
    yield from _choice(where, "strategy", spec.strategy, Strategy)
    yield from _choice(where, "auto_shutdown", spec.auto_shutdown, AutoShutdown)
    limits = [
        *_intensity_problems(where, spec.intensity),
        *_positive(where, "period_s", spec.period_s, finite=True),
        *_backoff_problems(where, spec.backoff),
    ]
    yield from limits or _window_problems(where, spec)
    seen: set[str] = set()
    for child in spec.children:
        if child.id in seen:
            problem = f"the id {child.id!r} is used by more than one child"
            yield SpecProblem(where, problem, "give each child an id of its own")
        seen.add(child.id)
        yield from child_problems(child, auto_shutdown=spec.auto_shutdown)


def child_problems(child: ChildSpec, *, auto_shutdown: AutoShutdown) -> Iterator[SpecProblem]:
    """Every problem of one child's spec under a supervisor with this `auto_shutdown`."""
    where = f"child {child.id!r}"
    if not _is_name(child.id):
        yield SpecProblem(where, "the id is not a non-empty string", "name the child")
    if not callable(child.start):
        yield SpecProblem(where, "start can't be called", "give it an async function")
    yield from _choice(where, "restart", child.restart, Restart)
    yield from _choice(where, "type", child.type, ChildType)
    if isinstance(child.shutdown_s, str):
        yield from _choice(where, "shutdown_s", child.shutdown_s, ShutdownWord)
    elif child.shutdown_s is not None:
        yield from _positive(where, "shutdown_s", child.shutdown_s, finite=True)
    yield from _positive(where, "start_timeout_s", child.start_timeout_s, finite=False)
    if child.significant and child.restart == "permanent":
        yield SpecProblem(
            where,
            "a permanent child can't be significant, because it never ends for good",
            "make it transient or temporary, or not significant",
        )
    if child.significant and auto_shutdown == "never":
        yield SpecProblem(
            where,
            "it is significant, but its supervisor never shuts down by itself",
            "set auto_shutdown on the supervisor, or make the child not significant",
        )


def _intensity_problems(where: str, intensity: object) -> Iterator[SpecProblem]:
    if not isinstance(intensity, int) or isinstance(intensity, bool) or intensity < 0:
        problem = f"intensity is {intensity!r}"
        yield SpecProblem(where, problem, "set a whole number of restarts, 0 or more")


def _backoff_problems(where: str, backoff: Backoff) -> Iterator[SpecProblem]:
    initial_s, max_s, jitter = backoff.initial_s, backoff.max_s, backoff.jitter
    if not _is_number(initial_s) or not 0 <= initial_s < math.inf:
        problem = f"backoff.initial_s is {initial_s!r}"
        yield SpecProblem(where, problem, "set a number of seconds, 0 or more")
    elif not _is_number(max_s) or not initial_s <= max_s < math.inf:
        problem = f"backoff.max_s is {max_s!r}"
        yield SpecProblem(where, problem, "set a number of seconds, initial_s or more")
    if not _is_number(jitter) or not 0 <= jitter <= 1:
        problem = f"backoff.jitter is {jitter!r}"
        yield SpecProblem(where, problem, "set a share between 0 and 1")


def _window_problems(where: str, spec: SupervisorSpec) -> Iterator[SpecProblem]:
    span_s = crash_loop_span_s(
        spec.intensity, initial_s=spec.backoff.initial_s, max_s=spec.backoff.max_s
    )
    if span_s > spec.period_s:
        yield SpecProblem(
            where,
            f"backoff spreads {spec.intensity} restarts over {span_s:g} s, which is longer than"
            f" period_s ({spec.period_s:g} s), so a crash loop would never escalate",
            f"set period_s to at least {span_s:g}, or lower intensity or backoff.max_s",
        )


def _positive(where: str, name: str, value: object, *, finite: bool) -> Iterator[SpecProblem]:
    if _is_number(value) and value > 0 and not (finite and math.isinf(value)):
        return
    limit = "a finite number of seconds" if finite else "a number of seconds"
    yield SpecProblem(where, f"{name} is {value!r}", f"set {limit} greater than 0")


def _choice(where: str, name: str, value: object, literal: object) -> Iterator[SpecProblem]:
    choices = get_args(literal)
    if value not in choices:
        yield SpecProblem(where, f"{name} is {value!r}", f"use one of {', '.join(choices)}")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _is_number(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not math.isnan(value)
