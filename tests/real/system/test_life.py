"""Start, stop, start again: what is kept, what is refused, and what is left behind."""

from __future__ import annotations

import asyncio
import time

import aiohttp
import psutil
import pytest

from tests.real.system.agreement import assert_books_agree, assert_verified
from tests.real.system.client import client_of, new_key, order
from tests.real.system.load import Load, assert_told_holds, wait_all_resolved
from tests.real.system.process import EngineProcess, engine_folder, wait_until

pytestmark = pytest.mark.anyio
# What supervisors of processes commonly wait before they kill.
DRAINED_S = 10.0
# Where nothing slow is under way, there is hardly anything to wait for.
STOPPED_S = 5.0
# Under 5 s on a machine that does nothing else.
SECOND_START_S = 10.0


async def test_sigterm_under_load_answers_what_runs_and_leaves_nothing_behind(
    engine: EngineProcess,
) -> None:
    async with client_of(engine) as client:
        load = Load(client, seed=2)
        running = asyncio.create_task(load.run(8))
        while len(load.told) < 60:
            assert not running.done(), running.exception()
            await asyncio.sleep(0.01)
        began = time.monotonic()
        engine.send_sigterm()
        code = await asyncio.to_thread(engine.wait_ended)
        took_s = time.monotonic() - began
        assert code == 0, engine.log()
        assert took_s < DRAINED_S
        await asyncio.to_thread(engine.wait_nothing_left)
        await asyncio.to_thread(assert_verified, engine)
        await asyncio.to_thread(engine.restart)
        load.stop()
        await running
        await wait_all_resolved(client)
        await assert_told_holds(load)
        await assert_books_agree(client)


async def test_stop_answers_every_request_that_was_taken(engine: EngineProcess) -> None:
    async with client_of(engine, keep_alive=False) as client:
        answered = 0
        enough = asyncio.Event()
        unanswered: list[str] = []

        async def customer() -> None:
            nonlocal answered
            while True:
                reference = new_key("order")
                try:
                    answer = await client.authorize(100, reference=reference)
                except aiohttp.ClientConnectorError:
                    return
                except (aiohttp.ClientError, OSError):
                    unanswered.append(reference)
                else:
                    assert answer.status in (201, 503), answer
                    answered += 1
                    if answered >= 200:
                        enough.set()

        async with asyncio.TaskGroup() as customers:
            for _ in range(16):
                customers.create_task(customer())
            await enough.wait()
            began = time.monotonic()
            engine.send_sigterm()
            assert await asyncio.to_thread(engine.wait_ended) == 0
        assert time.monotonic() - began < STOPPED_S
        await asyncio.to_thread(engine.restart)
        # Whoever got no answer had not been let in.
        for reference in unanswered:
            assert await client.list_all(f"/v1/payments?reference={reference}") == []


async def test_stop_lets_a_slow_gateway_finish(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        key = new_key()
        asked = asyncio.create_task(client.authorize(100, "pm_card_slow", key=key))
        while not await client.list_all("/v1/payments"):
            pass
        engine.send_sigterm()
        answer = await asked
        assert (answer.status, answer.json["status"]) == (201, "authorized"), answer
        assert await asyncio.to_thread(engine.wait_ended) == 0


async def test_new_work_is_refused_while_it_stops(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        asked = asyncio.create_task(client.authorize(100, "pm_card_slow"))
        while not await client.list_all("/v1/payments"):
            pass
        engine.send_sigterm()
        wait_until(lambda: '"event":"stopping"' in engine.log(), 5, "it stops")
        try:
            refused = await client.authorize(100)
        except (aiohttp.ClientError, OSError):
            pass  # the socket is closed already, which says the same
        else:
            refused.assert_problem(503, "starting")
            assert int(refused.headers["Retry-After"]) >= 1
        assert (await asked).status == 201
        assert await asyncio.to_thread(engine.wait_ended) == 0


async def test_restart_keeps_the_data_and_is_ready_soon(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        payment = (await client.authorize(100)).json
        assert engine.terminate() == 0
        engine.wait_nothing_left()
        engine.restart()
        assert engine.ready_after_s < SECOND_START_S
        assert await client.payment(payment["id"]) == payment
        done = await client.command(payment["id"], "capture")
        assert done.json["status"] == "captured"
        ready = await client.send("GET", "/readyz")
        assert (ready.status, ready.json) == (200, {"status": "ready", "reasons": []})
        health = await client.get("/v1/health")
        assert health.json["status"] == "ok", health


async def test_second_engine_on_the_same_data_is_refused_in_words(
    engine: EngineProcess,
) -> None:
    async with client_of(engine) as client:
        done = await asyncio.to_thread(engine.run_command, "dev", "--port", "0")
        assert done.returncode == 1, done
        assert done.stdout == ""
        assert str(engine.data_dir) in done.stderr, done.stderr
        assert "use" in done.stderr or "another" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        assert (await client.authorize(100)).status == 201


async def test_port_that_is_taken_is_refused_in_words(engine: EngineProcess) -> None:
    other = EngineProcess(engine.data_dir.parent / "other")
    done = other.run_command("dev", "--port", str(engine.port))
    assert done.returncode == 1, done
    assert str(engine.port) in done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    other.wait_nothing_left()


@pytest.mark.campaign
@pytest.mark.parametrize("after_s", [0.2, 0.5, 0.8, 1.1, 1.4])
async def test_kill_during_the_first_start_is_survived(after_s: float) -> None:
    with engine_folder() as made:
        made.spawn()
        await asyncio.sleep(after_s)
        made.kill()
        made.wait_nothing_left()
        async with client_of(made.restart()) as client:
            assert (await client.authorize(100)).status == 201
        assert_verified(made)


async def test_kill_leaves_no_postgres_behind(engine: EngineProcess) -> None:
    assert len(engine.processes()) >= 3
    engine.kill()
    engine.wait_nothing_left()


async def test_kill_of_postgres_is_survived(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        key = new_key()
        first = await client.authorize(100, key=key)
        assert first.status == 201
        server = next(
            process
            for process in engine.processes()
            if process.name() == "postgres" and "-D" in process.cmdline()
        )
        sessions = [child for child in server.children() if "[local]" in title(child)]
        assert sessions, "the engine has no session"
        sessions[0].kill()
        body = order(200, "pm_card_visa")
        done = await client.until_final("/v1/payments/authorize", body, new_key())
        assert done.status == 201, done
        again = await client.authorize(100, key=key)
        assert again.body == first.body
        await assert_books_agree(client)


def title(process: psutil.Process) -> str:
    return " ".join(process.cmdline())
