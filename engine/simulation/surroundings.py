"""Time, ids and telemetry of a simulated engine. All of it follows from the seed."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, Final

import trio

from engine.domain.ids import new_id, slot_of, slot_of_key
from engine.domain.payment import Payment
from engine.domain.steady import SteadyTime

if TYPE_CHECKING:
    from engine.simulation.life import Life

EPOCH_MS: Final = 1_800_000_000_000
"""When every run begins, in Unix milliseconds."""


class InjectedCrash(Exception):
    """An actor fails here because the plan says so."""


class TrueClock:
    """The time as it is: the gateway's clock, and what the engine's machine should show."""

    def now_ms(self) -> int:
        """Unix milliseconds."""
        return EPOCH_MS + round(trio.current_time() * 1_000)


class MachineClock(TrueClock):
    """The clock of the engine's machine, which somebody may set wrong."""

    def __init__(self) -> None:
        self.offset_ms = 0

    def now_ms(self) -> int:
        """Unix milliseconds, as this machine believes."""
        return super().now_ms() + self.offset_ms


class ProcessClock:
    """The machine's clock as one process goes by it: steady, as the engine's own clock is."""

    def __init__(self, machine: MachineClock) -> None:
        self._machine = machine
        self._steady = SteadyTime(*self._readings())

    def _readings(self) -> tuple[int, int]:
        return self._machine.now_ms() * 1_000_000, round(trio.current_time() * 1_000) * 1_000_000

    def now_ms(self) -> int:
        """Unix milliseconds."""
        return self._steady.now_ms(*self._readings())


class SeededIds:
    """New ids; where a crash is due, asking for one is what fails."""

    def __init__(self, clock: ProcessClock, seed: str, last_transfer: int) -> None:
        self._clock = clock
        self._random = Random(seed)
        self._transfer = last_transfer
        self.crash_in: str | None = None

    def continue_after(self, last_transfer: int) -> None:
        """Number transfers after the last one in the journal."""
        self._transfer = max(self._transfer, last_transfer)

    def payment(self, slot_key: str | None) -> str:
        """A new payment id, in the slot of `slot_key` or a random one."""
        slot = self._random.getrandbits(12) if slot_key is None else slot_of_key(slot_key)
        return new_id("pay_", self._clock.now_ms(), slot, self._random.getrandbits(60))

    def new(self, prefix: str, payment_id: str | None = None) -> str:
        """A new id; it carries its payment's slot when there is one."""
        if prefix == self.crash_in:
            self.crash_in = None
            raise InjectedCrash(f"no {prefix} id")
        slot = self._random.getrandbits(12) if payment_id is None else slot_of(payment_id)
        return new_id(f"{prefix}_", self._clock.now_ms(), slot, self._random.getrandbits(60))

    def transfer(self) -> int:
        """The next transfer id."""
        if self.crash_in == "transfer":
            self.crash_in = None
            raise InjectedCrash("no transfer id")
        self._transfer += 1
        return self._transfer

    def jitter(self) -> float:
        """A number in [0, 1)."""
        return self._random.random()


_EXPECTED: Final = frozenset({"ledger_unavailable", "entry_refused", "message_parked"})
"""Errors that faults cause; each is looked at more closely where it is heard."""

_ON_PURPOSE: Final = ("Injected", "Poison", "Killed", "Fenced")
"""What a crash that belongs to the plan says."""


def is_injected(detail: str) -> bool:
    """Whether a crash belongs to the plan."""
    return any(word in detail for word in _ON_PURPOSE)


_MILESTONES: Final = {
    "ledger_available": "the ledger came back",
    "gateway_reply_missing": "a reply was given up as missing",
    "ledger_read_failed": "a payment could not be fetched at once",
    "timers_not_read": "timers could not be read",
    "inbox_not_read": "the inbox could not be read",
}


class WatchedTelemetry:
    """What one engine reports: counted, traced, and judged where it tells of a bug."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._world = life.world
        self.crashes_outcome = False

    def log(self, event: str, **fields: Any) -> None:
        """A line at level info."""
        self._world.trace.say(self._life.name, "{} {}", event, fields)

    def warn(self, event: str, **fields: Any) -> None:
        """A line at level warning."""
        self._world.trace.say(self._life.name, "{} {}", event, fields)
        milestone = _MILESTONES.get(event)
        if milestone is not None:
            self._world.note(milestone)
        if event == "child_ended":
            self._ended(**fields)
        elif event == "supervision":
            self._world.note(f"supervision: {fields['kind']}")
            if fields["kind"] == "ChildDidNotStart":
                self._did_not_start(fields["detail"])
        elif event == "breaker_changed":
            self._world.note(f"the breaker became {fields['now']}")
        elif event == "entry_refused":
            self._world.watch.fail("ledger refuses", f"an entry: {fields['reason']}")

    def error(self, event: str, **fields: Any) -> None:
        """A line at level error."""
        self._world.trace.say(self._life.name, "{} {}", event, fields)
        if event == "ledger_unavailable":
            self._world.note("the outcome of a commit was unknown")
        elif event == "message_parked" and "Poison" in fields["message"]:
            self._world.note("a poisonous message was parked")
        elif not self._life.is_dead and event not in _EXPECTED:
            self._world.watch.fail("no errors of its own", f"{event} {fields}")

    def _ended(self, ending: str, reason: str, **fields: Any) -> None:
        self._world.note("supervision: ChildEnded")
        if ending == "crashed" and not self._life.is_dead and not is_injected(reason):
            self._world.watch.fail("no errors of its own", f"{fields['child']}: {reason}")

    def _did_not_start(self, detail: str) -> None:
        # Recovery reads the ledger, which may be unreachable then.
        if not (self._life.is_dead or "LedgerUnavailable" in detail or is_injected(detail)):
            self._world.watch.fail("no errors of its own", detail)

    def payment_outcome(self, payment: Payment, op: int, outcome: str, took_ms: int) -> None:
        """The canonical line of an operation's outcome."""
        self._world.trace.say(
            self._life.name, "{}.{} is {} (payment {})", payment.id, op, outcome, payment.status
        )
        if self.crashes_outcome:
            self.crashes_outcome = False
            raise InjectedCrash("in the middle of taking effect")

    def gateway_call(self, gateway: str, action: str, outcome: str, took_s: float) -> None:
        """Count a gateway call."""
        self._world.note(f"{action} heard {outcome}")

    def group_commit(self, entries: int, took_s: float) -> None:
        """Count a group commit."""
        if entries > 1:
            self._world.note("several entries were committed as one group")

    def http_request(self, **fields: Any) -> None:
        """The canonical line of one request: the clients tell it themselves."""
