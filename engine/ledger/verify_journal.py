"""Checks 1 and 3: accounts against their transfers, and the chain of the batches."""

from __future__ import annotations

from typing import Any

import asyncpg
import msgspec

from engine.domain.journal import GENESIS, seal
from engine.ledger.verify_report import Findings
from engine.ledger.verify_rows import Groups, report_rows, stream

LANE = 0
"""Transfers name their batch by its number alone, so there is one lane."""


async def check_balances(connection: asyncpg.Connection, findings: Findings) -> None:
    """Every total is the fold of its transfers, now and after each batch; books balance."""

    def folds(row: asyncpg.Record) -> tuple[str, str]:
        if not row["there"]:
            return f"account {row['id']}", "has transfers, and is not there"
        return (
            f"account {row['id']}",
            f"its totals are {row['says']}, and its transfers add up to {row['folds']}",
        )

    def trial(row: asyncpg.Record) -> tuple[str, str]:
        mode = "live" if row["livemode"] else "test"
        return (
            f"book {row['book']}, {row['currency']}, {mode}",
            f"posted debits less credits are {row['posted']}, pending {row['pending']}; both "
            f"must be 0",
        )

    def crossing(row: asyncpg.Record) -> tuple[str, str]:
        return (
            f"transfer {row['id']}",
            f"joins accounts {row['debit_account']} and {row['credit_account']} of different "
            f"books, currencies or modes",
        )

    def end(row: asyncpg.Record) -> tuple[str, str]:
        return (
            f"account {row['id']}",
            f"its totals are {row['says']} (version {row['version']}), and its history ends with "
            f"{row['ends'] or 'nothing'} (version {row['last']})",
        )

    def history(row: asyncpg.Record) -> tuple[str, str]:
        account, batch = row["id"], row["batch"]
        if not row["there"]:
            what = f"the projection up to batch {batch} moved it, and its history has no row of it"
            return f"account {account}", what
        return f"account {account}", f"its history's row of batch {batch} is not what was moved"

    def projection(row: asyncpg.Record) -> tuple[str, str]:
        if row["after_batch"] == row["before"]:
            return f"projection {row['batch']}", "does not end with a batch, or not at its time"
        return (
            f"projection {row['batch']}",
            f"begins after batch {row['after_batch']}, "
            f"and the one before ends with {row['before']}",
        )

    await report_rows(connection, "balances", findings, folds)
    await report_rows(connection, "trial_balance", findings, trial)
    await report_rows(connection, "crossing", findings, crossing)
    await report_rows(connection, "history_end", findings, end)
    await report_rows(connection, "projections", findings, projection)
    await report_rows(connection, "history", findings, history)


class Head(msgspec.Struct, frozen=True):
    """The last batch, as it was seen."""

    number: int
    hash: bytes


async def check_journal(connection: asyncpg.Connection, findings: Findings) -> Head:
    """The batches are numbered without gap or repeat, and each hash covers what is there."""

    def stray_transfer(row: asyncpg.Record) -> None:
        findings.add(f"transfer {row['id']}", f"names batch {row['batch']}, which is not there")

    def stray_account(row: asyncpg.Record) -> None:
        findings.add(f"account {row['id']}", f"names batch {row['batch']}, which is not there")

    transfers = Groups(stream(connection, "batch_transfers"), "batch", stray_transfer)
    accounts = Groups(stream(connection, "batch_accounts"), "batch", stray_account)
    number, hash_, epoch = 0, GENESIS, 0
    async for batch in stream(connection, "batches"):
        name = f"batch {batch['number']}"
        if batch["lane"] != LANE:
            findings.add(name, f"is in lane {batch['lane']}, and nothing writes there")
            continue
        findings.look()
        if batch["number"] != number + 1:
            gap = f"batch {number + 1}"
            if batch["number"] > number + 2:
                gap = f"batches {number + 1} to {batch['number'] - 1}"
            findings.add(gap, f"{name} comes after {number or 'nothing'}: what is between is gone")
        elif batch["prev_hash"] != hash_:
            findings.add(name, "does not continue the chain: it follows another batch than the one "
                         "before it")  # fmt: skip
        if batch["epoch"] < epoch:
            findings.add(name, f"was written in epoch {batch['epoch']}, after epoch {epoch}")
        rows = await transfers.of(batch["number"])
        opened = await accounts.of(batch["number"])
        what = _covers(batch, rows, opened)
        if what is not None:
            findings.add(name, what)
        # What is stored, so that one bad batch does not make every later one bad.
        number, hash_, epoch = batch["number"], batch["hash"], max(epoch, batch["epoch"])
    await transfers.rest()
    await accounts.rest()
    return Head(number, hash_)


def _covers(
    batch: asyncpg.Record, rows: list[asyncpg.Record], opened: list[asyncpg.Record]
) -> str | None:
    """What is wrong between a batch and its rows."""
    transfers: list[Any] = [tuple(row)[1:] for row in rows]
    first, last = (transfers[0][0], transfers[-1][0]) if transfers else (0, 0)
    wrong = []
    if batch["transfers"] != len(transfers):
        wrong.append(f"it had {batch['transfers']} transfers, and {len(transfers)} are there")
    elif (batch["first_transfer"], batch["last_transfer"]) != (first, last):
        wrong.append(
            f"it had transfers {batch['first_transfer']} to {batch['last_transfer']}, and "
            f"{first} to {last} are there"
        )
    accounts: list[Any] = [tuple(row)[1:] for row in opened]
    sealed = seal(
        batch["prev_hash"],
        batch["number"],
        batch["key"],
        batch["recorded_ms"],
        transfers,
        accounts=accounts,
        lane=batch["lane"],
    )
    if sealed != batch["hash"]:
        wrong.append(f"its hash does not cover what is there (transfers {first} to {last})")
    return "; ".join(wrong) or None
