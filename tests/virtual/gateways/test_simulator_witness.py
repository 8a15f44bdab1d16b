"""The simulator as an independent witness: its own limits, its keys, its books."""

import errno
import os

import msgspec
import pytest
import trio

from engine.domain.news import Approved, Declined, Failed, NotFound, StillPending, Unknown
from engine.gateways.simulator_books import BooksCorrupt, BooksInUse
from engine.gateways.simulator_config import FailureRates


def code(news):
    assert isinstance(news, Declined | Failed), news
    return news.code


# --- limits -----------------------------------------------------------------------------------


@pytest.mark.trio
async def test_captures_up_to_the_authorised_amount(rig, autojump_clock):
    rig.start()
    made = await rig.ask(rig.call(amount=1_000))
    for amount in (300, 300):
        part = rig.call("capture", amount=amount, target=made.reference, final=False)
        assert isinstance(await rig.ask(part), Approved)
    over = rig.call("capture", amount=401, target=made.reference)
    assert code(await rig.ask(over)) == "amount_exceeds_capturable"
    rest = rig.call("capture", amount=400, target=made.reference)
    assert isinstance(await rig.ask(rest), Approved)
    total = rig.charges()[made.reference]
    assert (total.authorized, total.captured, total.released) == (1_000, 1_000, 0)


@pytest.mark.trio
async def test_a_final_capture_releases_the_rest(rig, autojump_clock):
    rig.start()
    made = await rig.ask(rig.call(amount=1_000))
    assert isinstance(
        await rig.ask(rig.call("capture", amount=600, target=made.reference)), Approved
    )
    late = rig.call("capture", amount=1, target=made.reference)
    assert code(await rig.ask(late)) == "already_captured"
    total = rig.charges()[made.reference]
    assert (total.captured, total.released) == (600, 400)


@pytest.mark.trio
async def test_a_void_releases_what_is_left_and_ends_it(rig, autojump_clock):
    rig.start()
    made = await rig.ask(rig.call(amount=1_000))
    await rig.ask(rig.call("capture", amount=300, target=made.reference, final=False))
    void = rig.call("void", amount=700, target=made.reference)
    news = await rig.ask(void)
    assert isinstance(news, Approved)
    assert news.amount == 700
    assert code(await rig.ask(rig.call("void", target=made.reference))) == "already_captured"
    assert code(await rig.ask(rig.call("capture", target=made.reference))) == "already_captured"
    assert rig.charges()[made.reference].released == 700


@pytest.mark.trio
async def test_refunds_up_to_the_captured_amount(rig, autojump_clock):
    rig.start()
    paid = await rig.ask(rig.call("purchase", amount=100))
    refund = rig.call("refund", amount=60, target=paid.reference)
    assert isinstance(await rig.ask(refund), Approved)
    assert trio.current_time() == 0
    over = rig.call("refund", amount=60, target=paid.reference)
    assert code(await rig.ask(over)) == "amount_exceeds_refundable"
    rest = rig.call("refund", amount=40, target=paid.reference)
    assert isinstance(await rig.ask(rest), Approved)
    assert rig.charges()[paid.reference].refunded == 100
    assert code(await rig.ask(rig.call("void", target=paid.reference))) == "already_captured"


@pytest.mark.trio
async def test_what_is_not_captured_cannot_be_refunded(rig, autojump_clock):
    rig.start()
    made = await rig.ask(rig.call())
    refund = rig.call("refund", amount=1, target=made.reference)
    assert code(await rig.ask(refund)) == "amount_exceeds_refundable"


@pytest.mark.trio
async def test_a_charge_is_found_by_reference_by_key_and_by_its_captures(rig, autojump_clock):
    rig.start()
    authorize = rig.call(method="pm_card_timeout_after_charge")
    assert await rig.ask(authorize) is None
    capture = rig.call("capture", amount=500, target_key=authorize.key, final=False)
    captured = await rig.ask(capture)
    assert isinstance(captured, Approved)
    by_capture = rig.call("refund", amount=200, target=captured.reference)
    assert isinstance(await rig.ask(by_capture), Approved)
    by_capture_key = rig.call("refund", amount=300, target_key=capture.key)
    assert isinstance(await rig.ask(by_capture_key), Approved)
    (total,) = rig.charges().values()
    assert (total.captured, total.refunded) == (500, 500)


@pytest.mark.trio
async def test_what_is_broken_on_our_side_is_refused(rig, autojump_clock):
    rig.start()
    made = await rig.ask(rig.call())
    declined = await rig.ask(rig.call(method="pm_card_declined"))
    refusals = {
        "charge_not_found": rig.call("capture", target="ch_nobody"),
        "currency_mismatch": rig.call("capture", target=made.reference, currency="EUR"),
        "charge_not_approved": rig.call("capture", target=declined.reference),
    }
    for expected, call in refusals.items():
        assert code(await rig.ask(call)) == expected
    live = rig.call("capture", target=made.reference, livemode=True)
    assert code(await rig.ask(live)) == "charge_not_found"
    assert code(await rig.ask(rig.call("capture"))) == "charge_not_found"


@pytest.mark.trio
async def test_an_authorisation_lapses(rig, autojump_clock):
    rig.start()
    made = await rig.ask(rig.call())
    await trio.sleep(7 * 24 * 3_600)
    capture = rig.call("capture", target=made.reference)
    assert code(await rig.ask(capture)) == "authorization_expired"


@pytest.mark.trio
@pytest.mark.parametrize("method", ["pm_card_3ds", "pm_card_pending"])
@pytest.mark.parametrize("action", ["authorize", "purchase"])
async def test_what_still_waits_can_be_voided_but_not_captured(rig, autojump_clock, method, action):
    rig.start()
    call = rig.call(action, method)
    made = await rig.ask(call)
    capture = rig.call("capture", method, target=made.reference)
    assert code(await rig.ask(capture)) == "charge_not_approved"
    void = rig.call("void", method, target=made.reference)
    assert (await rig.ask(void)).amount == 1_000
    assert await rig.look_up(call) == Failed("canceled")
    await rig.restart()
    await trio.sleep(3_600)
    assert await rig.look_up(call) == Failed("canceled")
    assert isinstance(await rig.look_up(void), Approved)
    assert rig.totals()[call.op_id].times == 0
    assert rig.charges() == {}


# --- keys -------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_the_same_key_gives_the_same_result_once(rig, autojump_clock):
    rig.start()
    purchase = rig.call("purchase")
    paid = await rig.ask(purchase)
    refund = rig.call("refund", amount=700, target=paid.reference)
    refunded = await rig.ask(refund)
    for _ in range(2):
        assert await rig.ask(purchase) == paid
        assert await rig.ask(refund) == refunded
        await rig.restart()
    assert [effect.op_id for effect in rig.effects()] == [purchase.op_id, refund.op_id]


@pytest.mark.trio
async def test_in_one_list_too_a_key_is_done_once(rig, autojump_clock):
    simulator = rig.start()
    call = rig.call("purchase")
    first, second = simulator.perform_now([call, call])
    assert first == second
    assert len(rig.effects()) == 1


@pytest.mark.trio
@pytest.mark.parametrize(
    "changes",
    [
        {"amount": 1_001},
        {"currency": "EUR"},
        {"payment_method": "pm_card_mastercard"},
        {"livemode": True},
        {"action": "authorize"},
    ],
)
async def test_the_same_key_with_other_parameters_is_refused(rig, autojump_clock, changes):
    rig.start()
    call = rig.call("purchase")
    paid = await rig.ask(call)
    other = msgspec.structs.replace(call, **changes)
    assert await rig.ask(other) == Failed("idempotency_key_reused")
    assert await rig.ask(call) == paid
    assert len(rig.effects()) == 1


@pytest.mark.trio
async def test_a_capture_with_another_charge_or_finality_is_another_request(rig, autojump_clock):
    rig.start()
    one, other = [await rig.ask(rig.call()) for _ in range(2)]
    capture = rig.call("capture", target=one.reference)
    await rig.ask(capture)
    for changes in ({"target": other.reference}, {"final": False}, {"amount": 1}):
        changed = msgspec.structs.replace(capture, **changes)
        assert await rig.ask(changed) == Failed("idempotency_key_reused")
    by_key = msgspec.structs.replace(capture, target=None, target_key=one.reference[3:])
    assert isinstance(await rig.ask(by_key), Approved), "the same charge by another name"


@pytest.mark.trio
async def test_a_key_is_forgotten_after_a_day_and_the_books_show_the_double_charge(
    rig, autojump_clock
):
    # FAULTS row 25: an engine that resends after the published window is found out.
    rig.start()
    call = rig.call("purchase")
    first = await rig.ask(call)
    await trio.sleep(24 * 3_600 - 1)
    assert await rig.ask(call) == first
    await trio.sleep(1)
    second = await rig.ask(call)
    assert second.reference != first.reference
    assert rig.totals()[call.op_id].times == 2
    await rig.restart()
    for news in (first, second):
        refund = rig.call("refund", target=news.reference)
        assert isinstance(await rig.ask(refund), Approved)
    assert [charge.refunded for charge in rig.charges().values()] == [1_000, 1_000]


@pytest.mark.trio
async def test_a_forgotten_key_meets_the_fault_again(rig, autojump_clock):
    rig.start(keys_kept_ms=10_000)
    call = rig.call("purchase", "pm_card_timeout_after_charge")
    assert await rig.ask(call) is None
    assert isinstance(await rig.ask(call), Approved)
    await trio.sleep(10)
    assert await rig.ask(call) is None
    assert rig.totals()[call.op_id].times == 2


@pytest.mark.trio
async def test_a_look_up_needs_key_action_and_mode(rig, autojump_clock):
    rig.start()
    call = rig.call("purchase")
    await rig.ask(call)
    for changes in ({"key": "op_other"}, {"action": "refund"}, {"livemode": True}):
        assert await rig.look_up(msgspec.structs.replace(call, **changes)) == NotFound()
    assert len(rig.effects()) == 1


# --- books ------------------------------------------------------------------------------------


@pytest.mark.trio
async def test_a_restart_knows_everything_that_was_done(rig, autojump_clock):
    rig.start()
    made = await rig.ask(rig.call())
    await rig.ask(rig.call("capture", amount=400, target=made.reference, final=False))
    pending = rig.call("purchase", "pm_card_pending")
    await rig.ask(pending)
    open_call = rig.call("purchase", "pm_card_3ds")
    opened = await rig.ask(open_call)
    await trio.sleep(30)
    simulator = await rig.restart()
    over = rig.call("capture", amount=601, target=made.reference)
    assert code(await rig.ask(over)) == "amount_exceeds_capturable"
    assert isinstance(await rig.look_up(pending), StillPending)
    await trio.sleep(30)
    assert isinstance(await rig.look_up(pending), Approved)
    assert isinstance(simulator.complete(opened.reference), Approved)
    await rig.restart()
    assert isinstance(await rig.look_up(open_call), Approved)
    numbers = [effect.seq for effect in rig.effects()]
    assert numbers == sorted(set(numbers))


@pytest.mark.trio
@pytest.mark.parametrize("cut", [1, 30, 100])
async def test_a_torn_last_line_is_cut_off(rig, autojump_clock, cut):
    rig.start()
    calls = [rig.call("purchase") for _ in range(3)]
    rig.simulator.perform_now(calls)
    await rig.simulator.close()
    whole = rig.path.read_bytes()
    rig.path.write_bytes(whole[:-cut])
    assert len(rig.effects()) == 2
    rig.start()
    assert await rig.look_up(calls[2]) == NotFound()
    assert isinstance(await rig.ask(calls[2]), Approved)
    assert [effect.op_id for effect in rig.effects()] == [call.op_id for call in calls]


@pytest.mark.trio
async def test_damage_anywhere_else_is_not_overlooked(rig, autojump_clock):
    rig.start()
    rig.simulator.perform_now([rig.call("purchase") for _ in range(3)])
    await rig.simulator.close()
    first, *rest = rig.path.read_bytes().splitlines(keepends=True)
    rig.path.write_bytes(first[:40] + b"\n" + b"".join(rest))
    with pytest.raises(BooksCorrupt, match="line 1"):
        rig.start()
    with pytest.raises(BooksCorrupt):
        rig.start()


@pytest.mark.trio
async def test_books_have_one_writer(rig, autojump_clock):
    first = rig.start()
    with pytest.raises(BooksInUse):
        rig.start()
    await first.close()
    rig.start()


@pytest.mark.trio
async def test_a_list_of_calls_is_one_write(rig, autojump_clock, monkeypatch):
    simulator = rig.start()
    writes = []
    real_write = os.write
    monkeypatch.setattr(
        "engine.gateways.simulator_books.os.write",
        lambda fd, raw: writes.append(len(raw)) or real_write(fd, raw),
    )
    simulator.perform_now([rig.call("purchase") for _ in range(50)])
    assert len(writes) == 1
    assert len(rig.effects()) == 50


@pytest.mark.trio
async def test_a_full_disk_leaves_the_outcome_unknown(rig, autojump_clock, monkeypatch):
    simulator = rig.start()
    call = rig.call("purchase")
    real_write = os.write

    def torn(fd, raw):
        monkeypatch.setattr("engine.gateways.simulator_books.os.write", full)
        return real_write(fd, raw[:20])

    def full(fd, raw):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("engine.gateways.simulator_books.os.write", torn)
    assert simulator.perform_now([call]) == [Unknown("simulator_books_unwritable")]
    assert await rig.look_up(call) == Unknown("simulator_books_unwritable")
    assert isinstance(await simulator.perform(call), Unknown)
    monkeypatch.setattr("engine.gateways.simulator_books.os.write", real_write)
    assert isinstance(await rig.look_up(call), Approved)
    assert [effect.op_id for effect in rig.effects()] == [call.op_id]
    assert simulator.statistics().books_failures == 3


# --- weather ----------------------------------------------------------------------------------


@pytest.mark.trio
async def test_an_outage_refuses_everything_at_once(rig, autojump_clock):
    simulator = rig.start(latency_ms=100)
    call = rig.call("purchase")
    await rig.ask(call)
    before = trio.current_time()
    simulator.set_outage(True)
    assert await rig.ask(rig.call("purchase")) == Failed("gateway_unreachable", sent=False)
    assert await rig.look_up(call) == Unknown("gateway_unreachable"), "which says nothing of it"
    assert trio.current_time() == before
    simulator.set_outage(False)
    assert isinstance(await rig.look_up(call), Approved)
    assert len(rig.effects()) == 1


@pytest.mark.trio
async def test_latency_holds_back_the_reply_not_the_charge(rig, autojump_clock):
    simulator = rig.start(latency_ms=250)
    call = rig.call("purchase")
    with trio.move_on_after(0.1):
        await simulator.perform(call)
    assert len(rig.effects()) == 1
    started = trio.current_time()
    assert isinstance(await rig.look_up(call), Approved)
    assert trio.current_time() == pytest.approx(started + 0.25)


@pytest.mark.trio
async def test_the_same_seed_gives_the_same_run(rig, autojump_clock, tmp_path):
    rates = FailureRates(unreachable=0.1, timeout_after=0.1, server_error=0.1, decline=0.1)
    runs = []
    for _ in range(2):
        rig.path = None
        rig.start(rates=rates, seed=7, latency_ms=20, latency_sigma=0.5)
        rig._calls = 0
        answers = [await rig.ask(rig.call("purchase", livemode=True)) for _ in range(200)]
        runs.append([type(news) for news in answers])
    assert runs[0] == runs[1]
    assert {Approved, Declined, Unknown, Failed, type(None)} == set(runs[0])


@pytest.mark.trio
async def test_whatever_the_weather_each_operation_takes_effect_at_most_once(rig, autojump_clock):
    rig.start(rates=FailureRates(timeout_before=0.2, timeout_after=0.2, server_error=0.2), seed=3)
    calls = [rig.call("purchase") for _ in range(100)]
    for call in calls:
        news = None
        while not isinstance(news, Approved):
            news = await rig.ask(call)
    totals = rig.totals()
    assert [totals[call.op_id].times for call in calls] == [1] * 100


@pytest.mark.parametrize(
    "rates", [{"unreachable": -0.1}, {"decline": 1.1}, {"decline": 0.6, "unreachable": 0.6}]
)
def test_failure_rates_that_cannot_be_are_refused(rates):
    with pytest.raises(ValueError, match="failure rates"):
        FailureRates(**rates)
