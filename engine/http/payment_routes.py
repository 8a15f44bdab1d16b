"""The routes of payments and refunds: what each takes, answers and refuses."""

from __future__ import annotations

from typing import Any, Final, get_args

from engine.domain.payment import PaymentStatus
from engine.domain.representation import PaymentView, RefundView
from engine.http import batches, payment_reads, payments
from engine.http.query import PAGE, choice, moment, text
from engine.http.requests import (
    CancelPayment,
    CapturePayment,
    OpenPayment,
    PaymentBatch,
    RefundPayment,
)
from engine.http.routing import Answered, Route
from engine.http.views import BatchView, TimelineView

_PAYMENT_STATUSES: Final[tuple[str, ...]] = get_args(PaymentStatus)
_REFUND_STATUSES: Final = ("pending", "succeeded", "failed", "unknown")

_PRICE: Final[dict[str, Any]] = {
    "amount": 1099,
    "currency": "USD",
    "payment_method": "pm_card_visa",
}
_EXAMPLE: Final[dict[str, Any]] = {
    **_PRICE,
    "reference": "order-1001",
    "metadata": {"basket": "17"},
}

_UNFINISHED: Final = "The outcome is not known yet; the body is the present state."

# What any command on a payment can be refused with, wherever it is decided.
_COMMAND: Final = (
    "gateway_failed",
    "operation_unresolved",
    "starting",
    "overloaded",
    "gateway_unavailable",
    "ledger_unavailable",
    "shard_parked",
)
_OPEN: Final = (
    *_COMMAND,
    "payment_declined",
    "amount_invalid",
    "amount_too_large",
    "currency_unsupported",
    "gateway_unknown",
    "payment_method_unknown",
    "pan_not_allowed",
    "reference_taken",
)
_CHANGE: Final = (*_COMMAND, "payment_not_found", "invalid_state_transition", "payment_declined")
_READ: Final = ("ledger_unavailable",)

PAYMENT_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="POST",
        template="/v1/payments/authorize",
        handler=payments.authorize,
        name="authorizePayment",
        summary="Reserve an amount",
        tag="Payments",
        key="required",
        body=OpenPayment,
        example=_EXAMPLE,
        answers=(
            Answered(201, PaymentView, "Authorised, or waiting for the customer or the gateway."),
            Answered(202, PaymentView, _UNFINISHED),
        ),
        refusals=_OPEN,
    ),
    Route(
        method="POST",
        template="/v1/payments/purchase",
        handler=payments.purchase,
        name="purchasePayment",
        summary="Reserve an amount and capture it in one step",
        tag="Payments",
        key="required",
        body=OpenPayment,
        example={**_EXAMPLE, "reference": "order-1002"},
        answers=(
            Answered(201, PaymentView, "Captured, or waiting for the customer or the gateway."),
            Answered(202, PaymentView, _UNFINISHED),
        ),
        refusals=_OPEN,
    ),
    Route(
        method="POST",
        template="/v1/payments/{id}/capture",
        handler=payments.change,
        name="capturePayment",
        summary="Take what was reserved, or a part of it",
        tag="Payments",
        key="required",
        body=CapturePayment,
        example={"amount": 1099},
        answers=(
            Answered(200, PaymentView, "Captured."),
            Answered(202, PaymentView, _UNFINISHED),
        ),
        refusals=(
            *_CHANGE,
            "amount_invalid",
            "amount_too_large",
            "amount_exceeds_capturable",
            "multiple_capture_unsupported",
        ),
    ),
    Route(
        method="POST",
        template="/v1/payments/{id}/cancel",
        handler=payments.change,
        name="cancelPayment",
        summary="Release what was reserved and is not captured",
        tag="Payments",
        key="required",
        body=CancelPayment,
        example={"reason": "out of stock"},
        answers=(
            Answered(200, PaymentView, "Released."),
            Answered(
                202, PaymentView, "Noted, and done when the authorisation's outcome is known."
            ),
        ),
        refusals=(*_CHANGE, "pan_not_allowed"),
    ),
    Route(
        method="POST",
        template="/v1/payments/{id}/refund",
        handler=payments.change,
        name="refundPayment",
        summary="Give back what was captured, or a part of it",
        tag="Payments",
        key="required",
        body=RefundPayment,
        example={"amount": 500, "reason": "returned"},
        answers=(
            Answered(201, RefundView, "The refund."),
            Answered(202, RefundView, _UNFINISHED),
        ),
        refusals=(
            *_CHANGE,
            "amount_invalid",
            "amount_too_large",
            "amount_exceeds_refundable",
            "pan_not_allowed",
        ),
    ),
    Route(
        method="POST",
        template=batches.PATH,
        handler=batches.batch,
        name="batchPayments",
        summary="Up to 1,000 operations, each with a key and an answer of its own",
        tag="Payments",
        body=PaymentBatch,
        itemised=True,
        example={
            "items": [
                {"idempotency_key": "order-1003", "operation": "authorize", **_PRICE},
                {"idempotency_key": "order-1004", "operation": "purchase", **_PRICE},
            ]
        },
        answers=(
            Answered(
                200,
                BatchView,
                "One result per item, in order. What is wrong with one item is its result; a"
                " result of status 202, or with a retryable problem, is for sending again with the"
                " same key, in a batch or by itself.",
            ),
        ),
    ),
    Route(
        method="GET",
        template="/v1/payments",
        handler=payment_reads.list_payments,
        name="listPayments",
        summary="Payments, newest first",
        tag="Payments",
        query=(
            choice("status", _PAYMENT_STATUSES, "Only payments of this status."),
            text("customer", "Only payments of this customer."),
            text("subscription", "Only payments of this subscription."),
            text("reference", "Only payments with this reference: the attempts at one order."),
            moment("created[gte]", "Created at this time or later."),
            moment("created[lte]", "Created at this time or earlier."),
            *PAGE,
        ),
        answers=(Answered(200, list[PaymentView], "A page of payments."),),
        refusals=_READ,
    ),
    Route(
        method="GET",
        template="/v1/payments/{id}",
        handler=payment_reads.get_payment,
        name="getPayment",
        summary="One payment",
        tag="Payments",
        answers=(Answered(200, PaymentView, "The payment."),),
        refusals=("payment_not_found", *_READ),
    ),
    Route(
        method="GET",
        template="/v1/payments/{id}/timeline",
        handler=payment_reads.timeline,
        name="getPaymentTimeline",
        summary="Every step of a payment, in order",
        tag="Payments",
        answers=(Answered(200, TimelineView, "Requests, attempts, look-ups, transfers, answers."),),
        refusals=("payment_not_found", *_READ),
    ),
    Route(
        method="GET",
        template="/v1/refunds",
        handler=payment_reads.list_refunds,
        name="listRefunds",
        summary="Refunds, newest first",
        tag="Refunds",
        query=(
            text("payment", "Only refunds of this payment."),
            choice("status", _REFUND_STATUSES, "Only refunds of this status."),
            *PAGE,
        ),
        answers=(Answered(200, list[RefundView], "A page of refunds."),),
        refusals=_READ,
    ),
    Route(
        method="GET",
        template="/v1/refunds/{id}",
        handler=payment_reads.get_refund,
        name="getRefund",
        summary="One refund",
        tag="Refunds",
        answers=(Answered(200, RefundView, "The refund."),),
        refusals=("refund_not_found", *_READ),
    ),
)
