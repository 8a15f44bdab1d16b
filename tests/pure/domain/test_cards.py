"""Card numbers and secrets are found and taken out; ids and other numbers are left alone."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain import ids
from engine.domain.cards import find_pan, redact

# Public test numbers of Stripe, PayPal and Adyen; none of them can be charged.
PANS = [
    "4242424242424242",
    "4000056655665556",
    "4111111111111111",
    "4222222222222",
    "5555555555554444",
    "5105105105105100",
    "2223003122003222",
    "2720990000000007",
    "378282246310005",
    "371449635398431",
    "343434343434343",
    "6011111111111117",
    "6555900000604105",
    "3056930009020004",
    "36227206271667",
    "38520000023237",
    "3566002020360505",
    "6200000000000005",
    "6205500000000000004",
    "6759649826438453",
]


def grouped(pan: str, separator: str) -> str:
    return separator.join(pan[at : at + 4] for at in range(0, len(pan), 4))


@pytest.mark.parametrize("pan", PANS)
@pytest.mark.parametrize("separator", ["", " ", "-", "\u00a0", "\u2009", "\u2011", "\u2013"])
@pytest.mark.parametrize(
    "around", ["{}", "card {}, please", '{{"n":"{}"}}', "x={};", "pan_{}", "É{}"]
)
def test_card_numbers_are_found_and_only_their_last_four_digits_stay(pan, separator, around):
    text = around.format(grouped(pan, separator))
    assert find_pan(text) == pan[-4:]
    assert find_pan(text.encode()) == pan[-4:]
    assert redact(text) == around.format(f"[card {pan[-4:]}]")
    assert redact(text.encode()) == around.format(f"[card {pan[-4:]}]").encode()


@pytest.mark.parametrize(
    "before",
    ["\\n", "\\t", "\\r", "\\u0000", "\\u001b[31m", "\\u001b[0m", "\\u001b[1;31m", "\x1b[m"],
)
def test_what_json_escapes_before_a_number_does_not_hide_it(before):
    text = f'{{"event":"note","text":"a{before}4242424242424242\\nb"}}'
    assert find_pan(text) == "4242"
    assert redact(text) == text.replace("4242424242424242", "[card 4242]")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4242424242424241",  # the Luhn digit is wrong
        "4242424242424247",
        "1234567812345670",  # no issuer begins with 1
        "0000000000000000",
        "424242424242",  # twelve digits
        "42424242424242424242",  # twenty digits, and what is inside them is nobody's number
        "a4242424242424242",
        "4242424242424242a",
        "4242  4242  4242  4242",  # two blanks: columns of a table
        "4242.4242.4242.4242",
        "1791234567890 1791234567890123",  # times since the epoch
        "2026-11-21T07:28:57.123456Z",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "card number 4242",
        "٤٢٤٢٤٢٤٢٤٢٤٢٤٢٤٢",
    ],
)
def test_what_is_not_a_card_number_stays(text):
    assert find_pan(text) is None
    assert redact(text) == text


@given(st.integers(0, 2**48 - 1), st.integers(0, 4_095), st.integers(0, 2**60 - 1))
def test_our_ids_stay_whole(now_ms, slot, random60):
    payment = ids.new_id("pay_", now_ms, slot, random60)
    text = json.dumps({"payment": payment, "operation": ids.op_id(payment, 1)})
    assert redact(text) == text


@pytest.mark.parametrize("prefix", ["tr_", "acct_"])
def test_an_integer_id_of_digits_that_looks_like_a_card_number_stays_whole(prefix):
    text = f'{{"id":"{prefix}4222222222222"}}'
    assert ids.decode_int_id(prefix, prefix + "4222222222222") is not None
    assert find_pan(text) is None
    assert redact(text) == text


def test_a_number_is_found_between_other_numbers():
    assert redact("order 12 4242424242424242 07/28 123") == "order 12 [card 4242] 07/28 123"
    assert redact("4242 4242 4242 4242 12ab") == "[card 4242] 12ab"
    assert redact("ab12 4242 4242 4242 4242") == "ab12 [card 4242]"


def test_every_number_of_a_line_is_taken_out():
    line = "5555555555554444,4242424242424242 and 378282246310005"
    assert redact(line) == "[card 4444],[card 4242] and [card 0005]"
    assert redact("4242 " * 8) == "[card 4242] " * 2


def test_a_line_of_json_stays_json():
    line = b'{"a\\\\":4242424242424242,"b":"say \\"4242424242424242\\"","c":[5555555555554444]}'
    assert json.loads(redact(line)) == {
        "a\\": "[card 4242]",
        "b": 'say "[card 4242]"',
        "c": ["[card 4444]"],
    }


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("key sk_live_51HabcDEF.", "key sk_live_[redacted]."),
        ('{"k":"sk_test_abc_123"}', '{"k":"sk_test_[redacted]"}'),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw==", "whsec_[redacted]"),
        ("Authorization: Bearer eyJ0eXAi.abc-_~+/=", "Authorization: Bearer [redacted]"),
        ("authorization: bearer sk_live_abcdef", "authorization: bearer [redacted]"),
        ("BEARER  abcdefgh12", "BEARER  [redacted]"),
        ("x\\nsk_live_abc\\n", "x\\nsk_live_[redacted]\\n"),
        ("sk_live_a 4242424242424242", "sk_live_[redacted] [card 4242]"),
    ],
)
def test_secrets_are_taken_out_and_their_kind_stays(text, clean):
    assert redact(text) == clean
    assert redact(text.encode()) == clean.encode()


@pytest.mark.parametrize("text", ["the bearer of this", "task_live", "sk_", "whsec", "sk_test_…"])
def test_words_like_secrets_stay(text):
    assert redact(text) == text


@given(st.text())
def test_text_without_digits_and_keys_comes_back_unchanged(text):
    if not any(c.isascii() and c.isdigit() for c in text) and "_" not in text:
        assert redact(text + "\ud800") == text + "\ud800" or "bearer" in text.lower()


@given(st.lists(st.sampled_from([*PANS, *"0123456789", "4242 ", " ", "-", "x", '"', "sk_live_a"])))
def test_nothing_is_left_for_a_second_pass(parts):
    clean = redact("".join(parts))
    assert find_pan(clean) is None
    assert redact(clean) == clean


def test_a_body_full_of_digits_costs_no_more_than_its_length():
    # 8,192 places where a number could begin, none of which is one.
    text = "4 " * 8_192
    assert find_pan(text) is None
    assert redact("4" * 65_536) == "4" * 65_536
