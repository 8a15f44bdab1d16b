"""Whatever arrives: the right refusal, never a 500, nothing half done, and the server goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.real.system.agreement import assert_books_agree
from tests.real.system.client import Answer, Client, client_of, new_key, order
from tests.real.system.process import API_KEY, EngineProcess

pytestmark = pytest.mark.anyio
AUTHORIZE = "/v1/payments/authorize"
GOOD = json.dumps(order(100, "pm_card_visa")).encode()


def with_field(name: str, value: str) -> bytes:
    """A good body with one more field, or with another value of one; `value` is JSON."""
    fields = {key: json.dumps(one) for key, one in order(100, "pm_card_visa").items()}
    fields[name] = value
    return ("{" + ",".join(f'"{key}":{one}' for key, one in fields.items()) + "}").encode()


def amount(text: str) -> bytes:
    return with_field("amount", text)


BODIES: list[tuple[str, bytes, int, str]] = [
    ("empty", b"", 400, "malformed_json"),
    ("no json", b"amount=100", 400, "malformed_json"),
    ("truncated", GOOD[:-3], 400, "malformed_json"),
    ("trailing", GOOD + b"x", 400, "malformed_json"),
    ("two values", GOOD + GOOD, 400, "malformed_json"),
    ("byte order mark", b"\xef\xbb\xbf" + GOOD, 400, "malformed_json"),
    ("half a pair", with_field("reference", '"\\ud800"'), 400, "malformed_json"),
    ("utf-16", GOOD.decode().encode("utf-16"), 400, "bad_utf8"),
    ("bad utf-8", with_field("reference", '"x"').replace(b'"x"', b'"\xff"'), 400, "bad_utf8"),
    ("nul byte", GOOD.replace(b"USD", b"US\x00"), 400, "nul_not_allowed"),
    ("nul escape", with_field("reference", '"a\\u0000b"'), 400, "nul_not_allowed"),
    ("nul in a name", with_field("metadata", '{"a\\u0000":"b"}'), 400, "nul_not_allowed"),
    ("array", b"[" + GOOD + b"]", 400, "wrong_type"),
    ("null", b"null", 400, "wrong_type"),
    ("deep", b"[" * 60_000, 400, "depth_exceeded"),
    ("deep and ignored", with_field("x", "[" * 40 + "]" * 40), 400, "depth_exceeded"),
    ("200,000 deep", b"[" * 200_000, 413, "body_too_large"),
    ("too large", with_field("description", '"' + "x" * 70_000 + '"'), 413, "body_too_large"),
    ("key twice", GOOD[:-1] + b',"amount":5}', 400, "duplicate_key"),
    ("inner key twice", with_field("metadata", '{"a":"1","a":"2"}'), 400, "duplicate_key"),
    ("unknown field", with_field("amout", "1"), 400, "unknown_field"),
    ("prototype", with_field("__proto__", "{}"), 400, "unknown_field"),
    ("field missing", b'{"amount":100,"currency":"USD"}', 400, "field_missing"),
    ("amount is text", amount('"100"'), 400, "wrong_type"),
    ("amount is a float", amount("100.0"), 400, "wrong_type"),
    ("amount has decimals", amount("10.99"), 400, "wrong_type"),
    ("amount has an exponent", amount("1e2"), 400, "wrong_type"),
    ("amount is true", amount("true"), 400, "wrong_type"),
    ("amount is null", amount("null"), 400, "wrong_type"),
    ("amount is NaN", amount("NaN"), 400, "malformed_json"),
    ("amount has a leading zero", amount("0100"), 400, "malformed_json"),
    ("amount is zero", amount("0"), 422, "amount_invalid"),
    ("amount is negative", amount("-100"), 422, "amount_invalid"),
    ("amount has 13 digits", amount("1000000000000"), 422, "amount_too_large"),
    ("amount is 2^63", amount(str(2**63)), 422, "amount_too_large"),
    ("amount is 2^64", amount(str(2**64)), 422, "amount_too_large"),
    ("amount is endless", amount("9" * 5_000), 422, "amount_too_large"),
    ("currency unknown", with_field("currency", '"XYZ"'), 422, "currency_unsupported"),
    ("currency is empty", with_field("currency", '""'), 422, "currency_unsupported"),
    ("currency ends a line", with_field("currency", '"EUR\\n"'), 422, "currency_unsupported"),
    ("currency is a number", with_field("currency", "840"), 400, "wrong_type"),
    ("currency has other letters", with_field("currency", '"ＵＳＤ"'), 422, "currency_unsupported"),
    ("method unknown", with_field("payment_method", '"pm_x"'), 422, "payment_method_unknown"),
    (
        "method is a card number",
        with_field("payment_method", '"4242 4242 4242 4242"'),
        422,
        "pan_not_allowed",
    ),
    (
        "metadata has a card number",
        with_field("metadata", '{"note":"card 4242424242424242"}'),
        422,
        "pan_not_allowed",
    ),
    (
        "metadata's name is a card number",
        with_field("metadata", '{"4242424242424242":"x"}'),
        422,
        "pan_not_allowed",
    ),
    ("metadata is a list", with_field("metadata", "[]"), 400, "wrong_type"),
    ("metadata of a number", with_field("metadata", '{"a":1}'), 400, "wrong_type"),
    (
        "metadata of 51",
        with_field("metadata", json.dumps({str(n): "x" for n in range(51)})),
        422,
        "parameter_invalid",
    ),
    ("metadata long", with_field("metadata", f'{{"a":"{"x" * 501}"}}'), 422, "parameter_invalid"),
    ("gateway unknown", with_field("gateway", '"nowhere"'), 422, "gateway_unknown"),
    ("customer is none", with_field("customer", '"bob"'), 422, "parameter_invalid"),
    ("url is code", with_field("return_url", '"javascript:alert(1)"'), 422, "parameter_invalid"),
]


@asynccontextmanager
async def nothing_happens(client: Client) -> AsyncIterator[None]:
    """No payment, event or transfer more than before, no failure, and it still works."""
    before = await everything(client)
    yield
    assert await everything(client) == before
    assert '"event":"handler_failed"' not in client.engine.log()
    assert (await client.send("GET", "/readyz")).status == 200


async def everything(client: Client) -> list[Any]:
    paths = ("payments", "refunds", "events", "accounts")
    return [await client.list_all(f"/v1/{path}") for path in paths] + [len(client.engine.books())]


async def test_bodies_that_are_wrong_are_refused_with_their_code(engine: EngineProcess) -> None:
    async with client_of(engine) as client, nothing_happens(client):
        wrong = []
        for name, body, status, code in BODIES:
            for path in (AUTHORIZE, "/v1/payments/purchase"):
                answer = await client.post(path, body)
                if (answer.status, answer.code) != (status, code):
                    wrong.append(f"{name}: {answer.status} {answer.body[:300]!r}")
                if b"4242" in answer.body:
                    wrong.append(f"{name}: repeats the card number")
        assert wrong == []


CURRENCIES = [("JPY", 1), ("KWD", 1_234), ("usd", 1), ("EUR", 999_999_999_999), ("ISK", 100)]


async def test_amounts_are_kept_to_the_unit_in_every_currency(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        for currency, units in CURRENCIES:
            body = {**order(units, "pm_card_visa"), "currency": currency}
            answer = await client.post("/v1/payments/purchase", body)
            assert answer.status == 201, answer
            told = (answer.json["currency"], answer.json["amount_captured"])
            assert told == (currency.upper(), units)
        await assert_books_agree(client)


HEADERS: list[tuple[str, dict[str, str | None], int, str]] = [
    ("no key", {"Idempotency-Key": None}, 400, "idempotency_key_missing"),
    ("empty key", {"Idempotency-Key": ""}, 400, "idempotency_key_invalid"),
    ("key with a space", {"Idempotency-Key": "a b"}, 400, "idempotency_key_invalid"),
    ("key of 256", {"Idempotency-Key": "k" * 256}, 400, "idempotency_key_invalid"),
    ("key of other letters", {"Idempotency-Key": "schlüssel"}, 400, "idempotency_key_invalid"),
    ("no authorization", {"Authorization": None}, 401, "invalid_api_key"),
    ("bad key", {"Authorization": "Bearer sk_test_other"}, 401, "invalid_api_key"),
    ("basic", {"Authorization": "Basic c2tfdGVzdF9kZXY6"}, 401, "invalid_api_key"),
    ("form", {"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
    ("zipped", {"Content-Encoding": "gzip"}, 415, "content_encoding_not_supported"),
    ("header of 10 KiB", {"X-Big": "x" * 10_240}, 431, "headers_too_large"),
]


async def test_heads_that_are_wrong_are_refused_with_their_code(engine: EngineProcess) -> None:
    async with client_of(engine) as client, nothing_happens(client):
        wrong = []
        for name, changes, status, code in HEADERS:
            headers: dict[str, str | None] = {
                "Authorization": f"Bearer {API_KEY}",
                "Idempotency-Key": new_key(),
                "Content-Type": "application/json",
                **changes,
            }
            given = {key: value for key, value in headers.items() if value is not None}
            answer = await client.send("POST", AUTHORIZE, body=GOOD, headers=given)
            if (answer.status, answer.code) != (status, code):
                wrong.append(f"{name}: {answer}")
        assert wrong == []


FOREIGN_IDS = [
    "pay_000000000000000000000000",
    "pay_x",
    "pay_",
    "0",
    "-1",
    "PAY_06gztad5v4n6dp21aerrznwh",
    "%00",
    "%2e%2e%2fpayments",
    "'%20OR%201=1--",
    "pay_%F0%9F%92%A9aaaaaaaaaaaaaaaaaaaa",
    "p" * 3_000,
]


async def test_ids_that_are_not_there_are_not_found(engine: EngineProcess) -> None:
    async with client_of(engine) as client, nothing_happens(client):
        refund = (await client.list_all("/v1/refunds"))[:1]
        for wrong in [*FOREIGN_IDS, *(one["id"] for one in refund)]:
            path = f"/v1/payments/{wrong}"
            read = await client.get(path)
            assert (read.status, read.code) == (404, "payment_not_found"), read
            for command in ("capture", "cancel", "refund"):
                answer = await client.post(f"{path}/{command}", {})
                assert (answer.status, answer.code) == (404, "payment_not_found"), answer
            timeline = await client.get(f"{path}/timeline")
            assert timeline.status == 404, timeline
        for path in ("refunds/re_x", "events/evt_x", "accounts/acct_x", "transfers/tr_x", "x"):
            answer = await client.get(f"/v1/{path}")
            assert (answer.status, answer.code is None) == (404, False), answer


QUERIES = [
    ("limit=0", 422),
    ("limit=101", 422),
    ("limit=ten", 400),
    ("limit=1.5", 400),
    ("limit=1&limit=2", 400),
    ("cursor=x", 400),
    ("cursor=%00", 400),
    ("colour=red", 400),
    ("status=gone", 422),
    ("created[gte]=yesterday", 400),
    ("created[gte]=99999999999999999999", 400),
    ("reference=%ff", 400),
    ("reference=%27%3B%20DROP%20TABLE%20payments%3B--", 200),
]


async def test_queries_that_are_wrong_are_refused(engine: EngineProcess) -> None:
    async with client_of(engine) as client, nothing_happens(client):
        for query, status in QUERIES:
            answer = await client.get(f"/v1/payments?{query}")
            allowed = {400, 422} if status != 200 else {200}
            assert answer.status in allowed, f"{query}: {answer}"
        cursor = (await client.get("/v1/events?limit=1")).json["next_cursor"]
        if cursor is not None:
            answer = await client.get(f"/v1/payments?cursor={cursor}")
            assert answer.status in (400, 422), answer


async def payment_of_each_status(client: Client) -> dict[str, str]:
    """One payment of each status that can be had at once."""
    made: dict[str, Answer] = {
        "authorized": await client.authorize(100),
        "captured": await client.purchase(100),
        "requires_action": await client.authorize(100, "pm_card_3ds"),
        "pending": await client.authorize(100, "pm_card_pending"),
        "declined": await client.authorize(100, "pm_card_declined"),
        "failed": await client.authorize(100, "pm_card_unreachable"),
    }
    ids = {
        status: (answer.json["payment"] if answer.code else answer.json)["id"]
        for status, answer in made.items()
    }
    for status, body in (("partially_captured", {"amount": 40, "final": False}), ("canceled", {})):
        ids[status] = (await client.authorize(100)).json["id"]
        command = "cancel" if status == "canceled" else "capture"
        assert (await client.command(ids[status], command, body)).status == 200
    ids["unknown"] = (await client.authorize(100, "pm_card_5xx_after_charge")).json["id"]
    return ids


# What each status refuses. Everything else it accepts.
REFUSED = {
    "authorized": {"refund": "invalid_state_transition"},
    "partially_captured": {},
    "captured": dict.fromkeys(("capture", "cancel"), "invalid_state_transition"),
    "requires_action": dict.fromkeys(("capture", "refund"), "operation_unresolved"),
    "pending": dict.fromkeys(("capture", "refund"), "operation_unresolved"),
    "unknown": dict.fromkeys(("capture", "refund"), "operation_unresolved"),
    **{
        status: dict.fromkeys(("capture", "cancel", "refund"), "invalid_state_transition")
        for status in ("declined", "failed", "canceled")
    },
}


async def test_every_status_refuses_the_commands_it_does_not_allow(engine: EngineProcess) -> None:
    async with client_of(engine) as client:
        payments = await payment_of_each_status(client)
        for status, payment in payments.items():
            before = await client.payment(payment)
            assert before["status"] == status
            for command, code in REFUSED[status].items():
                answer = await client.command(payment, command)
                answer.assert_problem(409, code)
                assert answer.json["payment"] == before, answer
            if status != "unknown":
                assert await client.payment(payment) == before
        too_much = [("authorized", "capture", "amount_exceeds_capturable")]
        too_much += [("captured", "refund", "amount_exceeds_refundable")]
        for status, command, code in too_much:
            answer = await client.command(payments[status], command, {"amount": 101})
            answer.assert_problem(422, code)


async def test_answers_name_the_methods_a_path_has(engine: EngineProcess) -> None:
    async with client_of(engine) as client, nothing_happens(client):
        for method, path in (("DELETE", "/v1/payments"), ("PUT", AUTHORIZE), ("GET", AUTHORIZE)):
            answer = await client.send(method, path, headers={"Authorization": f"Bearer {API_KEY}"})
            answer.assert_problem(405, "method_not_allowed")
            assert answer.headers["Allow"]


HEAD = (
    b"POST /v1/payments/authorize HTTP/1.1\r\nHost: x\r\n"
    b"Authorization: Bearer sk_test_dev\r\nContent-Type: application/json\r\n"
)
BROKEN = [
    b"GET / HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /v1/payments\r\n\r\n",
    b"POST /" + b"a" * 100_000,
    HEAD + b"Content-Length: 10\r\nContent-Length: 20\r\n\r\n" + GOOD,
    HEAD + b"Content-Length: -1\r\n\r\n",
    HEAD + b"Content-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
]


async def test_broken_http_and_half_sent_requests_do_nothing(engine: EngineProcess) -> None:
    async with client_of(engine) as client, nothing_happens(client):
        length = b"Idempotency-Key: half\r\nContent-Length: %d\r\n\r\n" % len(GOOD)
        half_sent = [HEAD[:40], HEAD + length, HEAD + length + GOOD[:20]]
        for raw in BROKEN:
            told = await converse(engine, raw, read=True)
            assert b" 500 " not in told[:20], told
            assert told.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")) or not told, (raw[:60], told)
        for raw in half_sent:
            await converse(engine, raw, read=False)
        # Many that stay open and send nothing more slow nobody down.
        slow = [await asyncio.open_connection("127.0.0.1", engine.port) for _ in range(50)]
        for _, writer in slow:
            writer.write(HEAD[:60])
        async with asyncio.timeout(5):
            assert (await client.send("GET", "/livez")).status == 200
        for _, writer in slow:
            writer.close()


async def converse(engine: EngineProcess, raw: bytes, *, read: bool) -> bytes:
    """Send these bytes and go away, after the answer or before it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    try:
        writer.write(raw)
        await writer.drain()
        if not read:
            return b""
        writer.write_eof()
        async with asyncio.timeout(10):
            return await reader.read()
    except OSError:
        # It was reset, which shutdown() calls "not connected" and no ConnectionError.
        return b""
    finally:
        writer.close()
