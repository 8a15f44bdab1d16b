"""What a seed decides. Pure: everything is drawn here or from generators that the plan seeds.

Each kind of fault is drawn from a generator of its own, so that switching one off leaves the rest
of the run as alike as it can be; that is what shrinking lives on.
"""

from __future__ import annotations

from random import Random
from typing import Final

import msgspec

KINDS: Final[dict[str, str]] = {
    "commit_lost": "the reply to a commit is lost, or the commit on its way",
    "commit_slow": "commits take their time",
    "read_slow": "reads take their time",
    "ledger_read_only": "the ledger takes no commits for a while",
    "ledger_down": "the ledger answers nothing for a while",
    "session_lost": "the connection that holds the ledger's lock breaks",
    "takeover": "another engine takes the ledger over, and the old one does not know yet",
    "engine_crash": "the engine's process dies, at any moment",
    "engine_stop": "the engine is stopped in good order, and started again",
    "shard_crash": "a shard fails in the middle of a step",
    "actor_crash": "another actor gets a message that it cannot handle",
    "gateway_faults": "calls meet no reply, errors and refusals by chance",
    "gateway_outage": "the gateway refuses connections for a while",
    "gateway_slow": "calls take their time on the way there and back",
    "lookup_lag": "look-ups do not find at once what was done",
    "lookup_overdue": "look-ups do not find for longer than promised; a webhook tells, late",
    "webhook_lost": "webhooks get lost",
    "webhook_twice": "webhooks arrive several times",
    "webhook_late": "webhooks are delayed, and overtake each other",
    "webhook_wrong": "forged, stale and contradicting webhooks arrive",
    "clock_jump": "the clock of the engine's machine is set wrong",
    "client_leaves": "clients give up waiting, and come back with the same key",
    "client_storm": "clients send one request several times at once",
}
"""The kinds of faults, each of which can be switched off."""

SCHEDULED: Final = (
    "ledger_read_only",
    "ledger_down",
    "session_lost",
    "takeover",
    "engine_crash",
    "engine_stop",
    "shard_crash",
    "actor_crash",
    "gateway_outage",
    "webhook_wrong",
    "clock_jump",
)
"""Those that happen at times drawn in advance; the others have a share of all occasions."""


class Event(msgspec.Struct, frozen=True):
    """A fault at its time. `choice`, in [0, 1), decides what is left to decide then."""

    at_s: float
    kind: str
    lasts_s: float
    choice: float


class Tuning(msgspec.Struct, frozen=True):
    """The engine's own sizes and times."""

    shards: int
    credits: int
    wait_ms: int
    batch_entries_max: int
    turn_steps: int
    gateway_reply_max_ms: int
    timer_poll_ms: int
    inbox_retry_ms: int
    answered_keys_max: int
    park_retry_s: float
    breaker_failures: int
    queue_least: int


class GatewayPlan(msgspec.Struct, frozen=True):
    """The gateway of a run: how fast, how reliable, how talkative."""

    deadline_ms: int
    lookup_lag_ms: int
    inflight_max: int
    is_instant: bool
    send_webhooks: bool
    hold_s: float
    """How long an authorisation lasts."""
    latency_s: float
    unreachable: float
    timeout_before: float
    timeout_after: float
    server_error: float
    decline: float
    lag_share: float
    overdue_share: float
    webhook_lost: float
    webhook_twice: float
    webhook_late: float


class LedgerPlan(msgspec.Struct, frozen=True):
    """The ledger of a run: how fast, and how often a commit's outcome is not heard."""

    commit_s: float
    read_s: float
    lost_share: float


class Plan(msgspec.Struct, frozen=True):
    """A whole run."""

    seed: int
    kinds: tuple[str, ...]
    clients: int
    requests: int
    """Of each client."""
    duration_s: float
    pause_s: float
    odd_methods: float
    """The share of payments with a method that is not simply approved."""
    references: float
    """The share of payments that name a reference which others may name too."""
    leave_share: float
    storm_share: float
    tuning: Tuning
    gateway: GatewayPlan
    ledger: LedgerPlan
    events: tuple[Event, ...]

    def random(self, purpose: str) -> Random:
        """The generator for one purpose; the same in every process."""
        return Random(f"{self.seed}:{purpose}")


def draw(
    seed: int,
    *,
    without: tuple[str, ...] = (),
    clients: int | None = None,
    requests: int | None = None,
) -> Plan:
    """The plan of a seed; `without` switches kinds of faults off, the rest makes it smaller."""
    random = Random(f"{seed}:plan")
    # Every run has its own character: most kinds are absent from it, a few are frequent.
    share = random.choice((0.0, 0.25, 0.4, 0.6))
    drawn = [kind for kind in KINDS if random.random() < share]
    kinds = tuple(kind for kind in drawn if kind not in without)
    drawn_clients, drawn_requests = random.randint(2, 6), random.randint(4, 12)
    duration_s = random.choice((3.0, 8.0, 20.0))
    return Plan(
        seed=seed,
        kinds=kinds,
        clients=drawn_clients if clients is None else min(clients, drawn_clients),
        requests=drawn_requests if requests is None else min(requests, drawn_requests),
        duration_s=duration_s,
        pause_s=duration_s / (drawn_requests * 2),
        odd_methods=random.choice((0.1, 0.3, 0.7)),
        references=random.choice((0.0, 0.5)),
        leave_share=_share(seed, kinds, "client_leaves", 0.1, 0.6),
        storm_share=_share(seed, kinds, "client_storm", 0.1, 0.6),
        tuning=_tuning(Random(f"{seed}:tuning")),
        gateway=_gateway(seed, kinds),
        ledger=LedgerPlan(
            commit_s=_share(seed, kinds, "commit_slow", 0.001, 0.5),
            read_s=_share(seed, kinds, "read_slow", 0.001, 0.3),
            lost_share=_share(seed, kinds, "commit_lost", 0.02, 0.4),
        ),
        events=_events(seed, kinds, duration_s),
    )


def _share(seed: int, kinds: tuple[str, ...], kind: str, low: float, high: float) -> float:
    """How much there is of a kind: nothing where it is off."""
    if kind not in kinds:
        return 0.0
    return round(Random(f"{seed}:{kind}").uniform(low, high), 3)


def _tuning(random: Random) -> Tuning:
    is_tight = random.random() < 0.4
    return Tuning(
        shards=random.randint(1, 3),
        credits=random.choice((2, 4)) if is_tight and random.random() < 0.3 else 50,
        wait_ms=random.choice((1, 200, 1_000)) if is_tight else 10_000,
        batch_entries_max=random.choice((1, 2)) if is_tight else random.choice((5, 4_000)),
        gateway_reply_max_ms=20_000,
        timer_poll_ms=random.choice((100, 500, 5_000)),
        inbox_retry_ms=random.choice((500, 5_000)),
        answered_keys_max=random.choice((1, 20_000)),
        park_retry_s=random.choice((1.0, 30.0)),
        breaker_failures=random.choice((1, 3, 3, 1_000)),
        turn_steps=random.choice((1, 1, 2)) if is_tight else random.choice((4, 64)),
        queue_least=random.choice((1, 128, 128)) if is_tight else 128,
    )


def _gateway(seed: int, kinds: tuple[str, ...]) -> GatewayPlan:
    random = Random(f"{seed}:gateway")
    total = _share(seed, kinds, "gateway_faults", 0.1, 0.6)
    parts = [random.random() for _ in range(5)]
    rates = [round(total * part / sum(parts), 3) for part in parts]
    latency_s = _share(seed, kinds, "gateway_slow", 0.05, 2.0)
    return GatewayPlan(
        deadline_ms=random.choice((500, 2_000, 6_000)),
        lookup_lag_ms=random.choice((500, 4_000)),
        inflight_max=random.choice((1, 2, 1_000)),
        is_instant=latency_s == 0 and random.random() < 0.5,
        send_webhooks=random.random() < 0.6 or "lookup_overdue" in kinds,
        hold_s=random.choice((0.5, 2.0, 7 * 86_400.0, 7 * 86_400.0)),
        latency_s=latency_s,
        unreachable=rates[0],
        timeout_before=rates[1],
        timeout_after=rates[2],
        server_error=rates[3],
        decline=rates[4],
        lag_share=_share(seed, kinds, "lookup_lag", 0.2, 0.9),
        overdue_share=_share(seed, kinds, "lookup_overdue", 0.1, 0.5),
        webhook_lost=_share(seed, kinds, "webhook_lost", 0.1, 0.6),
        webhook_twice=_share(seed, kinds, "webhook_twice", 0.1, 0.6),
        webhook_late=_share(seed, kinds, "webhook_late", 0.1, 0.6),
    )


def _events(seed: int, kinds: tuple[str, ...], duration_s: float) -> tuple[Event, ...]:
    events = []
    for kind in SCHEDULED:
        if kind not in kinds:
            continue
        random = Random(f"{seed}:{kind}")
        for _ in range(random.randint(1, 4)):
            at_s = round(random.uniform(0.0, duration_s), 3)
            lasts_s = round(random.choice((0.05, 0.5, 3.0)) * random.random(), 3)
            events.append(Event(at_s, kind, lasts_s, random.random()))
    return tuple(sorted(events, key=lambda event: (event.at_s, event.kind)))
