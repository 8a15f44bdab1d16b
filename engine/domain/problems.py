"""Every code an error answer can carry, and the document it is written as (RFC 9457).

The table is closed: a code that is not in `PROBLEMS` cannot be answered. It lives below the HTTP
layer because a final answer is built, and stored, in the commit that decides it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from engine.domain.cards import redact


class Kind(msgspec.Struct, frozen=True, gc=False):
    """What a code means over HTTP.

    `retryable` says that the same request, with the same idempotency key, may be sent again and
    can then end otherwise. A retryable answer is never stored, so a stored one is never retryable.
    """

    status: int
    title: str
    retryable: bool = False


CONTENT_TYPE: Final = "application/problem+json"

PROBLEMS: Final[Mapping[str, Kind]] = {
    # 400: the shape of the request.
    "malformed_http": Kind(400, "The request is not valid HTTP"),
    "malformed_json": Kind(400, "The body is not valid JSON"),
    "bad_utf8": Kind(400, "The text is not valid UTF-8"),
    "nul_not_allowed": Kind(400, "A NUL character is not allowed"),
    "depth_exceeded": Kind(400, "The body is nested too deeply"),
    "duplicate_key": Kind(400, "A name occurs twice in one object"),
    "duplicate_parameter": Kind(400, "A query parameter occurs twice"),
    "unknown_field": Kind(400, "The field is not known"),
    "unknown_parameter": Kind(400, "The query parameter is not known"),
    "wrong_type": Kind(400, "The value has the wrong type"),
    "field_missing": Kind(400, "A required field is missing"),
    "idempotency_key_missing": Kind(400, "The Idempotency-Key header is missing"),
    "idempotency_key_invalid": Kind(400, "The Idempotency-Key header is not valid"),
    "webhook_malformed": Kind(400, "The webhook cannot be read"),
    "webhook_timestamp_stale": Kind(400, "The webhook's timestamp is outside the tolerance"),
    # 401 and 403: who is asking.
    "invalid_api_key": Kind(401, "The API key is missing or not valid"),
    "webhook_signature_invalid": Kind(401, "The webhook's signature does not match"),
    "permission_denied": Kind(403, "The API key lacks the scope for this"),
    # 402: the gateway said no.
    "payment_declined": Kind(402, "The payment was declined"),
    # 404 and 405: not there, or another merchant's.
    "route_not_found": Kind(404, "There is nothing at this path"),
    "gateway_not_found": Kind(404, "There is no such gateway"),
    "payment_not_found": Kind(404, "There is no such payment"),
    "refund_not_found": Kind(404, "There is no such refund"),
    "account_not_found": Kind(404, "There is no such account"),
    "transfer_not_found": Kind(404, "There is no such transfer"),
    "event_not_found": Kind(404, "There is no such event"),
    "webhook_endpoint_not_found": Kind(404, "There is no such webhook endpoint"),
    "dead_letter_not_found": Kind(404, "There is no such dead letter"),
    "customer_not_found": Kind(404, "There is no such customer"),
    "plan_not_found": Kind(404, "There is no such plan"),
    "subscription_not_found": Kind(404, "There is no such subscription"),
    "invoice_not_found": Kind(404, "There is no such invoice"),
    "coupon_not_found": Kind(404, "There is no such coupon"),
    "test_clock_not_found": Kind(404, "There is no such test clock"),
    "method_not_allowed": Kind(405, "The method is not allowed here"),
    # 408: the client took too long to send its request (RFC 9110, 15.5.9).
    "request_timeout": Kind(408, "The request did not arrive in time", retryable=True),
    # 409: the state does not allow it, or does not allow it yet.
    "invalid_state_transition": Kind(409, "The state does not allow this"),
    "operation_unresolved": Kind(409, "An earlier operation is unresolved", retryable=True),
    "idempotency_in_progress": Kind(409, "The same request is still running", retryable=True),
    # 413, 414, 415 and 431: limits of the connection, checked before anything else.
    "body_too_large": Kind(413, "The body is too large"),
    "uri_too_long": Kind(414, "The request target is too long"),
    "unsupported_media_type": Kind(415, "The content type is not supported"),
    "content_encoding_not_supported": Kind(415, "The content encoding is not supported"),
    "headers_too_large": Kind(431, "The headers are too large"),
    # 422: the value is not allowed.
    "amount_invalid": Kind(422, "The amount is not allowed"),
    "amount_too_large": Kind(422, "The amount is too large"),
    "amount_exceeds_capturable": Kind(422, "The amount exceeds what can be captured"),
    "amount_exceeds_refundable": Kind(422, "The amount exceeds what can be refunded"),
    "currency_unsupported": Kind(422, "The currency is not supported"),
    "currency_mismatch": Kind(422, "The currency is not the payment's"),
    "gateway_unknown": Kind(422, "The gateway is not known"),
    "multiple_capture_unsupported": Kind(422, "The gateway captures only once"),
    "payment_method_unknown": Kind(422, "The payment method is not known"),
    "pan_not_allowed": Kind(422, "A card number is not allowed here"),
    "secret_not_allowed": Kind(422, "An API key or a webhook's secret is not allowed here"),
    "reference_taken": Kind(422, "Another payment has this reference"),
    "idempotency_key_reused": Kind(422, "The key belongs to another request"),
    "parameter_invalid": Kind(422, "The value is not allowed"),
    # 429: too many, for this key.
    "rate_limited": Kind(429, "Too many requests", retryable=True),
    # 500: a fault of ours. The key makes sending it again safe.
    "internal_error": Kind(500, "Something went wrong here", retryable=True),
    # 502: the gateway did not do it. Final for this key, so the same key cannot end otherwise.
    "gateway_failed": Kind(502, "The gateway failed"),
    # 503: nothing was done, and the same key may try again.
    "overloaded": Kind(503, "Too much work at the moment", retryable=True),
    "starting": Kind(503, "Starting or stopping", retryable=True),
    "gateway_unavailable": Kind(503, "The gateway is unavailable", retryable=True),
    "ledger_unavailable": Kind(503, "The ledger is unavailable", retryable=True),
    "shard_parked": Kind(503, "This part is out of service for a moment", retryable=True),
}

_MEMBERS: Final = frozenset(
    (
        "type",
        "title",
        "status",
        "detail",
        "instance",
        "code",
        "param",
        "request_id",
        "retryable",
    )
)

_encode: Final = msgspec.json.Encoder().encode


def problem_bytes(
    code: str,
    *,
    detail: str,
    instance: str,
    request_id: str,
    param: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> bytes:
    """Write the problem document of one refusal (RFC 9457, 3).

    `detail` is for a person and names what to change; `instance` is the request's path; `param`
    is the path of the field at fault, such as `metadata.order_id`. `extra` adds members such as
    `payment` (give it as `msgspec.Raw` to keep its bytes), `decline_code` and `advice`.
    Raises KeyError for a code outside the table, and ValueError for an extra member that would
    say a second time what the document already says.
    """
    kind = PROBLEMS[code]
    document: dict[str, Any] = {
        "type": f"/problems/{code}",
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "instance": redact(instance),
        "code": code,
        "request_id": request_id,
        "retryable": kind.retryable,
    }
    if param is not None:
        document["param"] = param
    if extra:
        if not _MEMBERS.isdisjoint(extra):
            raise ValueError(f"members given twice: {sorted(_MEMBERS.intersection(extra))}")
        document.update(extra)
    return _encode(document)
