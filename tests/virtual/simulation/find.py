"""How many seeds each planted bug takes to be found: `make planted`.

    python -m tests.virtual.simulation.find planted.json

Each bug is looked for several times, from seeds that are far apart. The exit status is 0 when all
of them were found each time.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from pathlib import Path

import pytest

from engine.simulation.plan import draw
from engine.simulation.world import simulate
from tests.virtual.simulation.planted import PLANTS, Patch

FROM = (0, 10_000, 20_000, 30_000)
SEEDS_MAX = 400


def seeds_until_found(name: str, first: int) -> int | None:
    """How many seeds from `first` on; None: not with `SEEDS_MAX`."""
    with pytest.MonkeyPatch.context() as patch:
        PLANTS[name](Patch(patch))
        for count in range(1, SEEDS_MAX + 1):
            if simulate(draw(first + count - 1)).violations:
                return count
    return None


def search(name: str) -> tuple[str, list[int | None]]:
    """One bug, from everywhere."""
    return name, [seeds_until_found(name, first) for first in FROM]


def main(target: Path) -> int:
    """Look for all of them, in two processes; returns the exit status."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = dict(pool.imap(search, PLANTS))
    target.write_text(json.dumps({"from": FROM, "found": found}, indent=1) + "\n")
    missed = [name for name, counts in found.items() if None in counts]
    worst = max(count or 0 for counts in found.values() for count in counts)
    sys.stdout.write(
        f"{len(found)} planted bugs, each looked for from {len(FROM)} seeds; at most {worst} seeds "
        f"were needed; missed: {', '.join(missed) or 'none'}\n"
    )
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
