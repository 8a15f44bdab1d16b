"""`engine simulate`: one seed with its trace, or many seeds with a report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from engine.simulation.campaign import render, run_campaign
from engine.simulation.plan import KINDS, draw
from engine.simulation.world import simulate

_BAR = 40


def simulate_one(
    seed: int,
    fail: Callable[[object], int],
    *,
    without: tuple[str, ...] = (),
    clients: int | None = None,
    requests: int | None = None,
) -> int:
    """Replay a seed: the same lines every time, on every machine."""
    strange = [kind for kind in without if kind not in KINDS]
    if strange:
        return fail(f"--without {strange[0]}: the kinds are {', '.join(KINDS)}.")
    plan = draw(seed, without=without, clients=clients, requests=requests)
    _say(f"seed {seed}: {plan.clients} clients, {plan.requests} requests each")
    _say(f"faults: {', '.join(plan.kinds) or 'none'}")
    outcome = simulate(plan, is_traced=True)
    for line in outcome.trace:
        _say(line)
    injected = ", ".join(f"{kind} {count}" for kind, count in outcome.faults.items())
    _say(f"{outcome.payments} payments, {outcome.requests} requests; injected: {injected or '-'}")
    for violation in outcome.violations:
        _say(f"NOT SO: {violation.rule}: {violation.what}")
    if not outcome.violations:
        _say("Everything held.")
    return 1 if outcome.violations else 0


def simulate_seeds(
    first: int,
    seeds: int,
    fail: Callable[[object], int],
    *,
    report_file: Path | None = None,
    processes: int | None = None,
) -> int:
    """Run many seeds on all cores; 0 when nothing was found."""
    is_watched = sys.stderr.isatty()

    def progress(done: int, failed: int) -> None:
        if is_watched:
            bar = "#" * (done * _BAR // seeds)
            sys.stderr.write(f"\r[{bar:<{_BAR}}] {done:,} of {seeds:,}, {failed} failed\x1b[K")

    report = run_campaign(first, seeds, processes=processes, on_progress=progress)
    if is_watched:
        sys.stderr.write("\r\x1b[K")
    _say(render(report))
    if report_file is not None:
        try:
            report_file.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
        except OSError as trouble:
            return fail(f"--report {report_file}: {trouble.strerror}.")
    return 0 if report.holds else 1


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
