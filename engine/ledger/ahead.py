"""The batch that follows is made ready while the database is at work on the one before."""

from __future__ import annotations

import asyncio

from engine.domain.entry import Batch
from engine.ledger.preparing import Prepared, Preparer
from engine.ports import Receipt


class Ahead:
    """A batch that is made ready in steps, between whatever else the event loop has to do."""

    def __init__(self, preparer: Preparer, batch: Batch, before: Prepared) -> None:
        self._batch = batch
        self._after = before.head
        self._steps = preparer.preparing(batch, before)
        self._prepared: Prepared | None = None
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.call_soon(self._go_on)

    def take(self, batch: Batch, head: Receipt) -> Prepared | None:
        """The batch, ready to be sent, if it is this one and follows this head.

        What is left to do is done at once. None as well where it can't be sent: then preparing it
        once more will tell why.
        """
        self.drop()
        if batch is not self._batch or head != self._after:
            return None
        while self._step():
            pass
        return self._prepared

    def drop(self) -> None:
        """Do no more."""
        self._next.cancel()

    def _go_on(self) -> None:
        if self._step():
            self._next = self._loop.call_soon(self._go_on)

    def _step(self) -> bool:
        """Do one step; returns whether there may be more."""
        try:
            next(self._steps)
        except StopIteration as end:
            self._prepared = self._prepared or end.value
            return False
        except Exception:  # whatever it is, the batch meets it again in its own turn
            return False
        return True
