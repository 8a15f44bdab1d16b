"""The simulator's webhooks: when they come, how often, and what a restart does to them."""

import msgspec
import pytest
import trio

from engine.domain.news import Approved, Declined, Disputed, Expired
from engine.gateways.signatures import secret_key, signed_headers
from engine.gateways.simulator_config import DEVELOPMENT_SECRET, FailureRates, SimulatorConfig
from engine.ports import WebhookEvent, WebhookRefused

KEY = secret_key(DEVELOPMENT_SECRET)


@pytest.fixture
def run_for(rig):
    async def run_for(seconds):
        async def run(*, task_status):
            await rig.simulator.run(task_status=task_status)

        async with trio.open_nursery() as nursery:
            await nursery.start(run)
            await trio.sleep(seconds)
            nursery.cancel_scope.cancel()

    return run_for


@pytest.mark.trio
async def test_none_come_unless_asked_for(rig, autojump_clock, run_for):
    rig.start()
    for method in ("pm_card_visa", "pm_card_declined", "pm_card_pending", "pm_card_3ds"):
        await rig.ask(rig.call("purchase", method))
    await run_for(3_600)
    assert rig.events == []


@pytest.mark.trio
async def test_all_come_when_asked_for(rig, autojump_clock, run_for):
    rig.start(send_webhooks=True)
    calls = {
        method: rig.call("purchase", method)
        for method in ("pm_card_visa", "pm_card_declined", "pm_card_pending", "pm_card_3ds")
    }
    for call in calls.values():
        await rig.ask(call)
    await run_for(3_600)
    seen = {event.op_id: (when, type(event.news)) for when, event in rig.webhooks}
    assert seen == {
        calls["pm_card_visa"].op_id: (0, Approved),
        calls["pm_card_declined"].op_id: (0, Declined),
        calls["pm_card_pending"].op_id: (60, Approved),
        calls["pm_card_3ds"].op_id: (900, Expired),
    }


@pytest.mark.trio
async def test_a_completed_request_sends_one_webhook(rig, autojump_clock, run_for):
    simulator = rig.start(send_webhooks=True)
    call = rig.call("purchase", "pm_card_3ds")
    opened = await rig.ask(call)
    await trio.sleep(5)
    completed = simulator.complete(opened.reference)
    await run_for(3_600)
    ((when, event),) = rig.webhooks
    assert (when, event.news) == (5, completed)


@pytest.mark.trio
async def test_due_webhooks_survive_a_restart(rig, autojump_clock, run_for):
    rig.start()
    call = rig.call("purchase", "pm_card_dispute")
    await rig.ask(call)
    await run_for(0.5)
    assert rig.events == []
    await rig.restart()
    await run_for(10)
    ((when, event),) = rig.webhooks
    assert when == 1
    assert event.op_id == call.op_id
    assert isinstance(event.news, Disputed)
    await rig.restart()
    await run_for(10)
    assert len(rig.events) == 1, "what was accepted is not sent again"


@pytest.mark.trio
async def test_refused_ones_are_tried_again_with_the_same_id(rig, autojump_clock, run_for):
    rig.start()
    rig.accepts = lambda event: len(rig.events) >= 4
    await rig.ask(rig.call("purchase", "pm_card_dispute"))
    await run_for(60)
    assert [when for when, _ in rig.webhooks] == [1, 2, 4, 8]
    assert len({event.event_id for event in rig.events}) == 1
    assert rig.simulator.statistics().webhooks_delivered == 1


@pytest.mark.trio
async def test_nobody_is_asked_for_ever(rig, autojump_clock, run_for):
    rig.start()
    rig.accepts = lambda event: False
    await rig.ask(rig.call("purchase", "pm_card_dispute"))
    await run_for(24 * 3_600)
    statistics = rig.simulator.statistics()
    assert (statistics.webhooks_given_up, statistics.webhooks_waiting) == (1, 0)


@pytest.mark.trio
async def test_what_was_in_the_air_when_the_sender_stopped_is_sent_again(
    rig, autojump_clock, run_for
):
    simulator = rig.start()
    deliver = rig.deliver

    async def hang(headers, raw):
        await trio.sleep_forever()

    simulator._outbox._deliver = hang
    await rig.ask(rig.call("purchase", "pm_card_dispute"))
    await run_for(5)
    simulator._outbox._deliver = deliver
    await run_for(5)
    assert len(rig.events) == 1


# --- reading ----------------------------------------------------------------------------------


def read(rig, body, now_ms=1_800_000_000_000, event_id="evt_1"):
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    headers = signed_headers([KEY], event_id, now_ms // 1_000, raw)
    return rig.start().verify_webhook(headers, raw, now_ms)


def body(**changes):
    values = {
        "id": "evt_1",
        "created_ms": 1,
        "livemode": False,
        "op_id": "pay_1.1",
        "news": {"type": "failed", "code": "refund_failed"},
    }
    return values | changes


def test_news_of_a_kind_from_the_future_says_nothing(rig):
    event = read(rig, body(news={"type": "teleported", "to": "mars"}, extra=1))
    assert event == WebhookEvent("evt_1", None, "pay_1.1")


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 60_000,
        body(news={"type": "approved"}),
        body(news={"type": "approved", "amount": "1", "currency": "USD", "reference": "r"}),
        body(news=None),
        body(id="evt_2"),
    ],
)
def test_what_cannot_be_read_is_malformed(rig, broken):
    refused = read(rig, broken)
    assert isinstance(refused, WebhookRefused)
    assert refused.code == "webhook_malformed"


@pytest.mark.parametrize("secrets", [(), ("secret",), ("whsec_",)])
def test_a_configuration_without_a_usable_secret_is_refused(secrets):
    with pytest.raises(ValueError, match="secret"):
        SimulatorConfig(webhook_secrets=secrets)


@pytest.mark.trio
@pytest.mark.parametrize("fault", ["timeout_after", "server_error"])
async def test_a_lost_reply_does_not_take_the_early_webhook_along(rig, autojump_clock, fault):
    rig.start(rates=FailureRates(**{fault: 1.0}))
    call = rig.call("purchase", "pm_card_webhook_early")
    await rig.ask(call)
    assert [event.op_id for event in rig.events] == [call.op_id]
