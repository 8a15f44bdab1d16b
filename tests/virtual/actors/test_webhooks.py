"""A gateway's webhooks: durable before they are answered, and the same end in any order."""

from functools import partial

import pytest
import trio

from engine.domain.ids import gateway_key, op_id
from engine.domain.news import (
    Approved,
    Declined,
    Failed,
    RefundedElsewhere,
    ReversedByGateway,
    StillPending,
    Unknown,
)
from engine.gateways.signatures import secret_key
from engine.gateways.simulator_config import DEVELOPMENT_SECRET
from engine.gateways.simulator_webhooks import write_webhook
from engine.ports import PaymentFilter, WebhookRefused
from tests.virtual.actors.rig import a_world, body

KEYS = (secret_key(DEVELOPMENT_SECRET),)


async def send(world, event_id, about, news, **changed):
    headers, raw = write_webhook(
        KEYS,
        event_id=event_id,
        op_id=about,
        livemode=False,
        news=news,
        now_ms=changed.pop("now_ms", world.clock.now_ms()),
    )
    world.count += 1
    return await world.system.router.webhook(
        "simulator", headers | changed, raw, f"req_hook_{world.count}"
    )


def outcome(world, event_id):
    return world.store.inbox["simulator", event_id][1]


@pytest.mark.trio
async def test_it_is_durable_when_it_is_answered(autojump_clock, world):
    payment_id = await world.authorized()
    answer = await send(world, "evt_1", op_id(payment_id, 1), Declined("x", "y"))
    assert (answer.status, answer.body) == (200, b'{"received":true}')
    assert ("simulator", "evt_1") in world.store.inbox
    await world.until(lambda: outcome(world, "evt_1") is not None, within_s=1)
    assert world.status(payment_id) == "authorized", "a success is never downgraded"
    assert world.payment(payment_id).needs_review


@pytest.mark.trio
async def test_the_same_webhook_many_times_changes_one_thing(autojump_clock, world):
    payment_id = await world.authorized(purchase=True)
    news = RefundedElsewhere(300, "USD", "rf_dashboard")
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(send, world, "evt_1", op_id(payment_id, 1), news)
    await send(world, "evt_2", op_id(payment_id, 1), news)
    await world.until(lambda: all(done for _, done in world.store.inbox.values()))
    assert world.payment(payment_id).refunded == 300
    assert world.events().count("refund.succeeded") == 1


@pytest.mark.trio
async def test_forged_stale_and_strange_ones_are_refused_and_not_stored(autojump_clock, world):
    payment_id = await world.authorized()
    about = op_id(payment_id, 1)
    forged = {"webhook-signature": "v1,AAAA"}
    old_ms = world.clock.now_ms() - 360_000
    answers = [
        await send(world, "evt_1", about, Declined("x", "y"), **forged),
        await send(world, "evt_2", about, Declined("x", "y"), now_ms=old_ms),
        await world.system.router.webhook("stranger", {}, b"{}", "req_x"),
    ]
    assert [answer.status for answer in answers] == [401, 400, 404]
    assert world.store.inbox == {}


@pytest.mark.trio
async def test_one_that_comes_before_our_own_commit_waits_for_it(autojump_clock, world):
    """The gateway is faster than the ledger: its news is kept and applied later."""
    answers = []

    async def ask():
        answers.append((await world.open("pm_card_webhook_early", purchase=True))[0])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await world.until(lambda: world.store.payments)
        (payment,) = world.payments()
        news = Approved(1_000, "USD", f"ch_{gateway_key(op_id(payment.id, 1))}")
        assert (await send(world, "evt_1", op_id(payment.id, 1), news)).status == 200
    assert answers[0].status == 201
    await world.until(lambda: outcome(world, "evt_1") is not None)
    assert world.events() == ["payment.captured"]


@pytest.mark.trio
async def test_one_about_an_operation_that_is_not_there_yet_is_tried_again(autojump_clock, world):
    payment_id = await world.authorized()
    assert (await send(world, "evt_1", op_id(payment_id, 2), StillPending())).status == 200
    await trio.sleep(1)
    assert outcome(world, "evt_1") is None
    assert (await world.capture(payment_id)).status == 200
    await world.until(lambda: outcome(world, "evt_1") is not None)
    assert world.status(payment_id) == "captured"


@pytest.mark.trio
@pytest.mark.parametrize(
    ("news", "counted"),
    [
        (ReversedByGateway(1_000, "return"), "reversed"),
        (RefundedElsewhere(1_000, "USD", "rf_1"), "refunded"),
    ],
    ids=["reversed", "refunded"],
)
async def test_one_about_money_whose_capture_is_not_known_yet_waits_for_that(
    autojump_clock, world, news, counted
):
    world.gateway.answer = lambda call: Unknown("down") if world.gateway.silent else None
    world.gateway.silent = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(world.open, purchase=True))
        await world.until(lambda: world.payments() and world.payments()[0].status == "unknown")
        (payment,) = world.payments()
        world.simulator.perform_now(world.gateway.made("purchase"))
        assert (await send(world, "evt_1", op_id(payment.id, 1), news)).status == 200
        await trio.sleep(1)
        assert (world.status(payment.id), outcome(world, "evt_1")) == ("unknown", None)
        world.gateway.silent = False
    await world.until(lambda: outcome(world, "evt_1") is not None)
    assert (getattr(world.payment(payment.id), counted), world.letters()) == (1_000, [])


@pytest.mark.trio
async def test_one_about_nothing_we_know_is_a_dead_letter_after_an_hour(autojump_clock, world):
    stranger = world.ids.payment(None)
    assert (await send(world, "evt_1", op_id(stranger, 1), Declined("x", "y"))).status == 200
    await trio.sleep(1)
    await world.skip(3_500)
    assert outcome(world, "evt_1") is None
    await world.skip(120)
    await world.until(lambda: outcome(world, "evt_1") == "unmatched")
    assert world.letters() == ["it names a payment, or money of it, that is not known here"]


@pytest.mark.trio
async def test_one_that_was_stored_before_a_crash_is_applied_after_it(autojump_clock, world):
    payment_id = await world.authorized(purchase=True)
    world.points.clear()
    world.kill_at = 1  # stored, and then the process dies
    with trio.move_on_after(5):
        await send(world, "evt_1", op_id(payment_id, 1), ReversedByGateway(1_000, "return"))
    await world.ended.wait()
    assert outcome(world, "evt_1") is None
    world.kill_at = None
    await world.start()
    await world.until(lambda: world.status(payment_id) == "reversed")


@pytest.mark.trio
@pytest.mark.parametrize("readable", [True, False])
async def test_one_that_was_stored_is_read_also_when_its_secret_has_been_replaced(
    autojump_clock, world, monkeypatch, readable
):
    """And where it can't be read any more, a person has it."""
    payment_id = await world.authorized(purchase=True)
    world.points.clear()
    world.kill_at = 1
    with trio.move_on_after(5):
        await send(world, "evt_1", op_id(payment_id, 1), ReversedByGateway(1_000, "return"))
    await world.ended.wait()
    world.kill_at = None
    refused = WebhookRefused("webhook_signature_invalid", "no signature matches")
    monkeypatch.setattr(world.simulator, "verify_webhook", lambda *_: refused)
    if not readable:
        monkeypatch.setattr(world.simulator, "read_webhook", lambda *_: refused)
    await world.start()
    await world.until(lambda: outcome(world, "evt_1") is not None)
    assert world.status(payment_id) == ("reversed" if readable else "captured")
    assert world.letters() == ([] if readable else ["it cannot be read: no signature matches"])


@pytest.mark.trio
async def test_without_a_ledger_it_is_not_accepted(autojump_clock, world):
    payment_id = await world.authorized()
    world.system.directory.ledger_trouble = "gone"
    answer = await send(world, "evt_1", op_id(payment_id, 1), Declined("x", "y"))
    assert (answer.status, answer.code) == (503, "ledger_unavailable")
    world.system.directory.ledger_trouble = None


class TestLateSuccess:
    """A success after the payment has failed for good is undone at the gateway."""

    @staticmethod
    async def late(world, **more):
        world.gateway.answer = lambda call: Failed("down") if call.action == "purchase" else None
        answer, _ = await world.open(purchase=True, **more)
        payment_id = body(answer)["payment"]["id"]
        assert world.status(payment_id) == "failed"
        # And yet it was made.
        call = world.gateway.made("purchase")[0]
        (news,) = world.simulator.perform_now([call])
        return payment_id, news

    @pytest.mark.trio
    async def test_it_is_refunded_and_the_payment_stays_failed(self, autojump_clock, world):
        payment_id, news = await self.late(world)
        await send(world, "evt_1", op_id(payment_id, 1), news)
        await world.until(lambda: "payment.late_success_reversed" in world.events())
        assert world.status(payment_id) == "failed"
        assert world.charges(f"{payment_id}.2") == 1
        assert not world.payment(payment_id).is_open

    @pytest.mark.trio
    async def test_the_reference_stays_with_the_payment_that_took_it(self, autojump_clock, world):
        failed, news = await self.late(world, reference="order-1")
        world.gateway.answer = lambda call: None
        paid = await world.authorized(purchase=True, reference="order-1")
        await send(world, "evt_1", op_id(failed, 1), news)
        await world.until(lambda: "payment.late_success_reversed" in world.events())
        assert [world.status(failed), world.status(paid)] == ["failed", "captured"]
        assert world.charges(f"{failed}.2") == 1, "what came too late was refunded"
        assert not [line for line in world.telemetry.lines if "refused" in line[0]]
        wanted = PaymentFilter("m_a", False, reference="order-1")
        found = await world.ledger.list_payments(wanted)
        assert {payment.id for payment in found} == {paid, failed}

    @pytest.mark.trio
    async def test_the_refund_is_tried_again_after_5_15_and_30_minutes(self, autojump_clock, world):
        payment_id, news = await self.late(world)
        world.gateway.answer = lambda call: Failed("down") if call.action == "refund" else None
        await send(world, "evt_1", op_id(payment_id, 1), news)
        began = world.clock.now_ms()
        for attempt, minutes in ((2, 5), (3, 15), (4, 30)):
            await world.until(lambda: any(kind == "retry" for kind, _, _ in world.store.timers))
            due = {kind: at for kind, at, _ in world.store.timers}["retry"]
            assert due - world.clock.now_ms() <= minutes * 60_000
            if attempt == 3:
                await world.stop()
            await world.skip((due - world.clock.now_ms()) / 1_000 - 10)
            if attempt == 3:
                await world.start()
                world.gateway.answer = lambda call: (
                    Failed("down") if call.action == "refund" else None
                )
            assert world.payment(payment_id).operations[1].attempts == attempt - 1
            await world.until(
                lambda attempt=attempt: (
                    world.payment(payment_id).operations[1].attempts == attempt
                    and not world.payment(payment_id).operations[1].is_open
                )
            )
        assert world.clock.now_ms() - began >= 50 * 60_000
        await world.until(world.letters)
        assert world.payment(payment_id).needs_review
        assert world.store.timers == {}
        # Somebody at the console has it tried once more, and now it works.
        world.gateway.answer = lambda call: None
        (letter_id,) = [id_ for id_, (_, done) in world.store.dead_letters.items() if not done]
        assert await world.system.retry_dead_letter(letter_id)
        await world.until(lambda: "payment.late_success_reversed" in world.events())
        assert not world.payment(payment_id).needs_review


@pytest.mark.trio
async def test_every_outcome_by_webhook_as_well_changes_nothing(autojump_clock, tmp_path):

    async with a_world(tmp_path, autojump_clock, send_webhooks=True) as world:
        await world.start()
        payment_id = await world.authorized()
        await world.capture(payment_id)
        await world.refund(payment_id, 100)
        await world.until(
            lambda: (
                len(world.store.inbox) == 3 and all(done for _, done in world.store.inbox.values())
            )
        )
        assert world.events() == [
            "payment.authorized",
            "payment.captured",
            "refund.created",
            "refund.succeeded",
        ]


@pytest.mark.trio
async def test_a_refund_that_came_back_is_not_made_again_by_an_old_webhook(autojump_clock, world):
    payment_id = await world.authorized("pm_card_refund_fails_late", purchase=True)
    refund = body(await world.refund(payment_id))
    await world.until(lambda: "refund.failed" in world.events())
    old = Approved(1_000, "USD", refund["gateway_reference"])
    await send(world, "evt_late", op_id(payment_id, 2), old)
    await world.until(lambda: outcome(world, "evt_late") is not None)
    assert world.payment(payment_id).refunded == 0
