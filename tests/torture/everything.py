"""All scenarios, in three groups side by side, and one report: `make torture`.

    python -m tests.torture.everything torture.json

Each group has databases, gateways and engines of its own. The exit status is 0 when all of them
passed, every failpoint was hit and every row has a scenario or a reason.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from engine.failpoints import POINTS
from tests.torture.rows import ROWS

FOLDER = Path(__file__).parent
GROUPS = (
    ("test_kills.py",),
    ("test_wire.py", "test_database.py", "test_time.py"),
    ("test_engines.py", "test_clients.py", "test_storage.py"),
)
LONGEST_S = 1_800


def merged(reports: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """One report of several."""
    scenarios = [one for report in reports for one in report["scenarios"]]
    ran = {one["row"] for one in scenarios}
    not_run = {
        one["row"]: one["why"]
        for report in reports
        for one in report["not_run"]
        if one["row"] not in ran
    }
    hits: Counter[str] = Counter()
    for report in reports:
        hits.update(report["failpoints"])
    return {
        "made": time.strftime("%Y-%m-%d", time.gmtime()),
        "scenarios": sorted(scenarios, key=lambda one: (one["row"], one["name"])),
        "not_run": [{"row": row, "why": why} for row, why in sorted(not_run.items())],
        "failpoints": {name: hits[name] for name in POINTS},
        "kills": sum(report["kills"] for report in reports),
        "seconds": round(seconds, 1),
        "missing": sorted(set(ROWS) - ran - set(not_run)),
    }


def main(target: Path) -> int:
    """Run, merge, write; returns the exit status."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pe-torture-report-") as folder:
        running = []
        for number, group in enumerate(GROUPS):
            report = Path(folder) / f"{number}.json"
            command = [
                *(sys.executable, "-m", "pytest", "-m", "torture", "--tb=short", "-p"),
                *("no:cacheprovider", f"--torture-report={report}"),
                *(str(FOLDER / name) for name in group),
            ]
            log = (Path(folder) / f"{number}.log").open("w+b")
            running.append((subprocess.Popen(command, stdout=log, stderr=log), log, report))
        statuses = []
        for process, log, _ in running:
            try:
                statuses.append(process.wait(LONGEST_S))
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                # It ends what it has started, and then itself.
                process.send_signal(signal.SIGINT)
                statuses.append(process.wait(120) or 1)
            log.seek(0)
            sys.stdout.write(log.read().decode("utf-8", "replace"))
            log.close()
        reports = [json.loads(path.read_text()) for _, _, path in running if path.exists()]
    found = merged(reports, time.monotonic() - began)
    target.write_text(json.dumps(found, indent=1) + "\n")
    unhit = [name for name, hits in found["failpoints"].items() if not hits]
    sys.stdout.write(
        f"{len(found['scenarios'])} scenarios, {found['kills']} kills, {found['seconds']:g} s; "
        f"failpoints never hit: {unhit or 'none'}; rows without a word: "
        f"{found['missing'] or 'none'}\n"
    )
    return int(any(statuses) or bool(unhit) or bool(found["missing"]))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
