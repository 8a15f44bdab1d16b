"""What was answered 200 is dealt with, or a person is told: nothing leaves the inbox unseen."""

import pytest
import trio

from engine.actors.shard import ShardActor
from engine.domain.entry import DeadLetter, Entry
from engine.domain.ids import op_id
from engine.domain.news import RefundedElsewhere, StillPending
from engine.messages import Write
from tests.virtual.actors.test_webhooks import outcome, send

HOUR_S = 3_700
REFUNDED = RefundedElsewhere(300, "USD", "rf_dashboard")


def out_of_service(world, reason="parked: for the test"):
    world.system.directory.shard_trouble[:] = [reason] * 2


def in_service(world):
    world.system.directory.shard_trouble[:] = [None] * 2


def open_letters(world):
    return [letter_id for letter_id, (_, done) in world.store.dead_letters.items() if not done]


async def given_up(world, event_id, about, news):
    """The id of the letter of a webhook that found nothing for an hour."""
    assert (await send(world, event_id, about, news)).status == 200
    await trio.sleep(1)
    await world.skip(HOUR_S)
    await world.until(lambda: outcome(world, event_id) == "unmatched")
    (letter_id,) = open_letters(world)
    return letter_id


@pytest.mark.trio
async def test_one_that_was_stored_before_an_outage_of_an_hour_is_applied(autojump_clock, world):
    payment_id = await world.authorized(purchase=True)
    out_of_service(world)
    assert (await send(world, "evt_1", op_id(payment_id, 1), REFUNDED)).status == 200
    await world.stop()
    await world.skip(HOUR_S)
    await world.start()
    await world.until(lambda: outcome(world, "evt_1") is not None)
    assert world.payment(payment_id).refunded == 300
    assert world.letters() == []


@pytest.mark.trio
async def test_a_shard_that_is_parked_for_an_hour_gets_its_webhooks_afterwards(
    autojump_clock, world
):
    payment_id = await world.authorized(purchase=True)
    out_of_service(world)
    assert (await send(world, "evt_1", op_id(payment_id, 1), REFUNDED)).status == 200
    await world.skip(HOUR_S)
    await trio.sleep(60)
    assert (outcome(world, "evt_1"), world.letters()) == (None, [])
    in_service(world)
    await world.until(lambda: outcome(world, "evt_1") is not None)
    assert world.payment(payment_id).refunded == 300


@pytest.mark.trio
async def test_one_that_came_back_is_not_given_up_while_its_shard_is_parked(autojump_clock, world):
    payment_id = await world.authorized()
    assert (await send(world, "evt_1", op_id(payment_id, 2), StillPending())).status == 200
    await trio.sleep(1)
    out_of_service(world)
    await world.skip(HOUR_S)
    await trio.sleep(62)  # between two readings of the inbox
    assert (outcome(world, "evt_1"), world.letters()) == (None, [])
    in_service(world)
    assert (await world.capture(payment_id)).status == 200
    await world.until(lambda: outcome(world, "evt_1") is not None)
    assert world.letters() == []


@pytest.mark.trio
async def test_it_is_given_up_once_however_long_that_takes_to_be_written(autojump_clock, world):
    stranger = world.ids.payment(None)
    assert (await send(world, "evt_1", op_id(stranger, 1), REFUNDED)).status == 200
    await trio.sleep(1)
    world.ledger.gate = gate = trio.Event()
    await world.skip(HOUR_S)
    await trio.sleep(60)
    gate.set()
    world.ledger.gate = None
    await world.until(lambda: outcome(world, "evt_1") == "unmatched")
    await trio.sleep(60)
    assert len(world.letters()) == 1


@pytest.mark.trio
async def test_a_letter_that_is_retried_while_its_shard_is_parked_is_not_lost(
    autojump_clock, world
):
    payment_id = await world.authorized()
    letter_id = await given_up(world, "evt_1", op_id(payment_id, 2), StillPending())
    assert (await world.capture(payment_id)).status == 200
    out_of_service(world)
    assert await world.system.retry_dead_letter(letter_id)
    await trio.sleep(1)
    assert (outcome(world, "evt_1"), world.letters()) == (None, [])
    await world.restart()
    await world.until(lambda: outcome(world, "evt_1") is not None)
    assert outcome(world, "evt_1") != "unmatched"


@pytest.mark.trio
async def test_a_letter_that_is_retried_too_early_has_an_hour_again(autojump_clock, world):
    stranger = world.ids.payment(None)
    letter_id = await given_up(world, "evt_1", op_id(stranger, 1), REFUNDED)
    assert await world.system.retry_dead_letter(letter_id)
    await trio.sleep(60)
    assert (outcome(world, "evt_1"), world.letters()) == (None, [])
    await world.skip(HOUR_S)
    await world.until(world.letters)
    assert open_letters(world) != [letter_id]


@pytest.mark.trio
async def test_a_letter_can_be_retried_however_many_came_after_it(autojump_clock, world):
    letters = [DeadLetter(f"dl_{n:04}", "note", "x", "why", b"{}", n) for n in range(1_100)]
    for letter in letters:
        write = Write("nobody", 0, 0, Entry(dead_letter=letter))
        world.system.directory.mailboxes["ledger-writer"].put_reserved_nowait(write)
    await world.until(lambda: len(world.store.dead_letters) == 1_100)
    assert await world.system.retry_dead_letter("dl_0000")
    await world.until(lambda: world.store.dead_letters["dl_0000"][1])
    assert not await world.system.retry_dead_letter("dl_0000"), "it has been dealt with"


class TestPoison:
    """A webhook that crashes its shard ends as one dead letter, and the shard goes on."""

    @staticmethod
    def poison(monkeypatch, payment_id):
        """Webhooks about the payment crash its shard from now on."""
        hear, crashes = ShardActor._hear, []

        def crash(self, message, payment):
            if message.via == "webhook" and message.payment_id == payment_id:
                crashes.append(trio.current_time())
                raise RuntimeError("poison")
            hear(self, message, payment)

        monkeypatch.setattr(ShardActor, "_hear", crash)
        return crashes

    @pytest.mark.trio
    @pytest.mark.parametrize("purchase", [False, True], ids=["in memory", "to be fetched"])
    async def test_it_is_taken_away_and_can_be_retried(
        self, autojump_clock, world, monkeypatch, purchase
    ):
        payment_id = await world.authorized(purchase=purchase)
        with monkeypatch.context() as patched:
            crashes = self.poison(patched, payment_id)
            about, news = op_id(payment_id, 1), StillPending()
            assert (await send(world, "evt_1", about, news)).status == 200
            parked_s = 0
            for _ in range(600):
                await trio.sleep(1)
                parked_s += world.system.directory.trouble_of(payment_id) is not None
            assert (len(crashes) <= 3, parked_s) == (True, 0)
            (reason,) = world.letters()
            assert "crash" in reason
            assert outcome(world, "evt_1") == "unmatched"
        (letter_id,) = open_letters(world)
        assert await world.system.retry_dead_letter(letter_id)
        await world.until(lambda: outcome(world, "evt_1") not in (None, "unmatched"))
        assert world.letters() == []

    @pytest.mark.trio
    async def test_those_that_were_with_the_shard_as_well_are_applied(
        self, autojump_clock, world, monkeypatch
    ):
        directory = world.system.directory
        poisoned = await world.authorized(purchase=True)
        payments = []
        while len(payments) < 10:
            payment_id = await world.authorized(purchase=True)
            if directory.shard_index(payment_id) == directory.shard_index(poisoned):
                payments.append(payment_id)
        self.poison(monkeypatch, poisoned)
        out_of_service(world)
        for n, payment_id in enumerate([poisoned, *payments]):
            assert (await send(world, f"evt_{n}", op_id(payment_id, 1), REFUNDED)).status == 200
        in_service(world)
        await world.until(world.letters, 600)
        assert outcome(world, "evt_0") == "unmatched"
        await world.until(lambda: all(done for _, done in world.store.inbox.values()), 600)
        assert [world.payment(payment_id).refunded for payment_id in payments] == [300] * 10
        assert len(world.letters()) == 1
