"""What is said of webhooks that nobody takes: the first one, then ever more rarely. Pure.

A wrong address would otherwise be silence, and a line per attempt a flood.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from engine.gateways.http_client import Lost, NotSent, Response

_PAUSE_FIRST_MS: Final = 10_000
_PAUSE_MAX_MS: Final = 600_000


class Complaints:
    """Counts what was not accepted at one address, and says so at growing intervals."""

    def __init__(self, url: str, say: Callable[[str], None]) -> None:
        self._url = url
        self._say = say
        self._failures = 0
        self._pause_ms = _PAUSE_FIRST_MS
        self._due_ms = 0

    def note(self, answer: Response | NotSent | Lost, now_ms: int) -> bool:
        """Whether the webhook was accepted; `now_ms` is the time of the answer."""
        if isinstance(answer, Response) and 200 <= answer.status < 300:
            if self._failures:
                self._say(f"webhooks are accepted again by {self._url}")
            self._failures, self._pause_ms, self._due_ms = 0, _PAUSE_FIRST_MS, 0
            return True
        self._failures += 1
        if now_ms >= self._due_ms:
            count = "" if self._failures == 1 else f" ({self._failures} attempts so far)"
            self._say(f"a webhook was not accepted by {self._url}: {_reason(answer)}{count}")
            self._due_ms = now_ms + self._pause_ms
            self._pause_ms = min(self._pause_ms * 2, _PAUSE_MAX_MS)
        return False


def _reason(answer: Response | NotSent | Lost) -> str:
    if isinstance(answer, Response):
        return f"it answered {answer.status}"
    if isinstance(answer, Lost):
        return "no answer came"
    if "Url" in answer.reason or "URL" in answer.reason:
        return "that is no http address"
    return "no connection: nobody listens there, or its name is not known"
