"""The slice of these scenarios that every change goes through: two kills and a lost reply."""

from __future__ import annotations

import asyncio

import pytest

from tests.torture.checks import more_answers, under_load, writer_statistics
from tests.torture.conftest import Scenario
from tests.torture.plant import plant

pytestmark = pytest.mark.anyio


async def test_killed_at_two_failpoints_and_cut_off_once(scenario: Scenario) -> None:
    """After the intent, after the commit, and with the answer to a commit under way."""
    with plant(proxied=True) as works:
        engine = works.engine
        async with under_load(engine, scenario, seed=1) as (client, load):
            for point in ("after_intent", "after_commit"):
                if engine.is_running:
                    engine.kill()
                engine.spawn(f"{point}:2")
                async with asyncio.timeout(20):
                    while not engine.has_died():
                        await asyncio.sleep(0.02)
            await asyncio.to_thread(engine.start)
            assert works.proxy is not None
            async with asyncio.timeout(40):
                # Where the lost reply was that of a refused batch, there is nothing to settle.
                while (await writer_statistics(client))["resolved"] == 0:
                    if not works.proxy.faults:
                        works.proxy.faults.append("lost_after")
                    await more_answers(load, 2)
            await more_answers(load, 10)
