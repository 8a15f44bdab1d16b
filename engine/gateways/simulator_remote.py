"""The adapter to a simulator in a process of its own: a gateway over real sockets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from engine.domain.news import GatewayCall, GatewayTraits, OperationNews
from engine.gateways.http_client import HttpClient
from engine.gateways.signatures import secret_key
from engine.gateways.simulator_config import SimulatorConfig
from engine.gateways.simulator_webhooks import read_verified, read_webhook
from engine.gateways.simulator_wire import build, parse
from engine.ports import WebhookEvent, WebhookRefused

_CONNECT_TIMEOUT_S = 2.0
# Beyond any deadline: it only ends what its caller has forgotten.
_TIMEOUT_S = 120.0


class RemoteSimulator:
    """The gateway. Implements `engine.ports.Gateway` under asyncio."""

    def __init__(self, base_url: str, *, config: SimulatorConfig) -> None:
        """`base_url` without a path; of `config`, the traits and the webhook secrets count."""
        self._base_url = base_url.rstrip("/")
        self._traits = config.traits
        self._keys = tuple(secret_key(secret) for secret in config.webhook_secrets)
        self._http = HttpClient(
            connections_max=config.inflight_max,
            connect_timeout_s=_CONNECT_TIMEOUT_S,
            timeout_s=_TIMEOUT_S,
        )

    @property
    def traits(self) -> GatewayTraits:
        """Its numbers."""
        return self._traits

    def perform_now(self, calls: Sequence[GatewayCall]) -> list[OperationNews | None]:
        """Nothing can be answered without the network."""
        return [None] * len(calls)

    async def perform(self, call: GatewayCall, in_time_s: float = math.inf) -> OperationNews:
        """Make the call, if it leaves in time, and read the answer."""
        return parse(call, await self._http.send(build(self._base_url, call), in_time_s))

    def verify_webhook(
        self, headers: Mapping[str, str], raw: bytes, now_ms: int
    ) -> WebhookEvent | WebhookRefused:
        """Check signature and time stamp on the raw bytes, and read them. Pure."""
        return read_webhook(self._keys, headers, raw, now_ms)

    def read_webhook(self, event_id: str, raw: bytes) -> WebhookEvent | WebhookRefused:
        """Read one whose signature has been checked. Pure."""
        return read_verified(event_id, raw)

    async def close(self) -> None:
        """Let connections go."""
        await self._http.close()
