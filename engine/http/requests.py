"""The bodies of requests. The OpenAPI document is made from these, and so is what is refused.

Bounds that msgspec checks while decoding stand here; what needs more than one look (a currency, a
payment method, a URL) is in `values`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from engine.domain.money import AMOUNT_MAX_MINOR, AMOUNT_MIN_MINOR

METADATA_KEYS_MAX: Final = 50
METADATA_KEY_MAX: Final = 40
METADATA_VALUE_MAX: Final = 500
TEXT_MAX: Final = 500
REFERENCE_MAX: Final = 255
DESCRIPTOR_MAX: Final = 22
URL_MAX: Final = 2048

Amount = Annotated[
    int,
    Meta(
        ge=AMOUNT_MIN_MINOR,
        le=AMOUNT_MAX_MINOR,
        description="In the currency's minor unit: 1099 is 10.99 USD, 1099 JPY or 1.099 KWD.",
        examples=[1099],
    ),
]
Currency = Annotated[
    str,
    Meta(
        description="ISO 4217 code, in either case.",
        examples=["USD"],
        extra_json_schema={"minLength": 3, "maxLength": 3},
    ),
]
PaymentMethod = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=255,
        description="A payment method of the gateway. Never a card number.",
        examples=["pm_card_visa"],
    ),
]
Text = Annotated[str, Meta(max_length=TEXT_MAX)]
Metadata = Annotated[
    dict[
        Annotated[str, Meta(min_length=1, max_length=METADATA_KEY_MAX)],
        Annotated[str, Meta(max_length=METADATA_VALUE_MAX)],
    ],
    Meta(max_length=METADATA_KEYS_MAX, description="The merchant's own notes."),
]


class OpenPayment(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What an authorize or purchase asks for."""

    amount: Amount
    currency: Currency
    payment_method: PaymentMethod
    customer: Annotated[str, Meta(description="A customer's id, `cus_…`.")] | None = None
    subscription: Annotated[str, Meta(description="A subscription's id, `sub_…`.")] | None = None
    reference: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=REFERENCE_MAX,
                description=(
                    "The merchant's own reference. One payment of a merchant holds it; a payment "
                    "that was declined, failed, or expired or was canceled before it came about "
                    "gives it up for the next attempt, and is still found by it."
                ),
                examples=["order-1001"],
            ),
        ]
        | None
    ) = None
    gateway: Annotated[str, Meta(min_length=1, max_length=64, examples=["simulator"])] | None = None
    description: Text | None = None
    statement_descriptor: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=DESCRIPTOR_MAX,
                description="Printable ASCII without `< > \\ ' \" *`.",
            ),
        ]
        | None
    ) = None
    metadata: Metadata = {}
    return_url: (
        Annotated[
            str,
            Meta(
                max_length=URL_MAX,
                description="Where the customer comes back to; http or https.",
                examples=["https://shop.example/return"],
            ),
        ]
        | None
    ) = None


class CapturePayment(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """How much to capture, and whether the rest is released."""

    amount: Annotated[Amount, Meta(description="Default: all that is capturable.")] | None = None
    final: Annotated[
        bool,
        Meta(description="False keeps the rest, where the gateway can capture several times."),
    ] = True


class CancelPayment(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Why the payment is canceled."""

    reason: Text | None = None


class RefundPayment(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """How much to give back, and why."""

    amount: Annotated[Amount, Meta(description="Default: all that is refundable.")] | None = None
    reason: Text | None = None
    metadata: Metadata = {}


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No fields: the path says it all."""


# --- batches ----------------------------------------------------------------------------------

BATCH_ITEMS_MAX: Final = 1_000

ItemKey = Annotated[
    str,
    Meta(
        description="What the `Idempotency-Key` header is to a single request: either way it is"
        " the same key.",
        examples=["order-1001"],
    ),
]
PaymentId = Annotated[str, Meta(description="The payment's id, `pay_…`.")]


class AuthorizeItem(OpenPayment, frozen=True, kw_only=True, tag="authorize", tag_field="operation"):
    """As `POST /v1/payments/authorize`."""

    idempotency_key: ItemKey


class PurchaseItem(OpenPayment, frozen=True, kw_only=True, tag="purchase", tag_field="operation"):
    """As `POST /v1/payments/purchase`."""

    idempotency_key: ItemKey


class CaptureItem(CapturePayment, frozen=True, kw_only=True, tag="capture", tag_field="operation"):
    """As `POST /v1/payments/{id}/capture`."""

    idempotency_key: ItemKey
    payment: PaymentId


class CancelItem(CancelPayment, frozen=True, kw_only=True, tag="cancel", tag_field="operation"):
    """As `POST /v1/payments/{id}/cancel`."""

    idempotency_key: ItemKey
    payment: PaymentId


class RefundItem(RefundPayment, frozen=True, kw_only=True, tag="refund", tag_field="operation"):
    """As `POST /v1/payments/{id}/refund`."""

    idempotency_key: ItemKey
    payment: PaymentId


BatchItem = AuthorizeItem | PurchaseItem | CaptureItem | CancelItem | RefundItem

_Bounds = Meta(min_length=1, max_length=BATCH_ITEMS_MAX)


class PaymentBatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Operations that are sent together and succeed or fail each by itself.

    Items of one payment run in the order given, each after the answer of the one before.
    """

    items: Annotated[list[BatchItem], _Bounds]


class RawBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A batch whose items are still text, to be judged one by one."""

    items: Annotated[list[msgspec.Raw], _Bounds]


class AnyItem(msgspec.Struct, frozen=True):
    """What can be told of an item that is not well-formed: its key, if that much is."""

    idempotency_key: Any = None
