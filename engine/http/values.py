"""Values that are well-formed and still not allowed (422)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

import msgspec

from engine.domain.cards import find_private
from engine.domain.ids import is_id
from engine.domain.money import normalise_currency
from engine.domain.refusals import Refusal
from engine.http.requests import OpenPayment

Gateways = Mapping[str, Callable[[str], bool]]
"""By gateway name: whether it knows a payment method."""

# Card networks refuse these on a statement.
_DESCRIPTOR_FORBIDDEN: Final = frozenset("<>\\'\"*")
_NOT_IN_URL: Final = re.compile(r"[\x00-\x20\x7f-\x9f\\]")


def may_be_private(raw: bytes) -> bool:
    """Whether a string in a JSON text can be a card number or a secret: one look at all of it."""
    # Without a backslash every string stands in the text as it is.
    return b"\\" in raw or find_private(raw) is not None


def private_in(body: msgspec.Struct) -> Refusal | None:
    """Refuse a body with a card number or a secret in any of its strings, without repeating it."""
    for name in body.__struct_fields__:
        value = getattr(body, name)
        if isinstance(value, str):
            if (private := find_private(value)) is not None:
                return _private(private, name)
        elif isinstance(value, dict):
            for key, item in value.items():
                if (private := find_private(key)) is not None:
                    return _private(private, name)
                if (private := find_private(item)) is not None:
                    return _private(private, f"{name}.{key}")
    return None


def _private(private: str, param: str) -> Refusal:
    if private == "secret":
        return Refusal(
            "secret_not_allowed",
            f"`{param}` contains an API key or a webhook's secret. Replace it where it is in use.",
            param,
        )
    return Refusal(
        "pan_not_allowed",
        f"`{param}` contains a card number. Send a payment method of the gateway instead.",
        param,
    )


def gateway_refusal(gateways: Gateways, gateway: str, payment_method: str) -> Refusal | None:
    """Refuse a gateway that is not there, or a payment method that it does not know."""
    knows = gateways.get(gateway)
    if knows is None:
        return Refusal(
            "gateway_unknown",
            f"`gateway` must be one of: {', '.join(sorted(gateways))}.",
            "gateway",
        )
    if not knows(payment_method):
        return Refusal(
            "payment_method_unknown",
            f"The gateway {gateway} does not know this payment method. README.md lists those "
            "to try things out with.",
            "payment_method",
        )
    return None


def currency_of(text: str) -> str | Refusal:
    """The canonical, upper-case code of a currency, or a refusal."""
    code = normalise_currency(text)
    if code is None:
        return Refusal(
            "currency_unsupported", "`currency` must be an ISO 4217 code such as USD.", "currency"
        )
    return code


def options_refusal(body: OpenPayment) -> Refusal | None:
    """Refuse optional fields of an authorize or purchase that have no sensible meaning."""
    if body.customer is not None and not is_id("cus_", body.customer):
        return _invalid("customer", "must be a customer's id, `cus_…`")
    if body.subscription is not None and not is_id("sub_", body.subscription):
        return _invalid("subscription", "must be a subscription's id, `sub_…`")
    if body.statement_descriptor is not None and not _is_descriptor(body.statement_descriptor):
        return _invalid("statement_descriptor", "must be printable ASCII without < > \\ ' \" *")
    if body.return_url is not None and not is_http_url(body.return_url):
        return _invalid("return_url", "must be an absolute http or https URL")
    return None


def _invalid(param: str, rule: str) -> Refusal:
    return Refusal("parameter_invalid", f"`{param}` {rule}.", param)


def _is_descriptor(text: str) -> bool:
    return (
        text.isascii()
        and text.isprintable()
        and not text.isspace()
        and _DESCRIPTOR_FORBIDDEN.isdisjoint(text)
    )


def is_http_url(text: str) -> bool:
    """Whether this is an absolute http or https URL with a host and without credentials."""
    if _NOT_IN_URL.search(text) is not None:
        return False
    try:
        parts = urlsplit(text)
        port_is_valid = parts.port != 0
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and "@" not in parts.netloc
        and port_is_valid
    )
