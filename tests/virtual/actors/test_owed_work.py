"""What the engine owes, in a whole engine: the refund of a purchase that had been canceled."""

import pytest

from engine.domain.news import Failed
from tests.virtual.actors.rig import a_world, body


async def canceled(world, method="pm_card_5xx_after_charge"):
    """A purchase that was unknown when it was canceled; its look-up will say that it was made."""
    answer, _ = await world.open(method, purchase=True)
    payment_id = body(answer)["id"]
    assert (await world.cancel(payment_id)).status == 202
    return payment_id


def refund_of(world, payment_id):
    operations = world.payment(payment_id).operations
    return operations[2] if len(operations) == 3 else None


def unreachable(call):
    return Failed("gateway_unreachable") if call.action == "refund" else None


@pytest.mark.trio
async def test_a_refund_that_the_gateway_could_not_take_is_made_later(autojump_clock, world):
    world.gateway.answer = unreachable
    payment_id = await canceled(world)
    await world.until(lambda: "retry" in {kind for kind, _, _ in world.store.timers})
    assert world.payment(payment_id).refunding == 1_000
    world.gateway.answer = lambda call: None
    await world.until(lambda: world.payment(payment_id).refunded == 1_000, 400)
    assert (world.charges(f"{payment_id}.3"), world.letters()) == (1, [])


@pytest.mark.trio
async def test_a_refund_that_was_given_up_is_made_when_its_letter_is_retried(autojump_clock, world):
    world.gateway.answer = unreachable
    payment_id = await canceled(world)
    await world.until(world.letters, 4_000)
    assert refund_of(world, payment_id).status == "failed"
    world.gateway.answer = lambda call: None
    (letter_id,) = world.store.dead_letters
    assert await world.system.retry_dead_letter(letter_id)
    await world.until(lambda: world.payment(payment_id).refunded == 1_000)
    assert (world.letters(), world.payment(payment_id).needs_review) == ([], False)


@pytest.mark.trio
async def test_a_refund_that_a_crash_cut_off_is_made_by_the_next_engine(autojump_clock, tmp_path):
    async with a_world(tmp_path, autojump_clock) as world:
        await world.start()
        payment_id = await canceled(world)
        real = world.point

        def die(name):
            if name == "after commit" and refund_of(world, payment_id) is not None:
                world.kill_at = len(world.points)
            real(name)

        world.point = die
        await world.ended.wait()
        world.kill_at, world.point = None, real
        assert world.gateway.made("refund") == []
        await world.stop()
        await world.start()
        await world.until(lambda: refund_of(world, payment_id).code == "abandoned")
        await world.until(lambda: world.payment(payment_id).refunded == 1_000, 400)
        assert (world.charges(f"{payment_id}.3"), world.letters()) == (1, [])
