"""What `engine verify` has found: the report, and how it reads on one screen. Pure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import msgspec

PROBLEMS_KEPT: Final = 20
PROBLEMS_SHOWN: Final = 3
PROGRESS_EVERY: Final = 5_000

HOLDS: Final = "Everything holds."
NOT_COMPARED: Final = (
    "the gateway's books were not compared (name their\nfolder with --books FOLDER: the one that "
    "`engine gateway-simulator` was given as --data)."
)

Progress = Callable[[str, int], None]
"""Is told a check's name and how many rows it has looked at so far."""


class Problem(msgspec.Struct, frozen=True, gc=False):
    """One thing that is wrong. `id` names the row: a payment, operation, account, batch, …"""

    id: str
    what: str


class CheckResult(msgspec.Struct, frozen=True):
    """One check. `problems` are the first 20 of `problem_count`.

    `looked_at` counts rows, which `rows` names. `in_flight` counts what is not settled on both
    sides yet and is no problem. `ran` is false where there was nothing to check against.
    """

    name: str
    proves: str
    rows: str
    looked_at: int
    problem_count: int
    problems: tuple[Problem, ...]
    holds: bool
    in_flight: int = 0
    ran: bool = True


class Report(msgspec.Struct, frozen=True):
    """Everything. `head` and `head_hash` (hexadecimal) are the end of the chain as it was seen.

    Kept elsewhere, they show later whether the journal's tail has been cut off.
    """

    at_ms: int
    head: int
    head_hash: str
    checks: tuple[CheckResult, ...]
    holds: bool


class Findings:
    """One check in the making."""

    def __init__(self, name: str, proves: str, rows: str, progress: Progress | None) -> None:
        self.name = name
        self.looked_at = 0
        self.in_flight = 0
        self.ran = True
        self._proves = proves
        self._rows = rows
        self._progress = progress
        self._count = 0
        self._problems: list[Problem] = []

    def look(self, rows: int = 1) -> None:
        """Count rows that were looked at, and say so every few thousand."""
        before = self.looked_at
        self.looked_at += rows
        if self._progress and before // PROGRESS_EVERY != self.looked_at // PROGRESS_EVERY:
            self._progress(self.name, self.looked_at)

    def add(self, id: str, what: str) -> None:  # noqa: A002 - the field's own name
        """Something is wrong with the row of this id."""
        self._count += 1
        if len(self._problems) < PROBLEMS_KEPT:
            self._problems.append(Problem(id, what))

    def add_more(self, count: int) -> None:
        """Problems that were counted and not fetched."""
        self._count += count

    def result(self) -> CheckResult:
        """The check, done."""
        if self._progress:
            self._progress(self.name, self.looked_at)
        return CheckResult(
            name=self.name,
            proves=self._proves,
            rows=self._rows,
            looked_at=self.looked_at,
            problem_count=self._count,
            problems=tuple(self._problems),
            holds=self._count == 0,
            in_flight=self.in_flight,
            ran=self.ran,
        )


def render(report: Report) -> str:
    """The report as text of one screen: a line per check, and the first problems of each."""
    at = datetime.fromtimestamp(report.at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    lines = [
        f"Ledger at {at}, batch {report.head:,} ({report.head_hash[:16]})",
        "",
    ]
    for check in report.checks:
        if not check.ran:
            lines.append(f"  ----   {check.name:<9} {check.proves}")
            lines.append(f"{'':<19}not checked: the gateway's books were not given")
            continue
        word = "holds" if check.holds else "BROKEN"
        lines.append(f"  {word:<6} {check.name:<9} {check.proves}")
        seen = f"{check.looked_at:,} {check.rows}"
        if check.in_flight:
            seen += f", {check.in_flight:,} in flight"
        lines.append(f"{'':<19}{seen}")
        for problem in check.problems[:PROBLEMS_SHOWN]:
            lines.append(f"{'':<19}! {problem.id}: {problem.what}")
        hidden = check.problem_count - PROBLEMS_SHOWN
        if hidden > 0:
            lines.append(f"{'':<19}! and {hidden:,} more")
    return "\n".join([*lines, "", _conclusion(report)])


def _conclusion(report: Report) -> str:
    """The last line: it claims no more than was checked."""
    is_whole = all(check.ran for check in report.checks)
    if report.holds:
        return HOLDS if is_whole else f"Everything that was checked holds; {NOT_COMPARED}"
    count = sum(check.problem_count for check in report.checks)
    found = f"{count:,} problem{'' if count == 1 else 's'}"
    return f"{found}." if is_whole else f"{found}; {NOT_COMPARED}"
