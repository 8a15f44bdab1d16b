"""Whatever commands and news come, in whatever order, the rules of `verify` hold of the result.

The machine and the rules compute the same amounts by different arithmetic: a seeded walk through
the machine finds where they part. Then one change at a time is made to a sound payment, and named.
"""

from collections.abc import Callable
from datetime import date
from itertools import count
from random import Random

import msgspec
import pytest

from engine.domain import machine
from engine.domain.change import Env, Step
from engine.domain.commands import Cancel, Capture, Open, Refund
from engine.domain.fees import FeeRule, FeeSchedule, fee_schedule
from engine.domain.ids import new_id
from engine.domain.news import (
    ActionRequired,
    Approved,
    Declined,
    Expired,
    Failed,
    GatewayTraits,
    News,
    NextAction,
    NotFound,
    RefundedElsewhere,
    ReversedByGateway,
    StillPending,
    Unknown,
)
from engine.domain.payment import Payment, timers
from engine.domain.posting import AccountKey
from engine.domain.recording import record
from engine.domain.refusals import Refusal
from engine.ledger import verify_rules as rules
from engine.ledger.rows import SIGNS

NOW_MS = 1_800_000_000_000
DAY_MS = 86_400_000
TRAITS = GatewayTraits(
    name="simulator",
    deadline_ms=6_000,
    lookup_lag_ms=4_000,
    multiple_capture=True,
    inflight_max=10,
    authorization_ms=7 * DAY_MS,
    resend_ms=DAY_MS,
)


def fees() -> FeeSchedule:
    schedule = fee_schedule(
        [
            FeeRule(
                valid_from=date(2020, 1, 1),
                currency="EUR",
                basis_points=290,
                fixed_minor=30,
                tax_basis_points=1900,
            )
        ]
    )
    assert isinstance(schedule, FeeSchedule)
    return schedule


FEES = fees()


class Walk:
    """One payment on its way, with the transfers and totals that its steps have made."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now_ms = NOW_MS
        self.numbers = count(1)
        self.moved: dict[tuple[int, str, str], int] = {}
        self.has: dict[AccountKey, rules.Tied] = {}
        self.timers: set[tuple[str, int]] = set()
        self.letter_ms = 0
        opened = Open(
            merchant_id="mer_1",
            livemode=False,
            purchase=self.random.random() < 0.5,
            amount=self.random.choice([1, 7, 1_000, 99_999]),
            currency="EUR",
            payment_method="pm_card_visa",
            gateway="simulator",
        )
        payment_id = new_id("pay_", NOW_MS, 17, seed)
        step = machine.open_payment(opened, payment_id, "key", "req", "/v1", self.env())
        self.payment = step.payment
        self.take(step)

    def env(self) -> Env:
        return Env(
            now_ms=self.now_ms,
            new_transfer=lambda: next(self.numbers),
            new_id=lambda prefix: new_id(f"{prefix}_", self.now_ms, 17, next(self.numbers)),
            jitter=self.random.random,
            traits=TRAITS,
            fees=FEES,
        )

    def take(self, step: Step | Refusal | None) -> None:
        if step is None or isinstance(step, Refusal):
            return
        recorded = record(step, self.env())
        self.payment = recorded.payment
        entry = recorded.entry
        self.timers -= {(timer.kind, timer.due_ms) for timer in entry.timers_cleared}
        self.timers |= {(timer.kind, timer.due_ms) for timer in entry.timers_set}
        if entry.dead_letter is not None:
            self.letter_ms = entry.dead_letter.created_ms
        for transfer in entry.transfers:
            at = (transfer.op, transfer.kind, transfer.phase)
            self.moved[at] = self.moved.get(at, 0) + transfer.amount
            pending, posted = SIGNS[transfer.phase]
            debit = self.has.setdefault(transfer.debit, rules.Tied())
            credit = self.has.setdefault(transfer.credit, rules.Tied())
            debit.debits_pending += pending * transfer.amount
            debit.net += posted * transfer.amount
            credit.credits_pending += pending * transfer.amount
            credit.net -= posted * transfer.amount

    def go_on(self) -> None:
        """One thing that may happen, sensible or not."""
        random, payment = self.random, self.payment
        self.now_ms += random.choice([1, 1_000, 20_000, 20_000, DAY_MS])
        env = self.env()
        if random.random() < 0.35:
            command = random.choice([Capture, Capture, Cancel, Refund])
            fields: dict[str, object] = {"merchant_id": "mer_1", "livemode": False}
            if command is not Cancel:
                fields["amount"] = random.choice([None, None, 1, 3, payment.amount // 2 + 1])
            if command is Capture:
                fields["final"] = random.random() < 0.6
            if command is Refund:
                fields["refund_id"] = env.new_id("re")
            asked = command(**fields)  # type: ignore[arg-type]
            self.take(machine.command_payment(payment, asked, "key", "req", "/v1", env))
        elif random.random() < 0.15:
            timed = [machine.expire, machine.retry, machine.review, machine.revive]
            self.take(random.choice(timed)(payment, env))
        else:
            op = random.choice(payment.operations)
            via = random.choice(["reply", "look_up", "webhook"])
            self.take(machine.hear(payment, op.n, self.news(op.amount, op.is_open), via, env))

    def news(self, amount: int, is_open: bool) -> News:
        random = self.random
        off = random.choice([0, 0, 0, 0, 0, -1, 5]) if is_open else 0
        right = max(1, (amount or self.payment.amount) + off)
        reference = f"ref_{random.randrange(4)}"
        action = ActionRequired(reference, NextAction("redirect", "u"), self.now_ms + DAY_MS)
        choices: list[News] = [
            *[Approved(right, "EUR", reference)] * 8,
            Approved(right, "USD", reference),
            Declined("do_not_honor", "try_again"),
            Failed("broken"),
            Expired(),
            action,
            StillPending(reference),
            Unknown("timeout"),
            NotFound(),
            RefundedElsewhere(random.choice([1, right]), "EUR", reference),
        ]
        if random.random() < 0.05:
            return ReversedByGateway(right, "returned")
        return random.choice(choices)


def differences(walk: Walk) -> list[str]:
    payment = walk.payment
    tied: dict[AccountKey, rules.Tied] = {}
    rules.tie(payment, tied)
    found = [*rules.bounds(payment), *rules.amounts(payment, walk.moved)]
    for key in tied.keys() | walk.has.keys():
        has = walk.has.get(key, rules.Tied())
        found += rules.untied(key, has, tied.get(key, rules.Tied()))
    found += [
        f"{id_} {what}"
        for id_, what in rules.work(payment, walk.timers, walk.letter_ms, payment.created_ms)
    ]
    return found


@pytest.mark.parametrize("seed", range(400))
def test_the_rules_hold_after_every_step_of_the_machine(seed: int) -> None:
    walk = Walk(seed)
    assert differences(walk) == []
    for _ in range(30):
        walk.go_on()
        assert differences(walk) == []


def row_of(payment: Payment) -> dict[str, object]:
    """A payment's columns as the ledger writes them."""
    row: dict[str, object] = {name: getattr(payment, name) for name in rules.SAME}
    return row | {"open": payment.is_open, "slot": 17}


def captured() -> Walk:
    """A purchase of 1,000 that succeeded."""
    for seed in range(100):
        walk = Walk(seed)
        if walk.payment.amount == 1_000 and walk.payment.origin.type == "purchase":
            news = Approved(1_000, "EUR", "ref")
            walk.take(machine.hear(walk.payment, 1, news, "reply", walk.env()))
            assert walk.payment.captured == 1_000
            return walk
    raise AssertionError("no seed makes one")


def test_columns_that_repeat_the_document_agree() -> None:
    payment = captured().payment
    assert list(rules.columns(payment, row_of(payment))) == []


@pytest.mark.parametrize(
    ("column", "value"),
    [("captured", 999), ("status", "authorized"), ("version", 9), ("slot", 3), ("open", True)],
)
def test_a_column_that_differs_is_named(column: str, value: object) -> None:
    payment = captured().payment
    found = list(rules.columns(payment, row_of(payment) | {column: value}))
    assert len(found) == 1
    assert column in found[0]


@pytest.mark.parametrize(
    ("field", "said"),
    [("captured", 999), ("fee", 1), ("released", 1), ("refunded", 5), ("reversed", 7)],
)
def test_an_amount_that_its_transfers_do_not_say_is_named(field: str, said: int) -> None:
    walk = captured()
    wrong = msgspec.structs.replace(walk.payment, **{field: said})
    found = list(rules.amounts(wrong, walk.moved))
    assert any(what.startswith(field) for what in found), found


def test_amounts_beyond_their_bounds_are_named() -> None:
    payment = msgspec.structs.replace(captured().payment, released=1, refunded=1_001)
    found = list(rules.bounds(payment))
    assert len(found) == 2


def test_an_excess_must_be_flagged() -> None:
    payment = msgspec.structs.replace(captured().payment, excess_captured=5)
    assert "nobody is told" in next(rules.bounds(payment))
    assert list(rules.bounds(msgspec.structs.replace(payment, needs_review=True))) == []


def unknown() -> Walk:
    """A payment whose outcome is unknown."""
    walk = Walk(1)
    walk.take(machine.hear(walk.payment, 1, Unknown("timeout"), "reply", walk.env()))
    return walk


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda walk: walk.timers.clear(), "look_up timer"),
        (lambda walk: setattr(walk, "now_ms", NOW_MS + 2 * DAY_MS), "past its deadline"),
    ],
)
def test_what_nobody_will_see_to_is_named(change: Callable[[Walk], None], word: str) -> None:
    walk = unknown()
    assert list(rules.work(walk.payment, walk.timers, 0, walk.now_ms)) == []
    assert timers(walk.payment)
    change(walk)
    found = list(rules.work(walk.payment, walk.timers, 0, walk.now_ms))
    assert len(found) == 1
    assert word in found[0][1]


def test_past_its_deadline_but_in_the_work_queue_is_in_order() -> None:
    walk = unknown()
    walk.now_ms += 2 * DAY_MS
    walk.take(machine.review(walk.payment, walk.env()))
    assert walk.letter_ms
    assert list(rules.work(walk.payment, walk.timers, walk.letter_ms, walk.now_ms)) == []
    assert list(rules.work(walk.payment, walk.timers, 0, walk.now_ms)) != []
