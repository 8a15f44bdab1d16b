"""The mailbox by itself: order, room, acknowledgement, poison and revocation."""

from typing import Any

import anyio
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from engine.supervisor import DeadLetter, Mailbox, MailboxFull, MailboxRevoked


def mailbox_of(*messages: str, capacity: int = 10, reserved_capacity: int = 2) -> Mailbox[str]:
    mailbox: Mailbox[str] = Mailbox(capacity=capacity, reserved_capacity=reserved_capacity)
    for message in messages:
        mailbox.put_nowait(message)
    return mailbox


@pytest.mark.trio
async def test_everything_held_is_handed_over_at_once_in_order(autojump_clock: MockClock) -> None:
    reader = mailbox_of("a", "b", "c").attach()

    assert await reader.receive_all() == ["a", "b", "c"]


@pytest.mark.trio
async def test_a_waiting_reader_wakes_once_for_many_messages(autojump_clock: MockClock) -> None:
    mailbox = mailbox_of()
    reader = mailbox.attach()
    batches = []

    async def read() -> None:
        batches.append(await reader.receive_all())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        mailbox.put_nowait("a")
        mailbox.put_reserved_nowait("b")
        mailbox.put_nowait("c")

    assert batches == [["a", "b", "c"]]


@pytest.mark.trio
async def test_a_cancelled_wait_takes_nothing(autojump_clock: MockClock) -> None:
    mailbox = mailbox_of()
    reader = mailbox.attach()
    with trio.move_on_after(1):
        await reader.receive_all()
    mailbox.put_nowait("a")
    with trio.CancelScope() as scope:
        scope.cancel()
        await reader.receive_all()

    assert await reader.receive_all() == ["a"]


@pytest.mark.trio
async def test_a_busy_mailbox_still_lets_other_tasks_run(autojump_clock: MockClock) -> None:
    mailbox = mailbox_of("a")
    reader = mailbox.attach()
    with trio.testing.assert_checkpoints():
        await reader.receive_all()


def test_ordinary_messages_are_refused_at_capacity() -> None:
    mailbox = mailbox_of("a", "b", capacity=2)

    with pytest.raises(MailboxFull, match="2 of 2"):
        mailbox.put_nowait("c")
    with pytest.raises(anyio.WouldBlock):
        mailbox.put_nowait("c")


def test_reserved_room_is_there_when_ordinary_messages_fill_the_rest() -> None:
    mailbox = mailbox_of("a", "b", capacity=2, reserved_capacity=2)
    mailbox.put_reserved_nowait("reply")
    mailbox.put_reserved_nowait("outcome")

    with pytest.raises(MailboxFull):
        mailbox.put_reserved_nowait("one too many")
    assert mailbox.statistics().depth == 4


@pytest.mark.trio
async def test_messages_in_hand_take_room_until_acknowledged(autojump_clock: MockClock) -> None:
    mailbox = mailbox_of("a", "b", capacity=2)
    reader = mailbox.attach()
    await reader.receive_all()
    with pytest.raises(MailboxFull):
        mailbox.put_nowait("c")

    reader.acknowledge()
    mailbox.put_nowait("c")
    assert await reader.receive_all() == ["c"]


@pytest.mark.trio
async def test_a_batch_acknowledged_one_by_one_gives_its_room_back(
    autojump_clock: MockClock,
) -> None:
    mailbox = mailbox_of("a", "b", capacity=2)
    reader = mailbox.attach()
    for _ in await reader.receive_all():
        reader.acknowledge_one()
    assert mailbox.statistics().depth == 0
    with trio.move_on_after(1):
        await reader.receive_all()

    mailbox.put_nowait("c")
    mailbox.put_nowait("d")


@pytest.mark.trio
async def test_receiving_on_top_of_an_unacknowledged_batch_is_a_bug(
    autojump_clock: MockClock,
) -> None:
    reader = mailbox_of("a").attach()
    await reader.receive_all()

    with pytest.raises(AssertionError, match="acknowledge"):
        await reader.receive_all()


@pytest.mark.trio
async def test_what_was_not_acknowledged_comes_again_first_and_in_order(
    autojump_clock: MockClock,
) -> None:
    mailbox = mailbox_of("a", "b", "c")
    reader = mailbox.attach()
    await reader.receive_all()
    reader.acknowledge_one()
    mailbox.put_nowait("d")
    mailbox.requeue_unacknowledged()

    assert await mailbox.attach().receive_all() == ["b", "c", "d"]


@pytest.mark.trio
async def test_after_a_crash_the_suspects_come_one_at_a_time_then_the_rest(
    autojump_clock: MockClock,
) -> None:
    mailbox = mailbox_of("a", "b")
    await mailbox.attach().receive_all()
    mailbox.put_nowait("c")
    mailbox.put_nowait("d")
    mailbox.requeue_unacknowledged(crash_reason="crash")
    reader = mailbox.attach()
    batches = []
    for _ in range(3):
        batches.append(await reader.receive_all())
        reader.acknowledge()

    assert batches == [["a"], ["b"], ["c", "d"]]


@pytest.mark.trio
async def test_a_clean_stop_in_the_middle_of_suspects_keeps_order_and_account(
    autojump_clock: MockClock,
) -> None:
    mailbox = mailbox_of("a", "b", "c")
    await mailbox.attach().receive_all()
    mailbox.requeue_unacknowledged(crash_reason="first")
    await mailbox.attach().receive_all()
    mailbox.requeue_unacknowledged()  # a clean stop: "a" keeps its one crash
    await mailbox.attach().receive_all()
    mailbox.requeue_unacknowledged(crash_reason="second")

    assert [letter.message for letter in mailbox.dead_letters] == ["a"]
    reader = mailbox.attach()
    assert await reader.receive_all() == ["b"]
    mailbox.requeue_unacknowledged()  # "b" has no crash on its account, but its place is first
    assert await mailbox.attach().receive_all() == ["b"]


@pytest.mark.trio
async def test_a_clean_stop_does_not_wipe_the_account_of_the_last_suspect(
    autojump_clock: MockClock,
) -> None:
    mailbox = mailbox_of("poison")
    for reason in ("first", None, "second"):
        await mailbox.attach().receive_all()
        mailbox.requeue_unacknowledged(crash_reason=reason)

    assert [letter.reason for letter in mailbox.dead_letters] == ["second"]


@pytest.mark.trio
@pytest.mark.parametrize("crashes_max", [1, 2, 3])
async def test_a_message_is_parked_after_so_many_crashes(
    autojump_clock: MockClock, crashes_max: int
) -> None:
    seen: list[DeadLetter[str]] = []
    mailbox: Mailbox[str] = Mailbox(
        capacity=3, reserved_capacity=0, crashes_max=crashes_max, on_dead_letter=seen.append
    )
    mailbox.put_nowait("poison")
    for number in range(crashes_max):
        assert mailbox.dead_letters == ()
        await mailbox.attach().receive_all()
        mailbox.requeue_unacknowledged(crash_reason=f"crash {number + 1}")

    assert seen == list(mailbox.dead_letters)
    assert seen == [
        DeadLetter(message="poison", reason=f"crash {crashes_max}", crashes=crashes_max)
    ]
    assert mailbox.statistics().depth == 0


@pytest.mark.trio
async def test_dead_letters_are_kept_in_bounded_number_and_all_counted(
    autojump_clock: MockClock,
) -> None:
    def fail(letter: object) -> None:
        raise RuntimeError("the observer is broken")

    mailbox: Mailbox[int] = Mailbox(
        capacity=3, reserved_capacity=0, crashes_max=1, dead_letters_max=2, on_dead_letter=fail
    )
    for number in range(3):
        mailbox.put_nowait(number)
        await mailbox.attach().receive_all()
        mailbox.requeue_unacknowledged(crash_reason="crash")

    assert [letter.message for letter in mailbox.dead_letters] == [1, 2]
    assert mailbox.statistics().dead_letters == 3


@pytest.mark.trio
async def test_a_revoked_reader_can_do_nothing_more(autojump_clock: MockClock) -> None:
    mailbox = mailbox_of("a", "b")
    old = mailbox.attach()
    await old.receive_all()
    mailbox.revoke("hangs")

    with pytest.raises(MailboxRevoked):
        old.acknowledge_one()
    with pytest.raises(MailboxRevoked):
        old.acknowledge()
    new = mailbox.attach()
    assert await new.receive_all() == ["a"]
    with pytest.raises(MailboxRevoked):
        old.acknowledge()
    new.acknowledge()
    assert await new.receive_all() == ["b"]


@pytest.mark.trio
async def test_a_reader_that_waits_learns_that_it_was_revoked(autojump_clock: MockClock) -> None:
    mailbox = mailbox_of()
    refused = []

    async def read() -> None:
        reader = mailbox.attach()
        with pytest.raises(MailboxRevoked):
            await reader.receive_all()
        refused.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        mailbox.revoke("gone")

    assert refused == [True]


def test_a_revoked_mailbox_refuses_new_work_until_the_next_incarnation() -> None:
    mailbox = mailbox_of("a")
    mailbox.revoke("hangs")
    with pytest.raises(MailboxRevoked):
        mailbox.put_nowait("b")
    mailbox.put_reserved_nowait("reply to admitted work")
    assert mailbox.statistics().is_revoked

    mailbox.attach()
    mailbox.put_nowait("c")
    assert mailbox.statistics().depth == 3


@pytest.mark.trio
async def test_a_message_that_hangs_its_actor_twice_is_parked(autojump_clock: MockClock) -> None:
    mailbox = mailbox_of("hangs", "neighbour")
    for _ in range(2):
        await mailbox.attach().receive_all()
        mailbox.revoke("ignored its cancellation")

    assert [letter.message for letter in mailbox.dead_letters] == ["hangs"]
    assert await mailbox.attach().receive_all() == ["neighbour"]


@pytest.mark.trio
async def test_attaching_again_locks_the_earlier_reader_out_without_blame(
    autojump_clock: MockClock,
) -> None:
    mailbox = mailbox_of("a", "b")
    for _ in range(5):
        assert await mailbox.attach().receive_all() == ["a", "b"]

    assert mailbox.dead_letters == ()


@pytest.mark.trio
async def test_statistics_add_up(autojump_clock: MockClock) -> None:
    mailbox = mailbox_of("a", "b", "c", capacity=4, reserved_capacity=1)
    reader = mailbox.attach()
    await reader.receive_all()
    reader.acknowledge_one()
    statistics = mailbox.statistics()
    counts = (statistics.depth, statistics.high_water, statistics.received, statistics.delivered)
    assert counts == (2, 3, 3, 3)

    mailbox.requeue_unacknowledged(crash_reason="crash")
    await mailbox.attach().receive_all()
    statistics = mailbox.statistics()
    counts = (statistics.depth, statistics.high_water, statistics.received, statistics.delivered)
    assert counts == (2, 3, 3, 4)
    assert (statistics.capacity, statistics.reserved_capacity) == (4, 1)


@pytest.mark.parametrize(
    "numbers",
    [
        {"capacity": 0, "reserved_capacity": 1},
        {"capacity": 1, "reserved_capacity": -1},
        {"capacity": 1, "reserved_capacity": 0, "crashes_max": 0},
        {"capacity": 1, "reserved_capacity": 0, "dead_letters_max": 0},
    ],
)
def test_numbers_that_make_no_mailbox_are_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a mailbox needs"):
        Mailbox(**numbers)
