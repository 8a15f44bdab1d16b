"""The simulator as a process of its own, over real sockets, and the adapter that talks to it."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import aiohttp
import anyio
import msgspec
import pytest
from aiohttp import web

from engine.domain.news import (
    ActionRequired,
    Approved,
    Declined,
    Failed,
    GatewayCall,
    NotFound,
    StillPending,
    Unknown,
)
from engine.gateways import http_client
from engine.gateways.http_client import BODY_MAX_BYTES, HttpClient, Lost, NotSent, Request, Response
from engine.gateways.simulator_books import read_books
from engine.gateways.simulator_config import SimulatorConfig
from engine.gateways.simulator_http import WallClock, serve_simulator
from engine.gateways.simulator_remote import RemoteSimulator

pytestmark = pytest.mark.anyio

CONFIG = SimulatorConfig()


@pytest.fixture
def anyio_backend():
    return "asyncio"


def call(n, action="purchase", method="pm_card_visa", **changes):
    values = {
        "gateway": "simulator",
        "op_id": f"pay_{n}.1",
        "key": f"op_{n}",
        "action": action,
        "amount": 1_000,
        "currency": "USD",
        "payment_method": method,
        "livemode": False,
    }
    return GatewayCall(**(values | changes))


def look_up(asked):
    return msgspec.structs.replace(asked, look_up=True)


@contextlib.asynccontextmanager
async def serving(books_path, config=CONFIG, webhook_url=None):
    async with anyio.create_task_group() as tasks:
        port = await tasks.start(serve_simulator, "127.0.0.1", 0, books_path, config, webhook_url)
        remote = RemoteSimulator(f"http://127.0.0.1:{port}", config=config)
        try:
            yield remote
        finally:
            await remote.close()
            tasks.cancel_scope.cancel()


async def test_every_fault_arrives_over_the_wire(tmp_path):
    async with serving(tmp_path / "books.jsonl") as remote:
        expected = {
            "pm_card_visa": (Approved, Approved),
            "pm_card_declined": (Declined, Declined),
            "pm_card_3ds": (ActionRequired, StillPending),
            "pm_card_pending": (StillPending, StillPending),
            "pm_card_5xx_after_charge": (Unknown, Approved),
            "pm_card_garbage_reply": (Unknown, Approved),
            "pm_card_wrong_amount": (Unknown, Approved),
            "pm_card_unreachable": (Failed, NotFound),
            "pm_card_timeout_after_charge": (None, Approved),
            "pm_card_timeout_before_charge": (None, NotFound),
            "pm_card_settles_late": (None, NotFound),
        }
        assert remote.perform_now([call(0)]) == [None]
        for n, (method, (first, then)) in enumerate(expected.items()):
            asked = call(n, method=method)
            news = None
            with anyio.move_on_after(0.3 if first is None else 10):
                news = await remote.perform(asked)
            assert type(news) is (first or type(None)), method
            assert type(await remote.perform(look_up(asked))) is then, method
        unreachable = await remote.perform(call(100, method="pm_card_unreachable"))
        assert unreachable == Failed("gateway_unreachable", sent=False)


async def test_a_payment_from_end_to_end(tmp_path):
    async with serving(tmp_path / "books.jsonl") as remote:
        made = await remote.perform(call(1, "authorize"))
        part = call(2, "capture", amount=600, target=made.reference, final=False)
        assert (await remote.perform(part)).amount == 600
        over = call(3, "capture", amount=401, target=made.reference)
        assert (await remote.perform(over)).code == "amount_exceeds_capturable"
        assert (await remote.perform(call(4, "void", target=made.reference))).amount == 400
        refund = call(5, "refund", amount=600, target=made.reference)
        refunded = await remote.perform(refund)
        assert await remote.perform(refund) == refunded
        other = msgspec.structs.replace(refund, amount=1)
        assert await remote.perform(other) == Failed("idempotency_key_reused")
    assert len(list(read_books(tmp_path / "books.jsonl"))) == 5


async def test_a_customer_completes_3ds_at_the_page(tmp_path):
    async with serving(tmp_path / "books.jsonl") as remote:
        asked = call(1, method="pm_card_3ds")
        news = await remote.perform(asked)
        path = f"/simulator/authentications/{news.reference}/complete"
        assert news.next_action.url == CONFIG.base_url + path
        async with aiohttp.ClientSession() as browser:
            async with browser.get(remote._base_url + path) as page:
                assert page.status == 200
                assert news.reference in await page.text()
            async with browser.post(remote._base_url + path + "?outcome=approved") as done:
                assert done.status == 200
            url = f"{remote._base_url}/v1/operations/ch_nobody/complete"
            async with browser.post(url) as missing:
                assert missing.status == 404
        assert isinstance(await remote.perform(look_up(asked)), Approved)


async def test_an_outage_drops_connections_and_its_own_doors_stay_open(tmp_path):
    async with serving(tmp_path / "books.jsonl") as remote, aiohttp.ClientSession() as operator:
        url = f"{remote._base_url}/v1/outage"
        async with operator.post(url, data=b'{"on": true}') as answer:
            assert answer.status == 200
        assert isinstance(await remote.perform(call(1)), Unknown), "it was sent, after all"
        async with operator.get(f"{remote._base_url}/v1/statistics") as answer:
            assert (await answer.json())["is_out"] is True
        async with operator.post(url, data=b'{"on": false}') as answer:
            assert answer.status == 200
        assert await remote.perform(look_up(call(1))) == NotFound()
        async with operator.get(f"{remote._base_url}/healthz") as answer:
            assert answer.status == 200
        async with operator.post(url, data=b"{}") as answer:
            assert answer.status == 400


async def test_nonsense_is_answered_with_400(tmp_path):
    async with serving(tmp_path / "books.jsonl") as remote, aiohttp.ClientSession() as client:
        url = f"{remote._base_url}/v1/operations"
        async with client.post(url, data=b"{}", headers={"Idempotency-Key": "k"}) as answer:
            assert answer.status == 400
        async with client.get(f"{url}/op_1?action=dance") as answer:
            assert answer.status == 400
        async with client.post(url, data=b" " * 70_000) as answer:
            assert answer.status == 413
    assert list(read_books(tmp_path / "books.jsonl")) == []


async def test_webhooks_are_posted_signed_and_posted_again_when_refused(tmp_path):
    received = []
    accepted = anyio.Event()

    async def take(request):
        received.append((dict(request.headers), await request.read()))
        if len(received) == 2:
            accepted.set()
        return web.Response(status=503 if len(received) == 1 else 200)

    app = web.Application()
    app.router.add_post("/hooks", take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/hooks"
    try:
        async with serving(tmp_path / "books.jsonl", webhook_url=url) as remote:
            asked = call(1, method="pm_card_webhook_early")
            news = await remote.perform(asked)
            assert len(received) == 1, "before the reply"
            with anyio.fail_after(10):
                await accepted.wait()
            for headers, raw in received:
                event = remote.verify_webhook(headers, raw, WallClock().now_ms())
                assert (event.op_id, event.news) == (asked.op_id, news)
    finally:
        await runner.cleanup()


async def test_nobody_listening_is_definite(free_port):
    remote = RemoteSimulator(f"http://127.0.0.1:{free_port}", config=CONFIG)
    assert await remote.perform(call(1)) == Failed("gateway_unreachable", sent=False)
    assert isinstance(await remote.perform(look_up(call(1))), Unknown)
    await remote.close()


# --- killed -----------------------------------------------------------------------------------

PROGRAM = """
import sys, anyio
from pathlib import Path
from engine.gateways.simulator_config import SimulatorConfig
from engine.gateways.simulator_http import serve_simulator

class Started:
    def started(self, port=None):
        print(port, flush=True)

anyio.run(
    lambda: serve_simulator(
        "127.0.0.1", 0, Path(sys.argv[1]), SimulatorConfig(), None, task_status=Started()
    )
)
"""


@contextlib.contextmanager
def process(books_path):
    """A simulator in a process of its own, killed without warning at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(books_path)], stdout=subprocess.PIPE
    ) as child:
        try:
            assert select.select([child.stdout], [], [], 30)[0], "it did not start"
            yield f"http://127.0.0.1:{int(child.stdout.readline())}"
        finally:
            os.kill(child.pid, signal.SIGKILL)


async def test_a_killed_process_knows_afterwards_what_it_did(tmp_path):
    books = tmp_path / "books.jsonl"
    silent = call(1, method="pm_card_timeout_after_charge")
    plain = call(2, "authorize")
    never_sent = call(3)
    with process(books) as url:
        remote = RemoteSimulator(url, config=CONFIG)
        async with anyio.create_task_group() as tasks:
            asked = []

            async def ask():
                asked.append(await remote.perform(silent))

            tasks.start_soon(ask)
            made = await remote.perform(plain)
            with anyio.fail_after(10):
                while await remote.perform(look_up(silent)) == NotFound():
                    continue
            tasks.cancel_scope.cancel()
        await remote.close()
    remote = RemoteSimulator(url, config=CONFIG)
    assert await remote.perform(never_sent) == Failed("gateway_unreachable", sent=False)
    await remote.close()

    with process(books) as url:
        remote = RemoteSimulator(url, config=CONFIG)
        assert isinstance(await remote.perform(look_up(silent)), Approved)
        assert await remote.perform(plain) == made
        assert await remote.perform(look_up(never_sent)) == NotFound()
        capture = call(4, "capture", target=made.reference)
        assert isinstance(await remote.perform(capture), Approved)
        await remote.close()
    effects = [effect.op_id for effect in read_books(books)]
    assert sorted(effects) == ["pay_1.1", "pay_2.1", "pay_4.1"]


async def test_killed_under_a_request_it_leaves_the_outcome_unknown(tmp_path):
    books = tmp_path / "books.jsonl"
    silent = call(1, method="pm_card_timeout_after_charge")
    answers = []
    async with anyio.create_task_group() as tasks:
        with process(books) as url:
            remote = RemoteSimulator(url, config=CONFIG)

            async def ask():
                answers.append(await remote.perform(silent))

            tasks.start_soon(ask)
            with anyio.fail_after(10):
                while await remote.perform(look_up(silent)) == NotFound():
                    continue
    await remote.close()
    assert [type(answer) for answer in answers] == [Unknown]


# --- the client -------------------------------------------------------------------------------


@pytest.fixture
def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.asynccontextmanager
async def peer(reply):
    """A server that sends these bytes to whoever asks, and hangs up."""

    async def serve(stream):
        async with stream:
            await stream.receive()
            with contextlib.suppress(anyio.BrokenResourceError):
                await stream.send(reply)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    client = HttpClient(connections_max=4, connect_timeout_s=2, timeout_s=5)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        try:
            yield client, f"http://127.0.0.1:{port}/"
        finally:
            await client.close()
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n123",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n" + b"x" * (BODY_MAX_BYTES + 1),
    ],
)
async def test_whatever_is_not_a_whole_response_is_lost(reply):
    async with peer(reply) as (client, url):
        assert isinstance(await client.send(Request("POST", url, {}, b"{}")), Lost)


async def test_a_redirect_is_not_followed():
    reply = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    async with peer(reply) as (client, url):
        answer = await client.send(Request("POST", url, {}, b"{}"))
        assert isinstance(answer, Response)
        assert answer.status == 302


@pytest.mark.parametrize(("stood_still_s", "arrives"), [(0.9, True), (1.1, False)])
async def test_what_stood_still_for_too_long_before_it_was_sent_is_not_sent(
    monkeypatch, stood_still_s, arrives
):
    arrived = bytearray()

    async def serve(stream):
        async with stream:
            with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                arrived.extend(await stream.receive())
                await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    # The process is stopped after it was asked to send, and goes on so much later.
    now = iter([100.0, 100.0 + stood_still_s])
    monkeypatch.setattr(http_client, "time", SimpleNamespace(clock_gettime=lambda _: next(now)))
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    client = HttpClient(connections_max=4, connect_timeout_s=2, timeout_s=5)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        answer = await client.send(Request("POST", f"http://127.0.0.1:{port}/", {}, b"pay"), 1)
        await client.close()
        tasks.cancel_scope.cancel()
    assert isinstance(answer, Response if arrives else Lost)
    assert bool(arrived) is arrives, "neither headers nor body"


@pytest.mark.parametrize("url", ["http://nobody.invalid/", "nonsense", "ftp://127.0.0.1/"])
async def test_addresses_that_lead_nowhere_send_nothing(url):
    client = HttpClient(connections_max=4, connect_timeout_s=2, timeout_s=5)
    assert isinstance(await client.send(Request("GET", url)), NotSent)
    await client.close()
