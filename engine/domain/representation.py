"""The representations that answers and events are made of.

They are pure and live below the actors, because an answer is stored in the commit of the outcome
it tells of. Field names and meanings are those of the HTTP contract.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal

import msgspec

from engine.domain.entry import Answer
from engine.domain.ids import op_id
from engine.domain.news import Card, NextAction
from engine.domain.operation import Operation
from engine.domain.payment import Payment, PaymentStatus, timers
from engine.domain.problems import PROBLEMS, problem_bytes
from engine.domain.refusals import Refusal

_encode = msgspec.json.Encoder().encode


@lru_cache(maxsize=4096)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@lru_cache(maxsize=8192)  # a payment names few moments, and several times each
def rfc3339(at_ms: int) -> str:
    """Unix milliseconds as RFC 3339 in UTC, to the millisecond."""
    second, ms = divmod(at_ms, 1000)
    return f"{_second(second)}.{ms:03d}Z"


class OperationView(msgspec.Struct, frozen=True, gc=False):
    """One request on the payment and what became of it."""

    id: str
    type: str
    amount: int
    status: Literal["processing", "pending", "succeeded", "failed", "unknown", "needs_review"]
    created: str
    next_check_at: str | None
    failure_code: str | None
    refund: str | None


class PaymentMethodView(msgspec.Struct, frozen=True, gc=False):
    """The token that was paid with, and what the gateway said of the card behind it."""

    id: str
    type: Literal["card"]
    brand: str | None
    last4: str | None
    exp_month: int | None
    exp_year: int | None


class FeesView(msgspec.Struct, frozen=True, gc=False):
    """What the platform charged so far, in the payment's minor unit."""

    platform_fee: int
    tax: int


class PaymentView(msgspec.Struct, frozen=True):
    """A payment, as merchants see it. Amounts are integers in the currency's minor unit."""

    id: str
    object: Literal["payment"]
    created: str
    livemode: bool
    status: PaymentStatus
    amount: int
    amount_authorized: int
    amount_capturable: int
    amount_captured: int
    amount_released: int
    amount_refunded: int
    amount_refundable: int
    amount_disputed: int
    currency: str
    refund_status: Literal["none", "partial", "full"]
    disputed: bool
    cancel_requested: bool
    needs_review: bool
    payment_method: PaymentMethodView
    customer: str | None
    subscription: str | None
    reference: str | None
    description: str | None
    statement_descriptor: str | None
    return_url: str | None
    gateway: str
    gateway_reference: str | None
    decline_code: str | None
    advice: str | None
    failure_code: str | None
    authorization_expires_at: str | None
    next_check_at: str | None
    next_action: NextAction | None
    fees: FeesView
    operations: list[OperationView]
    metadata: dict[str, str]


class RefundView(msgspec.Struct, frozen=True):
    """A refund, as merchants see it."""

    id: str
    object: Literal["refund"]
    created: str
    livemode: bool
    payment: str
    amount: int
    currency: str
    status: Literal["pending", "succeeded", "failed", "unknown"]
    reason: str | None
    failure_code: str | None
    gateway_reference: str | None
    next_check_at: str | None
    metadata: dict[str, str]


class EventData(msgspec.Struct, frozen=True):
    """The object after the change, and the former values of what changed."""

    object: msgspec.Raw
    previous_attributes: dict[str, Any]


class EventBody(msgspec.Struct, frozen=True):
    """An event, in the bytes a webhook carries. `sequence` counts per object without gaps."""

    id: str
    object: Literal["event"]
    type: str
    timestamp: str
    livemode: bool
    sequence: int
    data: EventData


_OPERATION_STATUS: dict[str, Any] = {
    "processing": "processing",
    "requires_action": "pending",
    "pending": "pending",
    "unknown": "unknown",
    "succeeded": "succeeded",
    "declined": "failed",
    "failed": "failed",
    "expired": "failed",
    "canceled": "failed",
}

_REFUND_STATUS: dict[str, Any] = {
    **dict.fromkeys(("declined", "failed", "expired", "canceled"), "failed"),
    "processing": "pending",
    "requires_action": "pending",
    "pending": "pending",
    "unknown": "unknown",
    "succeeded": "succeeded",
}


def _status_shown(op: Operation) -> str:
    """What has failed and is tried again has not failed for those outside."""
    return op.status if op.retry_ms is None else "pending"


def _operation_view(payment: Payment, op: Operation) -> OperationView:
    open_review = op.needs_review and op.is_open
    return OperationView(
        op_id(payment.id, op.n),
        op.type,
        op.amount,
        "needs_review" if open_review else _OPERATION_STATUS[_status_shown(op)],
        rfc3339(op.created_ms),
        rfc3339(op.next_check_ms) if op.next_check_ms is not None and op.is_open else None,
        op.code,
        op.refund_id,
    )


_NO_CARD = Card()


def _payment_method_view(payment: Payment) -> PaymentMethodView:
    card = payment.card or _NO_CARD
    return PaymentMethodView(
        payment.payment_method, "card", card.brand, card.last4, card.exp_month, card.exp_year
    )


def refund_status_of(payment: Payment) -> Literal["none", "partial", "full"]:
    """How much of what was captured has been given back."""
    if payment.refunded == 0:
        return "none"
    return "full" if payment.refunded >= payment.captured else "partial"


def payment_view(payment: Payment) -> PaymentView:
    """The payment as merchants see it."""
    expires_ms = payment.expires_ms
    next_check_ms = None
    for op in payment.operations:
        if op.next_check_ms is not None and op.is_open:
            next_check_ms = timers(payment).get("look_up")
            break
    return PaymentView(
        payment.id,
        "payment",
        rfc3339(payment.created_ms),
        payment.livemode,
        payment.status,
        payment.amount,
        payment.authorized,
        payment.capturable,
        payment.captured,
        payment.released,
        payment.refunded,
        payment.refundable,
        payment.disputed,
        payment.currency,
        refund_status_of(payment),
        payment.disputed > 0,
        payment.cancel_requested,
        payment.needs_review,
        _payment_method_view(payment),
        payment.customer,
        payment.subscription,
        payment.reference,
        payment.description,
        payment.statement_descriptor,
        payment.return_url,
        payment.gateway,
        payment.gateway_reference,
        payment.decline_code,
        payment.advice,
        payment.failure_code,
        rfc3339(expires_ms) if expires_ms is not None else None,
        rfc3339(next_check_ms) if next_check_ms is not None else None,
        payment.next_action,
        FeesView(payment.fee, payment.fee_tax),
        [_operation_view(payment, op) for op in payment.operations],
        payment.metadata,
    )


def payment_bytes(payment: Payment) -> bytes:
    """The payment's representation, encoded."""
    return _encode(payment_view(payment))


def refund_view(payment: Payment, op: Operation) -> RefundView:
    """A refund operation as merchants see it."""
    assert op.refund_id is not None, op
    return RefundView(
        op.refund_id,
        "refund",
        rfc3339(op.created_ms),
        payment.livemode,
        payment.id,
        op.amount,
        payment.currency,
        _REFUND_STATUS[_status_shown(op)],
        op.reason,
        op.code if op.status != "unknown" and op.retry_ms is None else None,
        op.reference,
        rfc3339(op.next_check_ms) if op.next_check_ms is not None and op.is_open else None,
        op.metadata,
    )


def refund_bytes(payment: Payment, op: Operation) -> bytes:
    """The refund's representation, encoded."""
    return _encode(refund_view(payment, op))


# --- answers ----------------------------------------------------------------------------------

_NEVER_THERE = frozenset(
    {"gateway_unreachable", "gateway_unavailable", "abandoned", "not_processed"}
)
"""Technical failures: the gateway never judged the request, so nothing speaks against another."""

_CHECK_AGAIN_S = 1


def answer_for(payment: Payment, op: Operation, body: bytes | None = None) -> Answer | None:
    """The answer to the request behind `op`; None while its outcome is still awaited.

    `body` is the payment's representation where it has been made already.
    """
    if (op.deferred and op.is_open) or op.retry_ms is not None:
        return _accepted(payment, op, body)
    if op.status == "processing":
        return None
    if op.type == "refund":
        return _refund_answer(payment, op, body)
    if op.status == "succeeded" or (
        op.n == 1 and op.status in ("requires_action", "pending", "canceled")
    ):
        return Answer(
            status=201 if op.n == 1 else 200,
            body=body or payment_bytes(payment),
            final=True,
            location=f"/v1/payments/{payment.id}" if op.n == 1 else None,
        )
    if op.is_open:
        return _accepted(payment, op, body)
    if op.status in ("declined", "expired") and op.type != "cancel":
        return _problem(
            payment,
            op,
            body,
            "payment_declined",
            f"The gateway declined the {op.type}: {op.code}.",
            {"decline_code": op.code, "advice": payment.advice},
        )
    return _gateway_failed(payment, op, body)


def _accepted(payment: Payment, op: Operation, body: bytes | None) -> Answer:
    """202: the outcome is not known. Asked again, the same key tells the state of then."""
    is_refund = op.type == "refund"
    return Answer(
        status=202,
        body=refund_bytes(payment, op) if is_refund else body or payment_bytes(payment),
        final=False,
        location=f"/v1/refunds/{op.refund_id}" if is_refund else f"/v1/payments/{payment.id}",
        retry_after_s=_CHECK_AGAIN_S,
    )


def _refund_answer(payment: Payment, op: Operation, body: bytes | None) -> Answer:
    if op.status == "unknown":
        return _accepted(payment, op, None)
    if op.status == "failed" and op.code in _NEVER_THERE:
        return _gateway_failed(payment, op, body)
    return Answer(
        status=201,
        body=refund_bytes(payment, op),
        final=True,
        location=f"/v1/refunds/{op.refund_id}",
    )


def _gateway_failed(payment: Payment, op: Operation, body: bytes | None) -> Answer:
    return _problem(
        payment,
        op,
        body,
        "gateway_failed",
        f"The gateway did not do the {op.type} ({op.code}). A new key may try again.",
        {"failure_code": op.code},
    )


def _problem(
    payment: Payment,
    op: Operation,
    body: bytes | None,
    code: str,
    detail: str,
    extra: dict[str, Any],
) -> Answer:
    extra["payment"] = msgspec.Raw(body or payment_bytes(payment))
    document = problem_bytes(
        code, detail=detail, instance=op.path, request_id=op.request_id, extra=extra
    )
    return Answer(PROBLEMS[code].status, document, True, code)


def refusal_answer(
    refusal: Refusal, *, request_id: str, path: str, payment: Payment | None = None
) -> Answer:
    """What a refusal looks like to the client. Final unless it says that it may be retried."""
    kind = PROBLEMS[refusal.code]
    extra = None if payment is None else {"payment": msgspec.Raw(payment_bytes(payment))}
    return Answer(
        kind.status,
        problem_bytes(
            refusal.code,
            detail=refusal.detail,
            instance=path,
            request_id=request_id,
            param=refusal.param,
            extra=extra,
        ),
        kind.status in (409, 422) and not kind.retryable,
        refusal.code,
        retry_after_s=refusal.retry_after_s,
    )


# --- events -----------------------------------------------------------------------------------

_CHANGING = (
    "status",
    "amount_authorized",
    "amount_capturable",
    "amount_captured",
    "amount_released",
    "amount_refunded",
    "amount_refundable",
    "amount_disputed",
    "cancel_requested",
    "needs_review",
)


def _changing(payment: Payment) -> tuple[Any, ...]:
    return (
        payment.status,
        payment.authorized,
        payment.capturable,
        payment.captured,
        payment.released,
        payment.refunded,
        payment.refundable,
        payment.disputed,
        payment.cancel_requested,
        payment.needs_review,
    )


def previous_attributes(before: Payment | None, after: Payment) -> dict[str, Any]:
    """The former values of the payment's attributes that changed."""
    if before is None:
        return {}
    former, present = _changing(before), _changing(after)
    if former == present:
        return {}
    return {
        name: was for name, was, now in zip(_CHANGING, former, present, strict=True) if was != now
    }


def event_bytes(
    *,
    event_id: str,
    type: str,  # noqa: A002 - the field's own name
    at_ms: int,
    livemode: bool,
    sequence: int,
    body: bytes,
    previous: dict[str, Any],
) -> bytes:
    """An event in its bytes; `body` is the object's representation, kept as it is."""
    return _encode(
        EventBody(
            event_id,
            "event",
            type,
            rfc3339(at_ms),
            livemode,
            sequence,
            EventData(msgspec.Raw(body), previous),
        )
    )
