"""Any commands, any news, in any order, on one payment: the rules hold after every step.

The rules themselves are in `one_payment`. News is drawn without asking whether it makes sense:
gateways repeat themselves, contradict themselves, are late and are wrong about amounts.
"""

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.domain.news import (
    ActionRequired,
    Approved,
    Declined,
    Disputed,
    Expired,
    Failed,
    NextAction,
    NotFound,
    RefundedElsewhere,
    ReversedByGateway,
    StillPending,
    Unknown,
)
from engine.domain.payment import COMMANDS, timers
from tests.pure.domain.one_payment import OnePayment

AMOUNTS = st.sampled_from([1, 250, 400, 1_000, 1_500])
ROADS = st.sampled_from(["reply", "look_up", "webhook"])
VAGUE = st.sampled_from(
    [
        Declined("do_not_honor", "try_again_later"),
        Expired(),
        Failed("canceled"),
        Failed("gateway_unreachable", sent=False),
        ActionRequired("ch_1", NextAction("redirect", "https://a"), 0),
        StillPending("ch_1"),
        StillPending(),
        Unknown("timeout"),
        NotFound(),
        Approved(0, "USD", "ref_zero"),
        Approved(1_000, "EUR", "ref_euro"),
    ]
)
WAITS_MS = st.sampled_from([1, 3_000, 11_000, 60_000, 300_000, 1_800_000, 90_000_000, 700_000_000])


class Payments(RuleBasedStateMachine):
    """One payment and everything that can happen to it."""

    @initialize(purchase=st.booleans(), fees=st.booleans())
    def begin(self, purchase, fees):
        self.one = OnePayment(purchase=purchase, fees=fees)

    @rule(amount=st.none() | AMOUNTS, final=st.booleans())
    def capture(self, amount, final):
        self._obeys("capture", self.one.capture(amount, final=final))

    @rule()
    def cancel(self):
        self._obeys("cancel", self.one.cancel())

    @rule(amount=st.none() | AMOUNTS)
    def refund(self, amount):
        self._obeys("refund", self.one.refund(amount))

    def _obeys(self, command, refusal):
        """Only what the table of commands allows is ever accepted."""
        if refusal is None and self.one.step.before is not None:
            assert COMMANDS[self.one.step.before.status][command] == "yes"

    @rule(pick=st.integers(0, 9), via=ROADS, news=VAGUE)
    def hear_anything(self, pick, via, news):
        self.one.hear(pick % len(self.one.payment.operations) + 1, news, via)

    @rule(pick=st.integers(0, 9), via=ROADS, amount=st.none() | AMOUNTS)
    def hear_approval(self, pick, via, amount):
        n = pick % len(self.one.payment.operations) + 1
        self.one.approve(n, amount, via)

    @precondition(lambda self: any(op.is_open for op in self.one.payment.operations))
    @rule(pick=st.integers(0, 9), good=st.booleans())
    def resolve_something_open(self, pick, good):
        open_ = [op.n for op in self.one.payment.operations if op.is_open]
        n = open_[pick % len(open_)]
        if good:
            self.one.approve(n, None, "look_up")
        else:
            self.one.hear(n, Failed("server_error"), "look_up")

    @rule(amount=AMOUNTS, currency=st.sampled_from(["USD", "EUR"]), n=st.integers(1, 3))
    def hear_of_a_refund_from_outside(self, amount, currency, n):
        self.one.hear(0, RefundedElsewhere(amount, currency, f"out_{n}"), "webhook")

    @rule(amount=AMOUNTS)
    def hear_of_a_reversal_from_outside(self, amount):
        self.one.hear(0, ReversedByGateway(amount, "return"), "webhook")

    @rule(amount=AMOUNTS, n=st.integers(1, 2))
    def hear_of_a_dispute(self, amount, n):
        self.one.hear(0, Disputed(f"dp_{n}", amount, "fraud"), "webhook")

    @rule(ms=WAITS_MS)
    def let_time_pass(self, ms):
        self.one.wait(ms)

    @rule()
    def wake(self):
        due = timers(self.one.payment)
        if due.get("retry", self.one.now_ms + 1) <= self.one.now_ms:
            assert self.one.retry()
        if due.get("expire", self.one.now_ms + 1) <= self.one.now_ms:
            assert self.one.expire()
        self.one.review()

    @rule()
    def revive(self):
        self.one.revive()

    @invariant()
    def hearing_the_end_of_the_story_again_changes_nothing(self):
        """Success heard of twice is heard of once."""
        if not hasattr(self, "one"):
            return
        for op in self.one.payment.operations:
            if op.status == "succeeded":
                assert not self.one.approve(op.n, None, "webhook")

    def teardown(self):
        """Whatever happened: once everything is resolved, nothing is held and nothing waits."""
        if not hasattr(self, "one"):
            return
        one = self.one
        for _ in range(50):
            open_ = [op.n for op in one.payment.operations if op.is_open]
            if not open_:
                break
            one.hear(open_[0], Failed("server_error"), "look_up")
        for _ in range(10):
            due = timers(one.payment).get("retry")
            if due is None:
                break
            one.now_ms = max(one.now_ms, due)
            assert one.retry()
            for op in one.payment.operations:
                if op.is_open:
                    one.hear(op.n, Failed("server_error"), "look_up")
        if one.payment.expires_ms is not None:
            one.now_ms = max(one.now_ms, one.payment.expires_ms)
            one.expire()
        assert not one.payment.is_open
        assert one.held == 0


Payments.TestCase.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, print_blob=False
)
test_every_step_keeps_the_rules = Payments.TestCase
