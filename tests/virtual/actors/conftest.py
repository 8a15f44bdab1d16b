"""A world under the virtual clock, and an engine running in it."""

import pytest

from tests.virtual.actors.rig import a_world


@pytest.fixture
async def world(tmp_path, autojump_clock):
    """A ledger, a gateway and an engine that is up. Checked as a whole when the test is done."""
    async with a_world(tmp_path, autojump_clock) as world:
        await world.start()
        yield world
