"""Time, chance and telemetry of an engine under test: all of them repeatable."""

from random import Random
from typing import Any

import trio

from engine.domain.ids import new_id, slot_of, slot_of_key
from engine.domain.payment import Payment

EPOCH_MS = 1_800_000_000_000


class VirtualClock:
    def now_ms(self) -> int:
        return EPOCH_MS + round(trio.current_time() * 1_000)


class SeededIds:
    def __init__(self, clock: VirtualClock, seed: int) -> None:
        self._clock = clock
        self._random = Random(seed)
        self._transfer = 0

    def payment(self, slot_key: str | None) -> str:
        slot = self._random.getrandbits(12) if slot_key is None else slot_of_key(slot_key)
        return new_id("pay_", self._clock.now_ms(), slot, self._random.getrandbits(60))

    def new(self, prefix: str, payment_id: str | None = None) -> str:
        slot = self._random.getrandbits(12) if payment_id is None else slot_of(payment_id)
        return new_id(f"{prefix}_", self._clock.now_ms(), slot, self._random.getrandbits(60))

    def transfer(self) -> int:
        self._transfer += 1
        return self._transfer

    def jitter(self) -> float:
        return self._random.random()


class Lines:
    """Telemetry that keeps everything."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self.outcomes: list[tuple[str, int, str]] = []

    def log(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    warn = error = log

    def payment_outcome(self, payment: Payment, op: int, outcome: str, took_ms: int) -> None:
        self.outcomes.append((payment.id, op, outcome))

    def gateway_call(self, gateway: str, action: str, outcome: str, took_s: float) -> None:
        pass

    def group_commit(self, entries: int, took_s: float) -> None:
        pass

    def said(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.lines if name == event]
