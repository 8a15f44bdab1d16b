"""RELIABILITY.md, made of what the long tests found: `python -m tests.reliability FILE...`.

Each file is the report of one of them, by its name: `torture.json`, `simulate.json`,
`planted.json`, `fuzz.json`. A part whose report is not given stays as it is; what stands between
the markers of the hand-written part is never touched.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tests.torture.rows import ROWS

DOCUMENT: Final = Path(__file__).resolve().parents[1] / "RELIABILITY.md"


def torture(report: dict[str, Any]) -> Iterator[str]:
    """The table of faults, and the hits of the failpoints."""
    scenarios = report["scenarios"]
    passed = sum(one["passed"] for one in scenarios)
    yield (
        f"{passed} of {len(scenarios)} scenarios passed on {report['made']}, with "
        f"{report['kills']} kills of the engine in {report['seconds'] / 60:.0f} minutes."
    )
    yield ""
    yield "| row | fault | scenarios | kills | measured |"
    yield "|---|---|---|---|---|"
    reasons = {one["row"]: one["why"] for one in report["not_run"]}
    for row, fault in ROWS.items():
        mine = [one for one in scenarios if one["row"] == row]
        if not mine:
            yield f"| {row} | {fault} | not run: {reasons.get(row, 'no reason given')} | | |"
            continue
        good = sum(one["passed"] for one in mine)
        kills = sum(one["kills"] for one in mine)
        yield f"| {row} | {fault} | {good} of {len(mine)} | {kills or ''} | {_measured(mine)} |"
    yield ""
    yield "Failpoints, and how often each fired:"
    yield ""
    yield "| failpoint | fired |"
    yield "|---|---|"
    for name, hits in report["failpoints"].items():
        yield f"| `{name}` | {hits} |"


def _measured(scenarios: list[dict[str, Any]]) -> str:
    """The largest of each number that several scenarios of a row noted; answers are summed."""
    found: dict[str, float] = {}
    for one in scenarios:
        for name, value in one["detail"].items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            together = name == "acknowledged"
            was = found.get(name, 0)
            found[name] = was + value if together else max(was, value)
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in found.items())


def simulate(report: dict[str, Any]) -> Iterator[str]:
    """Seeds, speed, faults."""
    failing = report.get("failing_seeds") or []
    yield (
        f"{report['seeds']:,} seeds at {report['seeds_per_s']:g} a second; "
        f"failing: {', '.join(map(str, failing)) or 'none'}."
    )
    for title, key in (("fault", "faults"), ("happened", "sometimes")):
        if counted := report.get(key):
            yield from ("", f"| {title} | times |", "|---|---|")
            yield from (f"| {name} | {count:,} |" for name, count in sorted(counted.items()))


def planted(report: dict[str, Any]) -> Iterator[str]:
    """Bugs that were put in to see whether they are found."""
    yield from ("| bug that was planted | seeds until it was found |", "|---|---|")
    yield from (f"| {bug} | {seeds} |" for bug, seeds in report.items())


def fuzz(report: dict[str, Any]) -> Iterator[str]:
    """Whatever was counted."""
    yield from ("| what | how much |", "|---|---|")
    yield from (
        f"| {name.replace('_', ' ')} | {value} |"
        for name, value in report.items()
        if isinstance(value, int | float | str)
    )


PARTS: Final[dict[str, Callable[[dict[str, Any]], Iterator[str]]]] = {
    "torture": torture,
    "simulate": simulate,
    "planted": planted,
    "fuzz": fuzz,
}


def renewed(document: str, name: str, report: dict[str, Any]) -> str:
    """The document with one part made anew. Raises ValueError where it has no such part."""
    begin, end = f"<!-- made from {name}.json -->", f"<!-- end of {name}.json -->"
    found = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not found.search(document):
        raise ValueError(f"{DOCUMENT.name} has no part {begin}")
    text = "\n".join((begin, *PARTS[name](report), end))
    return found.sub(lambda _: text, document)


def main(files: list[str]) -> int:
    """Renew the parts whose reports are given and there."""
    document = DOCUMENT.read_text("utf-8")
    for file in map(Path, files):
        if file.exists():
            document = renewed(document, file.stem, json.loads(file.read_text("utf-8")))
    DOCUMENT.write_text(document, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
