"""What each scenario did, counted and written into one report."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from engine.failpoints import POINTS
from tests.torture.rows import NOT_RUN, ROWS

ROW = re.compile(r"row_(\d+)_(\w+)")
SCENARIOS: list[dict[str, Any]] = []
HITS: Counter[str] = Counter()


class Scenario:
    """What one scenario tells the report."""

    def __init__(self) -> None:
        self.kills = 0
        self.detail: dict[str, Any] = {}

    def killed(self, count: int = 1) -> None:
        """Count kills of the engine."""
        self.kills += count

    def hit(self, failpoint: str) -> None:
        """Count a failpoint that fired."""
        HITS[failpoint] += 1

    def note(self, **found: Any) -> None:
        """Keep a measured value."""
        self.detail.update(found)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the report goes."""
    parser.addoption("--torture-report", metavar="FILE", help="write what was found, as JSON")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def scenario(request: pytest.FixtureRequest) -> Scenario:
    """The report's side of the test."""
    request.node._scenario = made = Scenario()
    return made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note the outcome of every test that is named after a row."""
    report = yield
    found = ROW.search(item.name)
    if found is None:
        return report
    ended = report.when == "call" or (report.when == "setup" and not report.passed)
    if ended or (report.when == "teardown" and report.failed):
        told = getattr(item, "_scenario", None) or Scenario()
        SCENARIOS.append(
            {
                "row": int(found[1]),
                "name": item.name,
                "passed": report.passed,
                "skipped": report.longrepr[2] if report.skipped else None,
                "kills": told.kills,
                "seconds": round(report.duration, 1),
                "detail": told.detail,
            }
        )
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the report."""
    path = session.config.getoption("--torture-report", None)
    if path is None:
        return
    ran = {one["row"] for one in SCENARIOS if one["skipped"] is None}
    not_run = [{"row": row, "why": why} for row, why in NOT_RUN.items() if row not in ran]
    not_run += [
        {"row": one["row"], "why": one["skipped"]}
        for one in SCENARIOS
        if one["skipped"] is not None and one["row"] not in ran
    ]
    report = {
        "made": time.strftime("%Y-%m-%d", time.gmtime()),
        "scenarios": [one for one in SCENARIOS if one["skipped"] is None],
        "not_run": sorted(not_run, key=lambda one: int(one["row"])),
        "failpoints": {name: HITS[name] for name in POINTS},
        "kills": sum(one["kills"] for one in SCENARIOS),
        "seconds": round(sum(one["seconds"] for one in SCENARIOS), 1),
        "missing": sorted(set(ROWS) - ran - {int(one["row"]) for one in not_run}),
    }
    Path(path).write_text(json.dumps(report, indent=1) + "\n")
