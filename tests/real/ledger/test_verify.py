"""`engine verify` on a real Postgres: a sound ledger holds, and every tampering is named.

One ledger is made through the real domain and committed by the real writer. Each test gets a copy
of its database, changes one thing behind the engine's back, and expects that it is found.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from itertools import count
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import msgspec
import pytest

from engine.domain import machine
from engine.domain.change import Env, Step
from engine.domain.commands import Cancel, Capture, Command, Open, Refund
from engine.domain.entry import Answer, Batch, Claim, Entry, KeyRef
from engine.domain.fees import FeeRule, FeeSchedule, fee_schedule
from engine.domain.ids import new_id, op_id
from engine.domain.news import Action, Approved, Declined, GatewayTraits, News, Unknown
from engine.domain.payment import Payment
from engine.domain.recording import record
from engine.domain.witness import WitnessEffect
from engine.ledger.embedded import EmbeddedPostgres
from engine.ledger.postgres import PostgresLedger
from engine.ledger.verify import Report, render, verify
from engine.ledger.verify_report import CheckResult
from engine.ports import LedgerUnavailable

START_MS = 1_800_000_000_000
DAY_MS = 86_400_000
NOW_MS = START_MS + 600_000
MERCHANT = "mer_1"
TRAITS = GatewayTraits(
    name="simulator",
    deadline_ms=6_000,
    lookup_lag_ms=4_000,
    multiple_capture=True,
    inflight_max=10,
    authorization_ms=7 * DAY_MS,
    resend_ms=DAY_MS,
)


class Shop:
    """Takes payments through the machine, keeping what is to be committed and what a gateway did.

    `payments` are by name, in the state their last step left them in.
    """

    def __init__(self) -> None:
        self.now_ms = START_MS
        self.numbers = count(1)
        self.payments: dict[str, Payment] = {}
        self.entries: list[Entry] = []
        self.effects: list[WitnessEffect] = []
        schedule = fee_schedule(
            [FeeRule(valid_from=date(2020, 1, 1), basis_points=290, tax_basis_points=1900)]
        )
        assert isinstance(schedule, FeeSchedule)
        self.fees = schedule

    def env(self) -> Env:
        self.now_ms += 1_000
        return Env(
            now_ms=self.now_ms,
            new_transfer=lambda: next(self.numbers),
            new_id=lambda prefix: new_id(f"{prefix}_", self.now_ms, 17, next(self.numbers)),
            jitter=lambda: 0.5,
            traits=TRAITS,
            fees=self.fees,
        )

    def open(self, name: str, amount: int, *, purchase: bool = True, currency: str = "EUR") -> None:
        env = self.env()
        payment_id = new_id("pay_", env.now_ms, 17, next(self.numbers))
        command = Open(
            merchant_id=MERCHANT,
            livemode=False,
            purchase=purchase,
            amount=amount,
            currency=currency,
            payment_method="pm_card_visa",
            gateway="simulator",
        )
        step = machine.open_payment(command, payment_id, name, "req", "/v1", env)
        claim = Claim(KeyRef(MERCHANT, False, name), bytes(32), env.now_ms, payment_id, 1)
        self._take(name, step, env, claim)

    def command(self, name: str, command: Command) -> None:
        env = self.env()
        step = machine.command_payment(self.payments[name], command, "", "req", "/v1", env)
        assert isinstance(step, Step), step
        self._take(name, step, env)

    def hear(self, name: str, n: int, news: News, via: str = "reply") -> None:
        env = self.env()
        step = machine.hear(self.payments[name], n, news, via, env)
        assert step is not None
        self._take(name, step, env)

    def approve(self, name: str, n: int, action: Action, amount: int, via: str = "reply") -> None:
        """The gateway does it and says so."""
        self.does(name, n, action, amount)
        currency = self.payments[name].currency
        self.hear(name, n, Approved(amount, currency, f"ref_{name}_{n}"), via)

    def does(self, name: str, n: int, action: Action, amount: int, *, done: bool = True) -> None:
        """The gateway does it."""
        payment = self.payments[name]
        self.effects.append(
            WitnessEffect(
                op_id=op_id(payment.id, n),
                action=action,
                amount=amount,
                currency=payment.currency,
                done=done,
                at_ms=self.now_ms,
                changed_ms=self.now_ms,
                number=len(self.effects) + 1,
            )
        )

    def _take(self, name: str, step: Step, env: Env, claim: Claim | None = None) -> None:
        recorded = record(step, env, claim)
        self.payments[name] = recorded.payment
        self.entries.append(recorded.entry)

    def batches(self) -> Iterator[Batch]:
        size = 3
        for start in range(0, len(self.entries), size):
            part = tuple(self.entries[start : start + size])
            yield Batch(key=f"batch-{start}", recorded_ms=START_MS + start, entries=part)


def a_days_work() -> Shop:
    """One payment of every kind there is."""
    shop = Shop()
    ours = {"merchant_id": MERCHANT, "livemode": False}

    shop.open("bought", 10_000)
    shop.approve("bought", 1, "purchase", 10_000)

    shop.open("held", 5_000, purchase=False)
    shop.approve("held", 1, "authorize", 5_000)

    shop.open("captured", 8_000, purchase=False, currency="JPY")
    shop.approve("captured", 1, "authorize", 8_000)
    shop.command("captured", Capture(**ours, amount=3_000, final=False))
    shop.approve("captured", 2, "capture", 3_000)
    shop.command("captured", Cancel(**ours))
    shop.approve("captured", 3, "void", 5_000)

    shop.open("refunded", 9_000)
    shop.approve("refunded", 1, "purchase", 9_000)
    shop.command("refunded", Refund(**ours, refund_id=shop.env().new_id("re"), amount=4_000))
    shop.approve("refunded", 2, "refund", 4_000)
    shop.command("refunded", Refund(**ours, refund_id=shop.env().new_id("re"), amount=1_000))
    shop.does("refunded", 3, "refund", 1_000, done=False)
    shop.hear("refunded", 3, Declined("refund_failed", "no"))

    shop.open("declined", 7_000)
    shop.does("declined", 1, "purchase", 7_000, done=False)
    shop.hear("declined", 1, Declined("do_not_honor", "no"))

    shop.open("too much", 6_000, purchase=False)
    shop.approve("too much", 1, "authorize", 6_000)
    shop.command("too much", Capture(**ours))
    shop.hear("too much", 2, Unknown("timeout"))
    shop.approve("too much", 2, "capture", 6_500, via="webhook")

    shop.open("too late", 2_000)
    shop.hear("too late", 1, Declined("do_not_honor", "no"))
    shop.approve("too late", 1, "purchase", 2_000, via="webhook")
    shop.approve("too late", 2, "refund", 2_000)

    shop.open("unknown", 3_000)
    shop.hear("unknown", 1, Unknown("timeout"))

    shop.open("refunding", 4_000)
    shop.approve("refunding", 1, "purchase", 4_000)
    shop.command("refunding", Refund(**ours, refund_id=shop.env().new_id("re"), amount=1_500))
    return shop


@pytest.fixture(scope="module")
def shop() -> Shop:
    return a_days_work()


@pytest.fixture(scope="module")
def shop_template(postgres_server: EmbeddedPostgres, migrated_template: str, shop: Shop) -> str:
    """The name of a database with the day's work in it, to be copied."""
    name = "verify_template"
    dsn = urlunsplit(urlsplit(postgres_server.dsn)._replace(path=f"/{name}"))

    async def fill() -> None:
        connection = await asyncpg.connect(postgres_server.dsn)
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {migrated_template}")
        await connection.close()
        ledger = PostgresLedger(dsn)
        await ledger.open()
        await ledger.take_over("test")
        *most, last = shop.batches()
        for batch in most:
            await ledger.commit(batch)
            await ledger.project_totals()
        await ledger.commit(last)  # its transfers are not in the totals yet
        await ledger.close()

    asyncio.run(fill())
    return name


@pytest.fixture
def dsn(new_database: Callable[..., str], shop_template: str) -> str:
    """A copy of the day's work."""
    return new_database(shop_template)


def tamper(dsn: str, *statements: str) -> None:
    """Change the database as somebody would who has every right to, and means no good."""

    async def run() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())


def unguarded(table: str, statement: str) -> tuple[str, str, str]:
    """A statement on an append-only table."""
    return (
        f"ALTER TABLE {table} DISABLE TRIGGER USER",
        statement,
        f"ALTER TABLE {table} ENABLE TRIGGER USER",
    )


def report_of(dsn: str, effects: Iterable[WitnessEffect] | None, *, now_ms: int = NOW_MS) -> Report:
    return asyncio.run(
        verify(dsn, witness=None if effects is None else lambda: effects, now_ms=now_ms)
    )


def check(report: Report, name: str) -> CheckResult:
    return next(check for check in report.checks if check.name == name)


def broken(report: Report) -> set[str]:
    return {check.name for check in report.checks if not check.holds}


def said(report: Report, name: str) -> str:
    return "\n".join(f"{problem.id}: {problem.what}" for problem in check(report, name).problems)


def test_a_sound_ledger_holds(dsn: str, shop: Shop) -> None:
    told: list[tuple[str, int]] = []
    report = asyncio.run(
        verify(
            dsn,
            witness=lambda: iter(shop.effects),
            now_ms=NOW_MS,
            progress=lambda name, rows: told.append((name, rows)),
        )
    )
    assert broken(report) == set(), render(report)
    assert report.holds
    assert all(check.ran and check.looked_at for check in report.checks)
    assert {name for name, _ in told} == {check.name for check in report.checks}
    assert check(report, "witness").in_flight == 2
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


def test_the_report_fits_one_screen(dsn: str, shop: Shop) -> None:
    text = render(report_of(dsn, shop.effects))
    assert "Everything holds." in text
    lines = text.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100


def test_without_a_witness_that_check_is_left_out(dsn: str) -> None:
    report = report_of(dsn, None)
    assert report.holds
    assert not check(report, "witness").ran
    text = render(report)
    assert "not checked: the gateway's books were not given" in text
    assert "Everything holds." not in text
    assert "Everything that was checked holds; the gateway's books were not compared" in text
    assert "--books FOLDER" in text


def test_an_empty_ledger_holds(database: str) -> None:
    report = report_of(database, [])
    assert report.holds
    assert report.head == 0


def test_a_database_that_is_not_there_is_unavailable(dsn: str) -> None:
    with pytest.raises(LedgerUnavailable):
        report_of(f"{dsn}_gone", None)


def test_what_the_witness_raises_is_passed_on(dsn: str) -> None:
    def torn() -> Iterator[WitnessEffect]:
        raise FileNotFoundError("no books")
        yield

    with pytest.raises(FileNotFoundError, match="no books"):
        asyncio.run(verify(dsn, witness=torn, now_ms=NOW_MS))


def test_it_reads_one_snapshot_while_the_engine_writes(dsn: str, shop: Shop) -> None:
    def writes() -> Iterator[WitnessEffect]:
        # The snapshot has been taken by now, so this is what an engine commits meanwhile.
        other = Shop()
        other.numbers = count(100_000)
        other.now_ms = NOW_MS
        other.open("later", 1_000)
        other.approve("later", 1, "purchase", 1_000)

        async def commit() -> None:
            ledger = PostgresLedger(dsn)
            await ledger.open()
            await ledger.take_over("another")
            await ledger.commit(Batch("later", NOW_MS + 1, tuple(other.entries)))
            await ledger.close()

        # The iterator is read inside the event loop, so the engine gets a thread of its own.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, commit()).result()
        yield from shop.effects
        yield from other.effects

    report = asyncio.run(verify(dsn, witness=writes, now_ms=NOW_MS))
    assert report.holds, render(report)
    assert check(report, "witness").in_flight == 3
    assert report_of(dsn, None).head == report.head + 1


# --- 1. balances ------------------------------------------------------------------------------


def test_a_changed_total_is_named(dsn: str, shop: Shop) -> None:
    tamper(dsn, "UPDATE accounts SET credits_posted = credits_posted + 5 WHERE id = 2")
    report = report_of(dsn, shop.effects)
    assert "account 2: its totals are" in said(report, "balances")
    assert "must be 0" in said(report, "balances")
    assert "its history ends with" in said(report, "balances")
    assert "account 2" in said(report, "tie-outs")


def test_a_changed_history_is_named(dsn: str, shop: Shop) -> None:
    row = "(SELECT min(batch) FROM account_history WHERE account_id = 1)"
    tamper(
        dsn,
        *unguarded(
            "account_history",
            f"UPDATE account_history SET debits_posted = debits_posted + 1 "
            f"WHERE account_id = 1 AND batch = {row}",
        ),
    )
    report = report_of(dsn, shop.effects)
    assert broken(report) == {"balances"}
    assert "account 1: its history's row of batch 1" in said(report, "balances")


def test_a_missing_last_row_of_the_history_is_named(dsn: str, shop: Shop) -> None:
    row = "(SELECT max(batch) FROM account_history WHERE account_id = 1)"
    tamper(
        dsn,
        *unguarded(
            "account_history", f"DELETE FROM account_history WHERE account_id = 1 AND batch = {row}"
        ),
    )
    report = report_of(dsn, shop.effects)
    assert broken(report) == {"balances"}
    assert "its history ends with" in said(report, "balances")
    assert "its history has no row of it" in said(report, "balances")


def test_a_missing_account_is_named(dsn: str, shop: Shop) -> None:
    tamper(dsn, "DELETE FROM accounts WHERE id = 1")
    report = report_of(dsn, shop.effects)
    assert "account 1: has transfers, and is not there" in said(report, "balances")
    assert {"balances", "journal", "tie-outs"} <= broken(report)


def test_a_transfer_between_currencies_is_named(dsn: str, shop: Shop) -> None:
    tamper(
        dsn,
        *unguarded(
            "transfers",
            "UPDATE transfers SET credit_account = (SELECT min(id) FROM accounts WHERE "
            "currency = 'JPY') WHERE id = 2",
        ),
    )
    assert "transfer 2: joins accounts" in said(report_of(dsn, shop.effects), "balances")


# --- 2. tie-outs ------------------------------------------------------------------------------


def test_a_hold_that_no_payment_has_is_named(dsn: str, shop: Shop) -> None:
    tamper(dsn, "UPDATE accounts SET debits_pending = debits_pending + 7 WHERE id = 1")
    report = report_of(dsn, shop.effects)
    assert "account 1: gateway_receivable of simulator in EUR has pending debits" in said(
        report, "tie-outs"
    )


def test_an_account_that_nothing_explains_is_named(dsn: str, shop: Shop) -> None:
    tamper(
        dsn,
        "INSERT INTO accounts (id, book, kind, owner, currency, livemode, batch, created_ms, "
        "debits_posted) VALUES (999, 'platform', 'bank', 'x', 'EUR', false, 1, 0, 100)",
    )
    report = report_of(dsn, shop.effects)
    assert "account 999: bank of x in EUR" in said(report, "tie-outs")


# --- 3. the journal ---------------------------------------------------------------------------


def test_a_deleted_batch_is_named(dsn: str, shop: Shop) -> None:
    tamper(dsn, *unguarded("batches", "DELETE FROM batches WHERE number = 3"))
    report = report_of(dsn, shop.effects)
    assert broken(report) == {"journal", "balances"}  # a projection ended there
    assert "batch 3: batch 4 comes after 2" in said(report, "journal")
    assert "names batch 3, which is not there" in said(report, "journal")


def test_a_projection_that_leaves_a_gap_is_named(dsn: str, shop: Shop) -> None:
    tamper(dsn, *unguarded("projections", "DELETE FROM projections WHERE batch = 2"))
    report = report_of(dsn, shop.effects)
    assert broken(report) == {"balances"}
    assert "projection 3: begins after batch 2, and the one before ends with 1" in said(
        report, "balances"
    )


def test_a_projection_that_ends_nowhere_is_named(dsn: str, shop: Shop) -> None:
    tamper(dsn, *unguarded("projections", "UPDATE projections SET recorded_ms = 1 WHERE batch = 2"))
    report = report_of(dsn, shop.effects)
    assert broken(report) == {"balances"}
    assert "projection 2: does not end with a batch, or not at its time" in said(report, "balances")


def test_a_deleted_last_batch_is_named(dsn: str, shop: Shop) -> None:
    last = "(SELECT max(batch) FROM transfers)"
    tamper(dsn, *unguarded("batches", f"DELETE FROM batches WHERE number >= {last}"))
    report = report_of(dsn, shop.effects)
    assert broken(report) == {"journal", "balances", "tie-outs"}
    assert "which is not there" in said(report, "journal")


def test_a_changed_amount_breaks_the_chain_at_its_batch_only(dsn: str, shop: Shop) -> None:
    tamper(dsn, *unguarded("transfers", "UPDATE transfers SET amount = amount + 1 WHERE id = 2"))
    report = report_of(dsn, shop.effects)
    journal = check(report, "journal")
    assert journal.problem_count == 1
    assert journal.problems[0].id == "batch 1"
    assert "hash does not cover" in journal.problems[0].what
    assert {"journal", "balances", "payments"} <= broken(report)


def test_a_deleted_transfer_is_counted(dsn: str, shop: Shop) -> None:
    tamper(dsn, *unguarded("transfers", "DELETE FROM transfers WHERE id = 2"))
    assert "transfers, and" in said(report_of(dsn, shop.effects), "journal")


def test_a_changed_hash_is_named(dsn: str, shop: Shop) -> None:
    tamper(
        dsn,
        *unguarded("batches", "UPDATE batches SET hash = sha256('forged') WHERE number = 2"),
    )
    report = report_of(dsn, shop.effects)
    assert broken(report) == {"journal"}
    assert "batch 2: its hash" in said(report, "journal")
    assert "batch 3: does not continue the chain" in said(report, "journal")


def test_a_batch_of_another_lane_is_named(dsn: str, shop: Shop) -> None:
    copied = (
        "INSERT INTO batches SELECT 1, number, key || 'x', epoch, recorded_ms, transfers, "
        "first_transfer, last_transfer, prev_hash, hash FROM batches WHERE number = 1"
    )
    tamper(dsn, copied)
    assert "is in lane 1" in said(report_of(dsn, shop.effects), "journal")


def test_a_renamed_account_breaks_the_chain(dsn: str, shop: Shop) -> None:
    tamper(dsn, "UPDATE accounts SET owner = 'mer_other' WHERE kind = 'merchant_pending'")
    assert {"journal", "tie-outs", "payments"} <= broken(report_of(dsn, shop.effects))


# --- 4. payments ------------------------------------------------------------------------------


def test_a_changed_counter_is_named(dsn: str, shop: Shop) -> None:
    payment = shop.payments["bought"].id
    tamper(
        dsn,
        f"UPDATE payments SET captured = 9000, released = 1000 WHERE id = '{payment}'",
    )
    report = report_of(dsn, shop.effects)
    assert broken(report) == {"payments"}
    assert f"{payment}: captured is 9000 in its column and 10000" in said(report, "payments")


def test_a_changed_status_is_named(dsn: str, shop: Shop) -> None:
    payment = shop.payments["held"].id
    tamper(dsn, f"UPDATE payments SET status = 'captured' WHERE id = '{payment}'")
    report = report_of(dsn, shop.effects)
    assert broken(report) == {"payments"}
    assert "status is captured in its column and authorized by its document" in said(
        report, "payments"
    )


def test_work_that_no_start_would_see_is_named(dsn: str, shop: Shop) -> None:
    quiet, unknown = shop.payments["held"].id, shop.payments["unknown"].id
    tamper(dsn, f"UPDATE payments SET has_work = true WHERE id = '{quiet}'")
    assert broken(report_of(dsn, shop.effects)) == set(), "a look in vain harms nobody"
    tamper(dsn, f"UPDATE payments SET has_work = false WHERE id = '{unknown}'")
    report = report_of(dsn, shop.effects)
    assert broken(report) == {"payments"}
    assert f"{unknown}: has_work is False in its column" in said(report, "payments")


def test_a_document_changed_together_with_its_columns_is_named(dsn: str, shop: Shop) -> None:
    payment = shop.payments["bought"].id
    tamper(
        dsn,
        f"UPDATE payments SET refunded = 10, doc = convert_to(replace(convert_from(doc, 'UTF8'), "
        f"'\"captured\":10000', '\"captured\":10000,\"refunded\":10'), 'UTF8') "
        f"WHERE id = '{payment}'",
    )
    report = report_of(dsn, shop.effects)
    assert broken(report) == {"payments", "tie-outs"}
    assert "refunded is 10 by its document and 0 by its transfers" in said(report, "payments")


def test_a_document_that_cannot_be_read_is_named(dsn: str, shop: Shop) -> None:
    payment = shop.payments["declined"].id
    tamper(dsn, f"UPDATE payments SET doc = '{{}}' WHERE id = '{payment}'")
    assert f"{payment}: its document can't be read" in said(
        report_of(dsn, shop.effects), "payments"
    )


def test_a_deleted_payment_is_named(dsn: str, shop: Shop) -> None:
    payment = shop.payments["bought"].id
    tamper(dsn, f"DELETE FROM payments WHERE id = '{payment}'")
    report = report_of(dsn, shop.effects)
    assert broken(report) == {"payments", "tie-outs", "work", "witness"}
    assert f"belongs to payment {payment}, which is not there" in said(report, "payments")
    assert f"key bought of {MERCHANT}: was answered 201" in said(report, "work")
    assert "is not known here" in said(report, "witness")


def test_a_second_phase_on_other_accounts_is_named(dsn: str, shop: Shop) -> None:
    second = "(SELECT min(id) FROM transfers WHERE phase = 'post_pending')"
    tamper(
        dsn,
        *unguarded(
            "transfers",
            f"UPDATE transfers SET debit_account = credit_account, credit_account = debit_account "
            f"WHERE id = {second}",
        ),
    )
    report = report_of(dsn, shop.effects)
    assert "does not repeat it" in said(report, "payments")
    assert "which are not those of its rule" in said(report, "payments")


def test_a_second_phase_that_takes_too_much_is_named(dsn: str, shop: Shop) -> None:
    tamper(
        dsn,
        *unguarded(
            "transfers", "UPDATE transfers SET amount = amount * 2 WHERE phase = 'post_pending'"
        ),
    )
    assert "were taken" in said(report_of(dsn, shop.effects), "payments")


def test_a_second_phase_of_nothing_is_named(dsn: str, shop: Shop) -> None:
    tamper(
        dsn,
        *unguarded(
            "transfers", "UPDATE transfers SET resolves = 99999 WHERE phase = 'void_pending'"
        ),
    )
    assert "resolves transfer 99999, which is not there" in said(
        report_of(dsn, shop.effects), "payments"
    )


# --- 5. work ----------------------------------------------------------------------------------


def test_a_dropped_timer_is_named(dsn: str, shop: Shop) -> None:
    tamper(dsn, "DELETE FROM timers WHERE kind = 'look_up'")
    report = report_of(dsn, shop.effects)
    assert broken(report) == {"work"}
    assert f"{shop.payments['unknown'].id}: its look_up timer" in said(report, "work")


def test_a_dropped_entry_of_the_work_queue_is_named(dsn: str, shop: Shop) -> None:
    tamper(dsn, "DELETE FROM dead_letters")
    report = report_of(dsn, shop.effects)
    assert broken(report) == {"work"}
    assert f"{shop.payments['too much'].id}: is flagged" in said(report, "work")


def test_what_is_past_its_deadline_is_named(dsn: str, shop: Shop) -> None:
    report = report_of(dsn, None, now_ms=NOW_MS + 2 * DAY_MS)
    assert broken(report) == {"work"}
    assert f"{shop.payments['unknown'].id}.1: is unknown past its deadline" in said(report, "work")


def test_a_promise_for_no_payment_is_named(dsn: str, shop: Shop) -> None:
    tamper(dsn, "UPDATE idempotency SET payment_id = 'pay_none' WHERE key = 'held'")
    report = report_of(dsn, shop.effects)
    assert broken(report) == {"work"}
    assert f"key held of {MERCHANT}: was answered 201 for payment pay_none" in said(report, "work")


def test_a_refusal_may_name_a_payment_that_never_was(dsn: str, shop: Shop) -> None:
    async def refuse() -> None:
        ledger = PostgresLedger(dsn)
        await ledger.open()
        await ledger.take_over("test")
        answer = Answer(status=404, body=b"{}", final=True, code="payment_not_found")
        claim = Claim(KeyRef(MERCHANT, False, "lost"), bytes(32), NOW_MS, "pay_x", 0, answer)
        await ledger.commit(Batch("refusal", NOW_MS, (Entry(claim=claim),)))
        await ledger.close()

    asyncio.run(refuse())
    assert report_of(dsn, shop.effects).holds


# --- 6. the witness ---------------------------------------------------------------------------


def effects_with(shop: Shop, name: str, n: int, **changes: object) -> list[WitnessEffect]:
    """The day's effects, with those of one operation changed."""
    wanted = op_id(shop.payments[name].id, n)
    return [
        msgspec.structs.replace(effect, **changes) if effect.op_id == wanted else effect
        for effect in shop.effects
    ]


def test_an_effect_done_twice_is_named(dsn: str, shop: Shop) -> None:
    again = msgspec.structs.replace(shop.effects[0], number=900)
    report = report_of(dsn, [*shop.effects, again])
    assert broken(report) == {"witness"}
    assert f"{again.op_id}: the purchase was done 2 times" in said(report, "witness")


def test_a_line_that_replaces_another_counts_once(dsn: str, shop: Shop) -> None:
    again = msgspec.structs.replace(shop.effects[0], number=900, replaces=shop.effects[0].number)
    assert report_of(dsn, [*shop.effects, again]).holds


def test_a_missing_effect_is_named(dsn: str, shop: Shop) -> None:
    report = report_of(dsn, shop.effects[1:])
    assert broken(report) == {"witness"}
    assert f"{shop.effects[0].op_id}: the purchase of 10000 succeeded here" in said(
        report, "witness"
    )


def test_an_effect_that_nobody_asked_for_is_named(dsn: str, shop: Shop) -> None:
    effect = shop.effects[0]
    for op in (new_id("pay_", START_MS, 17, 99) + ".1", f"{effect.op_id}7", "", "zzz"):
        foreign = msgspec.structs.replace(effect, op_id=op, number=900)
        report = report_of(dsn, [*shop.effects, foreign])
        assert broken(report) == {"witness"}
        assert "is not known here" in said(report, "witness")
        young = msgspec.structs.replace(foreign, at_ms=NOW_MS)
        assert report_of(dsn, [*shop.effects, young]).holds


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"amount": 10_001}, "is 10000 here and 10001 there"),
        ({"currency": "USD"}, "is in EUR here and in USD there"),
        ({"action": "authorize"}, "was done there as another action: authorize"),
        ({"livemode": True}, "in the other mode"),
        ({"done": False}, "was not done there"),
    ],
)
def test_an_effect_of_something_else_is_named(
    dsn: str, shop: Shop, changes: dict[str, object], words: str
) -> None:
    report = report_of(dsn, effects_with(shop, "bought", 1, **changes))
    assert broken(report) == {"witness"}
    assert words in said(report, "witness")


def test_what_was_declined_here_and_done_there_is_named(dsn: str, shop: Shop) -> None:
    effects = effects_with(shop, "declined", 1, done=True)
    report = report_of(dsn, effects)
    assert broken(report) == {"witness"}
    assert "the purchase is declined here, but was done there" in said(report, "witness")


def test_a_late_success_without_its_reversal_is_named(dsn: str, shop: Shop) -> None:
    reversal = op_id(shop.payments["too late"].id, 2)
    report = report_of(dsn, [effect for effect in shop.effects if effect.op_id != reversal])
    assert f"{reversal}: the reversal of 2000 succeeded here" in said(report, "witness")


def test_what_is_open_here_is_in_flight_only_while_it_is_young(dsn: str, shop: Shop) -> None:
    shop_now = Shop()
    shop_now.payments, shop_now.now_ms = shop.payments, NOW_MS
    shop_now.does("unknown", 1, "purchase", 3_000)
    (young,) = shop_now.effects
    assert report_of(dsn, [*shop.effects, young]).holds
    old = msgspec.structs.replace(young, at_ms=START_MS, changed_ms=START_MS)
    report = report_of(dsn, [*shop.effects, old])
    assert broken(report) == {"witness"}
    assert "the purchase is unknown here, but it was done there" in said(report, "witness")


def test_a_problem_count_goes_beyond_the_problems_that_are_kept(dsn: str, shop: Shop) -> None:
    foreign = [
        msgspec.structs.replace(shop.effects[0], op_id=f"pay_{n:03}.1", number=1_000 + n)
        for n in range(50)
    ]
    report = report_of(dsn, [*shop.effects, *foreign])
    witness = check(report, "witness")
    assert witness.problem_count == 50
    assert len(witness.problems) == 20
    assert "and 47 more" in render(report)
    assert "50 problems." in render(report)
