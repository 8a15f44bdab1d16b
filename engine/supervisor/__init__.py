"""Supervised actors with the semantics of Erlang/OTP, on anyio (asyncio or trio).

Read in this order: `spec.py` (what is asked for), `mailbox.py` (what an actor reads from),
`supervisor.py` (what happens when a child ends), `parking.py` (a supervisor that does not
escalate). `intensity.py` holds the arithmetic, `child.py` and `roster.py` the mechanics,
`reports.py` and `errors.py` what is said about it.
"""

from engine.supervisor.errors import (
    ChildRefused,
    ChildStartFailed,
    MailboxFull,
    MailboxRevoked,
    MaxIntensityReached,
    Refusal,
    SpecProblem,
    SpecRefused,
    SupervisionError,
    SupervisorNotRunning,
)
from engine.supervisor.mailbox import DeadLetter, Mailbox, MailboxReader, MailboxStatistics
from engine.supervisor.parking import ParkingSupervisor
from engine.supervisor.reports import ParkingStatistics, SupervisionEvent, SupervisorStatistics
from engine.supervisor.spec import Backoff, ChildSpec, SupervisorSpec, check_supervisor
from engine.supervisor.supervisor import Supervisor

__all__ = [
    "Backoff",
    "ChildRefused",
    "ChildSpec",
    "ChildStartFailed",
    "DeadLetter",
    "Mailbox",
    "MailboxFull",
    "MailboxReader",
    "MailboxRevoked",
    "MailboxStatistics",
    "MaxIntensityReached",
    "ParkingStatistics",
    "ParkingSupervisor",
    "Refusal",
    "SpecProblem",
    "SpecRefused",
    "SupervisionError",
    "SupervisionEvent",
    "Supervisor",
    "SupervisorNotRunning",
    "SupervisorSpec",
    "SupervisorStatistics",
    "check_supervisor",
]
