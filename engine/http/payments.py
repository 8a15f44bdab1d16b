"""Payments: what moves money. Each handler makes a command of the request and asks the actors."""

from __future__ import annotations

from engine.domain.commands import Cancel, Capture, Command, Open, Refund
from engine.domain.ids import is_id
from engine.domain.refusals import Refusal
from engine.http.calls import Call, Parts
from engine.http.exchange import Response
from engine.http.idempotency import fingerprint
from engine.http.requests import CancelPayment, CapturePayment, OpenPayment, RefundPayment
from engine.http.values import currency_of, gateway_refusal, options_refusal, private_refusal
from engine.ports import Ask

PAYMENT = "pay_"


def payment_not_found() -> Refusal:
    """The same words whether it is not there, another merchant's, or no id at all."""
    return Refusal("payment_not_found", "No such payment was found for this key.")


async def authorize(parts: Parts, call: Call) -> Response:
    """Reserve an amount."""
    return await _open(parts, call, purchase=False)


async def purchase(parts: Parts, call: Call) -> Response:
    """Reserve an amount and capture it in one step."""
    return await _open(parts, call, purchase=True)


async def _open(parts: Parts, call: Call, *, purchase: bool) -> Response:
    body: OpenPayment = call.body
    refusal = private_refusal(call.request.body, body)
    if refusal is not None:
        return call.refused(refusal)
    currency = currency_of(body.currency)
    if isinstance(currency, Refusal):
        return call.refused(currency)
    gateway = body.gateway or parts.default_gateway
    refusal = gateway_refusal(parts.gateways, gateway, body.payment_method)
    if refusal is None:
        refusal = options_refusal(body)
    if refusal is not None:
        return call.refused(refusal)
    key = call.key
    command = Open(
        key.merchant_id,
        key.livemode,
        purchase,
        body.amount,
        currency,
        body.payment_method,
        gateway,
        body.customer,
        body.subscription,
        body.reference,
        body.description,
        body.statement_descriptor,
        body.return_url,
        body.metadata,
    )
    return await _ask(parts, call, command, None)


async def capture(parts: Parts, call: Call) -> Response:
    """Take what was reserved, or a part of it."""
    if not is_id(PAYMENT, call.segment):
        return call.refused(payment_not_found())
    body: CapturePayment = call.body
    key = call.key
    command = Capture(key.merchant_id, key.livemode, body.amount, body.final)
    return await _ask(parts, call, command, call.segment)


async def cancel(parts: Parts, call: Call) -> Response:
    """Release what was reserved and is not captured."""
    if not is_id(PAYMENT, call.segment):
        return call.refused(payment_not_found())
    body: CancelPayment = call.body
    refusal = private_refusal(call.request.body, body)
    if refusal is not None:
        return call.refused(refusal)
    key = call.key
    command = Cancel(key.merchant_id, key.livemode, body.reason)
    return await _ask(parts, call, command, call.segment)


async def refund(parts: Parts, call: Call) -> Response:
    """Give back what was captured, or a part of it."""
    if not is_id(PAYMENT, call.segment):
        return call.refused(payment_not_found())
    body: RefundPayment = call.body
    refusal = private_refusal(call.request.body, body)
    if refusal is not None:
        return call.refused(refusal)
    key = call.key
    command = Refund(
        key.merchant_id,
        key.livemode,
        parts.ids.new("re", call.segment),
        body.amount,
        body.reason,
        body.metadata,
    )
    return await _ask(parts, call, command, call.segment)


async def _ask(parts: Parts, call: Call, command: Command, payment_id: str | None) -> Response:
    request = call.request
    if payment_id is not None:
        call.payment_id = payment_id
    answer, replayed = await parts.front.ask(
        Ask(
            request.request_id,
            command,
            payment_id,
            call.idempotency_key,
            fingerprint(request.method, request.path, call.body),
            request.path,
        )
    )
    return call.answered(answer, replayed=replayed)
