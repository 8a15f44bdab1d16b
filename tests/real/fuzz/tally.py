"""What a fuzz run counts and finds; one tally is shared by all of its threads."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from typing import Any

FINDINGS_MAX = 100
EXCERPT = 600

# A refusal for overload is no failure, as long as it says when to come back. The others of 503
# would mean that a part of the engine is gone, and nothing here takes one away.
BUSY = frozenset({"overloaded", "gateway_unavailable"})


class Budget:
    """An end in time, in count, or both, whichever comes first."""

    def __init__(self, *, seconds: float = 3_600.0, count: int = 10**9) -> None:
        self._ends = time.monotonic() + seconds
        self._left = count

    def take(self) -> bool:
        """Whether there is one more to do."""
        self._left -= 1
        return self._left >= 0 and time.monotonic() < self._ends

    @property
    def left_s(self) -> float:
        """Seconds until the end."""
        return max(0.0, self._ends - time.monotonic())


class Tally:
    """Counts by attack, statuses by attack, and what must not be."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.statuses: dict[str, Counter[str]] = {}
        self.slowest_s: dict[str, float] = {}
        self.findings: list[dict[str, str]] = []
        self.findings_more = 0

    def answered(self, attack: str, outcome: int | str, took_s: float = 0.0) -> None:
        """Count one exchange by its status, or by what came in place of one."""
        with self._lock:
            self.counts[attack] += 1
            self.statuses.setdefault(attack, Counter())[str(outcome)] += 1
            self.slowest_s[attack] = max(took_s, self.slowest_s.get(attack, 0.0))

    def count(self, what: str, number: int = 1) -> None:
        """Count something that has no status."""
        with self._lock:
            self.counts[what] += number

    def found(self, attack: str, what: str, sent: object = "", got: object = "") -> None:
        """Keep what must not be, with enough to see it again."""
        with self._lock:
            if len(self.findings) >= FINDINGS_MAX:
                self.findings_more += 1
                return
            self.findings.append(
                {
                    "attack": attack,
                    "what": what,
                    "sent": _excerpt(sent),
                    "got": _excerpt(got),
                }
            )

    def judge(
        self, attack: str, status: int, retry_after: str | None, body: bytes, sent: object
    ) -> None:
        """Hold any answer to what holds for every answer: no failure of ours."""
        if status < 500:
            return
        code = code_of(body)
        if status == 502 and code == "gateway_failed":
            return
        if status == 503 and code in BUSY and retry_after is not None:
            return
        self.found(attack, f"answered {status} {code}", sent, body)


def code_of(body: bytes) -> str:
    """The code of a problem document, or nothing."""
    try:
        value = json.loads(body)
    except ValueError:
        return ""
    return str(value.get("code", "")) if isinstance(value, dict) else ""


def _excerpt(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}… ({len(text)} characters)"
