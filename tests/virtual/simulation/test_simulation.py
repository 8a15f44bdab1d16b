"""The simulation: it repeats itself, finds nothing in the engine, and every planted bug."""

import subprocess
import sys

import msgspec
import pytest
import trio._core._run as scheduler

from engine.simulation.campaign import Report, render, run_campaign
from engine.simulation.coverage import SOMETIMES
from engine.simulation.plan import KINDS, draw
from engine.simulation.shrink import shrink
from engine.simulation.world import simulate
from tests.virtual.simulation.planted import FIRST, PLANTS, Patch

SEEDS_MAX = 60
SLICE = range(12)


def test_the_private_names_of_trio_that_make_a_run_repeatable_are_there():
    assert isinstance(scheduler._ALLOW_DETERMINISTIC_SCHEDULING, bool)
    assert callable(scheduler._r.shuffle)


def test_the_same_seed_is_the_same_trace_to_the_byte():
    for seed in (2, 12):
        first, again = (simulate(draw(seed), is_traced=True) for _ in range(2))
        assert len(first.trace) > 100
        assert first.trace == again.trace
        assert simulate(draw(seed)).sometimes == first.sometimes, "without a trace too"


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_another_process_gives_the_same_trace(hash_seed):
    command = [sys.executable, "-m", "engine", "simulate", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, env={"PYTHONHASHSEED": hash_seed})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert lines[2:-2] == simulate(draw(3), is_traced=True).trace


def test_no_socket_and_no_database_driver_is_needed():
    program = (
        "import sys, engine.app.simulating;"
        "print([name for name in ('aiohttp', 'asyncpg', 'uvloop') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.decode().strip() == "[]"


def test_two_seeds_are_two_runs():
    assert simulate(draw(1), is_traced=True).trace != simulate(draw(2), is_traced=True).trace


def test_a_kind_that_is_switched_off_leaves_the_other_kinds_alone():
    plan = next(plan for plan in map(draw, range(100)) if len(plan.kinds) > 8)
    for kind in plan.kinds:
        other = draw(plan.seed, without=(kind,))
        assert set(plan.kinds) - set(other.kinds) == {kind}
        assert [e for e in plan.events if e.kind != kind] == list(other.events)


def test_the_engine_as_it_is_breaks_no_rule():
    for seed in SLICE:
        outcome = simulate(draw(seed))
        assert outcome.violations == [], f"engine simulate --seed {seed}"
        assert outcome.payments


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_found(name, monkeypatch):
    PLANTS[name](Patch(monkeypatch))
    first = FIRST.get(name, 0)
    for seed in range(first, first + SEEDS_MAX):
        if simulate(draw(seed)).violations:
            return
    pytest.fail(f"{name} was not found with {SEEDS_MAX} seeds")


def test_a_finding_is_made_smaller(monkeypatch):
    PLANTS["event_forgotten"](Patch(monkeypatch))
    outcome = simulate(draw(0))
    smaller = shrink(outcome, runs_max=40)
    assert smaller.rule == outcome.violations[0].rule == "I7 events"
    assert (smaller.clients, smaller.requests, smaller.kinds) == (1, 1, ())
    assert smaller.command.startswith("engine simulate --seed 0 --clients 1 --requests 1")
    again = draw(0, without=smaller.without, clients=1, requests=1)
    assert simulate(again).violations[0].rule == smaller.rule


def test_a_campaign_reports_what_it_did(monkeypatch):
    heard = []
    report = run_campaign(0, 4, processes=1, on_progress=lambda *done: heard.append(done))
    assert heard == [(1, 0), (2, 0), (3, 0), (4, 0)]
    assert report.holds
    assert set(report.faults) == set(KINDS)
    assert set(report.sometimes) == set(SOMETIMES)
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report
    assert "Everything held." in render(report)
    blind = msgspec.structs.replace(report, seeds=1_000, never=("a commit was slow",))
    assert not blind.holds
    assert "BLIND" in render(blind)
    few = msgspec.structs.replace(report, seeds=999, never=("a commit was slow",))
    assert few.holds


def test_a_campaign_names_the_command_that_replays_a_finding(monkeypatch):
    PLANTS["event_forgotten"](Patch(monkeypatch))
    monkeypatch.setattr("engine.simulation.campaign.SHRUNK_MAX", 1)
    report = run_campaign(0, 2, processes=1)
    assert [failure.rule for failure in report.failures] == ["I7 events"] * 2
    assert report.failures[1].command == "engine simulate --seed 1"
    assert report.failures[0].command in render(report)


@pytest.mark.campaign
def test_everything_that_should_happen_sometimes_does():
    report = run_campaign(0, 1_000)
    assert report.failures == ()
    assert report.never == ()
