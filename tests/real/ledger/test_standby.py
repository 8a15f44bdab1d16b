"""A standby among the hosts of the DSN may be behind: nothing is decided by what it says."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest

pytest.register_assert_rewrite("tests.contracts.ledger")

from engine.domain.entry import Entry  # noqa: E402
from engine.ledger.embedded import EmbeddedPostgres  # noqa: E402
from engine.ledger.migrate import migrate  # noqa: E402
from engine.ledger.postgres import PostgresLedger  # noqa: E402
from engine.ledger.verify import verify  # noqa: E402
from tests.contracts.ledger import NOW, Maker, open_payments  # noqa: E402
from tests.real.standby import standby_of  # noqa: E402

pytestmark = pytest.mark.anyio


async def test_payments_are_read_from_the_primary_and_not_from_a_standby(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "data") as server:
        await migrate(server.dsn)
        with standby_of(server, tmp_path / "standby") as standby:
            behind = await asyncpg.connect(user="engine", database="postgres", host=standby)
            await behind.execute("SELECT pg_wal_replay_pause()")
            hosts = f"{standby},{server._sockets}"
            dsn = f"postgresql://engine@/postgres?host={hosts}"
            ledger, make = PostgresLedger(dsn), Maker()
            payment = make.payment()
            await ledger.open()
            await ledger.take_over("test")
            await ledger.commit(make.batch(Entry(payment=payment)))
            found = await ledger.payments([payment.id])
            still_open = await open_payments(ledger, range(4_096))
            report = await verify(dsn, witness=lambda: iter(()), now_ms=NOW)
            assert await behind.fetchval("SELECT count(*) FROM payments") == 0
            await ledger.close()
            await behind.close()
    assert found == {payment.id: payment}
    assert still_open == [payment]
    assert report.head == 1
