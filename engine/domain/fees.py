"""What the platform charges a merchant: a fee schedule, and the one fee it gives for a capture.

A fee is dated at its capture: a rule that starts later never changes it, and giving a fee back
reverses what was recorded instead of computing it again.
"""

from collections.abc import Iterable
from datetime import date
from typing import Final, Literal

import msgspec

from engine.domain.money import BASIS_POINTS_PER_UNIT, basis_points

ScheduleRefusal = Literal[
    "basis_points_out_of_range",
    "negative_amount",
    "minimum_above_maximum",
    "amount_without_currency",
    "duplicate_rule",
]
"""Why a set of rules is not a fee schedule."""

_DAY_MS: Final = 86_400_000
_EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()


class FeeRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of a merchant's fee schedule; None in `gateway`, `method`, `currency` means any.

    The rates are basis points (hundredths of a percent) of the captured amount and, for the
    tax, of the fee. The rule holds from 00:00 UTC of `valid_from`.
    """

    valid_from: date
    gateway: str | None = None
    method: str | None = None
    currency: str | None = None
    basis_points: int = 0
    fixed_minor: int = 0
    minimum_minor: int = 0
    maximum_minor: int | None = None
    tax_basis_points: int = 0


class Fee(msgspec.Struct, frozen=True):
    """The platform's fee on one capture and the tax on that fee, in the capture's currency."""

    fee_minor: int
    tax_minor: int


class FeeSchedule(msgspec.Struct, frozen=True):
    """Rules in the order in which they are tried. Made by `fee_schedule`, never by hand."""

    rules: tuple[FeeRule, ...] = ()


NO_FEE: Final = Fee(0, 0)


def fee_schedule(rules: Iterable[FeeRule]) -> FeeSchedule | ScheduleRefusal:
    """Check the rules and put them in the order `fee_for` tries them.

    The most specific rule comes first: the one that names more of gateway, method and currency;
    among equally many, a gateway counts before a method and a method before a currency. Rules
    for the same three follow each other from the latest to the earliest `valid_from`.
    """
    checked = list(rules)
    for rule in checked:
        refusal = _rule_refusal(rule)
        if refusal is not None:
            return refusal
    identities = {(rule.gateway, rule.method, rule.currency, rule.valid_from) for rule in checked}
    if len(identities) != len(checked):
        return "duplicate_rule"
    checked.sort(key=_order)
    return FeeSchedule(tuple(checked))


def fee_for(
    schedule: FeeSchedule,
    *,
    gateway: str,
    method: str,
    currency: str,
    amount_minor: int,
    at_ms: int,
) -> Fee:
    """The fee for a capture of `amount_minor` at `at_ms` (milliseconds since the epoch, UTC).

    Where no rule applies the fee is zero; a zero is no transfer. The fee is the rate of the
    amount plus the fixed part, raised to the minimum, then lowered to the maximum. Fee and tax
    together never exceed the captured amount: where they would, the amount is divided into a fee
    and its tax, so that a capture can lower a merchant's balance by nothing.
    """
    today = date.fromordinal(_EPOCH_ORDINAL + at_ms // _DAY_MS)
    for rule in schedule.rules:
        if (
            (rule.gateway is None or rule.gateway == gateway)
            and (rule.method is None or rule.method == method)
            and (rule.currency is None or rule.currency == currency)
            and rule.valid_from <= today
        ):
            return _fee_of_rule(rule, amount_minor)
    return NO_FEE


def _fee_of_rule(rule: FeeRule, amount_minor: int) -> Fee:
    fee = basis_points(amount_minor, rule.basis_points) + rule.fixed_minor
    if fee < rule.minimum_minor:
        fee = rule.minimum_minor
    if rule.maximum_minor is not None and fee > rule.maximum_minor:
        fee = rule.maximum_minor
    tax = basis_points(fee, rule.tax_basis_points)
    if fee + tax > amount_minor:
        # Rounded half up like every fee; the tax takes the rest, so nothing is lost between them.
        gross_points = BASIS_POINTS_PER_UNIT + rule.tax_basis_points
        fee = (2 * amount_minor * BASIS_POINTS_PER_UNIT + gross_points) // (2 * gross_points)
        tax = amount_minor - fee
    return Fee(fee, tax)


def _rule_refusal(rule: FeeRule) -> ScheduleRefusal | None:
    if not 0 <= rule.basis_points <= BASIS_POINTS_PER_UNIT:
        return "basis_points_out_of_range"
    if not 0 <= rule.tax_basis_points <= BASIS_POINTS_PER_UNIT:
        return "basis_points_out_of_range"
    maximum = rule.minimum_minor if rule.maximum_minor is None else rule.maximum_minor
    if min(rule.fixed_minor, rule.minimum_minor, maximum) < 0:
        return "negative_amount"
    if rule.minimum_minor > maximum:
        return "minimum_above_maximum"
    # 30 is thirty cents in one currency and thirty yen in another.
    has_amount = rule.fixed_minor or rule.minimum_minor or rule.maximum_minor is not None
    return "amount_without_currency" if has_amount and rule.currency is None else None


def _order(rule: FeeRule) -> tuple[int, bool, bool, bool, int]:
    anything = (rule.gateway is None, rule.method is None, rule.currency is None)
    return (sum(anything), *anything, -rule.valid_from.toordinal())
