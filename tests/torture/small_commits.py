"""The command line of an engine whose commits take two entries each.

So a few clients are enough for more to wait than one commit takes, and of what waited together all
but the first batch is made ready while the one before is with the database.
"""

from __future__ import annotations

import sys
from typing import Any

from engine.__main__ import main
from engine.actors import system
from engine.actors.ledger_writer import LedgerWriterActor

ENTRIES_MAX = 2


class SmallCommits(LedgerWriterActor):
    """The ledger writer, whatever the settings say."""

    def __init__(self, *parts: Any, **settings: Any) -> None:
        super().__init__(*parts, **settings | {"entries_max": ENTRIES_MAX})


if __name__ == "__main__":
    system.LedgerWriterActor = SmallCommits  # type: ignore[misc]
    sys.exit(main())
