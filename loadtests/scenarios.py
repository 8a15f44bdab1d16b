"""The scenarios as data: who comes, what goes wrong when, and what must hold all the same.

In every scenario every payment gets a final answer in the end, however often its client has to ask
with the same key, and `engine verify` holds afterwards, the gateway's own books included.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["gateway_out", "gateway_back", "kill_engine", "start_engine"]


class Disturbance(msgspec.Struct, frozen=True):
    """What happens at a part of the scenario's time (0 to 1)."""

    at: float
    kind: Kind


class Thresholds(msgspec.Struct, frozen=True, kw_only=True):
    """What must hold. Shares are of all attempts; times in milliseconds."""

    failed_max: float = 0.0
    """Payments that got no final answer, or a wrong one."""
    put_off_max: float = 0.0
    """Attempts that were told to come again: 202, 409, 502, 503, or no connection."""
    put_off_min: float = 0.0
    """Where something is to go wrong, and would have been noticed."""
    p50_ms: float = 250.0
    p99_ms: float = 1_500.0
    """Of attempts that were answered as wanted."""
    recovered_min: float = 0.98
    """Share of attempts in the last part of the time that were answered as wanted."""
    recovered_from: float = 0.8
    """Where that part begins."""
    memory_growth_max: float | None = None
    """The engine's memory in the last third of what was read, as times the middle one."""
    memory_from_s: int = 0
    """Seconds until its caches are full; before that memory is not read."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One load test."""

    name: str
    what: str
    user: str = "Customer"
    users: int = 40
    shape: str | None = None
    """A module with a `LoadTestShape`, which then decides how many users there are."""
    merchants: int = 20
    seconds: int = 9
    latency_ms: float = 5.0
    rates: tuple[str, ...] = ()
    """The gateway's faults, as its command line takes them."""
    disturbances: tuple[Disturbance, ...] = ()
    thresholds: Thresholds = Thresholds()


SCENARIOS = (
    Scenario(
        name="steady",
        what="a mix of everything, from twenty merchants",
        user="Mix",
    ),
    Scenario(
        name="create-capture-retrieve",
        what="the shape that payment switches publish: create, capture, retrieve",
        user="CreateCaptureRetrieve",
    ),
    Scenario(
        name="spike",
        what="ten times as many customers for a third of the time",
        users=20,
        shape="loadtests/spike.py",
        seconds=15,
        thresholds=Thresholds(put_off_max=0.5, p50_ms=2_000.0, p99_ms=5_000.0),
    ),
    Scenario(
        name="hot-merchant",
        what="every payment of one merchant, so on one account",
        merchants=1,
    ),
    Scenario(
        name="gateway-outage",
        what="the gateway refuses every connection for a third of the time",
        # So long that the breaker's third try, after 2, 4 and 8 s and up to a fifth more, falls
        # between the gateway's return and the last fifth, wherever its jitter puts it.
        seconds=30,
        disturbances=(Disturbance(0.2, "gateway_out"), Disturbance(0.5, "gateway_back")),
        thresholds=Thresholds(put_off_min=0.05, put_off_max=0.9, p99_ms=3_000.0, recovered_min=0.9),
    ),
    Scenario(
        name="gateway-brown-out",
        what="one call in ten, look-ups too, ends in a 500 after the gateway has done it",
        seconds=15,
        rates=("server_error=0.1",),
        # Each is looked up after a second or more, and its customer asks twice a second.
        thresholds=Thresholds(put_off_min=0.02, put_off_max=0.5, p99_ms=3_000.0, recovered_min=0.5),
    ),
    Scenario(
        name="slow-gateway",
        what="the gateway takes three seconds for everything",
        seconds=12,
        latency_ms=3_000.0,
        # Answers come in waves, three seconds apart.
        thresholds=Thresholds(p50_ms=3_500.0, p99_ms=5_000.0, recovered_from=0.6),
    ),
    Scenario(
        name="restart",
        what="kill -9 of the engine under load, and its start a moment later",
        seconds=20,
        disturbances=(Disturbance(0.25, "kill_engine"), Disturbance(0.3, "start_engine")),
        thresholds=Thresholds(
            put_off_min=0.005, put_off_max=0.9, p99_ms=5_000.0, recovered_min=0.9
        ),
    ),
)

SOAK = Scenario(
    name="soak",
    what="the mix, for long",
    user="Mix",
    seconds=1_800,
    thresholds=Thresholds(put_off_max=0.001, memory_growth_max=1.1, memory_from_s=400),
)
