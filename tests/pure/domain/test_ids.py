"""Ids: their form, order, slots, and what is derived from them."""

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain import ids

T0 = 1_790_000_000_000

times = st.integers(0, 2**48 - 1)
slots = st.integers(0, ids.SLOTS - 1)
randoms = st.integers(0, 2**60 - 1)
prefixes = st.sampled_from(["pay_", "re_", "evt_", "sub_"])


@given(prefixes, times, slots, randoms)
def test_an_id_carries_its_time_and_slot_and_is_valid(prefix, now_ms, slot, random60):
    made = ids.new_id(prefix, now_ms, slot, random60)
    assert ids.is_id(prefix, made)
    assert (ids.slot_of(made), ids.created_ms_of(made)) == (slot, now_ms)
    assert re.fullmatch(prefix + "[0-9a-hjkmnp-tv-z]{24}", made)
    assert not made.isdigit()


@given(
    st.tuples(times, slots, randoms),
    st.tuples(times, slots, randoms),
)
def test_ids_sort_as_their_parts_and_differ_when_these_do(one, two):
    a, b = ids.new_id("pay_", *one), ids.new_id("pay_", *two)
    assert (a < b) == (one < two)
    assert (a == b) == (one == two)


def test_the_form_of_an_id_never_changes():
    assert ids.new_id("pay_", T0, 4_095, 1) == "pay_06gc8m3c03zz000000000001"
    assert ids.new_id("pay_", 0, 0, 0) == "pay_" + "0" * 24
    assert ids.new_id("pay_", 2**48 - 1, 4_095, 2**60 - 1) == "pay_" + "z" * 24


@pytest.mark.parametrize(
    "text",
    [
        "", "pay_", "pay_" + "0" * 23, "pay_" + "0" * 25, "re_" + "0" * 24,
        "pay_" + "0" * 23 + "\n",
        "pay_" + "0" * 24 + "\n", "pay_" + "A" * 24, "pay_" + "i" * 24, "pay_" + "u" * 24,
        " pay_" + "0" * 24, "pay_" + "٣" * 24, "PAY_" + "0" * 24, "pay_" + "0" * 24 + ".1",
    ],
)  # fmt: skip
def test_anything_else_is_not_an_id(text):
    assert not ids.is_id("pay_", text)


@given(times, slots, randoms, randoms)
def test_a_refund_carries_the_slot_of_its_payment(now_ms, slot, random1, random2):
    payment = ids.new_id("pay_", now_ms, slot, random1)
    refund = ids.new_id("re_", now_ms, ids.slot_of(payment), random2)
    assert ids.slot_of(refund) == slot


@pytest.mark.parametrize("text", ["", "pay_", "pay_" + "u" * 24])
def test_text_without_a_readable_slot_or_time_raises(text):
    with pytest.raises(ValueError, match="not an id"):
        ids.slot_of(text)
    with pytest.raises(ValueError, match="not an id"):
        ids.created_ms_of(text)


@pytest.mark.parametrize(
    "parts", [(-1, 0, 0), (2**48, 0, 0), (0, -1, 0), (0, 4_096, 0), (0, 0, -1), (0, 0, 2**60)]
)
def test_parts_that_do_not_fit_are_a_bug_of_the_caller(parts):
    with pytest.raises(AssertionError):
        ids.new_id("pay_", *parts)


def test_slots_of_keys_are_spread_evenly_and_never_change():
    counts = Counter(ids.slot_of_key(f"order-{n}") for n in range(ids.SLOTS * 32))
    assert set(counts) == set(range(ids.SLOTS))
    assert max(counts.values()) < 3 * 32
    assert ids.slot_of_key("order-1") == 4_079


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_every_text_has_a_slot(text):
    assert 0 <= ids.slot_of_key(text) < ids.SLOTS


@given(times, slots, randoms, st.integers(0, 999_999))
def test_operation_ids_come_apart_again(now_ms, slot, random60, n):
    payment = ids.new_id("pay_", now_ms, slot, random60)
    assert ids.parse_op_id(ids.op_id(payment, n)) == (payment, n)


@pytest.mark.parametrize("rest", ["", ".", ".01", ".-1", ".1.2", ".1\n", ".1000000", ".٣", ".+1"])
def test_an_operation_id_has_one_spelling(rest):
    assert ids.parse_op_id("pay_" + "0" * 24 + rest) is None


def test_an_operation_of_something_else_is_refused():
    assert ids.parse_op_id("re_" + "0" * 24 + ".1") is None


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_integer_ids_come_back_and_sort_as_the_integers_do(n, m):
    text, other = ids.encode_int_id("tr_", n), ids.encode_int_id("tr_", m)
    assert ids.decode_int_id("tr_", text) == n
    assert (len(text), text < other) == (16, n < m)


@pytest.mark.parametrize(
    "text",
    ["tr_", "tr_8000000000000", "tr_000000000000", "tr_00000000000000", "acct_0000000000000",
     "tr_000000000000u", "tr_0000000000000\n", "0000000000000", "tr_000000000000A"],
)  # fmt: skip
def test_anything_else_is_not_an_integer_id(text):
    assert ids.decode_int_id("tr_", text) is None


def test_an_integer_beyond_63_bits_is_a_bug_of_the_caller():
    for n in (-1, 2**63):
        with pytest.raises(AssertionError):
            ids.encode_int_id("tr_", n)


def test_gateway_keys_never_change_between_releases():
    operation = ids.op_id("pay_" + "0" * 24, 1)
    assert ids.gateway_key(operation) == "op_df80fb4d25c8ef826ace9bfdf341646da510b45a"
    assert ids.gateway_reference20(operation) == "fh24m1mypna00xt2hn2p"


@given(st.integers(0, 999_999), st.integers(0, 999_999))
def test_gateway_keys_fit_every_provider_and_differ_by_operation(n, m):
    one, two = (ids.op_id("pay_" + "7" * 24, number) for number in (n, m))
    assert re.fullmatch("[a-z0-9_]{1,45}", ids.gateway_key(one))
    assert re.fullmatch("[a-z0-9]{20}", ids.gateway_reference20(one))
    assert (ids.gateway_key(one) == ids.gateway_key(two)) == (n == m)
    assert (ids.gateway_reference20(one) == ids.gateway_reference20(two)) == (n == m)
