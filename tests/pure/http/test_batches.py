"""Batches: what is read of a body, item by item, and what is written of an answer."""

import json
from typing import Any

import msgspec
import pytest

from engine.domain.entry import Answer
from engine.domain.refusals import Refusal
from engine.http.batches import _CHANGE, _OPEN, read_batch, result_bytes
from engine.http.bodies import decode
from engine.http.idempotency import fingerprint
from engine.http.requests import (
    BATCH_ITEMS_MAX,
    AuthorizeItem,
    BatchItem,
    CancelPayment,
    CapturePayment,
    OpenPayment,
    RefundItem,
    RefundPayment,
)

PAYMENT = "pay_06dqdpn80m09xq7w3ntk2vzr"
OPENING = {"amount": 1099, "currency": "usd", "payment_method": "pm_card_visa"}
GOOD = {"idempotency_key": "k", "operation": "authorize", **OPENING}

SINGLE = [
    ("authorize", OpenPayment, OPENING),
    (
        "purchase",
        OpenPayment,
        {**OPENING, "metadata": {"b": "1", "a": "2"}, "reference": "r", "description": "ü"},
    ),
    ("capture", CapturePayment, {}),
    ("capture", CapturePayment, {"amount": 5, "final": False}),
    ("cancel", CancelPayment, {"reason": "late"}),
    ("refund", RefundPayment, {"amount": 5, "metadata": {"a": "b"}}),
]


def batch(*items: Any) -> bytes:
    return json.dumps({"items": items}).encode()


def read(*items: Any) -> list[BatchItem | Refusal]:
    found = read_batch(batch(*items))
    assert not isinstance(found, Refusal), found
    return found


@pytest.mark.parametrize(("operation", "struct", "fields"), SINGLE)
def test_an_item_has_the_fingerprint_of_the_single_request(
    operation: str, struct: type[msgspec.Struct], fields: dict[str, Any]
) -> None:
    more = {} if struct is OpenPayment else {"payment": PAYMENT}
    [item] = read({"operation": operation, **more, **fields, "idempotency_key": "k"})
    assert not isinstance(item, Refusal)
    plain = {**_OPEN, **_CHANGE}[type(item)]
    alone = decode(json.dumps(fields).encode(), msgspec.json.Decoder(struct))
    assert plain.name == operation
    assert plain.of(item) == alone
    assert fingerprint("POST", "/p", plain.of(item)) == fingerprint("POST", "/p", alone)


def test_an_item_has_every_field_of_the_single_request() -> None:
    for item, plain in {**_OPEN, **_CHANGE}.items():
        own = {"idempotency_key"} if item in _OPEN else {"idempotency_key", "payment"}
        single = {OpenPayment, CapturePayment, CancelPayment, RefundPayment} & set(item.__mro__)
        assert set(item.__struct_fields__) == set(single.pop().__struct_fields__) | own
        assert item.__struct_config__.forbid_unknown_fields
        assert plain.name == item.__struct_config__.tag


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "malformed_json", None),
        (b"[]", "wrong_type", None),
        (batch(GOOD)[:-1], "malformed_json", None),
        (batch(), "parameter_invalid", "items"),
        (b"{}", "field_missing", "items"),
        (b'{"items":{}}', "wrong_type", "items"),
        (b'{"items":null}', "wrong_type", "items"),
        (b'{"items":[1],"more":1}', "unknown_field", "more"),
        (b'{"items":[1],"items":[2]}', "duplicate_key", "items"),
        (batch(*[GOOD] * (BATCH_ITEMS_MAX + 1)), "parameter_invalid", "items"),
        (b'{"items":["\xff"]}', "bad_utf8", None),
        (b'{"items":["\\ud800"]}', "malformed_json", None),
        (b'{"items":[{]}', "malformed_json", None),
        (b'{"items":[' + b"[" * 100_000, "depth_exceeded", None),
        (b"[" * 1_000_000, "wrong_type", None),
    ],
)
def test_what_is_wrong_with_the_envelope_refuses_it_all(
    body: bytes, code: str, param: str | None
) -> None:
    refusal = read_batch(body)
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.param) == (code, param)


@pytest.mark.parametrize(
    ("bad", "code", "param"),
    [
        (b"1", "wrong_type", None),
        (b"null", "wrong_type", None),
        (b"{}", "field_missing", "operation"),
        (b'{"operation":"steal"}', "parameter_invalid", "operation"),
        (b'{"operation":"cancel","payment":"p"}', "field_missing", "idempotency_key"),
        (b'{"operation":"cancel","idempotency_key":"k"}', "field_missing", "payment"),
        (b'{"operation":"cancel","idempotency_key":7,"payment":"p"}', "wrong_type", None),
        (b'{"operation":"refund","idempotency_key":"k","payment":"p","amount":1.0}', None, None),
        (b'{"operation":"cancel","idempotency_key":"k","payment":"p","a":1}', None, "a"),
        (b'{"operation":"cancel","idempotency_key":"k","payment":"p","payment":"p"}', None, None),
        (b'{"operation":"cancel","idempotency_key":"k","payment":"p\\u0000"}', None, "payment"),
        (b'{"operation":"cancel","idempotency_key":"k","x":' + b"[" * 33 + b"]" * 33 + b"}",
         "depth_exceeded", None),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_item_is_its_own(
    bad: bytes, code: str | None, param: str | None
) -> None:
    good = json.dumps(GOOD).encode()
    found = read_batch(b'{"items":[%b,%b, %b]}' % (good, bad, good))
    assert isinstance(found, list)
    first, refusal, last = found
    assert isinstance(first, AuthorizeItem)
    assert first == last
    assert isinstance(refusal, Refusal)
    assert code in (refusal.code, None)
    assert param in (refusal.param, None)


def test_colons_in_values_are_no_names() -> None:
    item = {**GOOD, "return_url": "https://shop.example/:80", "idempotency_key": "a:b:c"}
    assert len(read(item, GOOD)) == 2


def test_a_batch_of_the_largest_size_is_read() -> None:
    refund = {"idempotency_key": "k", "operation": "refund", "payment": PAYMENT}
    found = read(*[GOOD] * (BATCH_ITEMS_MAX - 1), refund)
    assert len(found) == BATCH_ITEMS_MAX
    assert isinstance(found[-1], RefundItem)


def test_a_result_holds_the_answers_bytes_as_they_are() -> None:
    body = b'{"id": "pay_1",  "n":1}'
    plain = result_bytes("k", Answer(201, body, final=True), replayed=False)
    assert plain == b'{"idempotency_key":"k","status":201,"body":' + body + b"}"
    answer = Answer(202, body, final=False, location="/v1/payments/pay_1", retry_after_s=2)
    whole = result_bytes('a"\\', answer, replayed=True)
    assert body in whole
    assert json.loads(whole) == {
        "idempotency_key": 'a"\\',
        "status": 202,
        "replayed": True,
        "location": "/v1/payments/pay_1",
        "retry_after": 2,
        "body": {"id": "pay_1", "n": 1},
    }
    assert json.loads(result_bytes(None, answer, replayed=False))["idempotency_key"] is None
