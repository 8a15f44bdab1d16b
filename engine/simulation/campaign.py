"""Many seeds on all cores, and what came of them."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from engine.simulation.coverage import SOMETIMES
from engine.simulation.plan import KINDS, draw
from engine.simulation.shrink import shrink
from engine.simulation.world import Outcome, simulate

CHUNK: Final = 10
SEES_ALL: Final = 1_000
"""From so many seeds on, each thing of `sometimes` happens in some."""
SHRUNK_MAX: Final = 3
"""So many failing seeds are made smaller; where there are more, the first ones will do."""


class Failure(msgspec.Struct, frozen=True):
    """A seed that found something, and the command that replays it."""

    seed: int
    rule: str
    what: str
    command: str


class Report(msgspec.Struct, frozen=True):
    """What a campaign found. This is the form of the JSON that `--report` writes."""

    first_seed: int
    seeds: int
    took_s: float
    seeds_per_s: float
    processes: int
    payments: int
    requests: int
    virtual_s: float
    """Simulated time, all runs together."""
    cpu_s: float
    """Processor time, all runs together: what `took_s` is on cores that do nothing else."""
    faults: dict[str, int]
    """How often each kind of fault was injected, every kind named."""
    sometimes: dict[str, int]
    """In how many runs each thing happened that should happen sometimes, every one named."""
    never: tuple[str, ...]
    """Those of `sometimes` that did not happen in any run."""
    failures: tuple[Failure, ...]

    @property
    def is_blind(self) -> bool:
        """Whether so many seeds missed something that a few hundred always meet."""
        return self.seeds >= SEES_ALL and bool(self.never)

    @property
    def holds(self) -> bool:
        """Whether no seed found anything, and all was there to be found."""
        return not self.failures and not self.is_blind


class _Sums:
    def __init__(self) -> None:
        self.seeds = self.payments = self.requests = 0
        self.virtual_s = self.cpu_s = 0.0
        self.faults: Counter[str] = Counter()
        self.sometimes: Counter[str] = Counter()
        self.failed: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.payments += outcome.payments
        self.requests += outcome.requests
        self.virtual_s += outcome.virtual_s
        self.cpu_s += outcome.cpu_s
        self.faults.update(outcome.faults)
        self.sometimes.update(outcome.sometimes.keys())
        if outcome.violations:
            self.failed.append(outcome)


def run_campaign(
    first_seed: int,
    seeds: int,
    *,
    processes: int | None = None,
    on_progress: Callable[[int, int], None] = lambda seeds, failed: None,
) -> Report:
    """Run `seeds` seeds from `first_seed` on. `on_progress` hears how many are done and failed."""
    began = time.monotonic()
    processes = min(processes or os.cpu_count() or 1, max(1, seeds // CHUNK))
    sums = _Sums()
    for outcome in _outcomes(first_seed, seeds, processes):
        sums.add(outcome)
        on_progress(sums.seeds, len(sums.failed))
    took_s = time.monotonic() - began
    return Report(
        first_seed=first_seed,
        seeds=sums.seeds,
        took_s=round(took_s, 3),
        seeds_per_s=round(sums.seeds / took_s, 2),
        processes=processes,
        payments=sums.payments,
        requests=sums.requests,
        virtual_s=round(sums.virtual_s, 3),
        cpu_s=round(sums.cpu_s, 3),
        faults={kind: sums.faults[kind] for kind in KINDS},
        sometimes={name: sums.sometimes[name] for name in SOMETIMES},
        never=tuple(name for name in SOMETIMES if not sums.sometimes[name]),
        failures=tuple(_failures(sums.failed)),
    )


def _outcomes(first_seed: int, seeds: int, processes: int) -> Iterator[Outcome]:
    chunks = [
        range(start, min(start + CHUNK, first_seed + seeds))
        for start in range(first_seed, first_seed + seeds, CHUNK)
    ]
    if processes == 1:
        for chunk in chunks:
            yield from run_chunk(chunk)
        return
    # A fresh interpreter for each, so that no run depends on what its parent has done before.
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for outcomes in pool.imap_unordered(run_chunk, chunks):
            yield from outcomes


def run_chunk(seeds: range) -> list[Outcome]:
    """What one process does at a time."""
    return [simulate(draw(seed)) for seed in seeds]


def _failures(failed: list[Outcome]) -> Iterator[Failure]:
    for number, outcome in enumerate(sorted(failed, key=lambda outcome: outcome.seed)):
        found = outcome.violations[0]
        if number >= SHRUNK_MAX:
            command = f"engine simulate --seed {outcome.seed}"
            yield Failure(outcome.seed, found.rule, found.what, command)
            continue
        smaller = shrink(outcome)
        yield Failure(outcome.seed, smaller.rule, smaller.what, smaller.command)


def render(report: Report) -> str:
    """The report on one screen."""
    injected = sum(report.faults.values())
    lines = [
        f"{report.seeds:,} seeds from {report.first_seed} in {report.took_s:.1f} s: "
        f"{report.seeds_per_s:.1f} seeds/s in {report.processes} processes, "
        f"{report.cpu_s / report.seeds:.3f} CPU s each",
        f"{report.payments:,} payments, {report.requests:,} requests, "
        f"{report.virtual_s / 86_400:,.0f} virtual days, {injected:,} faults injected:",
        "",
        *_columns({kind: f"{count:,}" for kind, count in report.faults.items()}),
        "",
        f"sometimes: {len(SOMETIMES) - len(report.never)} of {len(SOMETIMES)} things happened"
        + (", never:" if report.never else "."),
        *(f"  {name}" for name in report.never),
    ]
    for failure in report.failures:
        lines += ["", f"SEED {failure.seed}: {failure.rule}", f"  {failure.what}"]
        lines.append(f"  replay: {failure.command}")
    if report.failures:
        lines += ["", f"{len(report.failures)} seeds FAILED."]
    elif report.is_blind:
        lines += ["", "Nothing was found, but the campaign is BLIND for what never happened."]
    else:
        lines += ["", "Everything held."]
    return "\n".join(lines)


def _columns(cells: dict[str, str]) -> Iterator[str]:
    """Names and values, three to a line."""
    shown = [f"{name:<17}{value:>8}" for name, value in cells.items()]
    for start in range(0, len(shown), 3):
        yield "  " + "   ".join(shown[start : start + 3])
