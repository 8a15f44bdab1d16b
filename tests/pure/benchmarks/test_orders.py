"""What the benchmarks ask for is something that the engine takes."""

from __future__ import annotations

import msgspec

from benchmarks.bench_open import ORDER
from engine.http.requests import OpenPayment
from engine.http.values import options_refusal


def test_the_order_of_the_open_payments_is_one_that_a_merchant_could_make() -> None:
    order = {"amount": 1_099, "currency": "USD", "payment_method": "pm_card_visa", **ORDER}
    assert options_refusal(msgspec.convert(order, OpenPayment)) is None
