"""Failpoints: named places where the process can be made to die, stop or stall, for rehearsals.

    ENGINE_FAILPOINT=after_intent         killed at the first passage
    ENGINE_FAILPOINT=after_intent:3       at the third
    ENGINE_FAILPOINT=after_intent:3:stop  stopped as by SIGSTOP, until somebody sends SIGCONT
    ENGINE_FAILPOINT=after_intent:3:block the event loop stands still for two seconds

A place that is not armed costs a call and a comparison. `engine serve` refuses to be armed unless
its settings file says `failpoints_allowed = true`, which no variable can say, so a variable left
in an environment cannot harm production.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Final

POINTS: Final[dict[str, str]] = {
    "before_intent": "a request has reached its shard and nothing of it has been written",
    "before_commit": "a batch has been built and sealed, and not been sent to the database",
    "made_ahead": "a batch is about to be sent that was made ready during the commit before it",
    "in_commit": "a batch is with the database, which has not answered",
    "commit_open": "a commit ended without a definite result and is about to be tried again",
    "after_intent": "an intent is durable and its gateway call has not been made",
    "gateway_sent": "a request is on its way to the gateway, which has not answered",
    "after_gateway": "the gateway's reply has arrived and nobody has been told",
    "after_commit": "an outcome is durable and its client has not been answered",
    "refusal_stored": "a final refusal is durable under its key and its client has not been told",
    "webhook_stored": "a webhook is durable, its sender unanswered and its news not passed on",
    "webhook_applied": "the step that a webhook caused is durable and has not taken effect",
    "recovery_started": "a shard begins a life and has not read its open payments",
    "recovery_asked": "a look-up of something that was left open has been asked for",
    "looked_up": "the answer to a look-up has reached the shard and has not been recorded",
    "expiry": "an expiry has come due and nothing has been released",
    "retry": "the engine's own failed work has come due and has not been sent again",
    "epoch_raised": "the epoch is this engine's and the journal's head has not been read",
    "took_over": "the right to write has been taken and no actor has been started",
    "draining": "a signal to stop has arrived and nothing has been stopped",
}
"""Name -> what is true at that moment. Each stands exactly once in the engine; a test checks it."""

LATER_S: Final[dict[str, float]] = {"in_commit": 0.001, "gateway_sent": 0.05}
"""Points in the middle of a wait: passed just before it, acted upon so many seconds into it."""

BLOCK_S: Final = 2.0


class FailpointRefused(Exception):
    """The text arms nothing. The message says why."""


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _block() -> None:
    time.sleep(BLOCK_S)


ACTIONS: Final[dict[str, Callable[[], None]]] = {"kill": _die, "stop": _stop, "block": _block}


class Armed:
    """One point, the passage that counts, and what happens then."""

    __slots__ = ("action", "name", "passages_left")

    def __init__(self, text: str) -> None:
        """Read `NAME[:PASSAGE[:ACTION]]`. Raises FailpointRefused."""
        name, _, rest = text.partition(":")
        passage, _, action = rest.partition(":")
        if name not in POINTS:
            raise FailpointRefused(f"there is no failpoint {name!r}: {', '.join(POINTS)}")
        if not (passage or "1").isdecimal() or int(passage or "1") < 1:
            raise FailpointRefused(f"{passage!r} is not the number of a passage: 1, 2, 3 …")
        if (action or "kill") not in ACTIONS:
            raise FailpointRefused(f"there is no action {action!r}: {', '.join(ACTIONS)}")
        self.name = name
        self.passages_left = int(passage or "1")
        self.action = action or "kill"

    def passed(self) -> None:
        """Count a passage of the point; at the last one, act, and say so first."""
        self.passages_left -= 1
        if self.passages_left:
            return
        os.write(2, f"failpoint {self.name}: {self.action}\n".encode())
        delay_s = LATER_S.get(self.name)
        if delay_s is None:
            ACTIONS[self.action]()
        else:
            # From another thread, since this one is about to wait.
            timer = threading.Timer(delay_s, ACTIONS[self.action])
            timer.daemon = True
            timer.start()


_armed: Armed | None = None


def arm(text: str | None) -> None:
    """Arm one point, or none. Raises FailpointRefused."""
    global _armed  # noqa: PLW0603 - armed once, before anything runs
    _armed = None if text is None else Armed(text)


def failpoint(name: str) -> None:
    """Mark a place. Does nothing unless this very point is armed."""
    if _armed is not None and _armed.name == name:
        _armed.passed()
