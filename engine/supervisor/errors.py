"""What the supervision layer refuses, as values, and what it raises when something is broken.

A refusal (`SpecProblem`, `ChildRefused`) is an answer and names what to do about it. An exception
means that a child tree could not be started or kept alive, or that a mailbox can't be used.
"""

# These names are facts ("the mailbox is full"); an `Error` suffix would say less.

from enum import StrEnum

import anyio
import msgspec


class SpecProblem(msgspec.Struct, frozen=True):
    """One thing that is wrong in a spec: where, what, and what to do about it."""

    where: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}; {self.remedy}"


class Refusal(StrEnum):
    """Why a request about a child was refused; the names are those of OTP's `supervisor`."""

    ALREADY_STARTED = "already_started"
    ALREADY_PRESENT = "already_present"
    NOT_FOUND = "not_found"
    RUNNING = "running"
    RESTARTING = "restarting"
    START_FAILED = "start_failed"
    INVALID_SPEC = "invalid_spec"


class ChildRefused(msgspec.Struct, frozen=True):
    """The answer to a request about a child that was not carried out."""

    child_id: str
    refusal: Refusal
    detail: str


class SupervisionError(Exception):
    """Base of everything a supervisor raises."""


class SpecRefused(SupervisionError):
    """A spec was invalid; nothing was started. `problems` holds every problem, not only one."""

    def __init__(self, problems: tuple[SpecProblem, ...]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class ChildStartFailed(SupervisionError):
    """A child did not start while its supervisor booted; the earlier children were stopped."""

    def __init__(self, supervisor_id: str, child_id: str, reason: str) -> None:
        self.supervisor_id = supervisor_id
        self.child_id = child_id
        self.reason = reason
        super().__init__(f"{supervisor_id}: child {child_id!r} did not start: {reason}")


class MaxIntensityReached(SupervisionError):
    """A supervisor gave up and escalates: its children needed more restarts than it may make."""

    def __init__(
        self, supervisor_id: str, child_id: str, reason: str, intensity: int, period_s: float
    ) -> None:
        self.supervisor_id = supervisor_id
        self.child_id = child_id
        self.reason = reason
        super().__init__(
            f"{supervisor_id}: more than {intensity} restarts in {period_s:g} s,"
            f" the last for child {child_id!r}: {reason}"
        )


class SupervisorNotRunning(SupervisionError):
    """A request reached a supervisor that does not run, or that ended before it could answer."""


class MailboxFull(anyio.WouldBlock):
    """A mailbox had no room for a message; the sender still owns it."""


class MailboxRevoked(anyio.ClosedResourceError):
    """The mailbox was taken from the caller's incarnation, or has had no reader since it was."""
