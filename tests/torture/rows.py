"""The faults that real processes are put through, by number, and those that cannot be here."""

from __future__ import annotations

from typing import Final

ROWS: Final[dict[int, str]] = {
    1: "kill -9 before the intent",
    2: "kill -9 after the intent, before the gateway",
    3: "kill -9 with the request on the wire",
    4: "kill -9 after the reply, before the outcome",
    5: "kill -9 in and after the commit, before the answer",
    6: "kill -9 in a group commit, under load",
    7: "kill -9 during recovery, twice",
    8: "kill -9 in the delivery of a webhook",
    9: "the reply to a commit is lost",
    10: "a commit is lost before the server",
    11: "Postgres restarts fast, under load",
    12: "Postgres crashes, or a back end of it",
    13: "read-only database, failover to a standby",
    14: "idle-in-transaction time-out, engine stopped",
    15: "row locks, deadlock, lock time-out",
    16: "connections exhausted",
    17: "disk full",
    18: "fsync fails",
    19: "slow database",
    20: "an older backup is restored",
    21: "gateway times out after charging",
    32: "one key, many requests at once",
    34: "refunds and captures race",
    38: "the wall clock jumps",
    39: "the engine stands still while another takes over",
    40: "more requests than there is room for",
    43: "SIGTERM under load",
    44: "Redis gone, flushed, stale or slow",
    45: "the event loop is blocked",
    46: "slow clients, slowloris, clients that never read",
    48: "oversized requests",
    50: "card numbers and secrets in what clients send",
    52: "requests to addresses that a client names",
    54: "key rotation, lost keys, tampered ciphertext",
    55: "the journal is edited, or its audit log",
    56: "rolling upgrade, migration under load",
    57: "two engines on one database",
    58: "a merchant's webhook receiver misbehaves",
}

NOT_RUN: Final[dict[int, str]] = {
    8: "the engine sends no webhooks to merchants yet",
    44: "the engine does not use Redis yet",
    52: "the engine calls no address that a client names yet",
    54: "the engine encrypts nothing yet",
    56: "nothing was released yet to upgrade from; that a migration fences an engine that still "
    "runs is tested in tests/real/ledger/test_postgres.py",
    58: "the engine sends no webhooks to merchants yet",
}
"""Row -> why it has no scenario. A scenario that skips says so itself."""
