"""A short slice of `make fuzz`, from fixed seeds: the same requests at every run."""

from __future__ import annotations

import pytest

from tests.real.fuzz.api import Explorer
from tests.real.fuzz.payloads import Payloads
from tests.real.fuzz.sockets import SMUGGLED, Sockets
from tests.real.fuzz.sweep import Sweep, log_faults
from tests.real.fuzz.tally import Budget, Tally
from tests.real.fuzz.target import Target
from tests.real.fuzz.tenants import Tenants

SEED = 20_260_101


@pytest.fixture(autouse=True)
def nothing_failed_unseen(target: Target) -> None:
    """What ran before left no error in the log, and an engine that takes work."""
    yield
    assert log_faults(target) == []
    assert target.call("GET", "/readyz", key=None).status == 200


def test_every_operation_answers_what_its_document_says(target: Target, tally: Tally) -> None:
    explorer = Explorer(target, tally)
    operations = len(explorer.operations)
    # The second round finds what the first one made.
    explorer.every_operation(Budget(seconds=20, count=2 * operations), 4, SEED)
    assert tally.findings == []
    assert tally.counts["api"] > 4 * operations
    assert {"200", "201", "400", "404", "422"} <= set(tally.statuses["api"])


def test_chains_of_operations_answer_what_their_document_says(target: Target, tally: Tally) -> None:
    Explorer(target, tally).chains(Budget(seconds=10, count=1), 12, 8, SEED)
    assert tally.findings == []
    assert tally.counts["api chains"] > 20


def test_row_47_row_48_damaged_http_is_refused_or_closed_and_never_hangs(
    target: Target, tally: Tally
) -> None:
    Sockets(target, tally, SEED).damaged(Budget(seconds=15, count=192))
    assert tally.findings == []
    assert tally.statuses["sockets"]["400"] > 20


def test_requests_that_can_be_read_in_two_ways_are_refused(target: Target, tally: Tally) -> None:
    Sockets(target, tally, SEED).smuggled()
    assert tally.findings == []
    assert tally.counts["ambiguous framings"] == len(SMUGGLED)
    assert set(tally.statuses["sockets"]) <= {"400", "closed"}


def test_row_35_row_47_row_51_damaged_payloads_are_refused_by_their_code(
    target: Target, tally: Tally
) -> None:
    payloads = Payloads(target, tally, SEED)
    payloads.each()
    payloads.all(Budget(seconds=10, count=500))
    assert tally.findings == []
    assert len(tally.statuses) == 9, "an attack has gone"


def test_row_53_nothing_of_another_merchant_is_there_at_any_route(
    target: Target, tally: Tally
) -> None:
    tenants = Tenants(target, tally)
    assert tenants.uncovered() == [], "say in `tenants` whose ids stand there"
    assert tenants.every_route() > 40
    assert tally.findings == []


def test_row_50_planted_card_numbers_and_secrets_are_nowhere(target: Target, tally: Tally) -> None:
    """The last one, so that it also sweeps what the others have left."""
    sweep = Sweep(target, tally, SEED)
    sweep.plant(1)
    assert len(sweep.planted) > 60
    assert sweep.look() > 10_000_000
    assert tally.findings == []


def test_the_sweep_is_not_blind(target: Target, tally: Tally) -> None:
    sweep = Sweep(target, tally, SEED)
    written = [plant() for plant in (sweep._written, sweep._secret) for _ in range(20)]
    needles = {text.encode() for text in sweep.planted}
    for text in written:
        sweep._search(needles, "table payments", f'{{"note":"a {text} b"}}'.encode())
        sweep._search(needles, "table payments", b'{"note":"a 4111 b","id":"pay_06gzv5psfxpmre"}')
    assert len(tally.findings) == len(written)
