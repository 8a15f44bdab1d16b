"""Many payments at once under every fault by chance, and a restart: the books agree."""

from random import Random

import pytest
import trio

from engine.gateways.simulator_config import FailureRates
from engine.gateways.simulator_methods import METHODS
from tests.virtual.actors.rig import a_world, body

RATES = FailureRates(
    unreachable=0.05, timeout_before=0.05, timeout_after=0.1, server_error=0.1, decline=0.05
)


async def merchant(world, random, name):
    """One customer after another; what is unresolved is left to the engine."""
    for n in range(6):
        method = random.choice(sorted(METHODS))
        answer, _ = await world.open(
            method, purchase=random.random() < 0.4, key=f"{name}-{n}", amount=random.randint(1, 999)
        )
        shown = body(answer)
        payment_id = shown.get("id") or shown.get("payment", {}).get("id")
        if payment_id is None or payment_id not in world.store.payments:
            continue
        for _ in range(random.randint(0, 4)):
            action = random.choice([world.capture, world.capture, world.cancel, world.refund])
            part = {} if action == world.cancel else {"amount": random.randint(1, 500)}
            if action == world.capture:
                part["final"] = random.random() < 0.5
            answer = await action(payment_id, **part)
            assert answer.status in (200, 201, 202, 402, 409, 422, 502, 503), answer
        await trio.sleep(random.random() * 5)


def unresolved(world):
    return [
        op
        for payment in world.payments()
        for op in payment.operations
        if op.status in ("processing", "pending", "unknown")
    ]


@pytest.mark.trio
@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_the_books_agree(autojump_clock, tmp_path, seed):
    random = Random(seed)
    async with a_world(
        tmp_path, autojump_clock, rates=RATES, seed=seed, send_webhooks=True, latency_ms=50
    ) as world:
        await world.start()
        async with trio.open_nursery() as nursery:
            for n in range(6):
                nursery.start_soon(merchant, world, Random(f"{seed}-{n}"), f"merchant-{n}")
            with trio.move_on_after(10 + random.random() * 10):
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()
        await world.restart()
        async with trio.open_nursery() as nursery:
            for n in range(6):
                nursery.start_soon(merchant, world, Random(f"{seed}+{n}"), f"merchant+{n}")
        await world.until(lambda: not unresolved(world), within_s=900)
        await world.until(lambda: all(done for _, done in world.store.inbox.values()), 900)
        assert len(world.payments()) >= 30
