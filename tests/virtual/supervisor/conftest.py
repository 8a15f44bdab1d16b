"""A stage on which scripted children start, crash, finish, hang and refuse to go."""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import anyio
import pytest
import trio
import trio.testing
from anyio.abc import TaskGroup

from engine.supervisor import Backoff, ChildSpec, SupervisionError, Supervisor, SupervisorSpec

AT_ONCE = Backoff(initial_s=0, max_s=0, jitter=0)


class ScriptedError(Exception):
    """What a scripted child raises when told to crash."""


class Performance:
    """One run of a supervisor on the stage."""

    def __init__(self, supervisor: Any) -> None:
        self.supervisor = supervisor
        self.scope = anyio.CancelScope()
        self.is_started = False
        self.has_ended = False
        self.error: SupervisionError | None = None
        self.progressed = anyio.Event()

    def started(self, value: object = None) -> None:
        self.is_started = True
        self.progressed.set()

    async def live(self) -> None:
        try:
            with self.scope:
                await self.supervisor.run(task_status=self)
        except SupervisionError as error:
            self.error = error
        finally:
            self.has_ended = True
            self.progressed.set()

    async def stop(self) -> None:
        """Cancel the supervisor and wait until it has ended."""
        self.scope.cancel()
        while not self.has_ended:
            self.progressed = anyio.Event()
            await self.progressed.wait()


class Stage:
    """`log` holds what the children did in order, `events` what their supervisors reported."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.times: list[tuple[str, float]] = []
        self.events: list[Any] = []
        self.starts: dict[str, int] = defaultdict(int)
        self.start_plans: dict[str, list[str]] = defaultdict(list)
        self.release = anyio.Event()
        self._orders: dict[str, trio.MemorySendChannel[str]] = {}

    def worker(self, child_id: str, *, on_cancel: str = "obey", **fields: Any) -> ChildSpec:
        """A child that follows orders; `on_cancel`: obey, ignore, or a number of seconds."""

        async def start(*, task_status: Any) -> None:
            self.note(f"start {child_id}")
            self.starts[child_id] += 1
            plan = self.start_plans[child_id].pop(0) if self.start_plans[child_id] else "work"
            if plan == "fail":
                raise ScriptedError(f"{child_id} can't start")
            if plan == "return":
                return
            if plan == "hang":
                await trio.sleep_forever()
            if plan == "hang and ignore":
                with anyio.CancelScope(shield=True):
                    await self.release.wait()
                return
            if plan == "slow":
                await trio.sleep(2)
            orders: trio.MemoryReceiveChannel[str]
            self._orders[child_id], orders = trio.open_memory_channel(1)
            task_status.started(f"{child_id} {self.starts[child_id]}")
            if plan == "crash at once":
                raise ScriptedError(child_id)
            try:
                order = await orders.receive()
            except trio.Cancelled:
                if on_cancel == "ignore":
                    with anyio.CancelScope(shield=True):
                        await self.release.wait()
                elif on_cancel == "crash":
                    raise ScriptedError(f"{child_id} cleaning up") from None
                elif on_cancel != "obey":
                    with anyio.CancelScope(shield=True):
                        await trio.sleep(float(on_cancel))
                self.note(f"stop {child_id}")
                raise
            if order == "crash":
                raise ScriptedError(child_id)

        return ChildSpec(id=child_id, start=start, **fields)

    def note(self, what: str) -> None:
        self.log.append(what)
        self.times.append((what, trio.current_time()))

    def take_log(self) -> list[str]:
        """The log since it was last taken."""
        log, self.log = self.log, []
        return log

    async def crash(self, *child_ids: str) -> None:
        """Crash children, in this order, and wait until the supervisors have dealt with it."""
        for child_id in child_ids:
            self._orders[child_id].send_nowait("crash")
        await trio.testing.wait_all_tasks_blocked()

    async def finish(self, child_id: str) -> None:
        """Let a child return, and wait until the supervisors have dealt with it."""
        self._orders[child_id].send_nowait("finish")
        await trio.testing.wait_all_tasks_blocked()

    def seen(self, kind: type) -> list[Any]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def supervisor(self, host: TaskGroup, *children: ChildSpec, **fields: Any) -> Supervisor:
        settings = {"id": "top", "backoff": AT_ONCE, **fields}
        spec = SupervisorSpec(children=children, **settings)
        return Supervisor(spec, host=host, random=Random(7), on_event=self.events.append)

    @asynccontextmanager
    async def performing(self, make: Callable[[TaskGroup], Any]) -> AsyncIterator[Performance]:
        """Run what `make(host)` returns until the block is left."""
        async with anyio.create_task_group() as host:
            performance = Performance(make(host))
            host.start_soon(performance.live)
            await performance.progressed.wait()
            try:
                yield performance
            finally:
                with anyio.CancelScope(shield=True):
                    await performance.stop()
                    self.release.set()

    def running(self, *children: ChildSpec, **fields: Any) -> Any:
        """Run a supervisor of these children until the block is left."""
        return self.performing(lambda host: self.supervisor(host, *children, **fields))


@pytest.fixture
def stage() -> Stage:
    """An empty stage. A test asks for `autojump_clock` itself, or it would run in real time."""
    return Stage()
