"""Log lines leave the process in time, and an output that takes none of them is noticed."""

from __future__ import annotations

import io
import time

import anyio
import pytest

from engine.app.run import _flush_logs
from engine.app.telemetry import StructlogTelemetry

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Reluctant(io.BytesIO):
    """An output that takes its first lines only after a while, as a full pipe does."""

    def __init__(self) -> None:
        super().__init__()
        self.left_s = 0.4

    def write(self, lines: object) -> int:
        wait_s, self.left_s = self.left_s, 0.0
        time.sleep(wait_s)
        return super().write(lines)  # type: ignore[arg-type]


async def test_a_write_that_blocks_is_a_stall_in_which_the_engine_did_not_run() -> None:
    out = Reluctant()
    telemetry = StructlogTelemetry(out=out, pretty=False)
    telemetry.log("first")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_flush_logs, telemetry)
        with anyio.fail_after(20):
            while b"event_loop_stalled" not in out.getvalue():
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    assert telemetry.metrics.loop_stalls["waiting"] == 1
    assert b'"first"' in out.getvalue()
