"""The simulator's books, as `engine verify` wants its witness."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from engine.domain.witness import WitnessEffect
from engine.gateways.simulator_books import read_books
