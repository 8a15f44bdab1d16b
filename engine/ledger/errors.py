"""One table from what Postgres and its driver raise to what the ledger raises.

There are five kinds, and everything not known to be definite is the last:

    invalid      the batch can't be stored as it is; nothing was written
    keys_taken   idempotency keys are taken; nothing was written
    fenced       another engine has taken over, or the chain has gone on without us
    again        lost to another transaction; the same batch may be tried again at once
    unavailable  the outcome is open, or the database can't write at present

SQLSTATEs: https://www.postgresql.org/docs/18/errcodes-appendix.html. Those that begin with PE are
raised by `append_batch` and `project_totals` (schema.sql).
"""

from __future__ import annotations

from typing import Final, Literal

import asyncpg
import msgspec

from engine.domain.entry import KeyRef
from engine.ports import EntryInvalid, Fenced, KeysTaken, LedgerError, LedgerUnavailable

DRIVER_ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,  # A time-out is one too.
    UnicodeError,
)
"""What a statement or a connection may raise; anything else is a bug of ours."""

Verdict = Literal["invalid", "keys_taken", "fenced", "again", "unavailable"]

KEYS_TAKEN: Final = "PE002"

BY_STATE: Final[dict[str, Verdict]] = {
    "PE001": "fenced",
    KEYS_TAKEN: "keys_taken",
    "PE003": "invalid",
    "PE004": "fenced",
    "PE006": "invalid",
    "PE007": "invalid",
    "40001": "again",  # serialization_failure
    "40P01": "again",  # deadlock_detected
    "55P03": "again",  # lock_not_available: lock_timeout
}
"""SQLSTATEs that mean something else than the rest of their class."""

BY_CLASS: Final[dict[str, Verdict]] = {
    "08": "unavailable",  # connection exception
    "0A": "unavailable",  # feature not supported
    "0B": "unavailable",  # invalid transaction initiation
    "0F": "unavailable",  # locator exception
    "0L": "unavailable",  # invalid grantor
    "0P": "unavailable",  # invalid role specification
    "0Z": "unavailable",  # diagnostics exception
    "10": "unavailable",  # XQuery error
    "03": "unavailable",  # SQL statement not yet complete
    "09": "unavailable",  # triggered action exception
    "20": "unavailable",  # case not found
    "21": "unavailable",  # cardinality violation: a statement of ours is wrong
    "22": "invalid",  # data exception: out of range, NUL, bad encoding
    "23": "invalid",  # integrity constraint violation
    "24": "unavailable",  # invalid cursor state
    "25": "unavailable",  # invalid transaction state: read-only (25006), idle time-out (25P03)
    "26": "unavailable",  # invalid statement name
    "27": "unavailable",  # triggered data change violation
    "28": "unavailable",  # invalid authorization specification
    "2B": "unavailable",  # dependent privilege descriptors still exist
    "2D": "unavailable",  # invalid transaction termination
    "2F": "unavailable",  # SQL routine exception
    "34": "unavailable",  # invalid cursor name
    "38": "unavailable",  # external routine exception
    "39": "unavailable",  # external routine invocation exception
    "3B": "unavailable",  # savepoint exception
    "3D": "unavailable",  # invalid catalog name: no such database
    "3F": "unavailable",  # invalid schema name
    "40": "unavailable",  # transaction rollback, of which 40003: statement completion unknown
    "42": "unavailable",  # syntax error or access rule violation: not migrated, or no privilege
    "44": "unavailable",  # WITH CHECK OPTION violation
    "53": "unavailable",  # insufficient resources: disk full (53100), connections (53300)
    "54": "invalid",  # program limit exceeded: a text too long for its index
    "55": "unavailable",  # object not in prerequisite state
    "57": "unavailable",  # operator intervention: shutdown (57P01), starting up (57P03)
    "58": "unavailable",  # system error
    "72": "unavailable",  # snapshot too old
    "F0": "unavailable",  # configuration file error
    "HV": "unavailable",  # foreign data wrapper error
    "P0": "unavailable",  # PL/pgSQL error: append_batch is wrong
    "PE": "unavailable",  # our own, of which PE005: the journal is append-only
    "XX": "unavailable",  # internal error, corruption
}
"""SQLSTATE classes. A test fails when asyncpg grows one that is not here."""

CONSTRAINTS: Final[dict[str, str]] = {
    "payments_reference": "reference_taken",
}
"""Constraints whose violation is a refusal with a name of its own."""

REASONS: Final[dict[str, str]] = {
    "PE003": "invalid: stale_version",
    "PE006": "invalid: second_phase",
    "PE007": "invalid: transfers_missing",
}


def verdict_of(error: BaseException) -> Verdict:
    """What an error raised by a statement or a connection means."""
    state = getattr(error, "sqlstate", None)
    if isinstance(error, asyncpg.PostgresError) and isinstance(state, str):
        if state == KEYS_TAKEN and not _taken(error):
            return "again"  # They were forgotten between two statements of the commit.
        return BY_STATE.get(state) or BY_CLASS.get(state[:2], "unavailable")
    if isinstance(error, UnicodeError):
        return "invalid"  # Text that has no UTF-8 form; nothing was sent.
    return "unavailable"


def ledger_error(error: BaseException) -> LedgerError:
    """The ledger's own error for what Postgres or its driver raised."""
    verdict = verdict_of(error)
    if verdict == "invalid":
        return EntryInvalid(reason_of(error))
    if verdict == "keys_taken":
        return KeysTaken(_taken(error))
    if verdict == "fenced":
        return Fenced(str(error))
    return LedgerUnavailable(f"{type(error).__name__}: {error}")


def reason_of(error: BaseException) -> str:
    """`reference_taken`, or `invalid: ` and the constraint or the cause."""
    constraint = getattr(error, "constraint_name", None)
    if isinstance(constraint, str):
        return CONSTRAINTS.get(constraint, f"invalid: {constraint}")
    state = getattr(error, "sqlstate", None)
    if state in REASONS:
        return REASONS[state]
    # The driver's message quotes the value, which may be a customer's: only its kind is kept.
    return f"invalid: {type(error).__name__}"


def _taken(error: BaseException) -> frozenset[KeyRef]:
    detail = getattr(error, "detail", None) or "[]"
    named = msgspec.json.decode(detail, type=list[tuple[str, bool, str]])
    return frozenset(KeyRef(*one) for one in named)
