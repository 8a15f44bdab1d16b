"""One key, one execution, one answer: while it runs, after it, and after a restart."""

import gc
from functools import partial

import msgspec
import pytest
import trio

from engine.actors.waiting import Waiter
from engine.domain.commands import Open, Refund
from tests.virtual.actors.rig import body


@pytest.mark.trio
async def test_the_same_key_again_is_the_same_answer_byte_for_byte(autojump_clock, world):
    first, _ = await world.open(key="k")
    again, replayed = await world.open(key="k")
    assert (again, replayed) == (first, True)
    assert len(world.store.payments) == 1


@pytest.mark.trio
async def test_requests_with_a_key_that_is_running_join_it(autojump_clock, world):
    answers = []

    async def ask():
        answers.append(await world.open("pm_card_slow", key="k"))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
    assert len({answer.body for answer, _ in answers}) == 1
    assert sorted(replayed for _, replayed in answers) == [False] + [True] * 19
    assert len(world.store.payments) == 1


@pytest.mark.trio
async def test_what_was_answered_is_let_go_though_an_earlier_request_still_waits(
    autojump_clock, world
):
    def kept() -> set[str]:
        return {
            waiter.ref.key
            for waiter in gc.get_objects()
            if type(waiter) is Waiter and waiter.ref is not None and waiter.ref.key[:4] == "held"
        }

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(world.open, "pm_card_slow", key="held slow"))
        await trio.testing.wait_all_tasks_blocked()
        for n in range(5):
            answer, _ = await world.open(key=f"held {n}")
            assert answer.status == 201
        assert kept() == {"held slow"}
    assert kept() == set()


@pytest.mark.trio
async def test_a_joined_request_that_waits_too_long_is_told_that_it_still_runs(
    autojump_clock, world
):
    world.ledger.faults.commit_delay_s = 30.0
    answers = []

    async def ask():
        answers.append((await world.open(key="k"))[0])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)
    assert sorted((answer.status, answer.code) for answer in answers) == [
        (202, ""),
        (409, "idempotency_in_progress"),
    ]
    world.ledger.faults.commit_delay_s = 0.0
    # Half a minute after it was asked for, it is not sent to the gateway any more.
    await world.until(lambda: world.payments() and world.payments()[0].status == "failed")
    assert (await world.open(key="k"))[0].status == 502


@pytest.mark.trio
@pytest.mark.parametrize("restart", [False, True])
async def test_a_key_that_belongs_to_another_request_is_refused(autojump_clock, world, restart):
    await world.open(key="k")
    if restart:
        await world.restart()
    answer, _ = await world.open(key="k", amount=2)
    assert (answer.status, answer.code) == (422, "idempotency_key_reused")
    assert len(world.store.payments) == 1


@pytest.mark.trio
async def test_a_key_is_refused_across_endpoints_also_while_it_runs(autojump_clock, world):
    payment_id = await world.authorized(purchase=True)
    answers = []

    async def ask(command, on):
        answers.append((await world.ask(command, on, "k"))[0])

    slow = Open("m_a", False, False, 5, "USD", "pm_card_slow", "simulator")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, slow, None)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, Refund("m_a", False, "re_1"), payment_id)
    assert [answer.code for answer in answers] == ["idempotency_key_reused", ""]


@pytest.mark.trio
async def test_answers_survive_a_restart_byte_for_byte(autojump_clock, world):
    """Success, decline and business refusal alike."""
    first, _ = await world.open(key="a")
    declined, _ = await world.open("pm_card_declined", key="b")
    refused = await world.capture(body(declined)["payment"]["id"], key="c")
    assert refused.code == "invalid_state_transition"
    await world.restart()
    for key, method, before in (("a", "pm_card_visa", first), ("b", "pm_card_declined", declined)):
        again, replayed = await world.open(method, key=key)
        assert replayed
        assert (again.status, again.body) == (before.status, before.body)
    again = await world.capture(body(declined)["payment"]["id"], key="c")
    assert again.body == refused.body
    assert len(world.store.payments) == 2


@pytest.mark.trio
async def test_the_key_is_judged_before_the_state(autojump_clock, world):
    """The capture succeeded; asked again, it is not "already captured"."""
    payment_id = await world.authorized()
    first = await world.capture(payment_id, key="c")
    await world.restart()
    again = await world.capture(payment_id, key="c")
    assert (again.status, again.body) == (200, first.body)


@pytest.mark.trio
async def test_a_key_is_of_one_merchant_and_mode(autojump_clock, world):
    def command(merchant, livemode):
        return Open(merchant, livemode, False, 5, "USD", "pm_card_visa", "simulator")

    first, _ = await world.ask(command("m_a", False), None, "k")
    other, replayed = await world.ask(command("m_a", True), None, "k")
    assert not replayed
    assert body(first)["id"] != body(other)["id"]


@pytest.mark.trio
async def test_a_reference_is_unique(autojump_clock, world):
    await world.open(reference="order-1")
    answer, _ = await world.open(reference="order-1", key="k")
    assert (answer.status, answer.code) == (422, "reference_taken")
    again, replayed = await world.open(reference="order-1", key="k")
    assert (again.body, replayed) == (answer.body, True)
    assert len(world.gateway.asked) == 1
    assert world.telemetry.lines == [], "it is an answer, and nothing that is broken"


@pytest.mark.trio
@pytest.mark.parametrize(
    ("method", "status"), [("pm_card_unreachable", "failed"), ("pm_card_declined", "declined")]
)
async def test_the_next_attempt_may_have_the_reference_of_one_that_came_to_nothing(
    autojump_clock, world, method, status
):
    await world.open(method, reference="order-1")
    answer, _ = await world.open(reference="order-1")
    assert answer.status == 201
    third, _ = await world.open(reference="order-1")
    assert (third.status, third.code) == (422, "reference_taken")
    assert [p.status for p in world.payments()] == [status, "authorized"]


@pytest.mark.trio
async def test_concurrent_refunds_never_exceed_what_was_captured(autojump_clock, world):
    payment_id = await world.authorized(purchase=True)
    answers = []

    async def refund():
        answers.append(await world.refund(payment_id, 300))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(refund)
    assert sorted(answer.status for answer in answers) == [201] * 3 + [422] * 7
    assert len(world.gateway.made("refund")) == 3


@pytest.mark.trio
async def test_another_merchants_payment_is_not_there(autojump_clock, world):
    payment_id = await world.authorized(purchase=True)
    answer, _ = await world.ask(Refund("m_b", False, "re_1"), payment_id, "k")
    assert (answer.status, answer.code) == (404, "payment_not_found")
    assert b"m_a" not in answer.body


@pytest.mark.trio
async def test_an_outcome_that_comes_while_a_key_is_read_is_replayed_as_it_was_stored(
    autojump_clock, world
):
    first, _ = await world.open(key="k")
    await world.capture(body(first)["id"])
    await world.restart()
    read = world.ledger.claim

    async def read_too_early(ref):
        world.ledger.claim = read
        claim = await read(ref)
        return msgspec.structs.replace(claim, answer=None)

    world.ledger.claim = read_too_early
    assert await world.open(key="k") == (first, True)


@pytest.mark.trio
async def test_a_key_that_is_released_while_it_is_read_may_run_again(autojump_clock, world):
    await world.open(key="k")
    await world.restart()
    read = world.ledger.claim

    async def read_too_early(ref):
        world.ledger.claim = read_too_late
        claim = await read(ref)
        return msgspec.structs.replace(claim, answer=None)

    async def read_too_late(ref):
        world.ledger.claim = read

    world.ledger.claim = read_too_early
    answer, replayed = await world.open(key="k")
    assert (answer.code, replayed) == ("idempotency_in_progress", False)


@pytest.mark.trio
async def test_a_key_that_another_request_takes_while_it_is_read_is_refused(autojump_clock, world):
    first, _ = await world.open(key="k")
    await world.capture(body(first)["id"])
    await world.restart()
    read = world.ledger.claim

    async def read_too_early(ref):
        world.ledger.claim = read_too_late
        return msgspec.structs.replace(await read(ref), answer=None)

    async def read_too_late(ref):
        world.ledger.claim = read
        return msgspec.structs.replace(await read(ref), fingerprint=b"another's")

    world.ledger.claim = read_too_early
    answer, replayed = await world.open(key="k")
    assert (answer.status, answer.code, replayed) == (422, "idempotency_key_reused", False)


@pytest.mark.trio
async def test_an_answer_whose_reply_was_lost_is_the_stored_one(autojump_clock, world):
    answers = []

    async def ask():
        answers.append((await world.open("pm_card_slow", key="k"))[0])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await world.until(lambda: world.gateway.in_flight)
        for shard in world.system.directory.shards:
            shard.put_reserved_nowait("a message that crashes it, so that it forgets who waits")
        await world.until(lambda: world.payments()[0].status == "authorized")
        assert (await world.capture(world.payments()[0].id)).status == 200
        assert not answers
    (row,) = [row for key, row in world.store.claims.items() if key[2] == "k"]
    assert (answers[0].status, answers[0].body) == (row[7], row[8])
    assert body(answers[0])["status"] == "authorized"
