"""The process dies, anywhere, and a new engine takes over the ledger: one charge, one answer."""

import pytest
import trio
import trio.testing

from tests.virtual.actors.rig import a_world, body

METHODS = ["pm_card_visa", "pm_card_slow", "pm_card_timeout_after_charge", "pm_card_pending"]


class Steps(trio.abc.Instrument):
    """Calls back at the nth step of any task: every await point there is."""

    def __init__(self, n, then):
        self.n, self.count, self.then = n, 0, then

    def after_task_step(self, task):
        self.count += 1
        if self.count == self.n:
            self.then()


async def ask_for_a_life(world, method, purchase, key, **more):
    """Ask; the engine may end before it answers."""
    answers = []
    async with trio.open_nursery() as nursery:

        async def ask():
            answers.append((await world.open(method, purchase=purchase, key=key, **more))[0])
            nursery.cancel_scope.cancel()

        nursery.start_soon(ask)
        await world.ended.wait()
        nursery.cancel_scope.cancel()
    return answers


async def settle(world):
    await world.until(lambda: all(not p.origin.is_open for p in world.payments()), 200)


def judge(world, method, answers):
    """What holds whenever it died."""
    done = [p for p in world.payments() if p.status in ("authorized", "captured")]
    charged = [p for p in world.payments() if world.charges(f"{p.id}.1")]
    assert done == charged
    assert len(done) == 1
    for answer in answers:
        if answer.status == 201:
            assert body(answer)["id"] == done[0].id


async def lives_twice(tmp_path, clock, method, purchase, end_the_first_life):
    """One request, cut off; the same key again at the next engine."""
    async with a_world(tmp_path, clock) as world:
        await world.start()
        end_the_first_life(world)
        answers = await ask_for_a_life(world, method, purchase, "k")
        was_cut_off = world.ended.is_set()
        await world.stop()
        world.kill_at = None
        await world.start()
        await settle(world)
        answer, _ = await world.open(method, purchase=purchase, key="k")
        assert answer.status in (201, 202)
        await settle(world)
        judge(world, method, [*answers, answer])
        return was_cut_off


@pytest.mark.trio
@pytest.mark.parametrize("purchase", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("nth", range(6))
async def test_killed_at_every_point_it_is_charged_once(
    autojump_clock, tmp_path, method, purchase, nth
):
    """Before and after each commit and each call: then nothing of the process runs any more."""

    def kill_later(world):
        world.points.clear()
        world.kill_at = nth

    await lives_twice(tmp_path, autojump_clock, method, purchase, kill_later)


@pytest.mark.trio
@pytest.mark.parametrize("method", ["pm_card_visa", "pm_card_settles_late"])
async def test_canceled_at_every_await_it_is_charged_once(autojump_clock, tmp_path, method):
    """The engine is told to stop at each step any of its tasks makes during one payment."""
    for n in range(1, 60):
        folder = tmp_path / str(n)
        steps = None

        def stop_later(world, n=n):
            nonlocal steps
            steps = Steps(n, world.scope.cancel)
            trio.lowlevel.add_instrument(steps)

        try:
            was_cut_off = await lives_twice(folder, autojump_clock, method, True, stop_later)
        finally:
            trio.lowlevel.remove_instrument(steps)
        if not was_cut_off:
            break


@pytest.mark.trio
@pytest.mark.parametrize("nth", range(16))
async def test_killed_while_it_captures_and_refunds(autojump_clock, tmp_path, nth):
    """What was cut off is carried through or given back, and never done twice."""
    async with a_world(tmp_path, autojump_clock) as world:
        await world.start()
        payment_id = await world.authorized()
        world.points.clear()
        world.kill_at = nth
        async with trio.open_nursery() as nursery:

            async def work():
                await world.capture(payment_id, 600, final=False)
                await world.cancel(payment_id)
                await world.refund(payment_id, 100)
                nursery.cancel_scope.cancel()

            nursery.start_soon(work)
            await world.ended.wait()
            nursery.cancel_scope.cancel()
        await world.stop()
        world.kill_at = None
        await world.start()
        await world.until(
            lambda: not any(op.is_open for op in world.payment(payment_id).operations)
        )
        payment = world.payment(payment_id)
        assert payment.captured in (0, 600)
        assert payment.refunded in (0, 100)
        assert payment.released in (0, 400)


@pytest.mark.trio
@pytest.mark.parametrize("lives", [2, 4])
async def test_killed_again_while_it_recovers(autojump_clock, tmp_path, lives):
    async with a_world(tmp_path, autojump_clock) as world:
        await world.start()
        world.points.clear()
        world.kill_at = 2
        await ask_for_a_life(world, "pm_card_visa", False, "k")
        for _ in range(lives):
            await world.stop()
            world.points.clear()
            world.kill_at = 0
            await world.start()
            with trio.move_on_after(10):
                await world.ended.wait()
        await world.stop()
        world.kill_at = None
        await world.start()
        await settle(world)
        answer, _ = await world.open(key="k")
        assert answer.status == 201
        judge(world, "pm_card_visa", [answer])


@pytest.mark.trio
async def test_what_was_never_sent_is_abandoned_and_its_key_runs_again(autojump_clock, tmp_path):
    async with a_world(tmp_path, autojump_clock) as world:
        await world.start()
        world.points.clear()
        world.kill_at = 2  # the intent is durable, and no byte has gone to the gateway
        await ask_for_a_life(world, "pm_card_visa", False, "k")
        assert [p.status for p in world.payments()] == ["processing"]
        world.kill_at = None
        await world.stop()
        await world.start()
        await settle(world)
        (payment,) = world.payments()
        assert (payment.status, payment.failure_code) == ("failed", "abandoned")
        assert world.gateway.made("authorize") == []
        answer, replayed = await world.open(key="k")
        assert (answer.status, replayed) == (201, False)
        assert len(world.payments()) == 2


@pytest.mark.trio
async def test_what_was_abandoned_gives_its_reference_up(autojump_clock, tmp_path):
    async with a_world(tmp_path, autojump_clock) as world:
        await world.start()
        world.points.clear()
        world.kill_at = 2
        await ask_for_a_life(world, "pm_card_visa", False, "k", reference="order-1")
        world.kill_at = None
        await world.stop()
        await world.start()
        await settle(world)
        answer, replayed = await world.open(key="k", reference="order-1")
        assert (answer.status, replayed) == (201, False)
        assert [p.status for p in world.payments()] == ["failed", "authorized"]


@pytest.mark.trio
async def test_an_authorisation_expires_after_seven_days_also_over_a_restart(autojump_clock, world):
    payment_id = await world.authorized()
    partly = await world.authorized()
    await world.capture(partly, 300, final=False)
    await world.stop()
    await world.skip(7 * 86_400 + 1)
    await world.start()
    await world.until(lambda: world.status(payment_id) == "expired")
    await world.until(lambda: world.status(partly) == "captured")
    assert world.payment(partly).released == 700
    assert world.store.timers == {}


@pytest.mark.trio
async def test_an_authorisation_expires_while_the_engine_runs(autojump_clock, world):
    payment_id = await world.authorized()
    await world.skip(7 * 86_400 - 60)
    assert world.status(payment_id) == "authorized"
    await world.until(lambda: world.status(payment_id) == "expired")
    answer = await world.capture(payment_id)
    assert (answer.status, answer.code) == (409, "invalid_state_transition")
