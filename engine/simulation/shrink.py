"""A failing run made smaller: fewer clients, fewer requests, fewer kinds of faults."""

from __future__ import annotations

import msgspec

from engine.simulation.plan import draw
from engine.simulation.world import Outcome, simulate


class Smaller(msgspec.Struct, frozen=True):
    """The smallest run that was found to break the same rule."""

    seed: int
    rule: str
    what: str
    clients: int
    requests: int
    kinds: tuple[str, ...]
    """The kinds of faults that are left."""
    without: tuple[str, ...]
    runs: int
    """How many runs it took to find it."""

    @property
    def command(self) -> str:
        """What replays it."""
        options = [f"--seed {self.seed}", f"--clients {self.clients}"]
        options.append(f"--requests {self.requests}")
        if self.without:
            options.append(f"--without {','.join(self.without)}")
        return f"engine simulate {' '.join(options)}"


def shrink(outcome: Outcome, *, runs_max: int = 80) -> Smaller:
    """Take away one thing after another while the same rule is still broken."""
    seed, rule, what = outcome.seed, outcome.violations[0].rule, outcome.violations[0].what
    plan = draw(seed)
    clients, requests, without = plan.clients, plan.requests, tuple[str, ...]()
    runs = 0

    def fails(clients: int, requests: int, without: tuple[str, ...]) -> bool:
        nonlocal runs, what
        if runs >= runs_max:
            return False
        runs += 1
        again = simulate(draw(seed, without=without, clients=clients, requests=requests))
        if not again.violations or again.violations[0].rule != rule:
            return False
        what = again.violations[0].what
        return True

    is_smaller = True
    while is_smaller:
        is_smaller = False
        for fewer in range(1, clients):
            if fails(fewer, requests, without):
                clients, is_smaller = fewer, True
                break
        for fewer in range(1, requests):
            if fails(clients, fewer, without):
                requests, is_smaller = fewer, True
                break
        for kind in plan.kinds:
            if kind not in without and fails(clients, requests, (*without, kind)):
                without, is_smaller = (*without, kind), True
    kinds = tuple(kind for kind in plan.kinds if kind not in without)
    return Smaller(seed, rule, what, clients, requests, kinds, without, runs)
