"""Batches over HTTP: of any size that is allowed, beside single requests, and after a crash."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from tests.real.system.agreement import effects_by_operation
from tests.real.system.client import POLL_S, Answer, Client, client_of, new_key, order
from tests.real.system.process import EngineProcess, wait_until

pytestmark = pytest.mark.anyio
PATH = "/v1/payments/batch"
MIB = 1_024 * 1_024


class Result(msgspec.Struct):
    """One result, its body in its bytes."""

    idempotency_key: str | None
    status: int
    body: msgspec.Raw
    replayed: bool = False
    location: str | None = None
    retry_after: int | None = None

    @property
    def json(self) -> Any:
        return json.loads(bytes(self.body))


class Results(msgspec.Struct):
    """An answer to a batch."""

    object: str
    data: list[Result]


def item(operation: str = "authorize", key: str | None = None, **fields: Any) -> dict[str, Any]:
    if operation in ("authorize", "purchase"):
        amount, method = fields.pop("amount", 1_000), fields.pop("method", "pm_card_visa")
        fields = {**order(amount, method), **fields}
    return {"idempotency_key": key or new_key(), "operation": operation, **fields}


async def sent(client: Client, items: list[Any]) -> list[Result]:
    answer = await client.post(PATH, {"items": items})
    assert answer.status == 200, answer
    results = msgspec.json.decode(answer.body, type=Results).data
    assert len(results) == len(items)
    return results


def told(results: list[Result]) -> list[tuple[int, bytes]]:
    return [(result.status, bytes(result.body)) for result in results]


async def test_a_thousand_authorisations_at_once(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        results = await sent(client, [item(amount=n + 1) for n in range(1_000)])
        assert {result.status for result in results} == {201}
        assert [result.json["amount"] for result in results] == list(range(1, 1_001))
        payments = {result.json["id"] for result in results}
        assert len(payments) == 1_000
    assert {f"{payment}.1" for payment in payments} <= set(effects_by_operation(engine))


async def test_items_of_one_payment_run_in_their_order(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        opened = await sent(client, [item(), item(), item("purchase")])
        a, b, c = (result.json["id"] for result in opened)
        results = await sent(
            client,
            [
                item("capture", payment=a, amount=600),
                item("cancel", payment=b),
                item("refund", payment=a, amount=500),
                item("refund", payment=c),
                item("refund", payment=a, amount=500),
                item("capture", payment=b),
            ],
        )
        assert [result.status for result in results] == [200, 200, 201, 201, 422, 409]
        assert results[2].location == f"/v1/refunds/{results[2].json['id']}"
        assert (await client.payment(a))["amount_refunded"] == 500


async def test_the_same_batch_after_a_kill_is_answered_with_the_same_bytes(
    own_engine: EngineProcess,
) -> None:
    # Few enough failures that the breaker stays closed, in whichever order they are heard.
    methods = ["pm_card_visa", "pm_card_declined", "pm_card_unreachable", *["pm_card_visa"] * 27]
    async with client_of(own_engine) as client:
        opened = [item(method=method) for method in methods * 3]
        first = await sent(client, opened)
        payment = first[0].json["id"]
        changes = [
            item("capture", payment=payment, amount=400),
            item("refund", payment=payment, amount=300),
            item("refund", payment=payment, amount=300),
        ]
        first += await sent(client, changes)
        assert {result.status for result in first} == {200, 201, 402, 422, 502}
        own_engine.kill()
        own_engine.restart()
        again = await sent(client, opened + changes)
        assert told(again) == told(first)
        assert all(result.replayed for result in again)
        for result, one in zip(first[:3], opened, strict=False):
            fields = {k: v for k, v in one.items() if k not in ("idempotency_key", "operation")}
            alone = await client.post("/v1/payments/authorize", fields, key=one["idempotency_key"])
            assert (alone.status, alone.body) == (result.status, bytes(result.body))
            assert alone.is_replayed
    verified = own_engine.run_command("verify")
    assert verified.returncode == 0, verified.stdout


async def test_a_kill_in_the_middle_of_a_batch_charges_nothing_twice(
    own_engine: EngineProcess,
) -> None:
    items = [item() for _ in range(1_000)]
    async with client_of(own_engine) as client:
        sending = asyncio.create_task(client.post(PATH, {"items": items}))
        while not (await client.get("/v1/payments?limit=1")).json["data"]:
            pass
        own_engine.kill()
        await asyncio.gather(sending, return_exceptions=True)
        own_engine.restart()
        results = await sent(client, items)
        for _ in range(400):
            if {result.status for result in results} == {201}:
                break
            # What the crash cut off is looked up first, then it may run again.
            await asyncio.sleep(POLL_S)
            results = await sent(client, items)
        assert {result.status for result in results} == {201}
        assert len({result.json["id"] for result in results}) == 1_000
    verified = own_engine.run_command("verify")
    assert verified.returncode == 0, verified.stdout


async def test_keys_hold_across_batches_and_single_requests_at_once(engine: EngineProcess) -> None:
    key = new_key()
    async with client_of(engine) as client:
        alone, first, second = await asyncio.gather(
            client.authorize(1_000, key=key),
            sent(client, [item(key=key), item(key=key, amount=1)]),
            sent(client, [item(), item(key=key)]),
        )
        assert alone.status == 201
        assert {alone.body, bytes(first[0].body), bytes(second[1].body)} == {alone.body}
        assert [alone.is_replayed, first[0].replayed, second[1].replayed].count(False) == 1
        assert (first[1].status, first[1].json["code"]) == (422, "idempotency_key_reused")
        assert second[0].status == 201


def padded(size: int) -> bytes:
    body = json.dumps({"items": [item()]}).encode()
    return body + b" " * (size - len(body))


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (padded(MIB), 200, None),
        (padded(MIB + 1), 413, "body_too_large"),
        ({"items": []}, 422, "parameter_invalid"),
        ({"items": [item()] * 1_001}, 422, "parameter_invalid"),
        ({"items": {}}, 400, "wrong_type"),
        (b'{"items":[' + b"[" * 500_000, 400, "depth_exceeded"),
        (b'{"items":[1],"items":[1]}', 400, "duplicate_key"),
    ],
    ids=["1 MiB", "1 MiB + 1", "empty", "1001", "no list", "deep", "twice"],
)
@pytest.mark.filterwarnings("ignore:Sending a large body")
async def test_envelopes_at_and_beyond_their_bounds(
    engine: EngineProcess, body: Any, status: int, code: str | None
) -> None:
    async with client_of(engine) as client:
        answer: Answer = await client.post(PATH, body)
        assert (answer.status, answer.code) == (status, code), answer
        assert (await client.get("/readyz")).status == 200


async def test_bad_items_among_good_ones(engine: EngineProcess) -> None:
    twice = json.dumps(item())[:-1].encode() + b',"amount":5}'
    items: list[Any] = [item(), item(amount=0), item(description="4242 4242 4242 4242"), 7, item()]
    raw = b",".join([twice, *(json.dumps(one).encode() for one in items)])
    async with client_of(engine) as client:
        answer = await client.post(PATH, b'{"items":[' + raw + b"]}")
        results = msgspec.json.decode(answer.body, type=Results).data
        assert [(result.status, result.json.get("code")) for result in results] == [
            (400, "duplicate_key"),
            (201, None),
            (422, "amount_invalid"),
            (422, "pan_not_allowed"),
            (400, "wrong_type"),
            (201, None),
        ]
        request_id = answer.headers["Request-Id"]

    def line() -> dict[str, Any]:
        lines = (json.loads(one) for one in engine.log().splitlines() if f'"{request_id}"' in one)
        return next((one for one in lines if one["event"] == "http_request"), {})

    wait_until(line, 5, "the line of the request")
    assert (line()["items"], line()["items_failed"]) == (6, 4)
    assert "4242 4242" not in engine.log()
