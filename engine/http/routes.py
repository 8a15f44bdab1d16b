"""The table of routes: every call there is. Dispatch and the OpenAPI document come from here."""

from __future__ import annotations

from typing import Any, Final, get_args

from engine.domain.payment import PaymentStatus
from engine.domain.representation import PaymentView, RefundView
from engine.http import books, events, payment_reads, payments, system
from engine.http.documents import serve_docs, serve_openapi
from engine.http.query import PAGE, choice, moment, text
from engine.http.requests import (
    CancelPayment,
    CapturePayment,
    Nothing,
    OpenPayment,
    RefundPayment,
)
from engine.http.routing import Answered, Route
from engine.http.views import (
    AccountView,
    AuthenticationCompleted,
    DeadLetterRetried,
    DeadLetterView,
    EventView,
    HealthView,
    LiveView,
    ReadyView,
    StatisticsView,
    TimelineView,
    TransferView,
    VerificationView,
    WebhookAccepted,
)

_PAYMENT_STATUSES: Final[tuple[str, ...]] = get_args(PaymentStatus)
_REFUND_STATUSES: Final = ("pending", "succeeded", "failed", "unknown")

_EXAMPLE: Final[dict[str, Any]] = {
    "amount": 1099,
    "currency": "USD",
    "payment_method": "pm_card_visa",
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

_PAYMENTS: Final = (
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
        handler=payments.capture,
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
        handler=payments.cancel,
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
        handler=payments.refund,
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
            text("reference", "Only the payment with this reference of the merchant's."),
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

_EVENTS: Final = (
    Route(
        method="GET",
        template="/v1/events",
        handler=events.list_events,
        name="listEvents",
        summary="Events, newest first",
        tag="Events",
        query=(
            text("type", "Only events of this type, such as payment.captured."),
            text("object", "Only events about the object with this id."),
            *PAGE,
        ),
        answers=(Answered(200, list[EventView], "A page of events."),),
        refusals=_READ,
    ),
    Route(
        method="GET",
        template="/v1/events/{id}",
        handler=events.get_event,
        name="getEvent",
        summary="One event",
        tag="Events",
        answers=(Answered(200, EventView, "The event."),),
        refusals=("event_not_found", *_READ),
    ),
    Route(
        method="POST",
        template="/v1/webhooks/{gateway}",
        handler=events.gateway_webhook,
        name="receiveGatewayWebhook",
        summary="A gateway's webhook",
        tag="Gateway webhooks",
        scope=None,
        raw=True,
        answers=(Answered(200, WebhookAccepted, "Stored, now or by an earlier delivery."),),
        refusals=(
            "gateway_not_found",
            "webhook_malformed",
            "webhook_timestamp_stale",
            "webhook_signature_invalid",
            "starting",
            "overloaded",
            "ledger_unavailable",
        ),
    ),
)

_LEDGER: Final = (
    Route(
        method="GET",
        template="/v1/accounts",
        handler=books.list_accounts,
        name="listAccounts",
        summary="Ledger accounts, oldest first",
        tag="Ledger",
        query=PAGE,
        answers=(Answered(200, list[AccountView], "A page of accounts."),),
        refusals=_READ,
    ),
    Route(
        method="GET",
        template="/v1/accounts/{id}",
        handler=books.get_account,
        name="getAccount",
        summary="One account, now or at a time",
        tag="Ledger",
        query=(moment("at", "The balance as it was recorded at this time."),),
        answers=(Answered(200, AccountView, "The account."),),
        refusals=("account_not_found", "permission_denied", *_READ),
    ),
    Route(
        method="GET",
        template="/v1/accounts/{id}/transfers",
        handler=books.account_transfers,
        name="listAccountTransfers",
        summary="Transfers of an account, newest first",
        tag="Ledger",
        query=PAGE,
        answers=(Answered(200, list[TransferView], "A page of transfers."),),
        refusals=("account_not_found", "permission_denied", *_READ),
    ),
    Route(
        method="GET",
        template="/v1/transfers/{id}",
        handler=books.get_transfer,
        name="getTransfer",
        summary="One transfer",
        tag="Ledger",
        answers=(Answered(200, TransferView, "The transfer."),),
        refusals=("transfer_not_found", *_READ),
    ),
    Route(
        method="GET",
        template="/v1/ledger/verify",
        handler=books.get_verification,
        name="getLedgerVerification",
        summary="The result of the last verification of the ledger",
        tag="Ledger",
        answers=(Answered(200, VerificationView, "The result; null before the first one."),),
    ),
)

_SYSTEM: Final = (
    Route(
        method="GET",
        template="/livez",
        handler=system.live,
        name="live",
        summary="Whether the process answers",
        tag="System",
        scope=None,
        answers=(Answered(200, LiveView, "It does."),),
    ),
    Route(
        method="GET",
        template="/readyz",
        handler=system.ready,
        name="ready",
        summary="Whether work is taken, and if not, why",
        tag="System",
        scope=None,
        answers=(
            Answered(200, ReadyView, "Work is taken."),
            Answered(503, ReadyView, "No work is taken, for these reasons."),
        ),
    ),
    Route(
        method="GET",
        template="/v1/health",
        handler=system.health,
        name="getHealth",
        summary="Each part's state",
        tag="System",
        answers=(Answered(200, HealthView, "The state."),),
    ),
    Route(
        method="GET",
        template="/v1/statistics",
        handler=system.statistics,
        name="getStatistics",
        summary="What actors, mailboxes, breakers and the ledger writer count",
        tag="System",
        scope="operator",
        answers=(Answered(200, StatisticsView, "The figures."),),
    ),
    Route(
        method="GET",
        template="/v1/dead_letters",
        handler=system.list_dead_letters,
        name="listDeadLetters",
        summary="Work that waits for a person, newest first",
        tag="System",
        scope="operator",
        query=PAGE,
        answers=(Answered(200, list[DeadLetterView], "A page of dead letters."),),
        refusals=_READ,
    ),
    Route(
        method="POST",
        template="/v1/dead_letters/{id}/retry",
        handler=system.retry_dead_letter,
        name="retryDeadLetter",
        summary="Hand a dead letter to the engine again",
        tag="System",
        scope="operator",
        key="accepted",
        body=Nothing,
        answers=(Answered(200, DeadLetterRetried, "It is on its way."),),
        refusals=("dead_letter_not_found", "starting", "overloaded", *_READ),
    ),
    Route(
        method="GET",
        template="/metrics",
        handler=system.metrics,
        name="getMetrics",
        summary="Metrics for Prometheus",
        tag="System",
        scope=None,
        answers=(Answered(200, None, "The exposition.", "text/plain"),),
    ),
    Route(
        method="GET",
        template="/openapi.json",
        handler=serve_openapi,
        name="getOpenApi",
        summary="This document",
        tag="System",
        scope=None,
        answers=(Answered(200, dict, "An OpenAPI 3.1 document."),),
    ),
    Route(
        method="GET",
        template="/docs",
        handler=serve_docs,
        name="getDocs",
        summary="This document as a page",
        tag="System",
        scope=None,
        answers=(Answered(200, None, "A page that needs nothing from elsewhere.", "text/html"),),
    ),
)

ROUTES: Final[tuple[Route, ...]] = (*_PAYMENTS, *_EVENTS, *_LEDGER, *_SYSTEM)
"""Every route of the contract."""

SIMULATOR_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="POST",
        template="/simulator/authentications/{reference}/complete",
        handler=system.complete_authentication,
        name="completeSimulatedAuthentication",
        summary="Do what the customer does at the issuer's page",
        tag="Simulator",
        scope=None,
        raw=True,
        answers=(Answered(200, AuthenticationCompleted, "The gateway goes on."),),
        refusals=("payment_not_found",),
    ),
)
"""Routes that are there only where the simulator runs in this process."""
