"""The table of database errors covers what Postgres and its driver can raise."""

from __future__ import annotations

import asyncpg
import pytest

from engine.domain.entry import KeyRef
from engine.ledger.errors import BY_CLASS, BY_STATE, ledger_error, verdict_of
from engine.ports import EntryInvalid, Fenced, KeysTaken, LedgerUnavailable


def every_exception() -> list[type[asyncpg.PostgresError]]:
    found = [getattr(asyncpg.exceptions, name) for name in asyncpg.exceptions.__all__]
    return [one for one in found if getattr(one, "sqlstate", None) and len(one.sqlstate) == 5]


def raised(sqlstate: str, **fields: str) -> asyncpg.PostgresError:
    error = asyncpg.PostgresError("message")
    error.sqlstate = sqlstate
    for name, value in fields.items():
        setattr(error, name, value)
    return error


def test_every_class_of_sqlstate_that_the_driver_knows_is_in_the_table() -> None:
    classes = {one.sqlstate[:2] for one in every_exception()}
    assert len(classes) > 30
    assert classes - BY_CLASS.keys() - {"00", "01", "02"} == set()


def test_exceptions_to_a_class_belong_to_a_class_of_the_table() -> None:
    assert {state[:2] for state in BY_STATE} <= BY_CLASS.keys()


@pytest.mark.parametrize(
    "sqlstate",
    ["08003", "08006", "25006", "25P03", "53100", "53300", "57014", "57P01", "57P03", "XX000",
     "42P01", "40003", "58030", "ZZ999"],
)  # fmt: skip
def test_what_is_not_definite_leaves_the_outcome_open(sqlstate: str) -> None:
    assert isinstance(ledger_error(raised(sqlstate)), LedgerUnavailable)


@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "55P03"])
def test_what_was_lost_to_another_transaction_is_tried_again(sqlstate: str) -> None:
    assert verdict_of(raised(sqlstate)) == "again"


@pytest.mark.parametrize("sqlstate", ["22003", "22021", "23514", "54000", "PE003"])
def test_what_can_not_be_stored_is_invalid(sqlstate: str) -> None:
    assert isinstance(ledger_error(raised(sqlstate)), EntryInvalid)


def test_a_constraint_is_named() -> None:
    error = ledger_error(raised("23514", constraint_name="payments_within_captured"))
    assert str(error) == "invalid: payments_within_captured"
    error = ledger_error(raised("23505", constraint_name="payments_reference"))
    assert str(error) == "reference_taken"


def test_taken_keys_are_read_from_the_detail() -> None:
    error = ledger_error(raised("PE002", detail='[["mer_1", true, "k"]]'))
    assert isinstance(error, KeysTaken)
    assert error.refs == {KeyRef("mer_1", True, "k")}


@pytest.mark.parametrize("detail", ["[]", ""])
def test_taken_keys_that_are_there_no_more_are_tried_again(detail: str) -> None:
    assert verdict_of(raised("PE002", detail=detail)) == "again"


@pytest.mark.parametrize("sqlstate", ["PE001", "PE004"])
def test_a_newer_engine_fences(sqlstate: str) -> None:
    assert isinstance(ledger_error(raised(sqlstate)), Fenced)


@pytest.mark.parametrize(
    "error",
    [OSError("no route"), TimeoutError(), asyncpg.InterfaceError("connection is closed"),
     asyncpg.InternalClientError("lost its place")],
)  # fmt: skip
def test_a_broken_connection_leaves_the_outcome_open(error: Exception) -> None:
    assert isinstance(ledger_error(error), LedgerUnavailable)


def test_an_argument_the_driver_can_not_encode_is_invalid_and_not_quoted() -> None:
    error = ledger_error(asyncpg.DataError("invalid input for $1: 'a secret'"))
    assert isinstance(error, EntryInvalid)
    assert "secret" not in str(error)
