"""The command line of the engine, with a simulator whose faults meet captures, voids and refunds.

A payment method's fault otherwise meets the authorize or purchase, and what follows it goes well.
"""

from __future__ import annotations

import sys

import msgspec

from engine.__main__ import main
from engine.app import parts
from engine.config import Settings
from engine.gateways.simulator_config import SimulatorConfig

_as_configured = parts.simulator_config


def _faults_come_later(settings: Settings) -> SimulatorConfig:
    return msgspec.structs.replace(
        _as_configured(settings), faults_on=("capture", "void", "refund")
    )


if __name__ == "__main__":
    parts.simulator_config = _faults_come_later
    sys.exit(main())
