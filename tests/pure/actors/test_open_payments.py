"""What a shard keeps in memory of the payments that are open."""

from __future__ import annotations

import sys
import tracemalloc

import msgspec
import pytest

from engine.actors.open_payments import OpenPayments
from engine.domain.document import to_document
from engine.domain.operation import Operation
from engine.domain.payment import Card, Payment

AUTHORIZED = Payment(
    id="pay_06gzv1wgnda2k4kpprzd28rk",
    merchant_id="mer_dev",
    livemode=False,
    created_ms=1_795_254_882_475,
    amount=1_099,
    currency="USD",
    gateway="simulator",
    payment_method="pm_card_visa",
    operations=(
        Operation(
            n=1,
            type="authorize",
            amount=1_099,
            created_ms=1_795_254_882_475,
            status="succeeded",
            transfer=1,
            key="550e8400-e29b-41d4-a716-446655440000",
            request_id="req_06gzv1wgnd5ab4381b8ns7nk",
            path="/v1/payments/authorize",
            reference="ch_op_2315f5c1ae6c205c9724361a026d9dad53db03c0",
            sent_ms=1_795_254_882_475,
            answered=True,
        ),
    ),
    version=2,
    sequence=1,
    authorized=1_099,
    hold=1,
    expires_ms=1_795_859_682_475,
    gateway_reference="ch_op_2315f5c1ae6c205c9724361a026d9dad53db03c0",
    card=Card(brand="visa", last4="4242", exp_month=12, exp_year=2034),
    metadata={"order": "6735"},
)
CAPTURE = Operation(n=2, type="capture", amount=1_099, created_ms=1, status="processing")
CAPTURING = msgspec.structs.replace(
    AUTHORIZED, version=3, capturing=1_099, operations=(*AUTHORIZED.operations, CAPTURE)
)
CAPTURED = msgspec.structs.replace(
    CAPTURING,
    version=4,
    capturing=0,
    captured=1_099,
    operations=(*AUTHORIZED.operations, msgspec.structs.replace(CAPTURE, status="succeeded")),
)


def test_a_payment_comes_back_as_it_was_kept_until_it_is_settled() -> None:
    payments = OpenPayments()
    assert payments.get(AUTHORIZED.id) is None
    for state in (AUTHORIZED, CAPTURING, AUTHORIZED, CAPTURING):
        payments.keep(state)
        assert payments.get(state.id) == state
        assert state.id in payments
        assert len(payments) == 1
    payments.keep(CAPTURED)
    assert payments.get(CAPTURED.id) is None
    assert CAPTURED.id not in payments
    assert len(payments) == 0


def test_a_document_that_has_been_made_is_kept_without_what_was_allocated_behind_it() -> None:
    payments = OpenPayments()
    made = to_document(AUTHORIZED)
    payments.keep(AUTHORIZED, made)
    assert payments.get(AUTHORIZED.id) == AUTHORIZED
    assert payments._quiet[AUTHORIZED.id] == made
    assert payments._quiet[AUTHORIZED.id] is not made


def test_a_quiet_payment_is_settled_without_having_been_active() -> None:
    payments = OpenPayments()
    payments.keep(AUTHORIZED)
    payments.keep(CAPTURED)
    assert len(payments) == 0


def test_documents_without_work_are_taken_unread() -> None:
    payments = OpenPayments()
    payments.keep_quiet({AUTHORIZED.id: to_document(AUTHORIZED), "pay_damaged": b"{"})
    assert len(payments) == 2
    assert payments.get(AUTHORIZED.id) == AUTHORIZED
    with pytest.raises(msgspec.DecodeError):
        payments.get("pay_damaged")
    payments.keep(CAPTURED)
    assert len(payments) == 1


def test_the_ledgers_documents_are_taken_as_they_are_and_work_is_pointed_out() -> None:
    payments = OpenPayments()
    assert payments.keep_document(to_document(AUTHORIZED)) is None
    assert payments.get(AUTHORIZED.id) == AUTHORIZED
    capturing = msgspec.structs.replace(CAPTURING, id="pay_2")
    assert payments.keep_document(to_document(capturing)) == capturing
    assert payments.get("pay_2") == capturing
    assert len(payments) == 2
    payments.keep(CAPTURED)
    assert AUTHORIZED.id not in payments


def test_a_quiet_payment_takes_less_than_a_kibibyte() -> None:
    payments = OpenPayments()
    payments.keep(AUTHORIZED)
    document = payments._quiet[AUTHORIZED.id]
    # The text of its id is the key; a dictionary's entry takes up to 3 words and a half of hash.
    assert sys.getsizeof(document) + sys.getsizeof(AUTHORIZED.id) + 100 < 1_024


def test_what_is_kept_holds_no_room_behind_its_end() -> None:
    described = [
        msgspec.structs.replace(AUTHORIZED, id=f"pay_{n}", description="x" * n) for n in range(400)
    ]
    payments = OpenPayments()
    tracemalloc.start()
    for payment in described:
        payments.keep(payment)
    allocated, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    documents = sum(sys.getsizeof(document) for document in payments._quiet.values())
    assert allocated < documents + sys.getsizeof(payments._quiet) + 10_000
