"""The production backend, where it differs: native cancellation and its delivery.

There is no virtual clock here, so nothing in these tests waits for time to pass.
"""

import asyncio
from random import Random
from typing import Any

import anyio

from engine.supervisor import Backoff, ChildSpec, Mailbox, Supervisor, SupervisorSpec
from engine.supervisor.reports import ChildAbandoned, ChildStopped


def test_on_asyncio_a_task_cancelled_by_someone_else_restarts_and_stops_in_order() -> None:
    """The same engine on the production backend, with `task.cancel()` from outside."""
    log: list[str] = []
    tasks: dict[str, asyncio.Task[Any]] = {}
    restarted = []

    def child(child_id: str) -> ChildSpec:
        async def start(*, task_status: Any) -> None:
            log.append(f"start {child_id}")
            task = asyncio.current_task()
            assert task is not None
            tasks[child_id] = task
            task_status.started()
            if log.count("start a") == 2:
                restarted[0].set()
            try:
                await anyio.sleep_forever()
            finally:
                log.append(f"stop {child_id}")

        return ChildSpec(id=child_id, start=start)

    async def main() -> None:
        restarted.append(anyio.Event())
        spec = SupervisorSpec(
            id="top", children=(child("a"), child("b")), backoff=Backoff(initial_s=0, max_s=0)
        )
        async with anyio.create_task_group() as host, anyio.create_task_group() as group:
            await group.start(Supervisor(spec, host=host, random=Random(1)).run)
            tasks["a"].cancel()
            with anyio.fail_after(10):
                await restarted[0].wait()
            group.cancel_scope.cancel()

    anyio.run(main)

    assert log == ["start a", "start b", "stop a", "start a", "stop b", "stop a"]


def test_on_asyncio_a_brutal_stop_ends_what_unwinds_and_abandons_what_does_not() -> None:
    events: list[Any] = []

    async def main() -> None:
        release = anyio.Event()

        async def nested(*, task_status: Any) -> None:
            async with anyio.create_task_group() as outer, anyio.create_task_group() as inner:
                outer.start_soon(anyio.sleep_forever)
                inner.start_soon(anyio.sleep_forever)
                task_status.started()

        async def stubborn(*, task_status: Any) -> None:
            task_status.started()
            with anyio.CancelScope(shield=True):
                await release.wait()

        children = (
            ChildSpec(id="nested", start=nested, shutdown_s="brutal"),
            ChildSpec(id="stubborn", start=stubborn, shutdown_s="brutal"),
        )
        spec = SupervisorSpec(id="top", children=children)
        async with anyio.create_task_group() as host:
            supervisor = Supervisor(spec, host=host, random=Random(1), on_event=events.append)
            async with anyio.create_task_group() as group:
                await group.start(supervisor.run)
                group.cancel_scope.cancel()
            assert supervisor.statistics().abandoned == 1
            release.set()
        assert supervisor.statistics().abandoned == 0

    anyio.run(main)

    assert [event.child_id for event in events if isinstance(event, ChildAbandoned)] == ["stubborn"]
    assert [event.child_id for event in events if isinstance(event, ChildStopped)] == ["nested"]


def test_on_asyncio_a_crashing_reader_loses_no_message() -> None:
    mailbox: Mailbox[int] = Mailbox(capacity=100, reserved_capacity=0)
    handled: list[int] = []
    crashes = {10, 40, 41}

    async def main() -> None:
        done = anyio.Event()

        async def start(*, task_status: Any) -> None:
            reader = mailbox.attach()
            task_status.started()
            while True:
                for message in await reader.receive_all():
                    if message in crashes:
                        crashes.remove(message)
                        raise ArithmeticError(message)
                    handled.append(message)
                    reader.acknowledge_one()
                if len(handled) == 100:
                    done.set()

        child = ChildSpec(id="reader", start=start, mailbox=mailbox)
        spec = SupervisorSpec(
            id="top", children=(child,), intensity=3, backoff=Backoff(initial_s=0, max_s=0)
        )
        async with anyio.create_task_group() as host, anyio.create_task_group() as group:
            await group.start(Supervisor(spec, host=host, random=Random(1)).run)
            for number in range(100):
                mailbox.put_nowait(number)
            with anyio.fail_after(10):
                await done.wait()
            group.cancel_scope.cancel()

    anyio.run(main)

    assert handled == list(range(100))
