"""What happened in a run, line by line: virtual time, who, what."""

from __future__ import annotations

import re
from typing import Any, Final

import trio

_ID: Final = re.compile(r"\b((?:pay|re|evt|dl|b)_)[0-9a-z]{19}([0-9a-z]{5})\b")


class Trace:
    """Keeps the lines of a run, or nothing at all: then saying something costs a call."""

    def __init__(self, *, is_kept: bool) -> None:
        self.is_kept = is_kept
        self.lines: list[str] = []

    def say(self, who: str, what: str, *values: Any) -> None:
        """Add a line; `what` is a format for `values`. Long ids are cut to their ends."""
        if self.is_kept:
            said = _ID.sub(r"\1~\2", what.format(*values))
            self.lines.append(f"{trio.current_time():12.3f}  {who:<11} {said}")
