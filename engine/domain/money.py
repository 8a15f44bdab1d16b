"""Amounts: integers in a currency's minor unit, and exact arithmetic on them.

No float and no Decimal takes part anywhere. Rounding happens in two places only, each named:
`basis_points` (half away from zero) and `allocate` (largest remainder).
"""

import re
from collections.abc import Sequence
from typing import Final

from engine.domain.currencies import EXPONENTS, exponent, is_currency, normalise_currency

__all__ = [
    "AMOUNT_MAX_MINOR",
    "AMOUNT_MIN_MINOR",
    "BASIS_POINTS_PER_UNIT",
    "EXPONENTS",
    "allocate",
    "basis_points",
    "exponent",
    "format_minor",
    "is_amount",
    "is_currency",
    "normalise_currency",
    "parse_minor",
    "rescale",
]

AMOUNT_MIN_MINOR: Final = 1
# "More than 12 digits are refused": the bound of the HTTP contract.
AMOUNT_MAX_MINOR: Final = 10**12 - 1
BASIS_POINTS_PER_UNIT: Final = 10_000

_EXPONENT_MAX: Final = 4
# 18 digits hold every total of the ledger's 64-bit columns and keep int() away from huge input.
_DECIMAL: Final = re.compile(r"(-?)([0-9]{1,18})(?:\.([0-9]{1,18}))?")


def is_amount(amount_minor: object) -> bool:
    """Whether this is an amount a caller may ask for: an integer from 1 to 12 digits.

    A bool is not an amount, although Python counts it as an integer.
    """
    return type(amount_minor) is int and AMOUNT_MIN_MINOR <= amount_minor <= AMOUNT_MAX_MINOR


def basis_points(amount_minor: int, points: int) -> int:
    """`points` hundredths of a percent of an amount, rounded half away from zero.

    Half up is what a merchant gets who checks a fee by hand, and symmetry around zero makes a
    fee given back exactly the fee taken: `basis_points(-a, p) == -basis_points(a, p)`.
    """
    product = amount_minor * points
    half = BASIS_POINTS_PER_UNIT // 2
    if product >= 0:
        return (product + half) // BASIS_POINTS_PER_UNIT
    return -((-product + half) // BASIS_POINTS_PER_UNIT)


def allocate(amount_minor: int, weights: Sequence[int]) -> tuple[int, ...]:
    """Split an amount in proportion to `weights`; the shares sum to it exactly.

    Largest remainder (Hamilton's method): every share is rounded towards zero, then the units
    left over go one each to the largest remainders. Equal remainders go to the larger weight,
    and equal weights to the one that comes first, so a different order of the weights changes
    nothing but which of two equal weights gets a last unit. A weight of zero gets nothing, and
    no share is a whole unit away from its exact value. A negative amount is the mirror image.

    Weights are not negative and at least one is positive; anything else is a bug of the caller.
    """
    total = sum(weights)
    assert total > 0, "weights must have a positive sum"
    assert min(weights) >= 0, "weights must not be negative"
    sign = -1 if amount_minor < 0 else 1
    parts = [divmod(abs(amount_minor) * weight, total) for weight in weights]
    shares = [share for share, _ in parts]
    left = abs(amount_minor) - sum(shares)
    # sorted() is stable, so equal keys keep the order of the weights.
    neediest = sorted(range(len(parts)), key=lambda i: (-parts[i][1], -weights[i]))
    for i in neediest[:left]:
        shares[i] += 1
    return tuple(sign * share for share in shares)


def format_minor(amount_minor: int, decimals: int) -> str:
    """An amount in minor units as a decimal string with exactly `decimals` decimals.

    1099 with 2 is "10.99", 5 with 3 is "0.005", 500 with 0 is "500", -7 with 2 is "-0.07".
    """
    assert 0 <= decimals <= _EXPONENT_MAX, decimals
    if decimals == 0:
        return str(amount_minor)
    sign = "-" if amount_minor < 0 else ""
    digits = str(abs(amount_minor)).rjust(decimals + 1, "0")
    return f"{sign}{digits[:-decimals]}.{digits[-decimals:]}"


def parse_minor(text: str, decimals: int) -> int | None:
    """A decimal string as an integer with `decimals` decimals, or None where that is not exact.

    Fewer decimals and further zeros are exact ("10", "10.5" and "10.500" with 2); "10.505" is
    not. Exponents, signs other than a leading minus, blanks, separators of thousands, digits
    outside ASCII and a missing digit on either side of the point are refused.
    """
    assert 0 <= decimals <= _EXPONENT_MAX, decimals
    match = _DECIMAL.fullmatch(text)
    if match is None:
        return None
    sign, whole, fraction = match[1], match[2], match[3] or ""
    if fraction[decimals:].strip("0"):
        return None
    value = int(whole + fraction[:decimals].ljust(decimals, "0"))
    return -value if sign else value


def rescale(amount_minor: int, decimals: int, decimals_wanted: int) -> int | None:
    """The same amount counted with another number of decimals, or None where that is not exact.

    For providers whose unit is not ISO's: 525.00 HUF is 52500 here and 525 at PayPal, while
    525.25 HUF cannot be said there; 5 ISK is 5 here and 500 at Stripe.
    """
    if decimals_wanted >= decimals:
        return int(amount_minor * 10 ** (decimals_wanted - decimals))
    quotient, rest = divmod(amount_minor, int(10 ** (decimals - decimals_wanted)))
    return None if rest else quotient
