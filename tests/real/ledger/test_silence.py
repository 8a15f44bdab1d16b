"""A database that vanishes once it is connected to: nothing comes from it, no answer and no end."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import asyncpg
import pytest

pytest.register_assert_rewrite("tests.contracts.ledger")

from engine.domain.entry import Entry, KeyRef  # noqa: E402
from engine.ledger import connections, writer  # noqa: E402
from engine.ledger.postgres import PostgresLedger  # noqa: E402
from engine.ports import LedgerUnavailable  # noqa: E402
from tests.contracts.ledger import MERCHANT, Maker  # noqa: E402

pytestmark = pytest.mark.anyio

LIMIT_S = 0.1
"""Of the engine's patience, for what never comes."""
PATIENCE_S = 20.0
"""Of the test's, for an engine that would wait for ever."""

Silence = Callable[[asyncpg.Connection], None]


@pytest.fixture
def silence() -> Iterator[Silence]:
    """Stops a connection's back end; the connection itself stays open."""
    stopped: list[int] = []

    def stop(connection: asyncpg.Connection) -> None:
        stopped.append(connection.get_server_pid())
        os.kill(stopped[-1], signal.SIGSTOP)

    yield stop
    for back_end in stopped:
        os.kill(back_end, signal.SIGCONT)


class FallsSilent:
    """In the place of a connection: nothing comes any more as soon as it is asked in one way."""

    def __init__(self, connection: asyncpg.Connection, asked: str, silence: Silence) -> None:
        self.connection = connection
        self.asked = asked
        self.silence = silence

    def __getattr__(self, name: str) -> Any:
        if name == self.asked:
            self.asked = ""
            self.silence(self.connection)
        return getattr(self.connection, name)


@pytest.mark.parametrize(
    "read",
    [
        lambda ledger: ledger.payments(["pay_x"]),
        lambda ledger: ledger.claim(KeyRef(MERCHANT, True, "key")),
    ],
    ids=["rows", "a row"],
)
async def test_a_read_is_not_waited_for_when_the_database_has_vanished(
    ledger: PostgresLedger,
    silence: Silence,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[PostgresLedger], Awaitable[object]],
) -> None:
    silence(ledger._connections._idle[-1])
    with monkeypatch.context() as impatient, anyio.fail_after(PATIENCE_S):
        impatient.setattr(connections, "ANSWER_TIMEOUT_S", LIMIT_S)
        with pytest.raises(LedgerUnavailable, match="TimeoutError"):
            await read(ledger)
    assert ledger.statistics().reader.idle == 0
    assert not await read(ledger), "on a connection that answers"


def test_a_database_that_is_there_gives_a_read_up_by_itself() -> None:
    assert connections.READ_TIMEOUT_S < connections.ANSWER_TIMEOUT_S


@pytest.mark.parametrize(
    "asked", ["fetchrow", "fetchval", "fetch", "set_builtin_type_codec", "prepare", "execute"]
)
async def test_a_writer_does_not_wait_for_a_database_that_vanishes_while_it_connects(
    ledger: PostgresLedger,
    silence: Silence,
    make: Maker,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
) -> None:
    """What it waits for is a part of a commit, which is never cancelled."""
    connect = writer.connect
    payment = make.payment()
    patient_s = ledger._writer._timeout_s

    async def connect_for_a_moment(*arguments: Any, **wanted: Any) -> Any:
        return FallsSilent(await connect(*arguments, **wanted), asked, silence)

    with monkeypatch.context() as vanishing, anyio.fail_after(PATIENCE_S):
        vanishing.setattr(writer, "connect", connect_for_a_moment)
        ledger._writer._timeout_s = LIMIT_S
        with pytest.raises(LedgerUnavailable, match="TimeoutError"):
            await ledger._writer.begin(ledger._epoch)
    assert not ledger.statistics().writer.connected
    ledger._writer._timeout_s = patient_s
    await ledger.commit(make.batch(Entry(payment=payment)))
    assert await ledger.payments([payment.id]) == {payment.id: payment}
