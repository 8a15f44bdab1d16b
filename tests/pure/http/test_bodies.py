"""Strict decoding of bodies: what passes, what is refused, with which code and for which field."""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.domain.problems import PROBLEMS
from engine.domain.refusals import Refusal
from engine.http.bodies import DEPTH_MAX, decode


class Item(msgspec.Struct, forbid_unknown_fields=True):
    x: int


class Body(msgspec.Struct, forbid_unknown_fields=True):
    amount: Annotated[int, msgspec.Meta(ge=1, le=999_999_999_999)]
    currency: str
    metadata: dict[
        Annotated[str, msgspec.Meta(max_length=5)], Annotated[str, msgspec.Meta(max_length=6)]
    ] = {}
    items: Annotated[list[Item], msgspec.Meta(max_length=3)] = []
    inner: Item | None = None
    count: Annotated[int, msgspec.Meta(ge=1, le=9)] = 1
    any: Any = None
    raw: msgspec.Raw = msgspec.Raw(b"null")


BODY = msgspec.json.Decoder(Body)
ANY = msgspec.json.Decoder()


def with_field(field: bytes) -> bytes:
    return b'{"amount":1,"currency":"USD",' + field + b"}"


@pytest.mark.parametrize(
    "body",
    [
        b'{"amount":1,"currency":"USD"}',
        b' {"amount" : 1 ,\n"currency"\t: "USD"}\r\n',
        with_field(b'"metadata":{"a":"b","x":"1"},"inner":{"x":1}'),
        with_field(b'"any":"http://a:1/?b=c:d"'),
        with_field(b'"any":["\\":", ": x", ":{}"]'),
        with_field(b'"any":"\\\\u0000"'),
        with_field(b'"any":"\\ud83d\\ude00 \xf0\x9f\x98\x80"'),
        with_field(b'"any":"' + b"[{" * 100 + b'"'),
        with_field(b'"any":"\\"' + b"[{" * 100 + b'"'),
        with_field(b'"any":[' + b",".join([b"{}"] * 1_000) + b"]"),
        with_field(b'"any":' + b"[" * (DEPTH_MAX - 1) + b"]" * (DEPTH_MAX - 1)),
        with_field(b'"any":[{"a":1},{"a":1}]'),
        with_field(b'"any":1e3'),
        with_field(b'"raw":{"a":[{"b":1}]}'),
    ],
)
def test_proper_bodies_pass(body: bytes) -> None:
    assert decode(body, BODY) == BODY.decode(body)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"", "malformed_json", None),
        (b" ", "malformed_json", None),
        (b"{", "malformed_json", None),
        (b"[]", "wrong_type", None),
        (b"null", "wrong_type", None),
        (b'{"amount":1,"currency":"USD"} x', "malformed_json", None),
        (b'{"amount":1,"currency":"USD",}', "malformed_json", None),
        (b"{'amount':1}", "malformed_json", None),
        (b'\xef\xbb\xbf{"amount":1,"currency":"USD"}', "malformed_json", None),
        ('{"amount":1}'.encode("utf-16"), "bad_utf8", None),
        ('{"amount":1}'.encode("utf-32-le"), "nul_not_allowed", None),
        (with_field(b'"any":NaN'), "malformed_json", None),
        (with_field(b'"any":"\n"'), "malformed_json", None),
        (with_field(b'"any":"\\ud800"'), "malformed_json", None),
        (with_field(b'"any":"\\ud800x"'), "malformed_json", None),
        (with_field(b'"any":"\\udc00\\ud800"'), "malformed_json", None),
        (with_field(b'"any":"\xff"'), "bad_utf8", None),
        (with_field(b'"any":"\xed\xa0\x80"'), "bad_utf8", None),
        (with_field(b'"raw":"\xff"'), "bad_utf8", None),
        (with_field(b'"any":"\0"'), "nul_not_allowed", None),
        (with_field(b'"any":["a",{"b":"c\\u0000"}]'), "nul_not_allowed", "any[1].b"),
        (with_field(b'"any":{"b":{"c\\u0000":1}}'), "nul_not_allowed", "any.b"),
        (with_field(b'"raw":"\\u0000"'), "nul_not_allowed", "raw"),
        (b'{"amount":1,"amount":2,"currency":"USD"}', "duplicate_key", "amount"),
        (b'{"amount":1,"amount" : 1,"currency":"USD"}', "duplicate_key", "amount"),
        (b'{"amount":1,"am\\u006funt":1,"currency":"USD"}', "duplicate_key", "amount"),
        (with_field(b'"metadata":{"a":"1","b":"2","a":"3"}'), "duplicate_key", "a"),
        (with_field(b'"any":[[{"deep":1,"deep":1}]]'), "duplicate_key", "deep"),
        (with_field(b'"any":{":k":1,":k":2}'), "duplicate_key", ":k"),
        (with_field(b'"any":{"":1,"":2}'), "duplicate_key", ""),
        (with_field(b'"raw":{"a":1,"a":2}'), "duplicate_key", "a"),
        (with_field(b'"any":' + b"[" * 32 + b"]" * 32), "depth_exceeded", None),
        (with_field(b'"any":' + b'{"a":' * 40 + b"1" + b"}" * 40), "depth_exceeded", None),
        (with_field(b'"raw":' + b"[" * 30_000), "depth_exceeded", None),
        (with_field(b'"no":' + b"[" * 30_000), "depth_exceeded", None),
        (b"[" * 65_536, "depth_exceeded", None),
        (b'{"a":' * 13_000, "depth_exceeded", None),
        (with_field(b'"no":1'), "unknown_field", "no"),
        (with_field(b'"Amount":1'), "unknown_field", "Amount"),
        (with_field(b'"inner":{"x":1,"y":2}'), "unknown_field", "inner.y"),
        (with_field(b'"4111111111111111":1'), "unknown_field", "[card 1111]"),
        (with_field(b'"' + b"n" * 5_000 + b'":1'), "unknown_field", "n" * 64 + "…"),
        (b'{"amount":1}', "field_missing", "currency"),
        (with_field(b'"items":[{"x":1},{}]'), "field_missing", "items[1].x"),
        (b'{"amount":"1","currency":"USD"}', "wrong_type", "amount"),
        (b'{"amount":1.0,"currency":"USD"}', "wrong_type", "amount"),
        (b'{"amount":10.99,"currency":"USD"}', "wrong_type", "amount"),
        (b'{"amount":1e2,"currency":"USD"}', "wrong_type", "amount"),
        (b'{"amount":1e999,"currency":"USD"}', "wrong_type", "amount"),
        (b'{"amount":true,"currency":"USD"}', "wrong_type", "amount"),
        (b'{"amount":null,"currency":"USD"}', "wrong_type", "amount"),
        (b'{"amount":01,"currency":"USD"}', "malformed_json", None),
        (b'{"amount":+1,"currency":"USD"}', "malformed_json", None),
        (with_field(b'"items":[{"x":1},{"x":"2"}]'), "wrong_type", "items[1].x"),
        (with_field(b'"inner":[]'), "wrong_type", "inner"),
        (with_field(b'"metadata":{"a":"b","c":1}'), "wrong_type", "metadata.c"),
        (with_field(b'"metadata":{"a":null}'), "wrong_type", "metadata.a"),
        (b'{"amount":0,"currency":"USD"}', "amount_invalid", "amount"),
        (b'{"amount":-0,"currency":"USD"}', "amount_invalid", "amount"),
        (b'{"amount":-1,"currency":"USD"}', "amount_invalid", "amount"),
        (b'{"amount":1000000000000,"currency":"USD"}', "amount_too_large", "amount"),
        (b'{"amount":' + b"9" * 5_000 + b',"currency":"USD"}', "amount_too_large", "amount"),
        (with_field(b'"count":0'), "parameter_invalid", "count"),
        (with_field(b'"count":' + b"9" * 5_000), "parameter_invalid", "count"),
        (with_field(b'"any":' + b"9" * 5_000), "parameter_invalid", "any"),
        (with_field(b'"items":[{"x":1},{"x":1},{"x":1},{"x":1}]'), "parameter_invalid", "items"),
        (with_field(b'"metadata":{"a":"1234567"}'), "parameter_invalid", "metadata.a"),
        (with_field(b'"metadata":{"a":"1","abcdef":"1"}'), "parameter_invalid", "metadata.abcdef"),
    ],
)
def test_improper_bodies_are_refused(body: bytes, code: str, param: str | None) -> None:
    refusal = decode(body, BODY)
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.param) == (code, param)
    assert PROBLEMS[code].status in (400, 422)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "The body is empty; a JSON object is expected."),
        (b"[]", "The body must be an object, not an array."),
        (b'{"amount":"1"}', "`amount` must be an integer, not a string."),
        (with_field(b'"inner":1'), "`inner` must be an object or null, not an integer."),
        (with_field(b'"metadata":{"a":"1234567"}'), "`metadata.a` must have at most 6 characters."),
        (with_field(b'"count":10'), "`count` must be <= 9."),
        (b"\xef\xbb\xbf{}", "The body must not begin with a byte order mark."),
        (with_field(b'"any":"\\ud800"'), "The body holds half of a surrogate pair."),
        (b'{"amount":1 "', "The body is not valid JSON: expected ',' or '}' at byte 12."),
    ],
)
def test_the_detail_says_what_to_change(body: bytes, detail: str) -> None:
    refusal = decode(body, BODY)
    assert isinstance(refusal, Refusal)
    assert refusal.detail == detail


def test_a_path_made_up_in_a_name_does_no_harm() -> None:
    for name in ("x` - at `$.no[...]", "x` - at `$.items[0].y[...]", "x` - at `$[9999999999]"):
        refusal = decode(with_field(json.dumps(name).encode() + b":1"), BODY)
        assert isinstance(refusal, Refusal)
        assert refusal.code == "unknown_field"


def test_quotes_that_never_close_take_linear_time() -> None:
    # Quadratic time would take minutes for these.
    for body in (b"[" * 40 + b'"' + b'\\"' * 500_000, b"[" * 40 + b'"\\' * 500_000):
        assert isinstance(decode(body, ANY), Refusal)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def has_nul(value: Any) -> bool:
    if isinstance(value, dict):
        return any("\0" in name or has_nul(item) for name, item in value.items())
    if isinstance(value, list):
        return any(map(has_nul, value))
    return isinstance(value, str) and "\0" in value


@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b'{"amount":1,"currency":"\\u0000"}')
def test_no_bytes_make_it_raise(body: bytes) -> None:
    for decoder in (BODY, ANY):
        value: Any = decode(body, decoder)
        if isinstance(value, Refusal):
            assert value.code in PROBLEMS


@given(json_values, st.booleans(), st.sampled_from([None, 1]))
@example({"a": "\\u0000"}, True, None)
def test_plain_json_passes_unless_it_holds_a_nul(
    value: Any, ascii_only: bool, indent: int | None
) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    decoded: Any = decode(body, ANY)
    if has_nul(value):
        assert isinstance(decoded, Refusal)
        assert decoded.code == "nul_not_allowed"
    else:
        assert decoded == value


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", ":", '"', "a:", "\\"]), json_values), max_size=5),
    st.sampled_from([":", " :", ": "]),
    st.integers(0, 3),
)
def test_a_name_that_occurs_twice_is_always_seen(
    members: list[tuple[str, Any]], colon: str, nesting: int
) -> None:
    text = ",".join(f"{json.dumps(name)}{colon}{json.dumps(value)}" for name, value in members)
    decoded: Any = decode(("[" * nesting + f"{{{text}}}" + "]" * nesting).encode(), ANY)
    code = decoded.code if isinstance(decoded, Refusal) else None
    names = [name for name, _ in members]
    assert (code == "duplicate_key") == (len(set(names)) != len(names))


@given(st.integers(1, 60), st.text(alphabet='[]{}"\\a:'))
def test_depth_counts_only_what_is_nested(depth: int, text: str) -> None:
    string = json.dumps(text).encode()
    body = b"[" * depth + string + b"," + string + b"]" * depth
    decoded = decode(body, ANY)
    if depth > DEPTH_MAX:
        assert isinstance(decoded, Refusal)
        assert decoded.code == "depth_exceeded"
    else:
        assert decoded == ANY.decode(body)
