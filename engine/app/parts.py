"""The one place that names concrete parts: ledger, gateways, keys, fees, telemetry, HTTP."""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

import anyio
import msgspec

from engine import __version__
from engine.actors.settings import ActorSettings
from engine.actors.system import ActorSystem
from engine.app.identity import RandomIds, SystemClock
from engine.app.telemetry import StructlogTelemetry
from engine.app.waiting import LoopEvent
from engine.config import DEV_KEY, DEV_MERCHANT, FeeSetting, Settings, SettingsRefused
from engine.domain.breaker import BreakerSettings
from engine.domain.fees import FeeRule, FeeSchedule, fee_schedule
from engine.domain.ids import parse_op_id
from engine.domain.news import NotFound
from engine.gateways.breaker import GatewayBreaker
from engine.gateways.simulator import Simulator
from engine.gateways.simulator_config import (
    DEVELOPMENT_SECRET,
    FailureRates,
    SimulatorConfig,
)
from engine.gateways.simulator_methods import knows
from engine.gateways.simulator_remote import RemoteSimulator
from engine.gateways.simulator_webhooks import Deliver
from engine.gateways.simulator_wire import DONE_PAGE, completion_page
from engine.http.calls import Parts
from engine.http.cursors import CursorSeal
from engine.http.keys import MERCHANT, OPERATOR, ApiKey, key_digest
from engine.http.shell import Statistics as HttpStatistics
from engine.http.views import PartHealth
from engine.ledger.postgres import PostgresLedger
from engine.ledger.verify_report import Report
from engine.ports import Breaker, Gateway

SIMULATOR = "simulator"
STANDING_BY = "standing by"

# The simulator is there to fail on demand, and a handful of rehearsed faults is no outage.
SIMULATOR_BREAKER = BreakerSettings(consecutive_failures=40)

DEV_FEES = (FeeSetting(valid_from="2020-01-01", basis_points=290, fixed_minor=30, currency="USD"),)


def actor_settings(settings: Settings) -> ActorSettings:
    """The actors' part of the settings."""
    return ActorSettings(
        shards=settings.shards,
        credits=settings.credits,
        shard_capacity=settings.credits,
        wait_ms=settings.wait_ms,
        park_retry_s=settings.park_retry_s,
        fees=fee_schedules(settings),
    )


def fee_schedules(settings: Settings) -> dict[str, FeeSchedule]:
    """Each merchant's fee schedule; a rule without a merchant holds for all of them."""
    merchants = {key.merchant for key in settings.api_keys} | {DEV_MERCHANT}
    merchants |= {fee.merchant for fee in settings.fees if fee.merchant is not None}
    schedules: dict[str, FeeSchedule] = {}
    for merchant in merchants:
        rules = [
            _fee_rule(fee, f"{settings.file}: [[fees]] number {number}")
            for number, fee in enumerate(settings.fees, 1)
            if fee.merchant in (None, merchant)
        ]
        schedule = fee_schedule(rules)
        if not isinstance(schedule, FeeSchedule):
            reason = schedule.replace("_", " ")
            raise SettingsRefused(f"{settings.file}: fees of {merchant}: {reason}.")
        schedules[merchant] = schedule
    return schedules


def _fee_rule(fee: FeeSetting, where: str) -> FeeRule:
    try:
        valid_from = date.fromisoformat(fee.valid_from)
    except ValueError:
        raise SettingsRefused(
            f"{where}: `valid_from` must be a date like 2026-01-31, not {fee.valid_from!r}."
        ) from None
    values = {
        name: value
        for name, value in msgspec.structs.asdict(fee).items()
        if name not in ("merchant", "valid_from")
    }
    return FeeRule(valid_from=valid_from, **values)


def api_keys(settings: Settings, *, dev: bool) -> dict[bytes, ApiKey]:
    """The keys that are known, by the digest of the whole key."""
    keys = {
        bytes.fromhex(key.sha256): ApiKey(key.merchant, key.livemode, frozenset(key.scopes))
        for key in settings.api_keys
    }
    if dev:
        keys[key_digest(DEV_KEY)] = ApiKey(DEV_MERCHANT, False, frozenset({MERCHANT, OPERATOR}))
    return keys


def simulator_config(settings: Settings) -> SimulatorConfig:
    """The simulator's settings, whether it runs in this process or beside it."""
    chosen = settings.simulator
    try:
        return SimulatorConfig(
            base_url=settings.public_url or f"http://{settings.host}:{settings.port}",
            latency_ms=chosen.latency_ms,
            latency_sigma=chosen.latency_sigma,
            webhook_secrets=chosen.webhook_secrets or (DEVELOPMENT_SECRET,),
            lookup_lag_ms=chosen.lookup_lag_ms,
            inflight_max=chosen.inflight_max,
            deadline_ms=chosen.deadline_ms,
            send_webhooks=chosen.send_webhooks,
            seed=chosen.seed,
            rates=msgspec.convert(chosen.rates, FailureRates),
        )
    except (ValueError, msgspec.ValidationError) as wrong:
        raise SettingsRefused(f"{settings.file}: [simulator]: {wrong}") from None


VERIFICATION = "last-verification.json"


def last_verification(data_dir: Path) -> Report | None:
    """What `engine verify` last found, wherever it was run on this data directory."""
    try:
        return msgspec.json.decode((data_dir / VERIFICATION).read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError):
        return None


class Engine:
    """Everything of one engine but its HTTP socket, ready to be run."""

    def __init__(
        self,
        settings: Settings,
        *,
        ledger: PostgresLedger,
        telemetry: StructlogTelemetry,
        books: Path | None,
        deliver: Deliver,
        dev: bool,
    ) -> None:
        self.settings = settings
        self.ledger = ledger
        self.telemetry = telemetry
        self.dev = dev
        self.clock = SystemClock()
        self.ids = RandomIds(self.clock)
        self.simulator: Simulator | None = None
        config = simulator_config(settings)
        gateway: Gateway
        if settings.simulator.url is None:
            gateway = self.simulator = Simulator(
                books, clock=self.clock, config=config, deliver=deliver
            )
        else:
            gateway = RemoteSimulator(settings.simulator.url, config=config)
        random = Random(SystemRandom().getrandbits(64))
        breaker = GatewayBreaker(
            SIMULATOR_BREAKER, name=SIMULATOR, now_s=anyio.current_time(), jitter=random.random
        )
        self.gateways: dict[str, tuple[Gateway, Breaker]] = {SIMULATOR: (gateway, breaker)}
        self.system = ActorSystem(
            ledger_writer=ledger,
            ledger_reader=ledger,
            ledger_upkeep=ledger,
            gateways=self.gateways,
            clock=self.clock,
            ids=self.ids,
            telemetry=telemetry,
            random=random,
            settings=actor_settings(settings),
            new_event=functools.partial(LoopEvent, asyncio.get_running_loop()),
        )
        telemetry.metrics.watch(self.statistics)
        self.standing_by: str | None = "starting"
        self.system.directory.is_standing_by = self.is_standing_by
        self.stopping = False
        self.http_statistics: Callable[[], HttpStatistics] | None = None

    def is_standing_by(self) -> bool:
        """Whether another engine has the database, and this one waits for its end."""
        return self.standing_by is not None and self.standing_by.startswith(STANDING_BY)

    def not_ready_because(self) -> list[str]:
        """Why no work is taken; empty when it is."""
        if self.stopping:
            return ["stopping"]
        if self.standing_by is not None:
            return [self.standing_by]
        return self.system.not_ready_because()

    def statistics(self) -> Mapping[str, Any]:
        """Frozen values by the name of the part."""
        found = {**self.system.statistics(), "ledger": self.ledger.statistics()}
        if self.http_statistics is not None:
            found["http"] = self.http_statistics()
        if self.simulator is not None:
            found["simulator"] = self.simulator.statistics()
        return found

    def health(self) -> list[PartHealth]:
        """Each part's state."""
        directory = self.system.directory
        parts = [
            PartHealth(
                "ledger",
                "down" if directory.ledger_trouble is not None else "ok",
                directory.ledger_trouble or "",
            )
        ]
        for name, trouble in zip(directory.shard_names, directory.shard_trouble, strict=True):
            parts.append(PartHealth(name, "ok" if trouble is None else "down", trouble or ""))
        for name, (_, breaker) in self.gateways.items():
            state = breaker.state
            parts.append(
                PartHealth(
                    f"gateway {name}",
                    "ok" if state == "closed" else "degraded",
                    "" if state == "closed" else f"breaker {state}",
                )
            )
        return parts

    async def complete_authentication(self, reference: str, approve: bool) -> bool:
        """Do at the simulator what a customer does at the issuer's page.

        The simulator sends no webhook for it, so the engine looks at once, not in its own time.
        """
        if self.simulator is None:
            return False
        if isinstance(self.simulator.complete(reference, approve=approve), NotFound):
            return False
        operation = parse_op_id(self.simulator.operation_of(reference) or "")
        if operation is not None:
            self.system.look_up_now(operation[0])
        return True

    async def retry_dead_letter(self, letter_id: str) -> bool:
        """Take a dead letter off the queue and look its payment up again at the gateway."""
        return await self.system.retry_dead_letter(letter_id)

    def http_parts(self) -> Parts:
        """What the HTTP layer may use."""
        seal = hashlib.sha256(b"cursor:" + (self.settings.database_url or "dev").encode()).digest()
        return Parts(
            front=self.system.router,
            reader=self.ledger,
            clock=self.clock,
            ids=self.ids,
            telemetry=self.telemetry,
            keys=api_keys(self.settings, dev=self.dev),
            gateways={SIMULATOR: knows},
            default_gateway=SIMULATOR,
            cursors=CursorSeal(seal),
            readiness=self.not_ready_because,
            health=self.health,
            statistics=self.statistics,
            metrics=self.telemetry.metrics.exposition,
            verification=lambda: last_verification(Path(self.settings.data_dir)),
            retry_dead_letter=self.retry_dead_letter,
            complete_authentication=(
                self.complete_authentication if self.simulator is not None and self.dev else None
            ),
            authentication_page=completion_page,
            authentication_done=DONE_PAGE,
            version=__version__,
        )
