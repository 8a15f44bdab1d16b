"""Two requests are the same request exactly when method, path and parsed body are."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.refusals import Refusal
from engine.http.bodies import decode
from engine.http.idempotency import KEY_LENGTH_MAX, fingerprint, read_key
from engine.http.requests import OpenPayment

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
