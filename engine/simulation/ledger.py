"""The in-memory ledger as one simulated engine sees it: slow, unreachable, and outliving it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from engine.domain.entry import Batch
from engine.ledger.memory import MemoryLedger
from engine.ports import EntryInvalid, Fenced, KeysTaken, LedgerError, LedgerUnavailable, Receipt

if TYPE_CHECKING:
    from engine.simulation.life import Life


class Killed(BaseException):
    """The process this code ran in is dead: nothing may run after it."""


class SimulatedLedger(MemoryLedger):
    """One engine's connections. The store is shared by all engines, and so are the faults."""

    def __init__(self, life: Life) -> None:
        super().__init__(life.world.store)
        self._life = life
        self._world = life.world
        self._random = life.world.plan.random(f"ledger:{life.number}")
        self.faults = life.world.ledger_faults

    async def commit(self, batch: Batch, following: Batch | None = None) -> Receipt:
        """Apply the batch; what goes wrong is the plan's."""
        life, world, weather = self._life, self._world, self._world.weather
        if life.is_dead:
            raise Killed
        delay_s = weather.stall_s + weather.commit_s * 2 * self._random.random()
        if delay_s:
            world.count("commit_slow", None)
            with trio.CancelScope(shield=True), trio.move_on_after(delay_s):
                await life.died.wait()
        if life.is_dead:
            self._half_way(batch)
            raise Killed
        if self._random.random() < weather.lost_share:
            outcome = "applied" if self._random.random() < 0.5 else "not_applied"
            self.faults.outcomes.append(outcome)  # type: ignore[arg-type]  # the two literals
            world.count("commit_lost", f"the commit of {batch.key} is to be {outcome}, unheard")
        before = len(world.store.batches)
        try:
            receipt = await super().commit(batch, following)
        except LedgerUnavailable as trouble:
            self._wrote(batch, before)
            world.trace.say(life.name, "commit of {}: {}", batch.key, trouble)
            raise
        except (Fenced, KeysTaken, EntryInvalid) as refused:
            world.trace.say(life.name, "commit of {} refused: {!r}", batch.key, refused)
            world.note(f"commit refused: {type(refused).__name__}")
            raise
        self._wrote(batch, before)
        if receipt.resolved:
            world.note("a commit had been applied by an earlier, unheard try")
        return receipt

    async def prune_keys(self, before_ms: int, at_most: int) -> int:
        """Forget old keys."""
        pruned = await super().prune_keys(before_ms, at_most)
        if pruned:
            self._world.note("old keys were forgotten")
        return pruned

    def _half_way(self, batch: Batch) -> None:
        """The process died while the commit was on its way: it arrives, or it does not."""
        if self._random.random() < 0.5:
            return
        before = len(self._world.store.batches)
        try:
            self._world.store.apply(batch, self._epoch)
        except LedgerError:
            return
        self._world.note("a commit outlived its process")
        self._wrote(batch, before)

    def _wrote(self, batch: Batch, before: int) -> None:
        batches = self._world.store.batches
        if len(batches) > before:
            self._world.trace.say(
                self._life.name, "commits batch {} ({} entries)", len(batches), len(batch.entries)
            )
            self._world.watch.committed(batch)

    async def _reading(self) -> None:
        if self._life.is_dead:
            await trio.sleep_forever()
        delay_s = self._world.weather.read_s * 2 * self._random.random()
        if delay_s:
            self._world.count("read_slow", None)
            await trio.sleep(delay_s)
        await super()._reading()
