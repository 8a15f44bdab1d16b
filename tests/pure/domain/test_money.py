"""Money: the ISO 4217 table, amounts, exact splitting, rounding and decimal text."""

import json
import os
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain import money
from engine.domain.currencies import EXPONENTS

REPOSITORY = Path(__file__).resolve().parents[3]
CONTRACTS = Path(os.environ.get("CONTRACTS_DIR", REPOSITORY.parent / "shared" / "contracts"))

amounts = st.integers(-(10**13), 10**13)
weights = st.lists(st.integers(0, 10**9), min_size=1, max_size=12).filter(any)


@pytest.fixture(scope="module")
def contract() -> dict[str, dict[str, list[str]]]:
    file = CONTRACTS / "currencies.json"
    if not file.exists():
        pytest.skip(f"the contract data is not here: {file} (CONTRACTS_DIR names its folder)")
    return json.loads(file.read_text())


def test_every_exponent_other_than_two_is_the_one_of_the_contract(contract):
    for digits in (0, 3, 4):
        ours = {code for code, decimals in EXPONENTS.items() if decimals == digits}
        assert ours == set(contract["iso4217"][str(digits)])


def test_every_currency_a_provider_takes_is_known(contract):
    stripe, paypal = contract["stripe"], contract["paypal"]
    named = {*stripe["zero_decimal"], *stripe["two_decimal_must_end_00"], *paypal["supported"]}
    named.update(stripe["three_decimal_last_digit_0"], paypal["no_decimals"])
    assert named <= set(EXPONENTS)


@pytest.mark.parametrize("provider", ["stripe", "paypal", "square", "authorizenet"])
def test_the_contracts_amounts_come_back_exactly_through_our_minor_units(contract, provider):
    rules = contract[provider]
    zero = {*rules.get("zero_decimal", ()), *rules.get("no_decimals", ())}
    hundredths = set(rules.get("two_decimal_must_end_00", ()))
    for code, decimal, wire in rules["cases"]:
        decimals_wire = 0 if code in zero else 2 if code in hundredths else money.exponent(code)
        ours = money.parse_minor(decimal, money.exponent(code))
        assert ours is not None
        sent = money.rescale(ours, money.exponent(code), decimals_wire)
        assert sent is not None
        assert (money.format_minor(sent, decimals_wire) if isinstance(wire, str) else sent) == wire
        assert money.rescale(sent, decimals_wire, money.exponent(code)) == ours


def test_the_table_holds_three_letter_codes_with_a_minor_unit():
    assert len(EXPONENTS) == 165
    assert all(len(c) == 3 and c.isascii() and c.isalpha() and c.isupper() for c in EXPONENTS)
    assert set(EXPONENTS.values()) == {0, 2, 3, 4}
    assert [money.exponent(c) for c in ("USD", "JPY", "KWD", "CLF")] == [2, 0, 3, 4]


@pytest.mark.parametrize("code", ["XXX", "XTS", "XAU", "XDR", "BTC", "DEM", "HRK", "BGN", "usd"])
def test_what_cannot_be_charged_is_not_a_currency(code):
    assert not money.is_currency(code)
    with pytest.raises(KeyError):
        money.exponent(code)


@pytest.mark.parametrize("text", ["EUR", "eur", "Eur", "eUR"])
def test_a_currency_is_taken_in_either_case(text):
    assert money.normalise_currency(text) == "EUR"


@pytest.mark.parametrize(
    "text", ["EUR\n", "\nEUR", " EUR", "EUR ", "EU", "EURO", "", "ıdr", "uſd", "EUR\0", "ＥＵＲ"]
)
def test_nothing_around_or_instead_of_a_currency_is_taken(text):
    assert money.normalise_currency(text) is None


@given(st.text(max_size=5))
def test_normalising_gives_a_known_code_or_nothing(text):
    code = money.normalise_currency(text)
    assert code is None or (code in EXPONENTS and code.lower() == text.lower())


@pytest.mark.parametrize(("amount", "ok"), [(0, False), (1, True), (10**12 - 1, True)])
def test_amounts_have_one_to_twelve_digits(amount, ok):
    assert money.is_amount(amount) is ok


@pytest.mark.parametrize("amount", [-1, 10**12, True, 1.0, "1", None, Decimal(1)])
def test_anything_but_a_positive_integer_of_twelve_digits_is_no_amount(amount):
    assert not money.is_amount(amount)


@given(amounts, weights)
def test_shares_sum_exactly_and_are_less_than_a_unit_off(amount, weights):
    shares = money.allocate(amount, weights)
    assert sum(shares) == amount
    assert len(shares) == len(weights)
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - Fraction(amount * weight, sum(weights))) < 1
        assert weight or share == 0


@given(amounts, weights, st.randoms(use_true_random=False))
def test_the_order_of_weights_changes_no_weights_share(amount, weights, random):
    shuffled = random.sample(weights, len(weights))
    pairs = zip(weights, money.allocate(amount, weights), strict=True)
    assert sorted(pairs) == sorted(zip(shuffled, money.allocate(amount, shuffled), strict=True))


@given(amounts, weights)
def test_a_negative_amount_is_split_as_the_mirror_image(amount, weights):
    mirrored = money.allocate(-amount, weights)
    assert mirrored == tuple(-share for share in money.allocate(amount, weights))


@pytest.mark.parametrize(
    ("amount", "weights", "shares"),
    [
        (100, [1, 1, 1], (34, 33, 33)),
        (5, [1, 1], (3, 2)),
        (1, [1, 3], (0, 1)),
        (2, [1, 3], (0, 2)),
        (2, [1, 1, 2], (1, 0, 1)),
        (7, [0, 5, 0], (0, 7, 0)),
        (0, [1, 2], (0, 0)),
    ],
)
def test_left_over_units_go_to_the_largest_remainder_then_weight_then_first(
    amount, weights, shares
):
    assert money.allocate(amount, weights) == shares


@pytest.mark.parametrize("weights", [[], [0, 0], [3, -1]])
def test_weights_without_a_meaning_are_a_bug_of_the_caller(weights):
    with pytest.raises(AssertionError):
        money.allocate(10, weights)


@given(amounts, st.integers(0, 10_000))
def test_basis_points_round_half_away_from_zero(amount, points):
    exact = Decimal(amount) * points / 10_000
    expected = int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP))
    assert money.basis_points(amount, points) == expected
    assert money.basis_points(-amount, points) == -expected


@pytest.mark.parametrize(
    ("amount", "points", "rounded"),
    [
        (5, 1_000, 1),
        (4, 1_000, 0),
        (25, 1_000, 3),
        (-5, 1_000, -1),
        (50, 290, 1),
        (10_000, 290, 290),
    ],
)
def test_a_half_rounds_up(amount, points, rounded):
    assert money.basis_points(amount, points) == rounded


@given(amounts, st.sampled_from([0, 2, 3, 4]))
def test_decimal_text_comes_back_exactly(amount, decimals):
    text = money.format_minor(amount, decimals)
    assert money.parse_minor(text, decimals) == amount
    assert Decimal(text).scaleb(decimals) == amount


@pytest.mark.parametrize(
    ("amount", "decimals", "text"),
    [(1099, 2, "10.99"), (5, 3, "0.005"), (500, 0, "500"), (-7, 2, "-0.07"), (0, 2, "0.00")],
)
def test_decimal_text_has_every_decimal(amount, decimals, text):
    assert money.format_minor(amount, decimals) == text


@pytest.mark.parametrize(
    ("text", "minor"), [("10", 1000), ("10.5", 1050), ("10.5000", 1050), ("-0.01", -1)]
)
def test_fewer_decimals_and_more_zeros_are_exact(text, minor):
    assert money.parse_minor(text, 2) == minor


@pytest.mark.parametrize(
    "text",
    [
        "10.505", "1e3", "+1", " 1", "1\n", "1,000.00", ".5", "5.", "", "-", "NaN", "Infinity",
        "٣", "1_0", "--1", "0x1", "1" * 19, "9" * 5000,
    ],
)  # fmt: skip
def test_text_that_is_not_exactly_an_amount_is_refused(text):
    assert money.parse_minor(text, 2) is None


def test_an_amount_the_providers_unit_cannot_say_is_refused():
    assert money.rescale(52_500, 2, 0) == 525
    assert money.rescale(52_525, 2, 0) is None
    assert money.rescale(-52_500, 2, 0) == -525
