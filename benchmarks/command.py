"""The command line that all benchmarks share: `python -m benchmarks.bench_x [--json] [...]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from benchmarks.table import Row, encode_rows, render

Measure = Callable[[argparse.Namespace], Sequence[Row]]


def run_bench(
    measure: Measure,
    summary: str,
    *,
    options: dict[str, float] | None = None,
) -> None:
    """Measure and print the rows. `options` are numbers that may be given, with their defaults."""
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--json", action="store_true", help="the rows as JSON")
    for name, default in (options or {}).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    chosen = parser.parse_args()
    rows = measure(chosen)
    print(encode_rows(rows) if chosen.json else render(rows))


def say(text: str) -> None:
    """Progress, for whoever waits; results go to standard output."""
    print(text, file=sys.stderr, flush=True)
