"""Fees: which rule applies, when, and that a fee never costs more than its capture."""

from datetime import UTC, date, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.fees import Fee, FeeRule, FeeSchedule, fee_for, fee_schedule

JANUARY = date(2026, 1, 1)
JUNE = date(2026, 6, 1)


def ms(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp() * 1000)


def schedule(*rules: FeeRule) -> FeeSchedule:
    made = fee_schedule(rules)
    assert isinstance(made, FeeSchedule)
    return made


def charge(rules: FeeSchedule, amount: int = 10_000, at: int = ms(2026, 7, 1), **asked: str) -> Fee:
    where = {"gateway": "stripe", "method": "card", "currency": "USD"} | asked
    return fee_for(rules, amount_minor=amount, at_ms=at, **where)


def test_the_golden_capture_of_a_hundred_costs_three_ninety():
    rules = schedule(FeeRule(valid_from=JANUARY, currency="USD", basis_points=360, fixed_minor=30))
    assert charge(rules) == Fee(390, 0)


def test_no_rule_is_no_fee():
    assert charge(schedule()) == Fee(0, 0)
    assert charge(schedule(FeeRule(valid_from=JANUARY, currency="EUR"))) == Fee(0, 0)


def test_the_most_specific_rule_wins_whatever_its_date_and_place():
    rules = [
        FeeRule(valid_from=JUNE, basis_points=100),
        FeeRule(valid_from=JUNE, currency="USD", basis_points=200),
        FeeRule(valid_from=JUNE, method="card", basis_points=300),
        FeeRule(valid_from=JUNE, gateway="stripe", basis_points=400),
        FeeRule(valid_from=JUNE, method="card", currency="USD", basis_points=500),
        FeeRule(valid_from=JUNE, gateway="stripe", currency="USD", basis_points=600),
        FeeRule(valid_from=JUNE, gateway="stripe", method="card", basis_points=700),
        FeeRule(
            valid_from=JANUARY, gateway="stripe", method="card", currency="USD", basis_points=800
        ),
    ]
    for best in range(len(rules), 0, -1):
        assert charge(schedule(*rules[:best])) == Fee(100 * best, 0)
        assert charge(schedule(*reversed(rules[:best]))) == Fee(100 * best, 0)


def test_a_fee_is_dated_at_its_capture():
    rules = schedule(
        FeeRule(valid_from=JANUARY, basis_points=100),
        FeeRule(valid_from=JUNE, basis_points=200),
    )
    assert charge(rules, at=ms(2025, 12, 31, 23, 59, 59)) == Fee(0, 0)
    assert charge(rules, at=ms(2026, 1, 1)) == Fee(100, 0)
    assert charge(rules, at=ms(2026, 6, 1) - 1) == Fee(100, 0)
    assert charge(rules, at=ms(2026, 6, 1)) == Fee(200, 0)


def test_a_specific_rule_that_has_not_begun_leaves_the_general_one():
    rules = schedule(
        FeeRule(valid_from=JANUARY, basis_points=100),
        FeeRule(valid_from=JUNE, gateway="stripe", basis_points=50),
    )
    assert charge(rules, at=ms(2026, 5, 1)) == Fee(100, 0)


def test_minimum_maximum_and_tax():
    rules = schedule(
        FeeRule(
            valid_from=JANUARY,
            currency="USD",
            basis_points=100,
            minimum_minor=50,
            maximum_minor=200,
            tax_basis_points=1_900,
        )
    )
    assert charge(rules, 1_000) == Fee(50, 10)
    assert charge(rules, 10_000) == Fee(100, 19)
    assert charge(rules, 1_000_000) == Fee(200, 38)


def test_a_fee_above_the_amount_is_cut_to_the_amount_with_its_tax():
    rules = schedule(
        FeeRule(valid_from=JANUARY, currency="USD", fixed_minor=500, tax_basis_points=2_000)
    )
    assert charge(rules, 120) == Fee(100, 20)
    assert charge(rules, 1) == Fee(1, 0)


@given(
    st.integers(1, 10**12 - 1),
    st.integers(0, 10_000),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.none() | st.integers(10**6, 10**7),
    st.integers(0, 10_000),
)
def test_fee_and_tax_never_exceed_the_amount_and_fit_together(
    amount, points, fixed, least, most, tax_points
):
    rule = FeeRule(
        valid_from=JANUARY,
        currency="USD",
        basis_points=points,
        fixed_minor=fixed,
        minimum_minor=least,
        maximum_minor=most,
        tax_basis_points=tax_points,
    )
    fee = charge(schedule(rule), amount)
    assert fee.fee_minor >= 0
    assert fee.tax_minor >= 0
    assert fee.fee_minor + fee.tax_minor <= amount
    assert abs(fee.tax_minor * 10_000 - fee.fee_minor * tax_points) <= 10_000
    if most is not None:
        assert fee.fee_minor <= most


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"basis_points": 10_001}, "basis_points_out_of_range"),
        ({"tax_basis_points": -1}, "basis_points_out_of_range"),
        ({"currency": "USD", "fixed_minor": -1}, "negative_amount"),
        ({"currency": "USD", "maximum_minor": -1}, "negative_amount"),
        (
            {"currency": "USD", "minimum_minor": 2, "maximum_minor": 1},
            "minimum_above_maximum",
        ),
        ({"fixed_minor": 30}, "amount_without_currency"),
        ({"maximum_minor": 0}, "amount_without_currency"),
    ],
)
def test_a_rule_that_contradicts_itself_is_refused(fields, refusal):
    assert fee_schedule([FeeRule(valid_from=JANUARY, **fields)]) == refusal


def test_two_rules_for_the_same_case_and_day_are_refused():
    same = {"valid_from": JUNE, "gateway": "stripe"}
    rules = [FeeRule(**same, basis_points=1), FeeRule(**same, basis_points=2)]
    assert fee_schedule(rules) == "duplicate_rule"


def test_a_rule_can_be_stored_and_read_back():
    rule = FeeRule(valid_from=JUNE, currency="EUR", fixed_minor=25)
    assert msgspec.json.decode(msgspec.json.encode(rule), type=FeeRule) == rule
