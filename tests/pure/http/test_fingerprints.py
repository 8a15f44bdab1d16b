"""Two requests are the same request exactly when method, path and parsed body are."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.refusals import Refusal
from engine.http.bodies import decode
from engine.http.idempotency import KEY_LENGTH_MAX, fingerprint, read_key
from engine.http.requests import CancelPayment, CapturePayment, OpenPayment, RefundPayment

CONFIG: dict[str, Any] = {"frozen": True, "kw_only": True, "omit_defaults": True}
DECODER = msgspec.json.Decoder(OpenPayment)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
BODIES = st.fixed_dictionaries(
    {
        "amount": st.integers(1, 3),
        "currency": st.sampled_from(["USD", "EUR"]),
        "payment_method": st.just("pm_card_visa"),
    },
    optional={
        "description": TEXTS,
        "metadata": st.dictionaries(TEXTS.filter(bool), TEXTS, max_size=3),
    },
)
REQUESTS = st.tuples(st.sampled_from(["POST", "PUT"]), st.sampled_from(["/a", "/b"]), BODIES)


def _print_of(method: str, path: str, raw: bytes) -> tuple[bytes, OpenPayment]:
    body = decode(raw, DECODER)
    assert isinstance(body, OpenPayment), body
    return fingerprint(method, path, body), body


@given(REQUESTS, REQUESTS)
def test_row_33_two_requests_are_the_same_only_if_equal(
    one: tuple[str, str, dict[str, Any]], other: tuple[str, str, dict[str, Any]]
) -> None:
    prints = [_print_of(m, p, json.dumps(body).encode()) for m, p, body in (one, other)]
    is_same = one[:2] == other[:2] and prints[0][1] == prints[1][1]
    assert (prints[0][0] == prints[1][0]) == is_same


@given(BODIES, st.booleans(), st.randoms(use_true_random=False))
def test_row_33_spelling_and_order_make_no_other_request(
    body: dict[str, Any], is_ascii: bool, random: Any
) -> None:
    items = list(body.items())
    random.shuffle(items)
    spelled = json.dumps(dict(items), ensure_ascii=is_ascii, indent=random.choice((None, 2)))
    plain = _print_of("POST", "/a", json.dumps(body).encode())
    assert _print_of("POST", "/a", spelled.encode()) == plain


@given(st.text(max_size=300))
def test_any_header_is_a_key_or_refused(value: str) -> None:
    key = read_key(value)
    if not isinstance(key, Refusal):
        assert 1 <= len(key) <= KEY_LENGTH_MAX
        assert key.isascii()
        assert key.isprintable()


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255))
def test_a_key_in_quotes_is_the_bare_key(key: str) -> None:
    quoted = '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
    bare = read_key(key)
    if not key.startswith('"') and not isinstance(bare, Refusal):
        assert read_key(quoted) == bare


@pytest.mark.parametrize(
    ("struct", "path", "raw", "digest"),
    [
        (
            OpenPayment,
            "/v1/payments/authorize",
            b'{"amount":1000,"currency":"USD","payment_method":"pm_card_visa"}',
            "0d33b948851b7b8e0de3cd98729f4d8b",
        ),
        (
            CapturePayment,
            "/v1/payments/pay_1/capture",
            b'{"amount":700,"final":false}',
            "1335536f0d918fa4f70d33f93f241a83",
        ),
        (
            CancelPayment,
            "/v1/payments/pay_1/cancel",
            b'{"reason":"changed"}',
            "28400011552fcae45e4da21a5f7fbbe5",
        ),
        (
            RefundPayment,
            "/v1/payments/pay_1/refund",
            b'{"metadata":{"a":"b"}}',
            "281ed8844386d3853ea04983450e24ef",
        ),
    ],
)
def test_a_request_of_an_earlier_release_is_the_same_one(
    struct: type[msgspec.Struct], path: str, raw: bytes, digest: str
) -> None:
    """Kept for 30 days: whoever changes these tells a client that it reused a key."""
    body = msgspec.json.decode(raw, type=struct)
    assert fingerprint("POST", path, body).hex() == digest


@pytest.mark.parametrize("struct", [OpenPayment, CapturePayment, CancelPayment, RefundPayment])
def test_a_field_that_a_release_adds_changes_no_request_without_it(
    struct: type[msgspec.Struct],
) -> None:
    class Later(struct, **CONFIG):  # type: ignore[misc,valid-type]
        an_option: str | None = None
        some_options: tuple[str, ...] = ()

    raw = b'{"amount":1000,"currency":"USD","payment_method":"pm_card_visa"}'
    raw = b"{}" if struct is not OpenPayment else raw
    now, later = (msgspec.json.decode(raw, type=each) for each in (struct, Later))
    assert fingerprint("POST", "/a", now) == fingerprint("POST", "/a", later)
    given = msgspec.structs.replace(later, an_option="x")
    assert fingerprint("POST", "/a", given) != fingerprint("POST", "/a", now)
