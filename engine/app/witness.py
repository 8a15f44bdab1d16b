"""The simulator's books, as `engine verify` wants its witness."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.domain.witness import WitnessEffect
from engine.gateways.simulator_books import Effect, read_books


def simulator_witness(books: Path) -> Callable[[], Iterator[WitnessEffect]]:
    """Reads the books anew at each call, as they are then."""

    def witness() -> Iterator[WitnessEffect]:
        now_ms = time.time_ns() // 1_000_000
        for effect in read_books(books):
            yield _witnessed(effect, now_ms)

    return witness


def _witnessed(effect: Effect, now_ms: int) -> WitnessEffect:
    """What is pending is done, and what was done comes back, when its time has come."""
    turned = [effect.at_ms, effect.settles_ms, effect.fails_ms]
    return WitnessEffect(
        op_id=effect.op_id,
        action=effect.action,
        amount=effect.amount,
        currency=effect.currency,
        done=effect.is_done(now_ms),
        at_ms=effect.at_ms,
        changed_ms=max(at_ms for at_ms in turned if at_ms <= now_ms),
        livemode=effect.livemode,
        number=effect.seq,
        replaces=effect.revises,
    )
