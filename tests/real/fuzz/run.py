"""`make fuzz`: everything in this folder for a given time, then the properties with new seeds.

    python -m tests.real.fuzz.run --minutes 5 [--seed 1] [--report fuzz.json]

It ends by itself, writes a report in JSON, and exits with 1 where something was found. Memory
counts as flat when the engine's process, once the load has gone, holds no more than
`GROWTH_BYTES_MAX` above what it held after the warm-up: what it may keep is bounded (the answers
to the last 20,000 keys, the payments that are open), and the warm-up does not fill it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import SystemRandom
from typing import Any

from tests.real.fuzz.api import Explorer
from tests.real.fuzz.payloads import Payloads
from tests.real.fuzz.sockets import SILENT_S_MAX, Sockets
from tests.real.fuzz.sweep import Sweep, log_faults
from tests.real.fuzz.tally import Budget, Tally
from tests.real.fuzz.target import Target, running_target
from tests.real.fuzz.tenants import Tenants
from tests.real.system.process import ROOT

GROWTH_BYTES_MAX = 64 * 1024 * 1024
FILES_MORE_MAX = 8
WARM_UP_SHARE = 0.1
SERVER_SHARE = 0.55
SAMPLE_S = 2.0
SETTLE_S = 8.0
"""For what was unknown at the end to be looked up, and for connections to be closed."""

PROPERTIES = (
    "tests/pure/domain",
    "tests/real/ledger/test_two_ledgers.py",
    "tests/pure/http",
    "tests/pure",
)
ROUND_S_MIN = 5.0


class Run:
    """One run and its report."""

    def __init__(self, minutes: float, seed: int, report: Path) -> None:
        self.seconds = minutes * 60
        self.seed = seed
        self.report = report
        self.tally = Tally()
        self.began = time.monotonic()
        self.facts: dict[str, Any] = {"minutes": minutes, "seed": seed}
        self.samples: list[int] = []

    @property
    def spent_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    def all(self) -> bool:
        """Run everything; returns whether nothing was found."""
        with running_target() as target:
            self.server(target)
        self.properties()
        return self.write()

    def write(self) -> bool:
        """Write the report, and say on one screen what is in it."""
        tally = self.tally
        holds = not tally.findings
        report = {
            "holds": holds,
            **self.facts,
            "took_s": round(self.spent_s, 1),
            "counts": dict(sorted(tally.counts.items())),
            "statuses": {name: dict(sorted(c.items())) for name, c in tally.statuses.items()},
            "slowest_s": {name: round(s, 3) for name, s in tally.slowest_s.items()},
            "findings": tally.findings,
            "findings_more": tally.findings_more,
        }
        self.report.write_text(json.dumps(report, indent=2) + "\n")
        for name, value in report.items():
            if name not in ("findings", "statuses"):
                say(f"{name}: {json.dumps(value)}")
        for finding in tally.findings[:10]:
            say(json.dumps(finding, indent=2))
        say(f"{'nothing was found' if holds else 'FOUND SOMETHING'}; see {self.report}")
        return holds

    # --- the running engine -------------------------------------------------------------------

    def server(self, target: Target) -> None:
        """Attack it from several threads, then look at what it has become."""
        Tenants(target, self.tally).every_route()
        sweep = Sweep(target, self.tally, self.seed)
        sweep.plant(1)
        self._attack(target, self.seconds * WARM_UP_SHARE, self.seed)
        before = self._at_rest(target)
        say(f"warmed up: {before['rss_bytes'] >> 20} MiB after {sum(self.tally.counts.values())}")
        self._attack(target, self.seconds * SERVER_SHARE - self.spent_s, self.seed + 1_000_000)
        sweep.plant(3)
        Tenants(target, self.tally).every_route()
        after = self._at_rest(target)
        self._memory(before, after)
        sweep.look()
        if faults := log_faults(target):
            (self.report.parent / f"{self.report.stem}.log").write_text("\n".join(faults) + "\n")
            what = f"{len(faults)} lines that tell of a failure, kept beside the report"
            self.tally.found("log", what, "", "\n".join(faults[:8]))
        verified = target.engine.run_command("verify", "--json")
        self.facts["books_hold"] = verified.returncode == 0
        if verified.returncode != 0:
            checks = json.loads(verified.stdout)["checks"] if verified.stdout else []
            broken = [check for check in checks if not check["holds"]]
            self.tally.found("verify", "the books do not hold", "", broken or verified.stderr)
        ready = target.call("GET", "/readyz", key=None)
        if ready.status != 200:
            self.tally.found("health", "not ready at the end", "", ready)

    def _attack(self, target: Target, seconds: float, seed: int) -> None:
        tally = self.tally
        budget = Budget(seconds=max(1.0, seconds))

        def explore(number: int) -> None:
            Explorer(target, tally, faults=number % 2 == 1).every_operation(
                budget, 20, seed + number * 10_000
            )

        def chains() -> None:
            Explorer(target, tally, faults=True).chains(budget, 20, 10, seed)

        jobs: list[Callable[[], None]] = [
            lambda: explore(0),
            lambda: explore(1),
            chains,
            lambda: Payloads(target, tally, seed).all(budget),
            lambda: Payloads(target, tally, seed + 1).all(budget),
            lambda: Sockets(target, tally, seed).damaged(budget),
        ]
        if seconds > 2 * SILENT_S_MAX:
            # The last of those that stay silent are waited for until their deadline.
            silent = Budget(seconds=seconds - SILENT_S_MAX)
            jobs.append(lambda: Sockets(target, tally, seed + 1).damaged(silent, silent=1.0))
        Sockets(target, tally, seed).smuggled()
        threads = [threading.Thread(target=self._guarded(job), daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        limit = time.monotonic() + seconds + SILENT_S_MAX + 30
        while any(thread.is_alive() for thread in threads) and time.monotonic() < limit:
            time.sleep(SAMPLE_S)
            self.samples.append(target.rss_bytes())
            if len(self.samples) % 10 == 0:
                say(f"{self.spent_s:.0f} s: {json.dumps(dict(tally.counts))}")
        if any(thread.is_alive() for thread in threads):
            tally.found("run", "an attack hangs past its deadline")

    def _guarded(self, job: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                job()
            except BaseException as error:
                self.tally.found("run", f"an attack broke: {error!r}")

        return run

    def _at_rest(self, target: Target) -> dict[str, int]:
        time.sleep(min(SETTLE_S, self.seconds / 20))
        process = target.process()
        return {
            "rss_bytes": target.rss_bytes(),
            "files": process.num_fds(),
            "threads": process.num_threads(),
        }

    def _memory(self, before: dict[str, int], after: dict[str, int]) -> None:
        grown = after["rss_bytes"] - before["rss_bytes"]
        self.facts["engine"] = {
            "after_warm_up": before,
            "at_the_end": after,
            "rss_grown_bytes": grown,
            "rss_grown_bytes_max": GROWTH_BYTES_MAX,
            "rss_samples_mib": [sample >> 20 for sample in self.samples],
            "sample_every_s": SAMPLE_S,
        }
        if grown > GROWTH_BYTES_MAX:
            self.tally.found("memory", f"{grown} bytes more than after the warm-up")
        if after["files"] > before["files"] + FILES_MORE_MAX:
            self.tally.found("memory", f"{after['files']} open files, {before['files']} before")

    # --- the properties -----------------------------------------------------------------------

    def properties(self) -> None:
        """The property tests, with seeds of their own, until the time is up."""
        rounds = {"passed": 0, "failed": 0, "cut_short": 0}
        number = self.seed
        while self.spent_s + ROUND_S_MIN < self.seconds or not sum(rounds.values()):
            folder = PROPERTIES[sum(rounds.values()) % len(PROPERTIES)]
            number += 1
            outcome, output = self._properties_once(folder, number)
            rounds[outcome] += 1
            if outcome == "failed":
                self.tally.found("properties", f"{folder}, seed {number}", "", output[-4_000:])
                break
        self.facts["properties"] = {"rounds": rounds, "seeds": [self.seed + 1, number]}

    def _properties_once(self, folder: str, seed: int) -> tuple[str, str]:
        command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider"]
        command += ["--hypothesis-profile=fuzz", f"--hypothesis-seed={seed}", "-m", "hypothesis"]
        try:
            done = subprocess.run(
                [*command, folder],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=max(20.0, self.seconds - self.spent_s),
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "cut_short", ""
        say(done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-500:])
        return ("passed" if done.returncode == 0 else "failed"), done.stdout + done.stderr


def say(text: str) -> None:
    """One line for who watches."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Run what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="make fuzz", description="Fuzz for a given time.")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one at every run")
    parser.add_argument("--report", type=Path, default=Path("fuzz.json"))
    chosen = parser.parse_args()
    seed = SystemRandom().randrange(2**31) if chosen.seed is None else chosen.seed
    say(f"fuzzing for {chosen.minutes:g} minutes; repeat with --seed {seed}")
    return 0 if Run(chosen.minutes, seed, chosen.report).all() else 1


if __name__ == "__main__":
    sys.exit(main())
