"""The faults that happen at drawn times. Those that meet a share of all occasions are where they
happen: in `ledger`, `gateway` and `clients`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from engine.domain.news import Declined, Failed, News, StillPending
from engine.gateways.signatures import secret_key
from engine.gateways.simulator_config import DEVELOPMENT_SECRET
from engine.gateways.simulator_webhooks import write_webhook
from engine.simulation.plan import Event

if TYPE_CHECKING:
    from engine.simulation.life import Life
    from engine.simulation.world import World

_CLOCK_JUMPS_MS: Final = (-7_200_000, -3_000, 1_500, 30_000, 7_200_000)
_STALE_MS: Final = 360_000


class Poison(msgspec.Struct, frozen=True, tag=True):
    """A message that no actor can handle."""


class Weather(msgspec.Struct):
    """How much goes wrong at the moment, by chance; all zero once the storm is over."""

    lost_share: float = 0.0
    commit_s: float = 0.0
    read_s: float = 0.0
    stall_s: float = 0.0
    """How long commits wait beside that, for a moment."""
    latency_s: float = 0.0
    lag_share: float = 0.0
    overdue_share: float = 0.0
    webhook_lost: float = 0.0
    webhook_twice: float = 0.0
    webhook_late: float = 0.0


async def run_events(world: World) -> None:
    """Let every planned fault happen at its time."""
    async with trio.open_nursery() as nursery:
        for event in world.plan.events:
            await trio.sleep_until(event.at_s)
            nursery.start_soon(_happen, world, event)


async def _happen(world: World, event: Event) -> None:
    await _EVENTS[event.kind](world, event)


async def _read_only(world: World, event: Event) -> None:
    world.count("ledger_read_only", f"the ledger is read-only for {event.lasts_s} s")
    world.ledger_faults.read_only = True
    await trio.sleep(event.lasts_s)
    world.ledger_faults.read_only = False


async def _down(world: World, event: Event) -> None:
    world.count("ledger_down", f"the ledger is down for {event.lasts_s} s")
    world.ledger_faults.down = True
    await trio.sleep(event.lasts_s)
    world.ledger_faults.down = False


async def _session_lost(world: World, event: Event) -> None:
    life = world.up()
    if life is not None:
        world.count("session_lost", f"{life.name} loses the lock's connection")
        life.ledger.lose_lock()


async def _takeover(world: World, event: Event) -> None:
    """A second engine stands by; the first one's lock goes, and one of the two is faster."""
    life = world.up()
    if life is None or len(world.lives_alive()) > 1:
        return
    world.count("takeover", f"another engine stands by, and {life.name} loses the lock")
    world.start_life()
    await trio.sleep(0.001)
    life.ledger.lose_lock()


async def _crash(world: World, event: Event) -> None:
    life = world.up()
    if life is not None:
        world.count("engine_crash", f"{life.name} dies")
        life.kill()


async def _stop(world: World, event: Event) -> None:
    life = world.up()
    if life is not None:
        world.count("engine_stop", f"{life.name} is stopped")
        # Not here: it is to end also where the storm does meanwhile.
        world.background.start_soon(life.stop)


async def _shard_crash(world: World, event: Event) -> None:
    """The next step of some shard fails: before it is written, or while it takes effect."""
    life = world.up()
    if life is None:
        return
    weather = world.weather
    if event.lasts_s > 0.2:
        # A crash is the worse the more is under way.
        weather.stall_s = 0.4
    _arm_crash(world, life, event)
    await trio.sleep(1.0)
    weather.stall_s = 0.0


def _arm_crash(world: World, life: Life, event: Event) -> None:
    if event.choice < 0.3:
        world.count("shard_crash", "the next step that takes effect fails half-way")
        life.telemetry.crashes_outcome = True
    elif event.choice < 0.8:
        where = "transfer" if event.choice < 0.55 else "evt"
        world.count("shard_crash", f"the next step that needs a {where} id fails")
        life.ids.crash_in = where
    else:
        world.was_poisoned = True
        world.count("shard_crash", "a shard gets messages that it cannot handle")
        shards = life.system.directory.shards
        for _ in range(3):
            shards[int(event.choice * 1_000) % len(shards)].put_reserved_nowait(Poison())


async def _actor_crash(world: World, event: Event) -> None:
    life = world.up()
    if life is None:
        return
    names = ("gateway-simulator", "webhooks", "reconciler", "expiry", "retry", "ledger-reader")
    name = names[int(event.choice * len(names))]
    world.count("actor_crash", f"the {name} gets a message that it cannot handle")
    life.system.directory.mailboxes[name].put_reserved_nowait(Poison())


async def _outage(world: World, event: Event) -> None:
    world.count("gateway_outage", f"the gateway is out for {event.lasts_s} s")
    world.provider.simulator.set_outage(True)
    await trio.sleep(event.lasts_s)
    world.provider.simulator.set_outage(False)


async def _clock_jump(world: World, event: Event) -> None:
    jump_ms = _CLOCK_JUMPS_MS[int(event.choice * len(_CLOCK_JUMPS_MS))]
    world.count("clock_jump", f"the engine's clock is set off by {jump_ms} ms")
    world.machine_clock.offset_ms = jump_ms


async def _wrong_webhook(world: World, event: Event) -> None:
    """News that is forged, too old, out of date, or contradicts what is settled."""
    settled = [
        op_id
        for payment_id in world.store.payments
        for op_id in world.settled_operations(payment_id)
    ]
    if not settled:
        return
    op_id = settled[int(event.choice * 7_919) % len(settled)]
    variant = int(event.choice * 4)
    news: News = (
        Declined("do_not_honor", "try_again_later"),
        StillPending(),
        Failed("canceled"),
        Failed("refund_failed"),
    )[variant]
    key = secret_key(DEVELOPMENT_SECRET) if variant != 3 else b"somebody else's secret"
    now_ms = world.machine_clock.now_ms()
    headers, raw = write_webhook(
        (key,),
        event_id=f"evt_wrong_{event.choice}",
        op_id=op_id,
        livemode=False,
        news=news,
        now_ms=now_ms - (_STALE_MS if event.lasts_s > 1 else 0),
    )
    world.count("webhook_wrong", f"a webhook says that {op_id} is {news}")
    is_accepted = await world.webhook(headers, raw)
    if is_accepted and variant == 3:
        world.watch.fail("no errors of its own", "a forged webhook was accepted")


_EVENTS: Final[dict[str, Callable[[World, Event], Awaitable[None]]]] = {
    "ledger_read_only": _read_only,
    "ledger_down": _down,
    "session_lost": _session_lost,
    "takeover": _takeover,
    "engine_crash": _crash,
    "engine_stop": _stop,
    "shard_crash": _shard_crash,
    "actor_crash": _actor_crash,
    "gateway_outage": _outage,
    "clock_jump": _clock_jump,
    "webhook_wrong": _wrong_webhook,
}
