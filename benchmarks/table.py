"""A row of the result: a target, the figure, and whether it holds; and how rows are shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

NOT_MEASURED = "not measured"


class Row(NamedTuple):
    """One target. `figure` is None where it could not be measured; `note` says how it came.

    A figure is given as it was measured: rounded first, a miss could hold.

    `limit` is None only where a benchmark failed before it could say.
    """

    row: str
    what: str
    limit: float | None
    figure: float | None
    note: str = ""
    bound: Literal["at least", "at most"] = "at least"
    unit: str = ""

    @property
    def holds(self) -> bool:
        """Whether the figure is there and on the right side of the limit."""
        if self.figure is None or self.limit is None:
            return False
        return self.figure >= self.limit if self.bound == "at least" else self.figure <= self.limit

    @property
    def target(self) -> str:
        """The target as a person writes it."""
        if self.limit is None:
            return "-"
        return f"{self.bound} {number(self.limit)}{self.unit and ' ' + self.unit}"

    @property
    def shown(self) -> str:
        """The figure as a person writes it: in as many digits as it takes to see a miss."""
        text = number(self.figure)
        if self.figure is not None and not self.holds and text == number(self.limit):
            return f"{self.figure:.6g}"
        return text

    def record(self) -> dict[str, Any]:
        """What the JSON file says of it."""
        return {
            "row": self.row,
            "what": self.what,
            "target": self.target,
            "figure": None if self.figure is None else float(f"{self.figure:.6g}"),
            "holds": self.holds,
        }


def row_from(values: dict[str, Any]) -> Row:
    """A row as it came from another process."""
    return Row(**values)


def number(value: float | None) -> str:
    """Three digits that mean something, and no exponent."""
    if value is None:
        return NOT_MEASURED
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def verdict(row: Row) -> str:
    """In one word whether the target holds."""
    if row.figure is None:
        return NOT_MEASURED
    return "holds" if row.holds else "MISSED"


def margin(row: Row) -> float | None:
    """How far on the right side of its target a figure is: 1 is just there, 2 twice as good."""
    if row.figure is None or not row.limit:
        return None
    if row.bound == "at least":
        return row.figure / row.limit
    return row.limit / max(row.figure, 1e-6)


def render(rows: Sequence[Row]) -> str:
    """The table for a terminal; what lies behind a figure stands below it."""
    what = max([len(row.what) for row in rows] + [4])
    head = f"{'row':<5}{'what':<{what}}  {'target':>16}  {'figure':>12}  holds?"
    lines = [head, "-" * len(head)]
    for row in rows:
        lines.append(
            f"{row.row:<5}{row.what:<{what}}  {row.target:>16}  {row.shown:>12}  {verdict(row)}"
        )
        if row.note:
            lines.append(f"     · {row.note}")
    return "\n".join(lines)


def markdown(rows: Sequence[Row]) -> str:
    """The same as a table of Markdown."""
    lines = ["| # | what | target | figure | holds | conditions |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = (row.row, row.what, row.target, row.shown, verdict(row), row.note or "-")
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines)


def encode_rows(rows: Sequence[Row]) -> str:
    """Rows with all their parts, for the process that asked for them."""
    return json.dumps([row._asdict() for row in rows])
