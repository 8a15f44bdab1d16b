"""Arming a failpoint: what is understood, what is refused, and at which passage it acts."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from engine import failpoints
from engine.app.commands import dev, serve
from engine.config import SettingsRefused, load_settings
from engine.failpoints import POINTS, Armed, FailpointRefused, arm, failpoint


@pytest.fixture(autouse=True)
def _nothing_armed() -> Iterator[None]:
    yield
    arm(None)


@pytest.fixture
def acted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    done: list[str] = []
    monkeypatch.setitem(failpoints.ACTIONS, "kill", lambda: done.append("kill"))
    return done


def test_a_point_acts_at_its_passage_and_never_again(acted: list[str]) -> None:
    arm("after_intent:3")
    for passage in range(1, 6):
        failpoint("after_intent")
        failpoint("after_commit")
        assert acted == (["kill"] if passage >= 3 else [])


def test_every_point_can_be_armed(acted: list[str]) -> None:
    for name in POINTS:
        assert Armed(name).name == name
        assert Armed(f"{name}:2:block").action == "block"


@pytest.mark.parametrize(
    "text", ["", "nowhere", "after_intent:0", "after_intent:x", "after_intent:1:dance"]
)
def test_what_arms_nothing_is_refused(text: str) -> None:
    with pytest.raises(FailpointRefused):
        Armed(text)


def test_a_point_that_is_not_armed_costs_next_to_nothing() -> None:
    arm("draining")
    count = 100_000
    began = time.perf_counter()
    for _ in range(count):
        failpoint("after_intent")
    # Some 50 ns; the bound leaves room for a machine that does something else meanwhile.
    assert (time.perf_counter() - began) / count < 1e-6


def test_serve_refuses_a_failpoint_that_its_file_does_not_allow() -> None:
    settings = load_settings(file=None, environ={"ENGINE_FAILPOINT": "after_intent"})
    with pytest.raises(SettingsRefused, match="failpoints_allowed"):
        serve(settings, lambda message: 1)


def test_an_unknown_failpoint_is_refused_before_anything_starts() -> None:
    settings = load_settings(file=None, environ={"ENGINE_FAILPOINT": "nowhere"})
    with pytest.raises(SettingsRefused, match="nowhere"):
        dev(settings, lambda message: 1)
