"""Commands of bodies: what a well-formed body asks for, or why its values are refused.

A single request and an item of a batch go through here alike, so that they are judged alike.
"""

from __future__ import annotations

from engine.domain.commands import Cancel, Capture, Open, Refund
from engine.domain.ids import is_id
from engine.domain.refusals import Refusal
from engine.http.calls import Parts
from engine.http.keys import ApiKey
from engine.http.requests import CancelPayment, CapturePayment, OpenPayment, RefundPayment
from engine.http.values import currency_of, gateway_refusal, options_refusal, private_in

PAYMENT = "pay_"


def payment_not_found() -> Refusal:
    """The same words whether it is not there, another merchant's, or no id at all."""
    return Refusal("payment_not_found", "No such payment was found for this key.")


def open_command(
    parts: Parts, key: ApiKey, body: OpenPayment, *, purchase: bool, suspect: bool
) -> Open | Refusal:
    """Authorize or purchase. `suspect` says that the text may hold a card number or a secret."""
    if suspect and (refusal := private_in(body)) is not None:
        return refusal
    currency = currency_of(body.currency)
    if isinstance(currency, Refusal):
        return currency
    gateway = body.gateway or parts.default_gateway
    refusal = gateway_refusal(parts.gateways, gateway, body.payment_method)
    if refusal is None:
        refusal = options_refusal(body)
    if refusal is not None:
        return refusal
    return Open(
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


def change_command(
    parts: Parts,
    key: ApiKey,
    body: CapturePayment | CancelPayment | RefundPayment,
    payment_id: str,
    *,
    suspect: bool,
) -> Capture | Cancel | Refund | Refusal:
    """Capture, cancel or refund a payment. `suspect` as for `open_command`."""
    if not is_id(PAYMENT, payment_id):
        return payment_not_found()
    if isinstance(body, CapturePayment):
        return Capture(key.merchant_id, key.livemode, body.amount, body.final)
    if suspect and (refusal := private_in(body)) is not None:
        return refusal
    if isinstance(body, CancelPayment):
        return Cancel(key.merchant_id, key.livemode, body.reason)
    return Refund(
        key.merchant_id,
        key.livemode,
        parts.ids.new("re", payment_id),
        body.amount,
        body.reason,
        body.metadata,
    )
