"""What a merchant may ask of a payment, as values. Shapes were checked at the edge."""

from __future__ import annotations

import msgspec


class Open(msgspec.Struct, frozen=True, tag="open", omit_defaults=True, gc=False):
    """Authorize, or (`purchase`) authorize and capture in one."""

    merchant_id: str
    livemode: bool
    purchase: bool
    amount: int
    currency: str
    payment_method: str
    gateway: str
    customer: str | None = None
    subscription: str | None = None
    reference: str | None = None
    description: str | None = None
    statement_descriptor: str | None = None
    return_url: str | None = None
    metadata: dict[str, str] = {}


class Capture(msgspec.Struct, frozen=True, tag="capture", omit_defaults=True, gc=False):
    """Capture `amount` (None: all that is capturable); `final` releases the rest."""

    merchant_id: str
    livemode: bool
    amount: int | None = None
    final: bool = True


class Cancel(msgspec.Struct, frozen=True, tag="cancel", omit_defaults=True, gc=False):
    """Release what is not captured."""

    merchant_id: str
    livemode: bool
    reason: str | None = None


class Refund(msgspec.Struct, frozen=True, tag="refund", omit_defaults=True, gc=False):
    """Give `amount` back (None: all that is refundable). `refund_id` is the new refund's id."""

    merchant_id: str
    livemode: bool
    refund_id: str
    amount: int | None = None
    reason: str | None = None
    metadata: dict[str, str] = {}


Command = Open | Capture | Cancel | Refund
