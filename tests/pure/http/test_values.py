"""Values that are well-formed and not allowed."""

import msgspec
import pytest

from engine.domain.refusals import Refusal
from engine.http.bodies import decode
from engine.http.requests import OpenPayment
from engine.http.values import (
    currency_of,
    gateway_refusal,
    is_http_url,
    may_be_private,
    options_refusal,
    private_in,
)

PAN = "4242 4242 4242 4242"
DECODER = msgspec.json.Decoder(OpenPayment)


def body(**changed: object) -> tuple[bytes, OpenPayment | Refusal]:
    fields = {"amount": 1099, "currency": "USD", "payment_method": "pm_card_visa", **changed}
    raw = msgspec.json.encode({name: value for name, value in fields.items() if value != "absent"})
    return raw, decode(raw, DECODER)


def private_refusal(raw: bytes, decoded: OpenPayment) -> Refusal | None:
    return private_in(decoded) if may_be_private(raw) else None


@pytest.mark.parametrize(
    ("changed", "code", "param"),
    [
        ({"amount": 0}, "amount_invalid", "amount"),
        ({"amount": -1}, "amount_invalid", "amount"),
        ({"amount": 10**12}, "amount_too_large", "amount"),
        ({"amount": 2**63}, "amount_too_large", "amount"),
        ({"amount": 2**64}, "amount_too_large", "amount"),
        ({"amount": 10.5}, "wrong_type", "amount"),
        ({"amount": "10"}, "wrong_type", "amount"),
        ({"amount": True}, "wrong_type", "amount"),
        ({"amount": None}, "wrong_type", "amount"),
        ({"amount": "absent"}, "field_missing", "amount"),
        ({"ammount": 1}, "unknown_field", "ammount"),
        ({"currency": 840}, "wrong_type", "currency"),
        ({"payment_method": ""}, "parameter_invalid", "payment_method"),
        ({"reference": ""}, "parameter_invalid", "reference"),
        ({"reference": "x" * 256}, "parameter_invalid", "reference"),
        ({"description": "x" * 501}, "parameter_invalid", "description"),
        ({"statement_descriptor": "x" * 23}, "parameter_invalid", "statement_descriptor"),
        ({"metadata": {"": "1"}}, "parameter_invalid", "metadata."),
        ({"metadata": {"k" * 41: "1"}}, "parameter_invalid", f"metadata.{'k' * 41}"),
        ({"metadata": {"k": "v" * 501}}, "parameter_invalid", "metadata.k"),
        ({"metadata": {str(n): "" for n in range(51)}}, "parameter_invalid", "metadata"),
        ({"metadata": {"k": 1}}, "wrong_type", "metadata.k"),
    ],
)
def test_the_shape_and_the_bounds_are_the_structs(
    changed: dict[str, object], code: str, param: str
) -> None:
    _, refusal = body(**changed)
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.param) == (code, param)


@pytest.mark.parametrize(
    "changed",
    [
        {"amount": 1},
        {"amount": 10**12 - 1},
        {"metadata": {str(n) + "k" * 38: "v" * 500 for n in range(50)}},
        {"customer": None},
    ],
)
def test_the_bounds_themselves_are_allowed(changed: dict[str, object]) -> None:
    _, decoded = body(**changed)
    assert isinstance(decoded, OpenPayment)


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"payment_method": "4242424242424242"}, "payment_method"),
        ({"description": f"card {PAN}"}, "description"),
        ({"metadata": {"note": PAN}}, "metadata.note"),
        ({"metadata": {PAN: "note"}}, "metadata"),
        ({"gateway": PAN}, "gateway"),
        ({"return_url": "https://shop.example/4242424242424242"}, "return_url"),
    ],
)
def test_a_card_number_in_any_string_is_refused_and_not_repeated(
    changed: dict[str, object], param: str
) -> None:
    raw, decoded = body(**changed)
    assert isinstance(decoded, OpenPayment)
    refusal = private_refusal(raw, decoded)
    assert refusal is not None
    assert (refusal.code, refusal.param) == ("pan_not_allowed", param)
    assert "4242" not in refusal.detail


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"description": "our key is sk_live_51Habcdefgh."}, "description"),
        ({"metadata": {"note": "SK_TEST_abcdefgh"}}, "metadata.note"),
        ({"metadata": {"whsec_abcdefgh": "note"}}, "metadata"),
        ({"description": "first line\nsk_live_51Habcdefgh"}, "description"),
    ],
)
def test_a_secret_in_any_string_is_refused_and_not_repeated(
    changed: dict[str, object], param: str
) -> None:
    raw, decoded = body(**changed)
    assert isinstance(decoded, OpenPayment)
    refusal = private_refusal(raw, decoded)
    assert refusal is not None
    assert (refusal.code, refusal.param) == ("secret_not_allowed", param)
    assert "abcdefgh" not in refusal.detail


@pytest.mark.parametrize("text", ["the bearer certificate", "task_live_abcdefgh", "sk_test_…"])
def test_words_like_secrets_are_taken(text: str) -> None:
    raw, decoded = body(description=text)
    assert isinstance(decoded, OpenPayment)
    assert private_refusal(raw, decoded) is None


def test_an_escaped_card_number_is_found_too() -> None:
    raw = (
        rb'{"amount":1,"currency":"USD","payment_method":"pm",'
        rb'"description":"\u0034242424242424242"}'
    )
    decoded = decode(raw, DECODER)
    assert isinstance(decoded, OpenPayment)
    refusal = private_refusal(raw, decoded)
    assert refusal is not None
    assert refusal.param == "description"


@pytest.mark.parametrize("name", ["order 1234567890123456", "2026-01-01 12:00", '\\ " ü'])
def test_other_text_passes(name: str) -> None:
    raw, decoded = body(description=name)
    assert isinstance(decoded, OpenPayment)
    assert private_refusal(raw, decoded) is None


@pytest.mark.parametrize(("text", "code"), [("usd", "USD"), ("JPY", "JPY"), ("kwd", "KWD")])
def test_currencies_are_taken_in_either_case(text: str, code: str) -> None:
    assert currency_of(text) == code


@pytest.mark.parametrize("text", ["", "US", "USDX", "EUR\n", "XXX", "€", "ıdr"])
def test_what_is_no_currency_is_refused(text: str) -> None:
    refusal = currency_of(text)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "currency_unsupported"


def test_gateway_and_payment_method_must_be_known() -> None:
    gateways = {"simulator": {"pm_card_visa"}.__contains__}
    assert gateway_refusal(gateways, "simulator", "pm_card_visa") is None
    method = gateway_refusal(gateways, "simulator", "pm_card_vis")
    gateway = gateway_refusal(gateways, "stripe", "pm_card_visa")
    assert method is not None
    assert gateway is not None
    assert (method.code, method.param) == ("payment_method_unknown", "payment_method")
    assert (gateway.code, gateway.param) == ("gateway_unknown", "gateway")


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"customer": "bob"}, "customer"),
        ({"customer": "sub_06dqdpn80m09xq7w3ntk2vzr"}, "customer"),
        ({"subscription": "sub_1"}, "subscription"),
        ({"statement_descriptor": "A<B"}, "statement_descriptor"),
        ({"statement_descriptor": "Büro"}, "statement_descriptor"),
        ({"statement_descriptor": " "}, "statement_descriptor"),
        ({"return_url": "ftp://shop.example"}, "return_url"),
    ],
)
def test_options_without_a_meaning_are_refused(changed: dict[str, object], param: str) -> None:
    _, decoded = body(**changed)
    assert isinstance(decoded, OpenPayment)
    refusal = options_refusal(decoded)
    assert refusal is not None
    assert (refusal.code, refusal.param) == ("parameter_invalid", param)


def test_options_with_a_meaning_pass() -> None:
    _, decoded = body(
        customer="cus_06dqdpn80m09xq7w3ntk2vzr",
        subscription="sub_06dqdpn80m09xq7w3ntk2vzr",
        statement_descriptor="SHOP 24",
        return_url="https://shop.example/done?order=1",
    )
    assert isinstance(decoded, OpenPayment)
    assert options_refusal(decoded) is None


@pytest.mark.parametrize(
    ("url", "is_one"),
    [
        ("https://shop.example", True),
        ("http://localhost:3000/back", True),
        ("HTTPS://SHOP.EXAMPLE/", True),
        ("https://[2001:db8::1]/", True),
        ("https://", False),
        ("//shop.example", False),
        ("javascript:alert(1)", False),
        ("https://user:pass@shop.example", False),
        ("https://shop.example:port", False),
        ("https://shop.example:0/", False),
        ("https://[::1", False),
        ("https://shop.example/a b", False),
        ("https://shop.example/\r\nSet-Cookie: a", False),
        ("https:\\\\shop.example", False),
    ],
)
def test_a_return_url_is_absolute_and_http(url: str, is_one: bool) -> None:
    assert is_http_url(url) is is_one
