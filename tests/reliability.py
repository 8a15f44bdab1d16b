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
    failing = [str(failure["seed"]) for failure in report["failures"]]
    injected = sum(report["faults"].values())
    yield (
        f"{report['seeds']:,} seeds from {report['first_seed']:,} in {report['took_s']:.0f} s, "
        f"{report['seeds_per_s']:.1f} a second in {report['processes']} processes: "
        f"{report['payments']:,} payments, {report['requests']:,} requests, "
        f"{report['virtual_s'] / 86_400:,.0f} virtual days, {injected:,} faults. "
        f"Seeds that found something: {', '.join(failing) or 'none'}. "
        f"Of {len(report['sometimes'])} things that should happen sometimes, "
        f"{len(report['never'])} never did."
    )
    yield from ("", "| fault | injected |", "|---|---|")
    yield from (f"| {name.replace('_', ' ')} | {n:,} |" for name, n in report["faults"].items())
    yield from ("", "| what should happen sometimes | in so many runs |", "|---|---|")
    yield from (f"| {name} | {n:,} |" for name, n in sorted(report["sometimes"].items()))


def planted(report: dict[str, Any]) -> Iterator[str]:
    """Bugs that were put in to see whether they are found."""
    starts = report["from"]
    yield f"Seeds until each was found, counted from {len(starts)} seeds that are far apart."
    yield ""
    yield "| bug that was planted | " + " | ".join(f"from {start:,}" for start in starts) + " |"
    yield "|---" * (len(starts) + 1) + "|"
    for bug, counts in report["found"].items():
        cells = " | ".join("not found" if count is None else str(count) for count in counts)
        yield f"| {bug.replace('_', ' ')} | {cells} |"


def fuzz(report: dict[str, Any]) -> Iterator[str]:
    """What was sent, and what was answered."""
    engine, rounds = report["engine"], report["properties"]["rounds"]
    warm, end = (engine[when]["rss_bytes"] >> 20 for when in ("after_warm_up", "at_the_end"))
    findings = len(report["findings"]) + report["findings_more"]
    yield (
        f"{report['minutes']:g} minutes from seed {report['seed']}: {findings or 'no'} findings; "
        f"{warm} MiB resident after the warm-up, {end} MiB at the end; the books "
        f"{'hold' if report['books_hold'] else 'do not hold'}. Beside it all property tests from "
        f"new seeds: {rounds['passed']} rounds passed, {rounds['failed']} failed."
    )
    yield from ("", "| generator | cases | statuses | slowest s |", "|---|---|---|---|")
    for name, count in sorted(report["counts"].items()):
        statuses = report["statuses"].get(name, {})
        told = ", ".join(f"{status}: {n:,}" for status, n in sorted(statuses.items()))
        yield f"| {name} | {count:,} | {told} | {report['slowest_s'].get(name, '')} |"


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
