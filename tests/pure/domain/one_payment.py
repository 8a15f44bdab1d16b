"""One payment under observation: every step of it is recorded, folded and checked.

Whatever a test does to the payment goes through `_apply`, which holds the step to the rules that
hold for every step there is. The accounts are folded from the transfers alone, so that they know
nothing of the counters they are compared with.
"""

from collections import Counter
from datetime import date
from itertools import count
from typing import Any

import msgspec

from engine.domain import machine
from engine.domain.change import Env, Step
from engine.domain.commands import Cancel, Capture, Open, Refund
from engine.domain.document import from_document, to_document
from engine.domain.fees import FeeRule, FeeSchedule, fee_schedule
from engine.domain.ids import new_id
from engine.domain.news import Approved, GatewayTraits, News
from engine.domain.operation import Operation
from engine.domain.payment import STATUS_TRANSITIONS, Payment, timers
from engine.domain.posting import Transfer, books_of
from engine.domain.recording import record
from engine.domain.refusals import Refusal
from engine.domain.representation import payment_view

START_MS = 1_800_000_000_000
DAY_MS = 86_400_000
ANSWERS = {200, 201, 202, 402, 502}
CHANGING = (
    "status",
    "amount_authorized",
    "amount_capturable",
    "amount_captured",
    "amount_released",
    "amount_refunded",
    "amount_refundable",
    "amount_disputed",
    "cancel_requested",
    "needs_review",
)


def some_fees() -> FeeSchedule:
    rule = FeeRule(
        valid_from=date(2020, 1, 1),
        currency="USD",
        basis_points=290,
        fixed_minor=30,
        tax_basis_points=2_000,
    )
    schedule = fee_schedule([rule])
    assert isinstance(schedule, FeeSchedule)
    return schedule


def traits(**changed: Any) -> GatewayTraits:
    values = {
        "name": "simulator",
        "deadline_ms": 6_000,
        "lookup_lag_ms": 4_000,
        "multiple_capture": True,
        "inflight_max": 10,
        "authorization_ms": 7 * DAY_MS,
        "resend_ms": DAY_MS,
    }
    return GatewayTraits(**(values | changed))


class OnePayment:
    """A payment and all that was written of it. `calls`, `events`, ... are of the last step."""

    def __init__(
        self,
        *,
        purchase: bool = False,
        amount: int = 1_000,
        fees: bool = False,
        number: int = 0,
        **changed: Any,
    ) -> None:
        """`number` keeps the ids of several payments apart."""
        self.now_ms = START_MS
        self.since_ms = START_MS
        self.traits = traits(**changed)
        self.fees = some_fees() if fees else FeeSchedule()
        self._transfer = count(number * 1_000_000 + 1).__next__
        self._id = count(number * 1_000_000 + 1)
        self.pending: dict[int, Transfer] = {}
        self.left: dict[int, int] = {}
        self.net: Counter[Any] = Counter()
        self.kinds: Counter[tuple[str, str]] = Counter()
        self.stored: dict[int, Any] = {}
        self.released_keys: list[str] = []
        self.letters: list[str] = []
        self.all_events: list[str] = []
        self.sequences: dict[str, int] = {}
        self.timers: dict[str, int] = {}
        self.payment: Payment | None = None
        command = Open("m_a", False, purchase, amount, "USD", "pm_card_visa", "simulator")
        self._apply(
            machine.open_payment(
                command,
                new_id("pay_", START_MS, 7, number + 1),
                f"key-{number + 1}",
                f"req_{number + 1}",
                "/p",
                self.env(),
            )
        )

    def env(self) -> Env:
        return Env(
            now_ms=self.now_ms,
            new_transfer=self._transfer,
            new_id=lambda prefix: f"{prefix}_{next(self._id)}",
            jitter=lambda: 0.5,
            traits=self.traits,
            fees=self.fees,
            since_ms=self.since_ms,
        )

    # --- what tests do to it ----------------------------------------------------------------

    def capture(self, amount: int | None = None, *, final: bool = True) -> Refusal | None:
        return self._command(Capture("m_a", False, amount, final))

    def cancel(self) -> Refusal | None:
        return self._command(Cancel("m_a", False))

    def refund(self, amount: int | None = None) -> Refusal | None:
        return self._command(Refund("m_a", False, f"re_{next(self._id)}", amount))

    def _command(self, command: Any) -> Refusal | None:
        n = next(self._id)
        step = machine.command_payment(
            self.payment, command, f"key-c{n}", f"req_c{n}", "/p", self.env()
        )
        if isinstance(step, Refusal):
            return step
        self._apply(step)
        return None

    def hear(self, n: int, news: News, via: str = "reply") -> bool:
        """Whether the news changed anything."""
        return self._maybe(machine.hear(self.payment, n, news, via, self.env()))

    def approve(self, n: int, amount: int | None = None, via: str = "reply", **more: Any) -> bool:
        return self.hear(n, self.approval(n, amount, **more), via)

    def approval(self, n: int, amount: int | None = None, **more: Any) -> Approved:
        amount = self.op(n).amount if amount is None else amount
        return Approved(amount, more.pop("currency", "USD"), f"ref_{n}", **more)

    def look_up(self, n: int, news: News) -> bool:
        return self.hear(n, news, "look_up")

    def expire(self) -> bool:
        return self._maybe(machine.expire(self.payment, self.env()))

    def retry(self) -> bool:
        return self._maybe(machine.retry(self.payment, self.env()))

    def review(self) -> bool:
        return self._maybe(machine.review(self.payment, self.env()))

    def revive(self) -> bool:
        return self._maybe(machine.revive(self.payment, self.env()))

    def wait(self, ms: int) -> None:
        self.now_ms += ms

    def op(self, n: int) -> Operation:
        return self.payment.operations[n - 1]

    @property
    def status(self) -> str:
        return self.payment.status

    @property
    def held(self) -> int:
        return sum(self.left.values())

    # --- the rules of every step ------------------------------------------------------------

    def _maybe(self, step: Step | None) -> bool:
        if step is None:
            return False
        self._apply(step)
        return True

    def _apply(self, step: Step) -> None:
        before = self.payment
        assert step.before is before
        recorded = record(step, self.env())
        after = recorded.payment
        entry = recorded.entry
        self.step, self.entry, self.recorded = step, entry, recorded
        self.calls = step.calls
        self.events = [event.type for event in entry.events]
        self.answers = recorded.answers
        self.all_events += self.events
        self._follows(before, after)
        self._within_bounds(after)
        for transfer in entry.transfers:
            self._post(transfer)
        self.payment = after
        self._balances(after)
        self._promises(before, after)
        self._publishes(before, after)
        self._wakes(after)
        assert from_document(to_document(after)) == after
        if entry.dead_letter is not None:
            self.letters.append(entry.dead_letter.reason)
            assert after.needs_review

    def _follows(self, before: Payment | None, after: Payment) -> None:
        if before is None:
            assert after.version == 1
            return
        assert after.version == before.version + 1
        if before.status != after.status:
            assert (before.status, after.status) in STATUS_TRANSITIONS
        assert len(after.operations) >= len(before.operations)
        for was, now in zip(before.operations, after.operations, strict=False):
            assert (was.n, was.type, was.key, was.created_ms) == (
                now.n,
                now.type,
                now.key,
                now.created_ms,
            )
            assert now.answered >= was.answered

    @staticmethod
    def _within_bounds(p: Payment) -> None:
        counters = (p.authorized, p.capturing, p.captured, p.releasing, p.released)
        counters += (p.refunding, p.refunded, p.excess_captured, p.excess_refunded)
        assert min(counters) >= 0, p
        assert p.captured + p.capturing + p.released + p.releasing <= p.authorized, p
        assert p.refunded + p.refunding <= p.captured, p
        assert p.capturable >= 0
        if p.excess_captured or p.excess_refunded:
            assert p.needs_review
        for name, kind in (("capturing", "capture"), ("refunding", "refund")):
            open_ = sum(op.amount for op in p.operations if op.type == kind and op.is_unfinished)
            assert getattr(p, name) == open_, name

    def _post(self, t: Transfer) -> None:
        assert t.amount > 0
        assert (t.debit.book, t.debit.currency, t.debit.livemode) == (
            t.credit.book,
            t.credit.currency,
            t.credit.livemode,
        )
        self.kinds[t.kind, t.phase] += t.amount
        if t.phase == "pending":
            assert t.resolves == 0
            self.pending[t.id] = t
            self.left[t.id] = t.amount
            return
        if t.phase != "posted":
            held = self.pending[t.resolves]
            assert (held.debit, held.credit) == (t.debit, t.credit)
            self.left[t.resolves] -= t.amount
            assert self.left[t.resolves] >= 0, "more was resolved than was pending"
            if t.phase != "post_pending":
                return
        self.net[t.debit] += t.amount
        self.net[t.credit] -= t.amount

    def _balances(self, p: Payment) -> None:
        origin = p.origin
        held = p.authorized - p.captured - p.released
        if origin.is_open:
            held = origin.amount
        assert self.left[p.hold] == held
        assert self.held == held + p.refunding
        if not p.is_open:
            assert self.held == 0
        late = back = 0
        if origin.type == "purchase":
            reversals = [op for op in p.operations if op.type == "reversal"]
            late = sum(op.amount for op in reversals)
            back = sum(op.amount for op in reversals if op.status == "succeeded")
        books = books_of(p.merchant_id, p.gateway, p.currency, p.livemode)
        earned = p.captured - p.refunded - p.reversed
        suspended = p.excess_captured + late - back - p.excess_refunded
        assert self.net[books.receivable] == earned + suspended
        assert -self.net[books.suspense] == suspended
        assert -self.net[books.merchant] == earned - p.fee - p.fee_tax
        assert -self.net[books.fees] == p.fee
        assert -self.net[books.tax] == p.fee_tax

    def _promises(self, before: Payment | None, after: Payment) -> None:
        keys = {key.ref.key: key.answer for key in self.entry.answers}
        released = {ref.key for ref in self.entry.claims_released}
        for n, answer in self.answers.items():
            op = after.operations[n - 1]
            assert answer.status in ANSWERS
            assert answer.final == (answer.status != 202)
            assert op.answered == (answer.final and bool(op.request_id))
            assert n not in self.stored, "an operation is answered once"
            if op.answered:
                self.stored[n] = answer
                if op.key:
                    assert keys.pop(op.key) == answer
            elif answer.status == 202:
                assert answer.location is not None
                assert answer.retry_after_s is not None
        assert not keys
        for op in after.operations:
            if op.request_id and not op.is_unfinished:
                assert op.answered, op
            if op.key in released:
                assert op.n not in self.stored
        self.released_keys += released

    def _publishes(self, before: Payment | None, after: Payment) -> None:
        for row in self.entry.events:
            number = self.sequences[row.object_id] = self.sequences.get(row.object_id, 0) + 1
            body = msgspec.json.decode(row.body)
            assert (row.sequence, body["sequence"]) == (number, number)
            assert (row.type, row.id) == (body["type"], body["id"])
            shown = body["data"]["object"]
            assert shown["id"] == row.object_id
            if shown["object"] == "payment":
                self._tells_what_changed(before, after, body["data"]["previous_attributes"])
        assert after.sequence == self.sequences.get(after.id, 0)
        if before is not None and before.status != after.status:
            assert any(type_.startswith("payment.") for type_ in self.events), self.events

    @staticmethod
    def _tells_what_changed(
        before: Payment | None, after: Payment, previous: dict[str, Any]
    ) -> None:
        if before is None:
            assert previous == {}
            return
        former, present = payment_view(before), payment_view(after)
        for name in CHANGING:
            was, now = getattr(former, name), getattr(present, name)
            if was != now:
                assert previous[name] == was
            else:
                assert name not in previous

    def _wakes(self, after: Payment) -> None:
        for row in self.entry.timers_cleared:
            assert self.timers.pop(row.kind) == row.due_ms
        for row in self.entry.timers_set:
            assert row.kind not in self.timers
            self.timers[row.kind] = row.due_ms
        assert self.timers == timers(after)
        if not after.is_open:
            assert self.timers == {}
        for op in after.operations:
            waits = op.status in ("requires_action", "pending", "unknown")
            if waits:
                assert op.next_check_ms is not None, "nobody would ever ask again"
