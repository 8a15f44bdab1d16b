"""Overload, a ledger that is gone, crashing actors, poison: refused at once, or done later."""

import pytest
import trio

from engine.actors.directory import STARTING
from engine.actors.gateway import GatewayActor
from engine.actors.shard import ShardActor
from engine.domain.breaker import BreakerSettings
from engine.domain.commands import Capture
from engine.domain.news import Failed
from engine.messages import Heard, Tick
from engine.ports import EntryInvalid, Fenced
from tests.virtual.actors.rig import a_world, body


async def refused(world, **more):
    answer, _ = await world.open(**more)
    return answer.status, answer.code


@pytest.mark.trio
async def test_without_a_credit_a_request_is_refused_at_once(autojump_clock, world):
    world.ledger.gate = trio.Event()
    answers = []

    async def ask():
        answers.append((await world.open())[0])

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(ask)
        await world.until(lambda: world.system.router.statistics().credits_free == 0)
        began = trio.current_time()
        assert await refused(world) == (503, "overloaded")
        assert trio.current_time() == began
        world.ledger.gate.set()
    assert {answer.status for answer in answers} == {201}
    assert (await world.open())[0].status == 201


@pytest.mark.trio
async def test_while_the_ledger_is_gone_new_requests_are_refused_and_accepted_ones_go_on(
    autojump_clock, world
):
    world.ledger.faults.down = True
    first = []

    async def ask():
        first.append((await world.open(key="k"))[0])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await world.until(lambda: world.system.directory.ledger_trouble)
        assert await refused(world) == (503, "ledger_unavailable")
        assert world.system.not_ready_because()[0].startswith("ledger: ")
        await trio.sleep(3)
        world.ledger.faults.down = False
    assert first[0].status == 201, "an intent with the writer is never answered 503"
    assert world.system.not_ready_because() == []
    assert (await world.open())[0].status == 201


@pytest.mark.trio
async def test_a_ledger_that_comes_back_with_a_refusal_is_back(autojump_clock, world):
    await world.authorized(reference="order-1")
    world.ledger.faults.outcomes = ["not_applied"]
    answer, _ = await world.open(reference="order-1")
    assert (answer.status, answer.code) == (422, "reference_taken")
    world.ledger.faults.outcomes = ["not_applied"]
    answer, replayed = await world.open(key="key-1", reference="order-1")
    assert (answer.status, replayed) == (201, True)
    await world.stop()
    await world.start()
    world.ledger.faults.outcomes = ["not_applied"]
    answer, replayed = await world.open(key="key-1", reference="order-1")
    assert (answer.status, replayed) == (201, True), "its key is what the ledger refuses"
    assert world.system.not_ready_because() == []
    assert (await world.open())[0].status == 201


@pytest.mark.trio
@pytest.mark.parametrize("outcome", ["applied", "not_applied"])
@pytest.mark.parametrize("nth", [0, 1])
async def test_an_unknown_outcome_of_a_commit_is_settled(autojump_clock, world, outcome, nth):
    world.ledger.faults.outcomes = ["ok"] * nth + [outcome, outcome]
    answer, _ = await world.open(purchase=True)
    assert (answer.status, body(answer)["status"]) == (201, "captured")
    assert len(world.store.batches) == 2
    assert len(world.gateway.made("purchase")) == 1


@pytest.mark.trio
async def test_a_shard_that_crashes_goes_on_from_the_ledger(autojump_clock, world, monkeypatch):
    payment_id = await world.authorized()
    crashes = iter([True])
    real = ShardActor._command

    def command(self, message, payment):
        if next(crashes, False):
            raise RuntimeError("a bug")
        return real(self, message, payment)

    monkeypatch.setattr(ShardActor, "_command", command)
    assert (await world.capture(payment_id)).status == 200


@pytest.mark.trio
async def test_a_poison_message_is_parked_and_its_neighbours_are_handled(
    autojump_clock, world, monkeypatch
):
    payments = [await world.authorized() for _ in range(6)]
    real = ShardActor._command

    def command(self, message, payment):
        if isinstance(message.command, Capture) and message.command.amount == 13:
            raise RuntimeError("poison")
        return real(self, message, payment)

    monkeypatch.setattr(ShardActor, "_command", command)
    answers = {}

    async def capture(payment_id, amount):
        answers[payment_id] = await world.capture(payment_id, amount)

    async with trio.open_nursery() as nursery:
        for n, payment_id in enumerate(payments):
            nursery.start_soon(capture, payment_id, 13 if n == 2 else 100)
    statuses = [answers[payment_id].status for payment_id in payments]
    assert statuses[2] == 500
    assert body(answers[payments[2]])["retryable"]
    assert set(statuses[:2] + statuses[3:]) <= {200, 202}
    await world.until(world.letters)
    assert "RuntimeError: poison" in world.letters()[0]
    neighbours = [world.payment(id_) for id_ in payments if id_ != payments[2]]
    # The crash may have come between a neighbour's intent and its call: then it was not made.
    assert {p.captured for p in neighbours} <= {0, 100}


@pytest.mark.trio
async def test_a_damaged_document_stops_its_own_payment_alone(autojump_clock, world):
    damaged, other = await world.authorized(), await world.authorized()
    await world.stop()
    row = world.store.payments[damaged]
    world.store.payments[damaged] = (*row[:22], b"{", *row[23:])
    await world.start()
    assert world.system.not_ready_because() == []
    answer = await world.capture(damaged)
    assert (answer.status, body(answer)["retryable"]) == (500, True)
    assert (await world.capture(other)).status == 200
    await world.until(world.letters)
    assert "can't be read" in world.letters()[0]
    assert sum(world.system.directory.shard_crashes) == 0
    world.store.payments[damaged] = row
    await world.restart()
    assert (await world.capture(damaged)).status == 200


@pytest.mark.trio
async def test_a_timer_of_a_damaged_document_is_told_of_until_it_is_mended(autojump_clock, world):
    payment_id = await world.authorized()
    due_s = (world.payment(payment_id).expires_ms - world.clock.now_ms()) / 1_000
    await world.stop()
    row = world.store.payments[payment_id]
    world.store.payments[payment_id] = (*row[:22], b"{", *row[23:])
    await world.start()
    await world.skip(due_s + 120)
    told = len(world.telemetry.said("payment_unreadable"))
    await world.skip(120)
    assert 0 < told < len(world.telemetry.said("payment_unreadable"))
    assert sum(world.system.directory.shard_crashes) == 0
    assert world.letters() == []
    world.store.payments[payment_id] = row
    await world.restart()
    await world.until(lambda: world.payment(payment_id).status == "expired")


@pytest.mark.trio
async def test_damage_of_a_settled_payment_is_told_to_who_asks_for_it(autojump_clock, world):
    payments = [await world.authorized() for _ in range(3)]
    for payment_id in payments:
        assert (await world.capture(payment_id)).status == 200
    row = world.store.payments[payments[1]]
    world.store.payments[payments[1]] = (*row[:22], b"{", *row[23:])
    answers = {}

    async def refund(payment_id):
        answers[payment_id] = await world.refund(payment_id)

    for _ in range(2):
        async with trio.open_nursery() as nursery:
            for payment_id in payments:
                nursery.start_soon(refund, payment_id)
        statuses = [answers[payment_id].status for payment_id in payments]
        assert statuses[1] == 500
        assert 500 not in (statuses[0], statuses[2])
    assert sum(world.system.directory.shard_crashes) == 0
    await world.until(lambda: len(world.letters()) == 2)
    world.system.look_up_now(payments[1])
    await world.until(lambda: len(world.letters()) == 3)
    world.store.payments[payments[1]] = row
    assert (await world.refund(payments[1])).status in (200, 201)


@pytest.mark.trio
async def test_a_crash_loop_parks_its_shard_and_no_other(autojump_clock, world, monkeypatch):
    directory = world.system.directory
    payments = {}
    while len(payments) < 2:
        payment_id = await world.authorized()
        payments[directory.shard_index(payment_id)] = payment_id
    handlers = world.system._shards[0]._handlers
    real = handlers[Tick]
    broken = [True]

    def tick(message):
        if broken[0]:
            raise RuntimeError("crash loop")
        return real(message)

    monkeypatch.setitem(handlers, Tick, tick)
    with trio.fail_after(60):
        while directory.shard_trouble[0] is None or "parked" not in directory.shard_trouble[0]:
            await trio.sleep(0.1)
    assert directory.shard_trouble[1] is None
    assert "crash loop" in world.system.not_ready_because()[0]
    answer = await world.capture(payments[0])
    assert (answer.status, answer.code) == (503, "shard_parked")
    assert (await world.capture(payments[1])).status == 200
    assert directory.shard_index(await world.authorized()) == 1, "new payments go elsewhere"
    broken[0] = False
    with trio.fail_after(2 * world.system.settings.park_retry_s):
        while directory.shard_trouble[0] is not None:
            await trio.sleep(0.1)
    assert (await world.capture(payments[0])).status == 200
    assert world.system.not_ready_because() == []


@pytest.mark.trio
async def test_timers_of_a_parked_shard_do_not_hide_those_of_another(
    autojump_clock, world, monkeypatch
):
    monkeypatch.setattr("engine.actors.timers.PAGE", 2)
    directory = world.system.directory
    expiring = {0: [], 1: []}
    while len(expiring[0]) < 5:
        payment_id = await world.authorized()
        expiring[directory.shard_index(payment_id)].append(payment_id)
    while not expiring[1] or max(expiring[1]) < max(expiring[0]):
        payment_id = await world.authorized()
        expiring[directory.shard_index(payment_id)].append(payment_id)
    directory.shard_trouble[0] = "parked: for the test"
    await world.skip(8 * 24 * 3600)
    await world.until(lambda: all(world.status(id_) == "expired" for id_ in expiring[1]), 300)
    assert {world.status(id_) for id_ in expiring[0]} == {"authorized"}
    directory.shard_trouble[0] = None
    await world.until(lambda: all(world.status(id_) == "expired" for id_ in expiring[0]), 300)


@pytest.mark.trio
async def test_an_entry_that_cannot_be_stored_is_found_and_the_others_are_committed(
    autojump_clock, world
):
    def poison(batch):
        if any(e.payment and e.payment.description == "bad" for e in batch.entries):
            raise EntryInvalid("invalid: some_constraint")

    world.ledger.gate = gate = trio.Event()
    answers = {}

    async def ask(n, description):
        answers[n] = (await world.open(description=description))[0]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, 99, None)
        await world.until(lambda: "before commit" in world.points)
        for n in range(9):
            nursery.start_soon(ask, n, "bad" if n == 4 else None)
        await trio.testing.wait_all_tasks_blocked()
        world.poison, world.ledger.gate = poison, None
        gate.set()
    assert answers[4].status == 422
    assert {answer.status for n, answer in answers.items() if n != 4} == {201}


@pytest.mark.trio
async def test_a_refused_outcome_is_asked_for_again(autojump_clock, world):
    """The ledger would not take the outcome once: nothing is stuck in `processing` for ever."""
    times = iter([True])

    def poison(batch):
        if any(e.payment and e.payment.version == 2 for e in batch.entries) and next(times, False):
            raise EntryInvalid("invalid: some_constraint")

    world.poison = poison
    answer, _ = await world.open()
    assert answer.status == 202
    await world.until(lambda: world.payments()[0].status == "authorized")


@pytest.mark.trio
async def test_an_engine_that_is_fenced_ends(autojump_clock, world):
    await world.authorized()
    world.store.epoch += 1
    with trio.move_on_after(30):
        await world.open()
    with trio.fail_after(5):
        await world.ended.wait()
    assert isinstance(world.error, BaseExceptionGroup)
    assert world.error.subgroup(Fenced) is not None


@pytest.mark.trio
async def test_an_engine_whose_commit_crashed_half_way_ends_and_the_next_one_finds_out(
    autojump_clock, world
):
    apply = world.store.apply

    def crash(batch, epoch):
        world.store.apply = apply
        apply(batch, epoch)
        raise RuntimeError("a bug")

    world.store.apply = crash
    with trio.move_on_after(30):
        await world.open(key="k")
    with trio.fail_after(5):
        await world.ended.wait()
    assert world.error.subgroup(Fenced) is not None
    (payment,) = world.payments()
    assert payment.status == "processing"
    await world.restart()
    await world.until(lambda: world.payments()[0].status != "processing")
    assert len(world.payments()) == 1


@pytest.mark.trio
async def test_a_client_that_goes_away_stops_nothing(autojump_clock, world):
    with trio.move_on_after(1):
        await world.open("pm_card_slow", key="k")
    await world.until(lambda: world.payments()[0].status == "authorized")
    answer, _ = await world.open("pm_card_slow", key="k")
    assert answer.status == 201
    assert len(world.store.payments) == 1


@pytest.mark.trio
async def test_the_bulkhead_is_never_exceeded(autojump_clock, tmp_path):
    # The last of them waits for half a minute; what waits longer than the deadline is not sent.
    async with a_world(tmp_path, autojump_clock, inflight_max=3, deadline_ms=60_000) as world:
        await world.start()
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(world.open, "pm_card_slow")
        await world.until(lambda: all(p.status == "authorized" for p in world.payments()))
        assert world.gateway.in_flight_most == 3
        assert len(world.payments()) == 20


@pytest.mark.trio
async def test_a_gateway_actor_that_is_restarted_loses_no_operation(
    autojump_clock, world, monkeypatch
):
    """Its calls in flight are cut off; they are looked up, and were made once."""
    broken = iter([True])
    real = type(world.gateway).perform_now

    def perform_now(self, calls):
        if any(call.amount == 13 for call in calls) and next(broken, False):
            raise RuntimeError("the adapter is broken")
        return real(self, calls)

    monkeypatch.setattr(type(world.gateway), "perform_now", perform_now)
    answers = []

    async def ask(amount, method):
        answers.append((await world.open(method, amount=amount))[0].status)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, 1_000, "pm_card_slow")
        await world.until(lambda: world.gateway.in_flight)
        nursery.start_soon(ask, 13, "pm_card_visa")
    await world.until(lambda: all(p.status == "authorized" for p in world.payments()))
    assert sorted(answers) == [201, 202]


@pytest.mark.trio
async def test_news_of_an_unknown_payment_is_harmless(autojump_clock, world):
    stranger = world.ids.payment(None)
    world.system.directory.shard_of(stranger).put_nowait(
        Heard(stranger, 1, Failed("x"), "reply", world.clock.now_ms())
    )
    assert (await world.open())[0].status == 201


class TestBreaker:
    """Opens after failures, lets one trial through, closes."""

    @pytest.fixture
    def quick(self, world):
        world.breaker_settings = BreakerSettings(consecutive_failures=3, open_s=10.0)

    @pytest.mark.trio
    async def test_it_opens_rests_tries_once_and_closes(self, autojump_clock, world, quick):
        await world.restart()
        world.simulator.set_outage(True)
        for _ in range(3):
            assert (await world.open())[0].status == 502
        assert world.breaker.state == "open"
        before = len(world.store.payments)
        answer, _ = await world.open()
        assert (answer.status, answer.code) == (503, "gateway_unavailable")
        assert answer.retry_after_s is not None
        assert len(world.store.payments) == before, "nothing was done"
        world.simulator.set_outage(False)
        await self.rests(world)
        asked = len(world.gateway.asked)
        answers = []

        async def ask():
            answers.append((await world.open("pm_card_slow"))[0])

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
            await trio.sleep(1)
            assert world.gateway.in_flight == 1, "exactly one trial"
        assert [answer.status for answer in answers] == [201] * 5
        assert len(world.gateway.made()) >= asked
        assert world.breaker.state == "closed"
        assert (await world.open())[0].status == 201

    @staticmethod
    async def rests(world):
        with trio.fail_after(60):
            while world.breaker.state != "half-open":
                await trio.sleep(0.1)

    @pytest.mark.trio
    async def test_a_failed_trial_opens_it_again_for_longer(self, autojump_clock, world, quick):
        await world.restart()
        world.simulator.set_outage(True)
        for _ in range(3):
            await world.open()
        first = world.breaker.retry_in_s(trio.current_time())
        await self.rests(world)
        assert (await world.open())[0].status == 502
        assert world.breaker.state == "open"
        assert world.breaker.retry_in_s(trio.current_time()) > first
        world.simulator.set_outage(False)

    @pytest.mark.trio
    async def test_a_trial_lost_with_its_actor_is_not_waited_for(
        self, autojump_clock, world, quick, monkeypatch
    ):
        await world.restart()
        world.simulator.set_outage(True)
        for _ in range(3):
            await world.open()
        world.simulator.set_outage(False)
        await self.rests(world)
        assert world.breaker.admits(), "a trial that nobody will ever report on"
        real, crash = world.breaker.admits, iter([True])

        def admits():
            if next(crash, False):
                raise RuntimeError("a bug")
            return real()

        monkeypatch.setattr(world.breaker, "admits", admits)
        assert (await world.open())[0].status == 201
        assert world.breaker.state == "closed"

    @pytest.mark.trio
    async def test_declines_never_open_it(self, autojump_clock, world, quick):
        await world.restart()
        for _ in range(10):
            assert (await world.open("pm_card_declined"))[0].status == 402
        assert world.breaker.state == "closed"


@pytest.mark.trio
async def test_a_call_that_was_let_through_is_not_made_when_the_process_then_stood_still(
    autojump_clock, world
):
    world.gateway.gate = trio.Event()
    # Not in the mailbox and not in the queue, but when its task gets its turn.
    answers = iter((1.0, 1.0, -0.001))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GatewayActor, "_in_time_s", lambda self, message: next(answers, -1.0))
        answer, _ = await world.open()
    assert (answer.status, answer.code) == (502, "gateway_failed")
    assert world.gateway.in_flight_most == 0


@pytest.mark.trio
async def test_the_news_of_a_call_is_not_missed_before_its_gateway_may_have_no_more_to_say(
    autojump_clock, tmp_path
):
    """It waits for up to a deadline, and takes up to another one."""
    async with a_world(tmp_path, autojump_clock, deadline_ms=30_000) as world:
        await world.start()
        world.gateway.gate = trio.Event()
        assert (await world.open())[0].status == 202
        await trio.sleep(15)
        assert world.payments()[0].status == "processing"
        world.gateway.gate.set()
        await world.until(lambda: world.payments()[0].status == "authorized")
        assert world.telemetry.said("gateway_reply_missing") == []


@pytest.mark.trio
async def test_an_engine_stops_also_while_its_ledger_is_gone(autojump_clock, tmp_path):
    async with a_world(tmp_path, autojump_clock) as world:
        await world.start()
        world.ledger.faults.down = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.open)
            await world.until(lambda: world.system.directory.ledger_trouble)
            with trio.fail_after(20):
                await world.stop()
            nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_call_that_was_held_up_for_too_long_is_not_sent_any_more(autojump_clock, world):
    """As in a process that stood still while another one asked what had become of the call."""
    mailbox = world.system.directory.gateways["simulator"]
    hand_over, held = mailbox.put_reserved_nowait, []
    mailbox.put_reserved_nowait = held.append
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.open)
        while not held:
            await trio.sleep(0.01)
        mailbox.put_reserved_nowait = hand_over
        await world.skip(world.gateway.traits.deadline_ms / 1000 + 1)
        hand_over(held[0])
    await world.until(lambda: world.payments()[0].status == "failed")
    assert world.gateway.made("authorize") == []
    assert world.payments()[0].failure_code == "gateway_unavailable"


@pytest.mark.trio
async def test_an_engine_that_starts_or_stands_by_says_which(autojump_clock, world):
    directory = world.system.directory
    for stands_by, words in ((False, "The engine is starting"), (True, "This engine stands by")):
        directory.ledger_trouble = STARTING
        directory.is_standing_by = lambda stands_by=stands_by: stands_by
        answer, _ = await world.open()
        assert (answer.status, answer.code) == (503, "starting")
        assert body(answer)["detail"].startswith(words)
        assert answer.retry_after_s
