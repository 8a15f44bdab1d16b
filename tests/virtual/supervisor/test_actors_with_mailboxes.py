"""Supervisor and mailbox together: a restart loses no message, and poison harms no neighbour."""

from random import Random
from typing import Any

import anyio
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from engine.supervisor import (
    Backoff,
    ChildSpec,
    Mailbox,
    MailboxRevoked,
    Supervisor,
    SupervisorSpec,
)
from engine.supervisor.reports import EndingKind


class Counter:
    """An actor that notes each message; `crash_on` names messages and how often they crash it."""

    def __init__(self, *, acknowledges_each: bool, crash_on: dict[Any, int]) -> None:
        self.mailbox: Mailbox[Any] = Mailbox(capacity=2_000, reserved_capacity=10)
        self.handled: list[Any] = []
        self.lives = 0
        self._acknowledges_each = acknowledges_each
        self._crash_on = crash_on

    async def run(self, *, task_status: Any) -> None:
        self.lives += 1
        reader = self.mailbox.attach()
        task_status.started()
        while True:
            batch = await reader.receive_all()
            done = []
            for message in batch:
                if self._crash_on.get(message, 0) > 0:
                    self._crash_on[message] -= 1
                    raise ArithmeticError(f"no sense in {message}")
                done.append(message)
                if self._acknowledges_each:
                    self.handled.append(message)
                    reader.acknowledge_one()
            if not self._acknowledges_each:
                self.handled += done
            reader.acknowledge()

    def child(self, **fields: Any) -> ChildSpec:
        return ChildSpec(id="counter", start=self.run, mailbox=self.mailbox, **fields)


def supervise(stage: Any, actor: Counter, **fields: Any) -> Any:
    return stage.running(actor.child(), intensity=1_000, period_s=1_000.0, **fields)


@pytest.mark.trio
@pytest.mark.parametrize("acknowledges_each", [True, False])
async def test_a_restart_loses_no_message_and_keeps_the_order(
    autojump_clock: MockClock, stage: Any, acknowledges_each: bool
) -> None:
    crash_on = {10: 1, 11: 1, 500: 1, 999: 1}
    actor = Counter(acknowledges_each=acknowledges_each, crash_on=crash_on)
    async with supervise(stage, actor):
        for number in range(1_000):
            actor.mailbox.put_nowait(number)
            if number % 100 == 0:
                await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()

    assert actor.handled == list(range(1_000))
    assert actor.lives == 5
    assert actor.mailbox.statistics().depth == 0


@pytest.mark.trio
@pytest.mark.parametrize("acknowledges_each", [True, False])
async def test_poison_is_parked_with_its_reason_and_its_neighbours_are_handled(
    autojump_clock: MockClock, stage: Any, acknowledges_each: bool
) -> None:
    actor = Counter(acknowledges_each=acknowledges_each, crash_on={3: 99, 7: 99})
    async with supervise(stage, actor):
        for number in range(10):
            actor.mailbox.put_nowait(number)
        await trio.testing.wait_all_tasks_blocked()

    assert actor.handled == [0, 1, 2, 4, 5, 6, 8, 9]
    letters = [(letter.message, letter.reason) for letter in actor.mailbox.dead_letters]
    assert letters == [
        (3, "ArithmeticError: no sense in 3"),
        (7, "ArithmeticError: no sense in 7"),
    ]


@pytest.mark.trio
async def test_messages_sent_during_the_backoff_wait_for_the_next_incarnation(
    autojump_clock: MockClock, stage: Any
) -> None:
    actor = Counter(acknowledges_each=True, crash_on={1: 1})
    backoff = Backoff(initial_s=5, max_s=5, jitter=0)
    spec = SupervisorSpec(id="top", children=(actor.child(),), backoff=backoff)
    async with stage.performing(lambda host: Supervisor(spec, host=host, random=Random(1))):
        actor.mailbox.put_nowait(1)
        await trio.testing.wait_all_tasks_blocked()
        actor.mailbox.put_nowait(2)
        actor.mailbox.put_reserved_nowait(3)
        await trio.sleep(6)

        assert actor.handled == [1, 2, 3]


@pytest.mark.trio
@pytest.mark.parametrize("crashes_in_clean_up", [False, True])
async def test_a_stop_blames_nobody_and_keeps_what_was_in_hand(
    autojump_clock: MockClock, stage: Any, crashes_in_clean_up: bool
) -> None:
    mailbox: Mailbox[str] = Mailbox(capacity=10, reserved_capacity=0)

    async def start(*, task_status: Any) -> None:
        reader = mailbox.attach()
        task_status.started()
        await reader.receive_all()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            if crashes_in_clean_up:
                raise ArithmeticError("clean-up") from None
            raise

    async with stage.running(ChildSpec(id="a", start=start, mailbox=mailbox)) as run:
        mailbox.put_nowait("a")
        mailbox.put_nowait("b")
        for _ in range(5):
            await trio.testing.wait_all_tasks_blocked()
            await run.supervisor.terminate_child("a")
            await run.supervisor.restart_child("a")

    assert mailbox.dead_letters == ()
    assert await mailbox.attach().receive_all() == ["a", "b"]


@pytest.mark.trio
async def test_an_abandoned_incarnation_can_take_no_message_from_the_next(
    autojump_clock: MockClock, stage: Any
) -> None:
    mailbox: Mailbox[str] = Mailbox(capacity=10, reserved_capacity=0)
    handled: list[tuple[int, str]] = []
    lives = 0

    async def start(*, task_status: Any) -> None:
        nonlocal lives
        lives += 1
        life = lives
        reader = mailbox.attach()
        task_status.started()
        while True:
            for message in await reader.receive_all():
                if message == "hang" and life == 1:
                    with anyio.CancelScope(shield=True):
                        await stage.release.wait()
                handled.append((life, message))
                reader.acknowledge_one()

    child = ChildSpec(id="a", start=start, mailbox=mailbox, shutdown_s=1.0)
    async with stage.running(child) as run:
        mailbox.put_nowait("hang")
        mailbox.put_nowait("next")
        await trio.testing.wait_all_tasks_blocked()
        await run.supervisor.terminate_child("a")
        with pytest.raises(MailboxRevoked):
            mailbox.put_nowait("nobody is there")
        await run.supervisor.restart_child("a")
        mailbox.put_nowait("last")
        await trio.testing.wait_all_tasks_blocked()
        assert handled == [(2, "hang"), (2, "next"), (2, "last")]

        stage.release.set()
        await trio.testing.wait_all_tasks_blocked()
        # The old life finishes the message it hung on, and is refused at the very next step.
        assert handled[3:] == [(1, "hang")]
        ended = stage.events[-1]
        assert ended.ending.kind is EndingKind.CRASHED
        assert "MailboxRevoked" in ended.ending.reason
        assert mailbox.statistics().depth == 0
