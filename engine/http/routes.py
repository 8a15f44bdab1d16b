"""The table of routes: every call there is. Dispatch and the OpenAPI document come from here."""

from __future__ import annotations

from typing import Final

from engine.http.payment_routes import PAYMENT_ROUTES
from engine.http.routing import Route
from engine.http.system_routes import (
    EVENT_ROUTES,
    LEDGER_ROUTES,
    SIMULATOR_ROUTES,
    SYSTEM_ROUTES,
)

__all__ = ["ROUTES", "SIMULATOR_ROUTES"]

ROUTES: Final[tuple[Route, ...]] = (
    *PAYMENT_ROUTES,
    *EVENT_ROUTES,
    *LEDGER_ROUTES,
    *SYSTEM_ROUTES,
)
"""Every route of the contract; `SIMULATOR_ROUTES` come on top where the simulator runs here."""
