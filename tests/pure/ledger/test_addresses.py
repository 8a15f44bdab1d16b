"""Where no connection to Postgres came about: the address and the reason are said, no secret."""

import errno
import socket

import asyncpg
import pytest

from engine.ledger.addresses import EXPECTED, cannot_connect, place_of

DSN = "postgresql://engine:hunter2@db.example.com:6432/engine"


@pytest.mark.parametrize(
    ("dsn", "place"),
    [
        (DSN, " at db.example.com:6432 as engine"),
        ("postgres://engine:a%40b@db.example.com/engine", " at db.example.com:5432 as engine"),
        ("postgresql://u:p@[::1]/x", " at [::1]:5432 as u"),
        ("postgresql://u:p@one,two:1/x", " at one:5432,two:1 as u"),
        ("postgresql://u@/x?host=/run/postgres", " at /run/postgres as u"),
        ("hunter2", ""),
        ("", ""),
    ],
)
def test_an_address_is_named_without_its_password(dsn: str, place: str) -> None:
    assert place_of(dsn) == place


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed"), "connection refused"),
        (socket.gaierror(-2, "Name or service not known"), "the name of the host is not known"),
        (TimeoutError(), "no answer within 10 s"),
        (asyncpg.PostgresError("the database does not exist"), "the database does not exist"),
        (asyncpg.ClientConfigurationError("invalid DSN: hunter2"), EXPECTED),
        (ValueError("invalid literal: hunter2"), EXPECTED),
    ],
)
def test_a_reason_is_said_without_names_of_classes(error: Exception, reason: str) -> None:
    said = cannot_connect(DSN, error, 10.0)
    assert said == f"cannot connect to postgres at db.example.com:6432 as engine: {reason}"
