"""Checks 2, 4, 5 and 6, in one walk over the payments with everything that belongs to each."""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg
import msgspec

from engine.domain.document import from_document
from engine.domain.payment import Payment
from engine.domain.posting import RULES, AccountKey, books_of
from engine.domain.witness import WitnessEffect
from engine.ledger import verify_rules as rules
from engine.ledger.verify_report import Findings
from engine.ledger.verify_rows import QUERIES, Groups, report_rows, stream
from engine.ledger.verify_witness import IN_FLIGHT, compare, unknown_payment


class PaymentWalk:
    """One pass. Only the accounts are kept in memory, as the engine itself keeps them."""

    def __init__(
        self,
        connection: asyncpg.Connection,
        *,
        tie_outs: Findings,
        payments: Findings,
        work: Findings,
        witness: Findings,
        now_ms: int,
        grace_ms: int,
    ) -> None:
        self._connection = connection
        self._tie_outs = tie_outs
        self._payments = payments
        self._work = work
        self._witness = witness
        self._now_ms = now_ms
        self._grace_ms = grace_ms
        self._keys: dict[int, AccountKey] = {}
        self._has: dict[AccountKey, rules.Tied] = {}
        self._tied: dict[AccountKey, rules.Tied] = {}

    async def run(self) -> None:
        """Do it all."""
        await self._read_accounts()
        await self._walk()
        self._tie_out()
        await self._check_second_phases()
        await self._check_promises()

    async def _read_accounts(self) -> None:
        async for row in stream(self._connection, "accounts"):
            key = AccountKey(*tuple(row)[1:6])
            self._keys[row["id"]] = key
            self._has[key] = rules.Tied(
                debits_pending=row["debits_pending"],
                credits_pending=row["credits_pending"],
                net=row["debits_posted"] - row["credits_posted"],
            )

    async def _walk(self) -> None:
        connection = self._connection
        transfers = Groups(
            stream(connection, "payment_transfers"), "payment_id", self._stray_transfers
        )
        # A timer without its payment wakes nobody and is cleared when it is due; a letter may be
        # about something else than a payment.
        timers = Groups(stream(connection, "payment_timers"), "payment_id", _nobodys)
        letters = Groups(stream(connection, "payment_letters"), "payment_id", _nobodys)
        effects: Groups | None = None
        if self._witness.ran:
            effects = Groups(stream(connection, "witness"), "payment_id", self._stray_effect)
        async for row in stream(connection, "payments"):
            payment_id = row["id"]
            moved = await transfers.of(payment_id)
            due = await timers.of(payment_id)
            letter = await letters.of(payment_id)
            there = [] if effects is None else await effects.of(payment_id)
            self._payments.look()
            try:
                payment = from_document(row["doc"])
                payment.origin  # noqa: B018 - a payment without operations can't be read either
            except (msgspec.DecodeError, UnicodeDecodeError, IndexError) as error:
                self._payments.add(payment_id, f"its document can't be read: {error}")
                continue
            sums = self._check_payment(payment, row, moved)
            self._check_work(payment, due, letter)
            if effects is not None:
                self._check_witness(payment, sums, there)
        for groups in (transfers, effects):
            if groups is not None:
                await groups.rest()

    def _check_payment(
        self, payment: Payment, row: asyncpg.Record, moved: Sequence[asyncpg.Record]
    ) -> dict[tuple[int, str, str], int]:
        """Check 4 on one payment; returns the sums of its transfers."""
        add = self._payments.add
        for what in (*rules.columns(payment, dict(row)), *rules.bounds(payment)):
            add(payment.id, what)
        books = books_of(payment.merchant_id, payment.gateway, payment.currency, payment.livemode)
        sums: dict[tuple[int, str, str], int] = {}
        for group in moved:
            kind = group["kind"]
            at = (group["op"], kind, group["phase"])
            sums[at] = sums.get(at, 0) + int(group["amount"])
            sides = (
                self._keys.get(group["debit_account"]),
                self._keys.get(group["credit_account"]),
            )
            rule = RULES.get(kind)
            if rule is None or sides != tuple(getattr(books, side) for side in rule):
                add(
                    payment.id,
                    f"transfer {group['first']} ({kind}) is on accounts "
                    f"{group['debit_account']} and {group['credit_account']}, which are not those "
                    f"of its rule",
                )
        for what in rules.amounts(payment, sums):
            add(payment.id, what)
        rules.tie(payment, self._tied)
        return sums

    def _check_work(
        self,
        payment: Payment,
        due: Sequence[asyncpg.Record],
        letter: Sequence[asyncpg.Record],
    ) -> None:
        """Check 5 on one payment."""
        if not payment.is_open and not payment.needs_review:
            return
        self._work.look()
        set_timers = {(timer["kind"], timer["due_ms"]) for timer in due}
        letter_ms = letter[0]["created_ms"] if letter else 0
        for id_, what in rules.work(payment, set_timers, letter_ms, self._now_ms):
            self._work.add(id_, what)

    def _check_witness(
        self,
        payment: Payment,
        sums: dict[tuple[int, str, str], int],
        there: Sequence[asyncpg.Record],
    ) -> None:
        """Check 6 on one payment."""
        self._witness.look(len(payment.operations))
        effects = [_effect(row) for row in there]
        for id_, what in compare(
            payment, sums, effects, now_ms=self._now_ms, grace_ms=self._grace_ms
        ):
            self._differs(id_, what)

    def _differs(self, id_: str, what: str) -> None:
        if what == IN_FLIGHT:
            self._witness.in_flight += 1
        else:
            self._witness.add(id_, what)

    def _stray_transfers(self, row: asyncpg.Record) -> None:
        payment_id = row["payment_id"]
        self._payments.add(
            f"transfer {row['first']}",
            f"belongs to payment {payment_id}, which is not there"
            if payment_id
            else "belongs to no payment",
        )

    def _stray_effect(self, row: asyncpg.Record) -> None:
        self._witness.look()
        for id_, what in unknown_payment([_effect(row)], now_ms=self._now_ms):
            self._differs(id_ or "no operation", what)

    def _tie_out(self) -> None:
        """Check 2: every account holds what the payments say, and nothing else holds anything."""
        nothing = rules.Tied()
        names = {key: id_ for id_, key in self._keys.items()}
        for key in sorted(self._has.keys() | self._tied.keys(), key=lambda key: names.get(key, 0)):
            self._tie_outs.look()
            name = f"account {names[key]}" if key in names else "no account"
            has, should = self._has.get(key, nothing), self._tied.get(key, nothing)
            for what in rules.untied(key, has, should):
                self._tie_outs.add(name, what)

    async def _check_second_phases(self) -> None:
        """Check 4 on the transfers that act on others."""

        def unfit(row: asyncpg.Record) -> tuple[str, str]:
            what = "does not repeat it" if row["there"] else "is not there"
            return (
                f"transfer {row['id']}",
                f"resolves transfer {row['resolves']}, which {what} (payment {row['payment_id']})"
                if not row["there"]
                else f"{what}: it resolves transfer {row['resolves']} on other accounts, of "
                f"another kind or payment ({row['payment_id']})",
            )

        def overdrawn(row: asyncpg.Record) -> tuple[str, str]:
            return (
                f"transfer {row['id']}",
                f"holds {row['amount']}, of which {row['taken']} were taken "
                f"(payment {row['payment_id']})",
            )

        await report_rows(self._connection, "second_phases", self._payments, unfit)
        await report_rows(self._connection, "overdrawn", self._payments, overdrawn)

    async def _check_promises(self) -> None:
        """Check 5 on the idempotency keys."""

        def broken(row: asyncpg.Record) -> tuple[str, str]:
            state = "is awaited" if row["status"] is None else f"was answered {row['status']}"
            return (
                f"key {row['key']} of {row['merchant_id']}",
                f"{state} for payment {row['payment_id'] or '(none)'}, which is not there",
            )

        await report_rows(self._connection, "promises", self._work, broken)
        self._work.look(await self._connection.fetchval(QUERIES["promises_count"]))


def _nobodys(row: asyncpg.Record) -> None:
    """A row that needs no payment."""


def _effect(row: asyncpg.Record) -> WitnessEffect:
    return WitnessEffect(*tuple(row)[1:])
