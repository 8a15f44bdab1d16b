"""What a connection to Postgres failed with, in words that name the address and no password."""

from __future__ import annotations

import os
import socket
from typing import Final
from urllib.parse import parse_qs, urlsplit

import asyncpg

PORT_DEFAULT: Final = "5432"
EXPECTED: Final = "the address must be like postgresql://user:password@host:5432/database"


def cannot_connect(dsn: str, error: Exception, timeout_s: float) -> str:
    """Say where no connection came about, as whom, and why."""
    return f"cannot connect to postgres{place_of(dsn)}: {_reason(error, timeout_s)}"


def place_of(dsn: str) -> str:
    """` at host:port as user`, as far as the address says so. Never the password."""
    try:
        parts = urlsplit(dsn)
        query = parse_qs(parts.query)
        user = parts.username or next(iter(query.get("user", ())), "")
    except ValueError:
        return ""
    if parts.scheme not in ("postgresql", "postgres"):
        # Whatever it is, it may be a secret.
        return ""
    hosts = parts.netloc.rpartition("@")[2] or next(iter(query.get("host", ())), "")
    named = ",".join(_with_port(host) for host in hosts.split(",") if host)
    return (f" at {named}" if named else "") + (f" as {user}" if user else "")


def _with_port(host: str) -> str:
    if host.startswith("/") or ":" in host.rpartition("]")[2]:
        return host
    return f"{host}:{PORT_DEFAULT}"


def _reason(error: Exception, timeout_s: float) -> str:
    if isinstance(error, asyncpg.ClientConfigurationError):
        return EXPECTED
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return "no host of the address is a primary that takes writes"
    if isinstance(error, asyncpg.PostgresError | asyncpg.InternalClientError):
        return str(error)
    if isinstance(error, TimeoutError) and not error.errno:
        return f"no answer within {timeout_s:g} s"
    if isinstance(error, socket.gaierror):
        return "the name of the host is not known"
    if isinstance(error, OSError):
        return os.strerror(error.errno).lower() if error.errno else str(error)
    # What cannot even be tried; its text may repeat a part of the address.
    return EXPECTED
