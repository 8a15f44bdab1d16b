"""The ledger in memory and the one on Postgres, given the same: the same comes of it, always.

Payments go through the real machine; their entries are gathered into batches of any size and
committed to both. In between, answers of a commit are lost, engines take over from each other, and
entries are damaged in ways that a ledger must refuse. Both must refuse alike, in the same words,
and hold the same afterwards, down to the hash of every batch. At the end `engine verify` proves
what the one on Postgres holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from itertools import count
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine.domain.entry import (
    Answer,
    Batch,
    Claim,
    DeadLetter,
    Entry,
    InboxRef,
    InboxRow,
    KeyAnswer,
    KeyRef,
    TimerRow,
)
from engine.domain.news import Disputed, Failed, News, RefundedElsewhere, StillPending, Unknown
from engine.domain.posting import Transfer
from engine.ledger.memory import MemoryLedger
from engine.ledger.memory_store import MemoryStore
from engine.ledger.postgres import PostgresLedger
from engine.ledger.verify import verify
from engine.ports import EntryInvalid, Fenced, KeysTaken, LedgerUnavailable, PaymentFilter
from tests.contracts.ledger import into
from tests.pure.domain.one_payment import START_MS, OnePayment
from tests.real.ledger.test_postgres import LosesOnce

pytestmark = pytest.mark.hypothesis

MERCHANT = "m_a"
TEXTS = ("größe ✓", "x" * 300, "\u0001", "'; DROP TABLE payments; --", "\U0001f4a9", "")
NEWS: tuple[News, ...] = (
    Failed("server_error"),
    Unknown("timeout"),
    StillPending("ch_1"),
    Disputed("dp_1", 10, "fraud"),
    RefundedElsewhere(5, "USD", "out_1"),
)
AMOUNTS = st.sampled_from([1, 250, 999, 1_000])
LIMIT = 100

Outcome = tuple[str, object]
Either = MemoryLedger | PostgresLedger


class Ledgers:
    """Both of them, on one event loop, and what is to be committed next."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.loop = asyncio.new_event_loop()
        self.store = MemoryStore()
        self.memory = MemoryLedger(self.store)
        self.postgres = PostgresLedger(dsn)
        self._take_over()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Wait for it, on the loop that the connections belong to."""
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, 30))

    def _take_over(self) -> None:
        for ledger in (self.memory, self.postgres):
            self.run(ledger.open())
            self.run(ledger.take_over("test"))

    def next_engine(self) -> None:
        """Another engine takes over; the one before it finds itself fenced."""
        former = (self.memory, self.postgres)
        self.memory.lose_lock()
        self.postgres._lock.release()
        self.memory, self.postgres = MemoryLedger(self.store), PostgresLedger(self.dsn)
        self._take_over()
        late = Batch("of-a-former-engine", START_MS, ())
        for ledger in former:
            assert self.run(outcome_of(ledger, late, None))[0] == "Fenced"
            self.run(ledger.close())

    def lose(self, *, applied: bool) -> None:
        """The next commit never arrives, or is applied and its answer lost; on both sides."""
        self.memory.faults.outcomes.append("applied" if applied else "not_applied")
        broken: Any = LosesOnce(self.postgres, applied=applied)
        self.postgres._writer._append = broken

    def commit(self, batch: Batch, following: Batch | None = None) -> Outcome:
        """Commit to both; returns what came of it, which must be the same."""
        one = self.run(outcome_of(self.memory, batch, following))
        other = self.run(outcome_of(self.postgres, batch, following))
        assert one == other, f"in memory {one}, on Postgres {other}"
        return one

    def prune(self, before_ms: int, at_most: int) -> None:
        """Forget keys on both sides: all of them, since equally old ones have no order."""
        for ledger in (self.memory, self.postgres):
            while self.run(ledger.prune_keys(before_ms, at_most)) == at_most:
                pass

    def close(self) -> None:
        """Close every connection."""
        for ledger in (self.memory, self.postgres):
            self.run(ledger.close())
        self.loop.close()


async def outcome_of(ledger: Either, batch: Batch, following: Batch | None) -> Outcome:
    """A receipt, or the refusal in its words."""
    try:
        return "receipt", await ledger.commit(batch, following)
    except EntryInvalid as refused:
        # What has no room in a column is refused by the driver or by the server, each in its words.
        has_no_room = refused.reason.endswith("Error")
        return "EntryInvalid", "no room" if has_no_room else refused.reason
    except KeysTaken as taken:
        return "KeysTaken", frozenset(taken.refs)
    except (Fenced, LedgerUnavailable) as trouble:
        return type(trouble).__name__, None


async def contents(ledger: Either, ids: list[str], now_ms: int) -> Any:
    """Everything that can be read."""
    accounts = await ledger.accounts(owner=None, livemode=False, after=0, limit=LIMIT)
    timers = [await ledger.timers_due(k, 2**62, LIMIT) for k in ("look_up", "expire", "retry")]
    # Timers of one kind that are due at the same time have no order among themselves.
    waiting = [sorted(msgspec.structs.astuple(t) for t in one) for one in timers]
    quiet: dict[str, bytes] = {}
    working: list[bytes] = []
    await ledger.open_payments(range(4_096), into(quiet, working))
    wanted = PaymentFilter(MERCHANT, False, limit=LIMIT)
    statuses = ("authorized", "captured", "unknown")
    return {
        "payments": await ledger.payments(ids),
        "open": (sorted(quiet.items()), sorted(working)),
        "list": await ledger.list_payments(wanted),
        "by status": [
            await ledger.list_payments(msgspec.structs.replace(wanted, status=status, limit=2))
            for status in statuses
        ],
        "claims": [
            await ledger.claim(KeyRef(MERCHANT, False, f"key-{n}")) for n in range(1, len(ids) + 2)
        ],
        "refunds": await ledger.list_refunds(
            MERCHANT, False, payment_id=None, status=None, before=None, limit=LIMIT
        ),
        "events": await ledger.list_events(
            MERCHANT, False, type=None, object_id=None, before=None, limit=LIMIT
        ),
        "timelines": [await ledger.timeline(id_) for id_ in ids],
        "accounts": accounts,
        "before": [await ledger.account(a.id, now_ms // 2 + START_MS // 2) for a in accounts],
        "transfers": [
            await ledger.account_transfers(a.id, before=None, limit=LIMIT) for a in accounts
        ],
        "timers": waiting,
        "inbox": await ledger.inbox_open(LIMIT),
        "letters": await ledger.dead_letters(before=None, limit=LIMIT),
    }


class TwoLedgers(RuleBasedStateMachine):
    """Any payments, in batches of any size, with any trouble in between."""

    new_dsn: Callable[[], str]

    def __init__(self) -> None:
        super().__init__()
        self.numbers = count(1)
        self.payments: list[OnePayment] = []
        self.waiting: list[Entry] = []
        self.following: Batch | None = None
        self.now_ms = START_MS

    @initialize()
    def open_both(self) -> None:
        self.ledgers = Ledgers(type(self).new_dsn())

    # --- payments -----------------------------------------------------------------------------

    @precondition(lambda self: len(self.payments) < 6)
    @rule(purchase=st.booleans(), fees=st.booleans(), amount=AMOUNTS)
    def pay(self, purchase: bool, fees: bool, amount: int) -> None:
        number = len(self.payments)
        one = OnePayment(purchase=purchase, fees=fees, amount=amount, number=number)
        self.payments.append(one)
        assert one.payment is not None
        claim = Claim(
            KeyRef(MERCHANT, False, f"key-{number + 1}"), bytes(16), self.now_ms, one.payment.id, 1
        )
        self.waiting.append(msgspec.structs.replace(one.entry, claim=claim))

    @precondition(lambda self: self.payments)
    @rule(
        pick=st.integers(0, 9),
        do=st.sampled_from(["approve", "capture", "cancel", "refund", "expire", "retry", "news"]),
        amount=st.none() | AMOUNTS,
        news=st.sampled_from(NEWS),
    )
    def go_on(self, pick: int, do: str, amount: int | None, news: News) -> None:
        one = self.payments[pick % len(self.payments)]
        one.wait(1_000)
        before = one.payment
        n = pick % len(one.payment.operations) + 1  # type: ignore[union-attr]
        if do == "approve":
            one.approve(n)
        elif do == "capture":
            one.capture(amount, final=bool(pick % 2))
        elif do == "refund":
            one.refund(amount)
        elif do == "news":
            outside = isinstance(news, (Disputed, RefundedElsewhere))
            one.hear(0 if outside else n, news, "webhook")
        else:
            if do == "expire":
                one.wait(8 * 86_400_000)
            getattr(one, do)()
        if one.payment is not before:
            self.waiting.append(one.entry)

    @rule(text=st.sampled_from(TEXTS), n=st.integers(1, 3))
    def keep_what_is_no_money(self, text: str, n: int) -> None:
        """Webhooks, timers, dead letters and answers: beside the payments, some twice."""
        row = InboxRow("simulator", f"evt_{n}", self.now_ms, {"a": text}, text.encode())
        number = next(self.numbers)
        self.waiting.append(
            Entry(
                inbox=row,
                timers_set=(TimerRow(self.now_ms + n, f"pay_{n}", "look_up"),),
                timers_cleared=(TimerRow(self.now_ms, f"pay_{n}", "look_up"),),
                dead_letter=DeadLetter(
                    f"dl_{number:04}", "webhook", "s", text, text.encode(), self.now_ms
                ),
            )
        )
        answer = Answer(422, text.encode(), final=True, code="amount_invalid", location=text)
        self.waiting.append(
            Entry(
                answers=(KeyAnswer(KeyRef(MERCHANT, False, f"key-{n}"), answer),),
                inbox_done=InboxRef("simulator", f"evt_{n + 1}", "applied"),
                dead_letter_done=f"dl_{number - 1:04}",
            )
        )

    # --- commits ------------------------------------------------------------------------------

    @rule(
        size=st.integers(1, 8),
        lost=st.sampled_from(["", "", "", "batch", "reply"]),
        follow=st.integers(0, 4),
    )
    def commit_some(self, size: int, lost: str, follow: int) -> None:
        batch, self.following = self.following or self._next_batch(size), None
        if follow and self.waiting:
            self.following = self._next_batch(follow)
        if lost:
            self.ledgers.lose(applied=lost == "reply")
            assert self.ledgers.commit(batch, self.following)[0] == "LedgerUnavailable"
        outcome, receipt = self.ledgers.commit(batch, self.following)
        assert outcome == "receipt", receipt
        assert receipt.resolved == (lost == "reply")  # type: ignore[attr-defined]

    def commit_all(self) -> None:
        while self.waiting or self.following:
            self.commit_some(8, "", 0)

    def _next_batch(self, size: int) -> Batch:
        entries, self.waiting = tuple(self.waiting[:size]), self.waiting[size:]
        return self._batch(entries)

    def _batch(self, entries: tuple[Entry, ...]) -> Batch:
        self.now_ms += 1_000
        return Batch(f"batch-{next(self.numbers)}", self.now_ms, entries)

    @rule(back=st.integers(-1, 20), at_most=st.integers(1, 99))
    def forget_keys(self, back: int, at_most: int) -> None:
        before_ms = self.now_ms - back * 1_000
        self.ledgers.prune(before_ms, at_most)

    @rule()
    def take_over(self) -> None:
        self.ledgers.next_engine()

    @precondition(lambda self: self.payments)
    @rule(
        pick=st.integers(0, 9),
        kind=st.integers(0, 12),
        text=st.sampled_from(["\0", "\ud800"]),
        told=st.booleans(),
    )
    def commit_something_damaged(self, pick: int, kind: int, text: str, told: bool) -> None:
        """All that is waiting is committed first, so that only the damage is refused."""
        self.commit_all()
        bad = self._batch((self._damaged(self.payments[pick % len(self.payments)], kind, text),))
        if told:
            assert self.ledgers.commit(self._batch(()), bad)[0] == "receipt"
        outcome, why = self.ledgers.commit(bad, self._batch(()))
        assert outcome in ("EntryInvalid", "KeysTaken"), (kind, outcome, why)

    def _damaged(self, one: OnePayment, kind: int, text: str) -> Entry:
        payment, replace = one.payment, msgspec.structs.replace
        assert payment is not None
        after = replace(payment, version=payment.version + 1)
        fresh = 10**12 + next(self.numbers)
        sound = Transfer(fresh, *_sides(one), 5, "unheld", "posted", payment.id, 1, START_MS)
        hold = replace(sound, kind="hold", phase="void_pending", resolves=fresh + 10**11)
        claim = Claim(KeyRef(MERCHANT, False, "key-1"), b"f", START_MS)
        damaged: tuple[Entry, ...] = (
            Entry(payment=payment),
            Entry(payment=replace(after, version=payment.version + 2)),
            Entry(payment=replace(payment, version=1)),
            Entry(payment=replace(after, refunding=payment.captured + 1)),
            Entry(payment=replace(after, capturing=payment.authorized + 1)),
            Entry(payment=replace(after, excess_refunded=-1)),
            Entry(payment=after, transfers=(replace(sound, amount=2**63),)),
            Entry(transfers=(sound, sound)),
            Entry(transfers=(hold,)),
            Entry(payment=after, claim=claim),
            Entry(claim=replace(claim, ref=KeyRef(MERCHANT, False, f"key{text}"))),
            Entry(transfers=(replace(sound, payment_id=f"pay{text}"),)),
            Entry(dead_letter=DeadLetter("dl_x", text, "", "", b"", START_MS)),
        )
        return damaged[kind]

    # --- the proof ----------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "ledgers"):
            return
        try:
            self.commit_all()
            self._compare()
        finally:
            self.ledgers.close()

    def _compare(self) -> None:
        ids = [one.payment.id for one in self.payments if one.payment is not None]
        run, ledgers = self.ledgers.run, self.ledgers
        one = run(contents(ledgers.memory, ids, self.now_ms))
        other = run(contents(ledgers.postgres, ids, self.now_ms))
        for name, expected in one.items():
            assert other[name] == expected, name
        assert one["payments"] == {p.payment.id: p.payment for p in self.payments}  # type: ignore[union-attr]
        report = run(verify(ledgers.dsn, witness=None, now_ms=self.now_ms))
        broken = [check for check in report.checks if not check.holds]
        assert not [check for check in broken if check.name != "deadlines"], broken


def _sides(one: OnePayment) -> Iterator[Any]:
    hold = one.pending[one.payment.hold]  # type: ignore[union-attr]
    return iter((hold.debit, hold.credit))


def test_whatever_happens_both_ledgers_hold_the_same(
    new_database: Callable[..., str], migrated_template: str
) -> None:
    TwoLedgers.new_dsn = staticmethod(lambda: new_database(migrated_template))
    chosen = settings()
    fixed = chosen.derandomize
    run_state_machine_as_test(
        TwoLedgers,
        settings=settings(
            max_examples=4 if fixed else 20,
            stateful_step_count=20 if fixed else 40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            # Each try needs a database of its own, so a smaller example would cost minutes.
            phases=(Phase.generate,),
        ),
    )
