"""Headers of a request: the API key, the Idempotency-Key, the trace."""

import pytest

from engine.domain.refusals import Refusal
from engine.http.idempotency import fingerprint, read_key
from engine.http.keys import ApiKey, find_key, key_digest
from engine.http.requests import OpenPayment
from engine.http.tracing import trace_id_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("sent", "key"),
    [
        ("abc", "abc"),
        ('"abc"', "abc"),
        (' "abc" ', "abc"),
        (r'"a\"b\\c"', 'a"b\\c'),
        ('a"b', 'a"b'),
        ("!" * 255, "!" * 255),
        ('"' + "x" * 255 + '"', "x" * 255),
    ],
)
def test_an_idempotency_key_is_taken_quoted_or_bare(sent: str, key: str) -> None:
    assert read_key(sent) == key


@pytest.mark.parametrize(
    "sent",
    ["", '""', '"', '"abc', "a b", '"a b"', "a\tb", "ä", "x" * 256, '"' + "x" * 256 + '"', r'"a\n"',
     "a\n", '"a" b'],
)  # fmt: skip
def test_other_idempotency_keys_are_refused(sent: str) -> None:
    refusal = read_key(sent)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "idempotency_key_invalid"


def test_a_card_number_as_idempotency_key_is_refused_and_not_repeated() -> None:
    refusal = read_key("4242424242424242")
    assert isinstance(refusal, Refusal)
    assert refusal.code == "pan_not_allowed"
    assert "4242" not in refusal.detail


def test_a_secret_as_idempotency_key_is_refused_and_not_repeated() -> None:
    refusal = read_key("order-sk_live_51Habcdefgh")
    assert isinstance(refusal, Refusal)
    assert refusal.code == "secret_not_allowed"
    assert "abcdefgh" not in refusal.detail


def body(**changed: object) -> OpenPayment:
    fields = {"amount": 1, "currency": "USD", "payment_method": "pm", **changed}
    return OpenPayment(**fields)  # type: ignore[arg-type]


def test_a_fingerprint_is_of_the_meaning_of_a_request() -> None:
    one = fingerprint("POST", "/a", body(metadata={"a": "1", "b": "2"}))
    assert len(one) == 16
    assert one == fingerprint("POST", "/a", body(metadata={"b": "2", "a": "1"}))
    assert one != fingerprint("POST", "/a", body(metadata={"a": "1", "b": "3"}))
    assert one != fingerprint("POST", "/b", body(metadata={"a": "1", "b": "2"}))
    assert one != fingerprint("PUT", "/a", body(metadata={"a": "1", "b": "2"}))


KEYS = {key_digest("sk_test_1"): ApiKey("m", False, frozenset({"merchant"}))}


@pytest.mark.parametrize(
    "sent", ["Bearer sk_test_1", "bearer sk_test_1", "BEARER sk_test_1", "Bearer  sk_test_1 "]
)
def test_a_bearer_key_is_found(sent: str) -> None:
    found = find_key(KEYS, sent)
    assert found is not None
    assert found.merchant_id == "m"


@pytest.mark.parametrize(
    "sent",
    [None, "", "Bearer", "Bearer ", "sk_test_1", "Basic sk_test_1", "Bearer sk_test_2",
     "Bearer sk_test_1x", "Bearer sk_tést_1", "Bearer " + "x" * 10_000, "Bearer \ud800"],
)  # fmt: skip
def test_anything_else_is_nobody(sent: str | None) -> None:
    assert find_key(KEYS, sent) is None


@pytest.mark.parametrize(
    "sent",
    [
        f"00-{TRACE}-00f067aa0ba902b7-01",
        f"cc-{TRACE}-00f067aa0ba902b7-01",
        f"01-{TRACE}-00f067aa0ba902b7-01-what-may-come",
    ],
)
def test_a_trace_is_carried(sent: str) -> None:
    assert trace_id_of(sent) == TRACE


@pytest.mark.parametrize(
    "sent",
    [
        None,
        "",
        f"ff-{TRACE}-00f067aa0ba902b7-01",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-00f067aa0ba902b7-01",
        f"00-{TRACE}-00f067aa0ba902b7-01-more",
        f"00-{TRACE}-00f067aa0ba902b7-01\n",
        f"01-{TRACE}-00f067aa0ba902b7-01-{'x' * 600}",
    ],
)
def test_an_invalid_trace_is_ignored(sent: str | None) -> None:
    assert trace_id_of(sent) is None
