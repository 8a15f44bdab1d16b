"""Many requests at once: in order per payment, as there is room, and beside single requests."""

import pytest
import trio

from engine.domain.commands import Cancel, Capture, Open, Refund
from engine.ports import Ask
from tests.virtual.actors.rig import World, body


def opening(world: World, method: str = "pm_card_visa", *, key: str | None = None, **more) -> Ask:
    amount = more.pop("amount", 1_000)
    command = Open("m_a", False, False, amount, "USD", method, "simulator", **more)
    return world.asking(command, None, key)


def codes(answers) -> list[tuple[int, str]]:
    return [(answer.status, answer.code) for answer, _ in answers]


@pytest.fixture
async def impatient(world: World) -> World:
    """A world whose wait is shorter than the gateway's deadline."""
    await world.stop()
    world.settings["wait_ms"] = 3_000
    await world.start()
    return world


@pytest.mark.trio
async def test_a_thousand_items_succeed_on_an_idle_engine_with_few_credits(autojump_clock, world):
    """The engine of these tests has 50 credits."""
    answers = await world.ask_many([opening(world) for _ in range(1_000)])
    assert {answer.status for answer, _ in answers} == {201}
    assert len({body(answer)["id"] for answer, _ in answers}) == 1_000
    assert world.system.router.statistics().batch_items == 0


@pytest.mark.trio
async def test_answers_stand_in_the_order_of_the_items(autojump_clock, world):
    methods = ["pm_card_slow", "pm_card_visa", "pm_card_declined", "pm_card_slow"]
    answers = await world.ask_many(
        [opening(world, method, amount=n) for n, method in enumerate(methods, 1)]
    )
    assert [answer.status for answer, _ in answers] == [201, 201, 402, 201]
    assert [body(answer).get("amount") for answer, _ in answers] == [1, 2, None, 4]


@pytest.mark.trio
async def test_items_of_one_payment_run_in_the_order_given(autojump_clock, world):
    payments = [await world.authorized() for _ in range(3)]
    asks = []
    for payment_id in payments:
        asks.append(world.asking(Capture("m_a", False, 600, False), payment_id))
        asks.append(world.asking(Cancel("m_a", False), payment_id))
        refund = Refund("m_a", False, world.ids.new("re", payment_id))
        asks.append(world.asking(refund, payment_id))
        asks.append(world.asking(Capture("m_a", False), payment_id))
    answers = await world.ask_many(asks)
    expected = [(200, ""), (200, ""), (201, ""), (409, "invalid_state_transition")]
    assert codes(answers) == expected * 3
    for payment_id in payments:
        payment = world.payment(payment_id)
        assert (payment.captured, payment.released, payment.refunded) == (600, 400, 600)


@pytest.mark.trio
async def test_a_slow_item_holds_up_its_own_payment_only(autojump_clock, world):
    slow, quick = await world.authorized(), await world.authorized()
    began = {}

    def answer(call):
        began.setdefault((call.op_id, call.action), trio.current_time())

    world.gateway.answer = answer
    await world.ask_many(
        [
            opening(world, "pm_card_slow"),
            world.asking(Capture("m_a", False), slow),
            world.asking(Capture("m_a", False), quick),
        ]
    )
    assert max(began.values()) - min(began.values()) < 1.0


@pytest.mark.trio
async def test_one_key_twice_in_a_batch_runs_once(autojump_clock, world):
    answers = await world.ask_many(
        [
            opening(world, key="k"),
            opening(world, key="k"),
            opening(world, key="k", amount=7),
            opening(world),
        ]
    )
    assert codes(answers) == [(201, ""), (201, ""), (422, "idempotency_key_reused"), (201, "")]
    assert answers[0][0].body == answers[1][0].body
    assert [replayed for _, replayed in answers] == [False, True, False, False]
    assert len(world.store.payments) == 2


@pytest.mark.trio
@pytest.mark.parametrize("restart", [False, True])
async def test_keys_are_the_same_in_a_batch_and_alone(autojump_clock, world, restart):
    alone, _ = await world.open(key="a")
    [(inside, _)] = await world.ask_many([opening(world, key="b")])
    if restart:
        await world.restart()
    answers = await world.ask_many(
        [opening(world, key="a"), opening(world, key="b"), opening(world, key="a", amount=2)]
    )
    assert [answer.body for answer, _ in answers[:2]] == [alone.body, inside.body]
    assert [replayed for _, replayed in answers] == [True, True, False]
    again, replayed = await world.open(key="b")
    assert (again.body, replayed) == (inside.body, True)
    assert len(world.store.payments) == 2


@pytest.mark.trio
async def test_items_and_single_requests_join_one_another(autojump_clock, world):
    told = {}

    async def alone(name, key):
        told[name] = await world.open("pm_card_slow", key=key)

    async def inside(name, *keys):
        told[name] = await world.ask_many([opening(world, "pm_card_slow", key=k) for k in keys])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(alone, "first", "a")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(inside, "batch", "a", "b")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(alone, "last", "b")
        nursery.start_soon(inside, "other", "b", "a")
    assert told["first"][1] is False
    assert [replayed for _, replayed in told["batch"]] == [True, False]
    assert told["last"] == (told["batch"][1][0], True)
    assert told["other"] == [(told["batch"][1][0], True), (told["first"][0], True)]
    assert len(world.store.payments) == 2


@pytest.mark.trio
async def test_what_has_no_answer_within_the_wait_is_202(autojump_clock, world, impatient):
    world.gateway.gate = trio.Event()
    began = trio.current_time()
    payment_id = None
    answers = await world.ask_many([opening(world, key=f"k{n}") for n in range(3)])
    assert 3.0 <= trio.current_time() - began < 3.5
    for answer, replayed in answers:
        assert (answer.status, body(answer)["status"], replayed) == (202, "processing", False)
        payment_id = body(answer)["id"]
        assert answer.location == f"/v1/payments/{payment_id}"
    world.gateway.gate.set()
    await world.until(lambda: {p.status for p in world.payments()} == {"authorized"})
    answers = await world.ask_many([opening(world, key=f"k{n}") for n in range(3)])
    assert codes(answers) == [(201, "")] * 3


@pytest.mark.trio
async def test_what_found_no_room_within_the_wait_was_not_done(autojump_clock, world, impatient):
    """Of 50 credits a batch may hold half."""
    world.gateway.gate = trio.Event()
    asks = [opening(world, key=f"k{n}") for n in range(40)]
    answers = await world.ask_many(asks)
    assert codes(answers) == [(202, "")] * 25 + [(503, "overloaded")] * 15
    assert {answer.retry_after_s for answer, _ in answers[25:]} == {1}
    assert len(world.store.payments) == 25
    world.gateway.gate.set()
    await world.until(lambda: {p.status for p in world.payments()} == {"authorized"})
    answers = await world.ask_many([opening(world, key=f"k{n}") for n in range(40)])
    assert codes(answers) == [(201, "")] * 40
    assert len(world.store.payments) == 40


@pytest.mark.trio
async def test_an_item_behind_an_unanswered_one_is_not_done(autojump_clock, world, impatient):
    payment_id = await world.authorized()
    world.gateway.gate = trio.Event()
    answers = await world.ask_many(
        [
            world.asking(Capture("m_a", False, 600, False), payment_id, "c"),
            world.asking(Capture("m_a", False, 400), payment_id, "d"),
        ]
    )
    assert codes(answers) == [(202, ""), (409, "operation_unresolved")]
    assert answers[1][0].retry_after_s == 1
    world.gateway.gate.set()
    await world.until(lambda: world.payment(payment_id).captured == 600)
    answers = await world.ask_many(
        [world.asking(Capture("m_a", False, 400), payment_id, "d")],
    )
    assert codes(answers) == [(200, "")]


@pytest.mark.trio
async def test_batches_leave_room_for_single_requests_and_for_each_other(autojump_clock, world):
    """Slow payments fill what batches may hold; a single request is admitted all the same."""
    told = {}

    async def inside(name, count):
        told[name] = await world.ask_many([opening(world, "pm_card_slow") for _ in range(count)])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(inside, "large", 200)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(inside, "small", 5)
        await trio.testing.wait_all_tasks_blocked()
        assert world.system.router.statistics().batches == 2
        answer, _ = await world.open()
        assert answer.status == 201
    assert codes(told["small"]) == [(201, "")] * 5
    assert codes(told["large"]).count((503, "overloaded")) > 100


@pytest.mark.trio
async def test_a_slow_gateway_does_not_keep_a_batch_out_while_there_are_credits(
    autojump_clock, world
):
    await world.stop()
    world.settings = {"shards": 2, "credits": 400, "shard_capacity": 400, "batch_window": 10}
    await world.start()
    answers = await world.ask_many([opening(world, "pm_card_slow") for _ in range(150)])
    assert codes(answers) == [(201, "")] * 150


@pytest.mark.trio
async def test_an_engine_out_of_service_refuses_each_item(autojump_clock, world):
    first, _ = await world.open(key="a")
    world.system.directory.ledger_trouble = "down"
    answers = await world.ask_many([opening(world, key="a"), opening(world), opening(world)])
    assert answers[0] == (first, True)
    assert codes(answers[1:]) == [(503, "ledger_unavailable")] * 2
    world.system.directory.ledger_trouble = None


@pytest.mark.trio
async def test_a_batch_that_is_given_up_starts_nothing_more(autojump_clock, world):
    world.gateway.gate = trio.Event()
    with trio.move_on_after(1):
        await world.ask_many([opening(world) for _ in range(40)])
    world.gateway.gate.set()
    await world.until(lambda: {p.status for p in world.payments()} == {"authorized"})
    await trio.sleep(5)
    assert len(world.store.payments) == 25
    assert world.system.router.statistics().batches == 0


@pytest.mark.trio
async def test_refusals_of_the_state_stand_at_their_items(autojump_clock, world):
    payment_id = await world.authorized(purchase=True)
    nowhere = payment_id[:-1] + ("1" if payment_id[-1] != "1" else "2")
    answers = await world.ask_many(
        [
            world.asking(Refund("m_b", False, "re_1"), payment_id),
            world.asking(Refund("m_b", False, "re_1"), nowhere),
        ]
    )
    assert codes(answers) == [(404, "payment_not_found")] * 2
