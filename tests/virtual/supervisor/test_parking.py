"""A shard in a crash loop is parked, retried slowly, and never noticed by its siblings."""

from random import Random
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from engine.supervisor import ChildSpec, ParkingSupervisor, Supervisor, SupervisorSpec
from engine.supervisor.reports import Parked, Resumed

QUICK = {"intensity": 1, "period_s": 5.0}


class Readiness:
    """What the hooks said, as readiness would show it."""

    def __init__(self) -> None:
        self.parked_because: str | None = None
        self.changes: list[tuple[str, float]] = []

    def park(self, reason: str) -> None:
        self.parked_because = reason
        self.changes.append(("parked", trio.current_time()))

    def resume(self) -> None:
        self.parked_because = None
        self.changes.append(("resumed", trio.current_time()))


def shard(
    stage: Any, host: Any, readiness: Readiness, *children: ChildSpec, **fields: Any
) -> ParkingSupervisor:
    inner = stage.supervisor(host, *children, **{"id": "shard", **QUICK, **fields})
    return ParkingSupervisor(
        inner.spec,
        host=host,
        random=Random(1),
        on_parked=readiness.park,
        on_resumed=readiness.resume,
        park_retry_s=30,
        on_event=stage.events.append,
    )


@pytest.mark.trio
async def test_a_crash_loop_parks_the_shard_and_a_slow_retry_resumes_it(
    autojump_clock: MockClock, stage: Any
) -> None:
    readiness = Readiness()
    parking: list[ParkingSupervisor] = []

    def make(host: Any) -> ParkingSupervisor:
        parking.append(shard(stage, host, readiness, stage.worker("a"), stage.worker("b")))
        return parking[0]

    async with stage.performing(make):
        await stage.crash("a")
        assert readiness.changes == []
        stage.take_log()
        await stage.crash("a")

        assert stage.take_log() == ["stop b"]
        assert readiness.parked_because is not None
        assert "ScriptedError: a" in readiness.parked_because
        statistics = parking[0].statistics()
        assert (statistics.parkings, statistics.retry_at_s) == (1, 30)
        assert not statistics.supervisor.is_running
        assert [(e.supervisor_id, e.retry_s) for e in stage.seen(Parked)] == [("shard", 30)]

        await trio.sleep(31)
        assert stage.take_log() == ["start a", "start b"]
        assert readiness.changes == [("parked", 0), ("resumed", 30)]
        assert parking[0].statistics().parked_because is None
        assert len(stage.seen(Resumed)) == 1


@pytest.mark.trio
async def test_a_resumed_shard_has_a_fresh_window(autojump_clock: MockClock, stage: Any) -> None:
    """With a period longer than the retry, old restarts would still count if they were kept."""
    readiness = Readiness()

    def make(host: Any) -> ParkingSupervisor:
        return shard(stage, host, readiness, stage.worker("a"), period_s=1_000.0)

    async with stage.performing(make):
        await stage.crash("a")
        await stage.crash("a")
        await trio.sleep(31)
        await stage.crash("a")

        assert readiness.parked_because is None
        await stage.crash("a")
        assert readiness.parked_because is not None


@pytest.mark.trio
async def test_a_shard_that_fails_at_boot_is_parked_and_holds_nobody_up(
    autojump_clock: MockClock, stage: Any
) -> None:
    stage.start_plans["bad"] = ["fail", "fail", "work"]
    readiness = Readiness()

    def make(host: Any) -> Supervisor:
        parking = shard(stage, host, readiness, stage.worker("bad"))
        branch = ChildSpec(id="shard", start=parking.run, type="supervisor")
        return stage.supervisor(host, branch, stage.worker("good"), intensity=0)

    async with stage.performing(make) as run:
        assert run.is_started
        assert stage.times == [("start bad", 0), ("start good", 0)]
        assert readiness.parked_because is not None

        await trio.sleep(100)
        assert readiness.changes == [("parked", 0), ("parked", 30), ("resumed", 60)]
        assert stage.starts["good"] == 1


@pytest.mark.trio
async def test_siblings_and_the_parent_never_notice_a_parked_shard(
    autojump_clock: MockClock, stage: Any
) -> None:
    readiness = {"one": Readiness(), "two": Readiness()}

    def make(host: Any) -> Supervisor:
        branches = [
            ChildSpec(
                id=name,
                start=shard(stage, host, readiness[name], stage.worker(f"{name} worker")).run,
                type="supervisor",
            )
            for name in readiness
        ]
        return stage.supervisor(host, *branches, strategy="one_for_all", intensity=0)

    async with stage.performing(make) as run:
        for _ in range(5):
            await stage.crash("one worker")
            await stage.crash("one worker")
            await trio.sleep(31)

        assert not run.has_ended
        assert run.supervisor.statistics().restarts == 0
        assert len(readiness["one"].changes) == 10
        assert readiness["two"].changes == []
        assert stage.starts["two worker"] == 1


@pytest.mark.trio
async def test_a_parked_shard_stops_at_once(autojump_clock: MockClock, stage: Any) -> None:
    stage.start_plans["a"] = ["fail"]
    readiness = Readiness()

    async with stage.performing(
        lambda host: shard(stage, host, readiness, stage.worker("a"))
    ) as run:
        await run.stop()

    assert trio.current_time() == 0
    assert readiness.changes == [("parked", 0)]


@pytest.mark.trio
async def test_a_shard_that_shuts_itself_down_is_not_parked(
    autojump_clock: MockClock, stage: Any
) -> None:
    child = stage.worker("a", restart="transient", significant=True)
    readiness = Readiness()

    def make(host: Any) -> ParkingSupervisor:
        return shard(stage, host, readiness, child, auto_shutdown="any_significant")

    async with stage.performing(make) as run:
        await stage.finish("a")

        assert run.has_ended
        assert readiness.changes == []


def test_a_retry_must_be_slow() -> None:
    with pytest.raises(ValueError, match="park_retry_s is 0"):
        ParkingSupervisor(
            SupervisorSpec(id="shard"),
            host=None,  # type: ignore[arg-type]
            random=Random(1),
            on_parked=lambda reason: None,
            on_resumed=lambda: None,
            park_retry_s=0,
        )
