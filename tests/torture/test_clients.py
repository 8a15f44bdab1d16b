"""Clients that overload, trickle, never read, send too much, or send what must not be kept."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Iterator

import pytest

from engine.gateways.simulator_config import DEVELOPMENT_SECRET
from tests.real.system.client import Client, client_of, new_key, order
from tests.real.system.process import API_KEY
from tests.torture.checks import assert_all_holds, ensure_running, more_answers, under_load
from tests.torture.conftest import Scenario
from tests.torture.plant import Plant, plant, rss_bytes

pytestmark = [pytest.mark.anyio, pytest.mark.torture]
CARDS = ("4242424242424242", "4000 0566 5566 5556", "5555-5555-5555-4444", "378282246310005")
SECRETS = ("sk_live_abcdefgh12345678", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
FORGERY = 'x\r\n{"level":"error","event":"forged"}\x1b[31m'


@pytest.fixture(scope="module")
def works() -> Iterator[Plant]:
    with plant(more="credits = 24") as made:
        yield made


async def test_row_40_more_requests_than_there_is_room_for(
    works: Plant, scenario: Scenario
) -> None:
    await ensure_running(works.engine)
    async with client_of(works.engine) as client:
        keys = [new_key("burst") for _ in range(600)]
        took: list[float] = []

        async def ask(key: str) -> int:
            began = time.monotonic()
            answer = await client.authorize(700, "pm_card_visa", key=key)
            if answer.status == 503:
                took.append(time.monotonic() - began)
                assert answer.code == "overloaded"
                assert int(answer.headers["Retry-After"]) >= 1
            return answer.status

        statuses = await asyncio.gather(*(ask(key) for key in keys))
        assert set(statuses) == {201, 503}
        # Whoever was refused left nothing behind, and the same key pays.
        refused = [key for key, status in zip(keys, statuses, strict=True) if status == 503]
        body = order(700, "pm_card_visa")
        for key in refused[:10]:
            answer = await client.until_final("/v1/payments/authorize", body, key)
            assert (answer.status, answer.is_replayed) == (201, False)
        expected = len(keys) - len(refused) + 10
        assert len(await client.list_all("/v1/payments")) == expected
        await assert_all_holds(client)
        scenario.note(
            requests=len(keys), refused=len(refused), slowest_refusal_s=round(max(took), 2)
        )


async def test_row_45_event_loop_blocked(works: Plant, scenario: Scenario) -> None:
    engine = works.engine
    if engine.is_running:
        await asyncio.to_thread(engine.terminate)
    engine.spawn("after_gateway:20:block")
    await asyncio.to_thread(lambda: None)
    async with asyncio.timeout(30):
        while await asyncio.to_thread(engine.probe, "/readyz") != 200:
            await asyncio.sleep(0.05)
    async with under_load(engine, scenario, seed=45) as (client, load):
        async with asyncio.timeout(20):
            while "failpoint after_gateway: block" not in engine.log():
                await asyncio.sleep(0.05)
        scenario.hit("after_gateway")
        await more_answers(load, 10)
        metrics = (await client.get("/metrics")).body.decode()
        lag = [line for line in metrics.splitlines() if "loop_lag" in line and line[0] != "#"]
        assert lag, "the lag of the event loop is a metric"
        scenario.note(blocked_s=2.0, metrics=lag[:3])
    await asyncio.to_thread(engine.terminate)


async def p99_s(client: Client, count: int = 150) -> float:
    took = []
    for _ in range(count):
        began = time.monotonic()
        answer = await client.authorize(300)
        assert answer.status == 201, answer
        took.append(time.monotonic() - began)
    return sorted(took)[int(count * 0.99) - 1]


async def test_row_46_slow_clients(works: Plant, scenario: Scenario) -> None:
    await ensure_running(works.engine)
    address = ("127.0.0.1", works.engine.port)
    async with client_of(works.engine) as client:
        before = await p99_s(client)
        slow = [socket.create_connection(address, 5) for _ in range(500)]
        try:
            head = f"POST /v1/payments/authorize HTTP/1.1\r\nAuthorization: Bearer {API_KEY}\r\n"
            for number, one in enumerate(slow):
                one.setblocking(False)
                # Half of them trickle their head, half a body that never becomes whole.
                more = "Content-Length: 400\r\n\r\n{" if number % 2 else "X-Slow: a"
                one.send((head + more).encode())
            during = await p99_s(client)
            open_ones, closed_after_s = await trickle(slow)
        finally:
            for one in slow:
                one.close()
        assert open_ones == 0, "whoever trickles is closed at the deadline"
        assert during < max(10 * before, 0.25), (before, during)
        await assert_all_holds(client)
        scenario.note(
            sockets=500,
            p99_before_ms=round(before * 1000, 1),
            p99_during_ms=round(during * 1000, 1),
            all_closed_after_s=round(closed_after_s, 1),
        )


async def trickle(slow: list[socket.socket], within_s: float = 60.0) -> tuple[int, float]:
    """Send a byte a second on each, until the engine has closed all."""
    began = time.monotonic()
    left = list(slow)
    while left and time.monotonic() < began + within_s:
        await asyncio.sleep(1)
        still = []
        for one in left:
            try:
                one.send(b"a")
                closed = one.recv(65_536) == b""
            except BlockingIOError:
                closed = False
            except OSError:
                closed = True
            if not closed:
                still.append(one)
        left = still
    return len(left), time.monotonic() - began


async def test_row_48_oversized_requests(works: Plant, scenario: Scenario) -> None:
    await ensure_running(works.engine)
    engine = works.engine
    async with client_of(engine) as client:
        before = rss_bytes(engine.pid)
        metadata = {f"k{number}": "v" for number in range(10_000)}
        bodies = [
            (b'{"amount": 1, "description": "' + b"a" * 1_000_000 + b'"}', {413}),
            (b"[" * 200_000, {400, 413}),
            (
                json.dumps({**order(1, "pm_card_visa"), "metadata": metadata}).encode(),
                {400, 413, 422},
            ),
        ]
        for _ in range(50):
            for body, statuses in bodies:
                answer = await client.post("/v1/payments/authorize", body)
                assert answer.status in statuses, answer
        zipped = await client.send(
            "POST",
            "/v1/payments/authorize",
            body=b"\x1f\x8b" + bytes(1000),
            headers={
                "Authorization": f"Bearer {API_KEY}",
                "Idempotency-Key": new_key(),
                "Content-Type": "application/json",
                "Content-Encoding": "gzip",
            },
        )
        assert zipped.status == 415, zipped
        big = await client.send("GET", "/livez", headers={f"x-{n}": "a" * 900 for n in range(100)})
        assert big.status == 431, big
        grown = rss_bytes(engine.pid) - before
        assert grown < 64_000_000, f"{grown:,} bytes more"
        assert (await client.authorize(100)).status == 201
        await assert_all_holds(client)
        scenario.note(
            sent_megabytes=round(50 * sum(len(body) for body, _ in bodies) / 1e6),
            rss_grown_megabytes=round(grown / 1e6, 1),
        )


async def test_row_50_nothing_secret_is_kept_anywhere(works: Plant, scenario: Scenario) -> None:
    await ensure_running(works.engine)
    async with client_of(works.engine) as client:
        for planted in (*CARDS, *SECRETS, FORGERY):
            for field in ("description", "reference", "customer", "payment_method"):
                more = {field: planted} if field != "payment_method" else {}
                method = planted if field == "payment_method" else "pm_card_visa"
                await client.post("/v1/payments/authorize", {**order(300, method), **more})
            for meta in ({"note": planted}, {planted: "x"}):
                body = {**order(300, "pm_card_visa"), "metadata": meta}
                await client.post("/v1/payments/authorize", body)
            await client.get(f"/v1/payments/{planted.split()[0]}?reference=x")
            line = re.sub(r"[\r\n\x1b]", "_", planted)
            await client.send(
                "GET", "/v1/payments", headers={"Authorization": f"Bearer {line}", "X-A": line}
            )
        await assert_all_holds(client)
    logs = works.engine.logs()
    kept = await asyncio.to_thread(everything_in, works)
    for planted in (*CARDS, *SECRETS, API_KEY):
        assert planted not in logs, "it is in the log"
    # What a client writes about its own payment is kept as it is, but never a card's number, and
    # never what opens a door of the engine's.
    for planted in (*CARDS, API_KEY, DEVELOPMENT_SECRET):
        assert planted not in kept, "it is in the database"
    assert '"event":"forged"' not in logs
    assert "\x1b" not in logs
    scenario.note(planted=len(CARDS) + len(SECRETS) + 1, tables_bytes=len(kept))


def everything_in(works: Plant) -> str:
    """Every row of every table as text; bytes as the text they hold."""
    tables = works.rows("SELECT relname FROM pg_stat_user_tables ORDER BY relname")
    found = []
    for table in tables:
        for row in works.rows(f'SELECT * FROM "{table["relname"]}"'):
            for value in row.values():
                text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
                found.append(text)
    return "\n".join(found)
