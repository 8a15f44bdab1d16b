"""The simulator's settings, and what it reports of itself."""

from __future__ import annotations

import math
import random
from typing import Final

import msgspec

from engine.domain.news import Action, GatewayTraits
from engine.gateways.signatures import secret_key
from engine.gateways.simulator_methods import AUTHORIZATION_MS, Method

# Not a secret: whoever can reach the simulator can charge with it anyway.
DEVELOPMENT_SECRET: Final = "whsec_c2ltdWxhdG9yLWRldmVsb3BtZW50LXNlY3JldA=="  # noqa: S105


class FailureRates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The share of calls that meet each fault, by chance; together at most 1."""

    unreachable: float = 0.0
    timeout_before: float = 0.0
    """No reply, and nothing was done."""
    timeout_after: float = 0.0
    """No reply, after doing it."""
    server_error: float = 0.0
    """An HTTP 500, after doing it."""
    decline: float = 0.0
    """`do_not_honor`, for an authorize or purchase; other calls are left alone."""

    def __post_init__(self) -> None:
        """Raise ValueError for shares that can't be."""
        rates = (getattr(self, name) for name in self.__struct_fields__)
        if any(rate < 0 for rate in rates) or self.total > 1:
            raise ValueError("failure rates are 0 to 1, together at most 1")

    @property
    def total(self) -> float:
        """The share of calls that meet any fault."""
        return (
            self.unreachable
            + self.timeout_before
            + self.timeout_after
            + self.server_error
            + self.decline
        )


class SimulatorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the simulator. Times in milliseconds."""

    name: str = "simulator"
    base_url: str = "http://127.0.0.1:8000"
    """Where customers reach `/simulator/…`: the engine itself, or the separate process."""
    latency_ms: float = 0.0
    """Added to every reply: fixed, or the median where `latency_sigma` spreads it."""
    latency_sigma: float = 0.0
    """Of a log-normal distribution, the shape of real gateways' latencies; 0 is fixed."""
    rates: FailureRates = FailureRates()
    seed: int = 0
    send_webhooks: bool = False
    """A webhook for every outcome, not only where the payment method says so."""
    webhook_secrets: tuple[str, ...] = (DEVELOPMENT_SECRET,)
    """All sign, and any verifies: two during a rotation."""
    faults_on: tuple[Action, ...] = ("authorize", "purchase")
    """The actions a payment method's faults (replies, delays, declines) apply to. With
    `("capture",)` a card is authorised as any other and its captures meet the fault."""
    deadline_ms: int = 6_000
    lookup_lag_ms: int = 4_000
    """Longer than the 3 s for which `pm_card_settles_late` is not found."""
    keys_kept_ms: int = 24 * 3_600_000
    """A key that comes back later is taken for a new request, as at real gateways."""
    inflight_max: int = 1_000

    def __post_init__(self) -> None:
        """Cross-check once, where settings are read. Raises ValueError."""
        if not self.webhook_secrets:
            raise ValueError("webhook_secrets must hold at least one secret")
        for secret in self.webhook_secrets:
            secret_key(secret)
        if not 0 <= self.latency_ms <= 60_000 or not 0 <= self.latency_sigma <= 3:
            raise ValueError("latency_ms is 0 to 60,000 and latency_sigma 0 to 3")
        if min(self.deadline_ms, self.keys_kept_ms, self.inflight_max) < 1:
            raise ValueError("deadline_ms, keys_kept_ms and inflight_max are at least 1")
        if self.lookup_lag_ms < 0:
            raise ValueError("lookup_lag_ms is at least 0")

    @property
    def traits(self) -> GatewayTraits:
        """The numbers the engine needs of this gateway."""
        return GatewayTraits(
            name=self.name,
            deadline_ms=self.deadline_ms,
            lookup_lag_ms=self.lookup_lag_ms,
            multiple_capture=True,
            inflight_max=self.inflight_max,
            authorization_ms=AUTHORIZATION_MS,
            resend_ms=self.keys_kept_ms * 23 // 24,
        )


class SimulatorStatistics(msgspec.Struct, frozen=True):
    """Counts since the start of the process; `operations` counts those in the books."""

    operations: int
    calls: int
    look_ups: int
    replays: int
    books_bytes: int
    books_failures: int
    webhooks_waiting: int
    webhooks_delivered: int
    webhooks_given_up: int
    is_out: bool


class Chance:
    """The seeded source of latencies and faults: the same seed, the same run."""

    def __init__(self, config: SimulatorConfig) -> None:
        self._random = random.Random(config.seed)
        self._latency_ms = config.latency_ms
        self._sigma = config.latency_sigma
        self.set_rates(config.rates)

    def set_rates(self, rates: FailureRates) -> None:
        """The faults that calls meet from now on."""
        self._rates = rates
        self._has_faults = rates.total > 0
        self.is_idle = not self._latency_ms and not self._has_faults
        """Whether neither latency nor faults are configured."""

    def latency_ms(self) -> int:
        """The latency of the next reply."""
        if not self._sigma:
            return int(self._latency_ms)
        return int(self._latency_ms * math.exp(self._random.gauss(0.0, self._sigma)))

    def fault(self, method: Method, *, charging: bool) -> Method:
        """The method as it is, or with the fault this call meets."""
        if not self._has_faults:
            return method
        rates = self._rates
        drawn = self._random.random()
        if (drawn := drawn - rates.unreachable) < 0:
            return msgspec.structs.replace(method, course="nothing", reply="unreachable")
        if (drawn := drawn - rates.timeout_before) < 0:
            return msgspec.structs.replace(method, course="nothing", reply="none")
        if (drawn := drawn - rates.timeout_after) < 0:
            return msgspec.structs.replace(method, reply="none")
        if (drawn := drawn - rates.server_error) < 0:
            return msgspec.structs.replace(method, reply="server_error")
        if drawn - rates.decline < 0 and charging:
            return msgspec.structs.replace(method, course="declined", code="do_not_honor")
        return method
