"""All benchmarks, one after the other, each in a process of its own: `python -m benchmarks`.

`--full` adds those that take long (rows 9, 10 and 12); `--settled N` makes row 9 shorter, and its
table says so. It prints one table and writes
`benchmarks/latest.json`, `latest-machine.json`, `latest.png` and the generated part of
PERFORMANCE.md. Exit status 0 when everything could be measured, whatever holds; 1 when a
benchmark failed, or has a row that it could not measure. `--only 1,7` runs and prints some and
writes nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import NamedTuple

from benchmarks import report
from benchmarks.command import say
from benchmarks.machine import describe_machine, one_line
from benchmarks.table import Row, render, row_from


class Part(NamedTuple):
    """A benchmark: its rows, its module, and how long it may take at most."""

    rows: str
    module: str
    limit_s: float
    full: bool = False


PARTS = (
    Part("1", "bench_authorize", 150),
    Part("2,3,4", "bench_ledger", 240),
    Part("5,6", "bench_latency", 120),
    Part("7", "bench_batch", 120),
    Part("8", "bench_gateway", 120),
    Part("11", "bench_overload", 120),
    Part("13", "bench_start", 120),
    Part("9", "bench_size", 7200, full=True),
    Part("10", "bench_open", 1800, full=True),
    Part("12", "bench_soak", 900, full=True),
)
"""In the order of their running."""


def run_part(part: Part, settled: int | None) -> tuple[list[Row], bool]:
    """The rows of a benchmark, and whether it could measure. It ends by itself or is ended."""
    command = [sys.executable, "-m", f"benchmarks.{part.module}", "--json"]
    if part.rows == "9" and settled is not None:
        command.append(f"--payments={settled}")
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        out, _ = process.communicate(timeout=part.limit_s)
        if process.returncode:
            raise RuntimeError(f"{part.module} ended with status {process.returncode}")
        rows = [row_from(values) for values in json.loads(out)]
        return rows, all(row.figure is not None for row in rows)
    except subprocess.TimeoutExpired:
        trouble = f"{part.module} took more than {part.limit_s:.0f} s"
    except (RuntimeError, ValueError, TypeError) as error:
        trouble = str(error)
    finally:
        # SIGTERM would not run its clean-up; SIGINT does, and ends the servers it started.
        if process.poll() is None:
            process.send_signal(2)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
    say(f"failed: {trouble}")
    return [Row(part.rows, f"{part.module} failed", None, None, trouble)], False


def main() -> int:
    """Run them, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--full", action="store_true", help="with the rows that take long")
    parser.add_argument("--only", default="", help="rows, as 1,7: print, and write nothing")
    parser.add_argument("--settled", type=int, help="payments of row 9, instead of 5 million")
    chosen = parser.parse_args()
    wanted = set(chosen.only.split(",")) if chosen.only else None
    machine = describe_machine()
    rows: list[Row] = []
    all_measured = True
    began = time.monotonic()
    for part in PARTS:
        if wanted is None:
            skipped = part.full and not chosen.full
        else:
            skipped = not wanted & set(part.rows.split(","))
        if skipped:
            continue
        say(f"--- rows {part.rows}: {part.module} ({time.monotonic() - began:.0f} s so far)")
        measured, could = run_part(part, chosen.settled)
        rows += measured
        all_measured = all_measured and could
    rows.sort(key=_order)
    print(f"\n{one_line(machine)}\n\n{render(rows)}\n")
    print(f"{sum(row.holds for row in rows)} of {len(rows)} hold; {time.monotonic() - began:.0f} s")
    if wanted is None:
        for trouble in report.write(rows, machine):
            say(trouble)
    return 0 if all_measured else 1


def _order(row: Row) -> tuple[int, str]:
    digits = row.row.split(",")[0]
    return int("".join(c for c in digits if c.isdigit()) or 0), row.row


if __name__ == "__main__":
    sys.exit(main())
