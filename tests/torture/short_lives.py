"""The command line of an engine, or a simulator, for which days and minutes pass in seconds.

What waits for a week or for five minutes is a row with a due time; here the due times are near, so
that the points on its way can be reached. And one charge stays hidden for longer than is waited.
"""

from __future__ import annotations

import sys

import msgspec

from engine.__main__ import main
from engine.domain import retry
from engine.gateways import simulator, simulator_config, simulator_registry
from engine.gateways.simulator_methods import METHODS

LATE = "pm_card_settles_late"

if __name__ == "__main__":
    for module in (simulator, simulator_config, simulator_registry):
        module.AUTHORIZATION_MS = 4_000  # type: ignore[attr-defined]
    retry.RETRY_DELAYS_MS = (3_000, 3_000, 3_000)  # type: ignore[misc]
    METHODS[LATE] = msgspec.structs.replace(METHODS[LATE], hidden_for_ms=12_000)
    sys.exit(main())
