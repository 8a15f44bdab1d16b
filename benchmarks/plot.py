"""One plot of all rows: how far each figure is on the right side of its target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

from benchmarks.table import Row, margin

HOLDS, MISSED = "#2a7f62", "#b3443c"


def draw(rows: Sequence[Row], file: Path) -> None:
    """Bars on a logarithmic axis; the line at 1 is the target. Rows without a figure are left out.

    Raises ImportError where matplotlib (the extra `bench`) is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [(row, found) for row in rows if (found := margin(row)) is not None][::-1]
    figure, axes = pyplot.subplots(figsize=(11, 0.34 * len(shown) + 1.2), dpi=90)
    margins = [min(max(found, 0.01), 100.0) for _, found in shown]
    colours = [HOLDS if row.holds else MISSED for row, _ in shown]
    axes.barh(range(len(shown)), [found - 1 for found in margins], left=1, color=colours)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    names = [f"{row.row}  {shorten(row.what, 84)}" for row, _ in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=7)
    for at, ((row, _), found) in enumerate(zip(shown, margins, strict=True)):
        side = "left" if found >= 1 else "right"
        axes.annotate(f" {row.shown} ", (found, at), ha=side, va="center", fontsize=7)
    low, high = min([*margins, 0.5]), max([*margins, 2.0])
    axes.set_xlim(low / 1.8, high * 1.8)
    axes.set_xlabel("as times the target; right of the line it holds", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)
