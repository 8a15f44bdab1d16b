"""The form a payment is stored in."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest

from engine.domain.document import from_document, has_work, to_document
from engine.domain.operation import Operation, OperationStatus
from engine.domain.payment import Payment

EVERY_END = list(itertools.product(get_args(OperationStatus), (None, 1_800_000_000_000)))


def operation(n: int, status: OperationStatus, retry_ms: int | None) -> Operation:
    return Operation(n=n, type="refund", amount=1, created_ms=1, status=status, retry_ms=retry_ms)


def payment(*operations: Operation, **fields: Any) -> Payment:
    return Payment(
        id="pay_1",
        merchant_id="mer_1",
        livemode=True,
        created_ms=1,
        amount=1,
        currency="EUR",
        gateway="simulator",
        payment_method="pm_card_visa",
        operations=operations,
        **fields,
    )


@pytest.mark.parametrize("first", EVERY_END)
def test_work_is_seen_in_the_document_as_in_the_payment(
    first: tuple[OperationStatus, int | None],
) -> None:
    for second in EVERY_END:
        whole = payment(operation(1, *first), operation(2, *second))
        assert has_work(to_document(whole)) == whole.has_work


def test_a_payment_comes_back_as_it_was() -> None:
    whole = payment(operation(1, "succeeded", None), metadata={"status": 'é"}'}, authorized=1)
    assert from_document(to_document(whole)) == whole
    assert not has_work(to_document(whole))
