"""`engine verify`: proves that the books are whole, or names what is not.

    report = await verify(dsn, witness=effects_of_the_books, now_ms=clock.now_ms())
    print(render(report))

It reads one consistent snapshot of a running database, through cursors, so neither its memory
grows with the ledger nor does anybody wait for it. While it runs, though, Postgres keeps every
row version its snapshot may still see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import asyncpg

from engine.domain.witness import WitnessEffect
from engine.ledger.connections import COMMON, connect
from engine.ledger.errors import ledger_error
from engine.ledger.verify_journal import check_balances, check_journal
from engine.ledger.verify_payments import PaymentWalk
from engine.ledger.verify_report import Findings, Progress, Report, render
from engine.ledger.verify_rows import QUERIES

__all__ = ["GRACE_MS", "Report", "render", "verify"]

GRACE_MS: Final = 30_000
"""What a gateway did less than this long ago may not have been heard of yet."""

_SETTINGS: Final = COMMON | {
    "application_name": "engine-verify",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "work_mem": "32MB",
}

_WITNESS_COLUMNS: Final = ("payment_id", *WitnessEffect.__struct_fields__)


async def verify(
    dsn: str,
    *,
    witness: Callable[[], Iterable[WitnessEffect]] | None,
    now_ms: int,
    progress: Progress | None = None,
    grace_ms: int = GRACE_MS,
) -> Report:
    """Check everything there is to check.

    `now_ms` is the time before this call (Unix milliseconds). `witness` is called once, after the
    snapshot has been taken, and what it gives is streamed into a temporary table; None: that
    check is left out. Raises LedgerUnavailable where the database does not answer, and whatever
    the witness raises.
    """
    # What the witness tells goes into a table of this session, which a standby cannot make.
    connection = await connect(dsn, _SETTINGS, wanted="any" if witness is None else "primary")
    try:
        if witness is not None:
            await connection.execute(QUERIES["witness_table"])
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            return await _verify(connection, witness, now_ms, progress, grace_ms)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError) as error:
        raise ledger_error(error) from error
    finally:
        connection.terminate()


def _findings(progress: Progress | None) -> list[Findings]:
    """The six checks; what each counts is what a merchant or an operator knows."""
    return [
        Findings(name, proves, counted, progress)
        for name, proves, counted in (
            (
                "balances",
                "every account's totals are the fold of its transfers; every book balances",
                "transfers",
            ),
            (
                "tie-outs",
                "open holds and unsettled payments are what accounts hold",
                "accounts of payments",
            ),
            (
                "journal",
                "batches have no gap or repeat, and the chain holds",
                "batches (group commits)",
            ),
            ("payments", "every payment's amounts are what its transfers say", "payments"),
            (
                "work",
                "nothing unresolved is forgotten, and no promise is empty",
                "open payments and idempotency keys",
            ),
            (
                "witness",
                "the gateway did what we know of, once, and nothing else",
                "operations of payments",
            ),
        )
    ]


async def _verify(
    connection: asyncpg.Connection,
    witness: Callable[[], Iterable[WitnessEffect]] | None,
    now_ms: int,
    progress: Progress | None,
    grace_ms: int,
) -> Report:
    balances, tie_outs, journal, payments, work, there = findings = _findings(progress)
    transfers: int = await connection.fetchval(QUERIES["snapshot"])
    if witness is None:
        there.ran = False
    else:
        # At once, so that as little as possible happens there after the snapshot.
        await connection.copy_records_to_table(
            "verify_witness",
            records=(_record(effect) for effect in witness()),
            columns=_WITNESS_COLUMNS,
        )
    head = await check_journal(connection, journal)
    balances.look(transfers)
    await check_balances(connection, balances)
    await PaymentWalk(
        connection,
        tie_outs=tie_outs,
        payments=payments,
        work=work,
        witness=there,
        now_ms=now_ms,
        grace_ms=grace_ms,
    ).run()
    checks = tuple(check.result() for check in findings)
    return Report(
        at_ms=now_ms,
        head=head.number,
        head_hash=head.hash.hex(),
        checks=checks,
        holds=all(check.holds for check in checks),
    )


def _record(effect: WitnessEffect) -> tuple[object, ...]:
    payment_id = effect.op_id.partition(".")[0]
    return (
        payment_id, effect.op_id, effect.action, effect.amount, effect.currency, effect.done,
        effect.at_ms, effect.changed_ms, effect.livemode, effect.number, effect.replaces,
    )  # fmt: skip
