"""The totals follow in their own time, and trouble with them is told once and stops nobody."""

import pytest
import trio

from engine.actors.totals import TotalsActor, TotalsStatistics
from engine.ports import EntryInvalid, LedgerUnavailable
from tests.virtual.actors.surroundings import Lines


class Journal:
    """Folds ten transfers each time, unless something is wrong."""

    def __init__(self):
        self.wrong = None
        self.asked_at = []

    async def project_totals(self):
        self.asked_at.append(trio.current_time())
        if self.wrong is not None:
            raise self.wrong
        return 10


@pytest.mark.trio
async def test_it_projects_every_so_often_and_tells_trouble_once(autojump_clock):
    journal, lines = Journal(), Lines()
    actor = TotalsActor(journal, lines, every_s=2.0)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: actor.run(task_status=task_status))
        await trio.sleep(5)
        assert [at - began for at in journal.asked_at] == [2, 4]
        assert actor.statistics() == TotalsStatistics(folded=20, failed=0)
        journal.wrong = LedgerUnavailable("gone")
        await trio.sleep(6)
        assert actor.statistics() == TotalsStatistics(folded=20, failed=3)
        journal.wrong = EntryInvalid("invalid: accounts_pending_not_negative")
        await trio.sleep(4)
        journal.wrong = None
        await trio.sleep(2)
        assert actor.statistics() == TotalsStatistics(folded=30, failed=0)
        nursery.cancel_scope.cancel()
    assert [event for event, _ in lines.lines] == [
        "totals_not_projected", "totals_refused", "totals_projected_again",
    ]  # fmt: skip


@pytest.mark.trio
async def test_payments_go_on_where_totals_are_refused(autojump_clock, world, monkeypatch):
    async def refuse():
        raise EntryInvalid("invalid: accounts_pending_not_negative")

    monkeypatch.setattr(world.ledger, "project_totals", refuse)
    await trio.sleep(3)
    assert (await world.open())[0].status == 201
    assert world.system.not_ready_because() == []
