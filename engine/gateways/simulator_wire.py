"""What goes over the wire between the engine and a simulator in a process of its own. Pure.

The requests and replies are those of an ordinary payment provider: an `Idempotency-Key` header,
200 for what went well or waits, 402 for a decline, 404 and 422 for the rest, and a body that
repeats what it is about, so that a reply to another question can be told.
"""

from __future__ import annotations

from html import escape
from typing import Final
from urllib.parse import quote, urlencode

import msgspec

from engine.domain.news import (
    Action,
    ActionRequired,
    Approved,
    Declined,
    Expired,
    Failed,
    GatewayCall,
    NotFound,
    OperationNews,
    StillPending,
    Unknown,
)
from engine.gateways.http_client import Lost, NotSent, Request, Response

Result = Approved | Declined | ActionRequired | StillPending | Expired | Failed | NotFound
"""Everything the simulator says outright. `Unknown` is only ever concluded by the listener."""

STATUS_OF: Final[dict[type, int]] = {
    Approved: 200,
    ActionRequired: 200,
    StillPending: 200,
    Expired: 200,
    Declined: 402,
    NotFound: 404,
    Failed: 422,
}

# Where nobody listens (tcpmux, RFC 1078): a server can't refuse a connection by what will be
# asked over it, so for the method that rehearses this the adapter itself dials into the void.
_REFUSING_URL: Final = "http://127.0.0.1:1"
_UNREACHABLE_METHOD: Final = "pm_card_unreachable"


class OperationRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The body of `POST /v1/operations`; the key is in the header."""

    op_id: str
    action: Action
    amount: int
    currency: str
    payment_method: str
    livemode: bool
    final: bool = True
    target: str | None = None
    target_key: str | None = None
    reference: str | None = None


class OperationReply(msgspec.Struct, frozen=True):
    """The body of every answer about an operation."""

    key: str
    action: Action
    livemode: bool
    result: Result


class OutageRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/outage`."""

    on: bool


_encoder = msgspec.json.Encoder()
_request_decoder = msgspec.json.Decoder(OperationRequest)
_reply_decoder = msgspec.json.Decoder(OperationReply)


def build(base_url: str, call: GatewayCall) -> Request:
    """The request that carries a call out, or asks what became of it."""
    if call.look_up:
        query = urlencode({"action": call.action, "livemode": str(call.livemode).lower()})
        return Request("GET", f"{base_url}/v1/operations/{quote(call.key, safe='')}?{query}")
    if call.payment_method == _UNREACHABLE_METHOD and call.action in ("authorize", "purchase"):
        base_url = _REFUSING_URL
    headers = {"content-type": "application/json", "idempotency-key": call.key}
    if call.request_id:
        headers["request-id"] = call.request_id
    body = OperationRequest(
        call.op_id,
        call.action,
        call.amount,
        call.currency,
        call.payment_method,
        call.livemode,
        call.final,
        call.target,
        call.target_key,
        call.reference,
    )
    return Request("POST", f"{base_url}/v1/operations", headers, _encoder.encode(body))


def parse(call: GatewayCall, response: Response | NotSent | Lost) -> OperationNews:
    """What a response says about the call. What is not explicit and consistent is `Unknown`."""
    if isinstance(response, NotSent):
        if call.look_up:
            # That the question never left says nothing about the operation.
            return Unknown("gateway_unreachable")
        return Failed("gateway_unreachable", sent=False)
    if isinstance(response, Lost):
        return Unknown(f"reply_lost: {response.reason}")
    if response.status >= 500:
        return Unknown(f"http_{response.status}")
    try:
        reply = _reply_decoder.decode(response.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Unknown("unreadable_reply")
    if (
        STATUS_OF[type(reply.result)] != response.status
        or reply.key != call.key
        or reply.action != call.action
        or reply.livemode is not call.livemode
    ):
        return Unknown("inconsistent_reply")
    result = reply.result
    if isinstance(result, NotFound) and not call.look_up:
        return Unknown("inconsistent_reply")
    if isinstance(result, Approved):
        return _approved(call, result)
    return result


def _approved(call: GatewayCall, result: Approved) -> OperationNews:
    """An approval has to be of what was asked; a void releases whatever is left."""
    if result.currency != call.currency:
        return Unknown("wrong_currency")
    if call.look_up or call.action == "void" or result.amount == call.amount:
        return result
    return Unknown("wrong_amount")


def read_request(key: str, raw: bytes) -> GatewayCall | str:
    """The call a request's key and body stand for, or what is wrong with them."""
    try:
        body = _request_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return str(error)
    if not 1 <= len(key) <= 255:
        return "Idempotency-Key must have 1 to 255 characters"
    if body.amount < 1:
        return "amount must be at least 1"
    return GatewayCall(
        gateway="simulator",
        op_id=body.op_id,
        key=key,
        action=body.action,
        amount=body.amount,
        currency=body.currency,
        payment_method=body.payment_method,
        livemode=body.livemode,
        final=body.final,
        target=body.target,
        target_key=body.target_key,
        reference=body.reference,
    )


def write_reply(call: GatewayCall, result: Result) -> tuple[int, bytes]:
    """Status and body of an answer."""
    body = OperationReply(call.key, call.action, call.livemode, result)
    return STATUS_OF[type(result)], _encoder.encode(body)


def completion_page(reference: str) -> str:
    """The page a customer sees at an open request's `next_action` URL: two buttons.

    They post to the page's own address, with `?outcome=approved` or `?outcome=declined`.
    """
    buttons = "".join(
        f'<form method="post" action="?outcome={outcome}"><button>{label}</button></form>'
        for outcome, label in (("approved", "Approve"), ("declined", "Decline"))
    )
    return _page(f"<p>Request {escape(reference)}</p>{buttons}")


def _page(body: str) -> str:
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Simulated 3-D Secure</title>'
        f"<h1>Simulated 3-D Secure</h1>{body}</html>"
    )


DONE_PAGE: Final = _page(
    "<p>Thank you. The issuer has your answer and the payment goes on. You can close this page.</p>"
)
"""What a customer sees who has pressed one of the buttons."""
