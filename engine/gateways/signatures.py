"""Webhook signatures after Standard Webhooks, made and checked on raw bytes.

The signature is HMAC-SHA256 over `<id>.<timestamp>.<body>` with the bytes behind `whsec_`,
base64-decoded, as the key. The header may list several signatures, and a receiver may hold
several secrets, so that a secret can be changed without losing a message.
Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping, Sequence
from typing import Final

from engine.ports import WebhookRefused

TOLERANCE_S: Final = 300
"""How far a time stamp may lie from now, either way, in seconds."""

HEADERS: Final = ("webhook-id", "webhook-timestamp", "webhook-signature")

_PREFIX: Final = "whsec_"
# A rotation needs two; a sender of hundreds only wants to keep us computing.
_SIGNATURES_MAX: Final = 16
# Enough for the year 33,658; longer digits would only feed int().
_TIMESTAMP_DIGITS_MAX: Final = 12


def secret_key(secret: str) -> bytes:
    """The key bytes of a `whsec_…` secret. Raises ValueError where it is not one."""
    if not secret.startswith(_PREFIX):
        raise ValueError("a webhook secret begins with whsec_")
    try:
        key = base64.b64decode(secret[len(_PREFIX) :], validate=True)
    except binascii.Error:
        raise ValueError("a webhook secret is base64 behind whsec_") from None
    if not key:
        raise ValueError("a webhook secret is not empty")
    return key


def sign(key: bytes, message_id: str, timestamp_s: int, body: bytes) -> str:
    """One signature, as it stands in the header: `v1,` and base64."""
    return "v1," + _digest(key, message_id.encode(), str(timestamp_s).encode(), body).decode()


def signed_headers(
    keys: Sequence[bytes], message_id: str, timestamp_s: int, body: bytes
) -> dict[str, str]:
    """The three headers of a message, with a signature for each key."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(sign(key, message_id, timestamp_s, body) for key in keys),
    }


def verify(
    keys: Sequence[bytes], headers: Mapping[str, str], raw: bytes, now_ms: int
) -> str | WebhookRefused:
    """The id of a message that was signed with one of the keys and is not stale.

    Header names are taken in any case. The signature is judged before the time stamp, so that
    only somebody who holds the secret ever hears "stale".
    """
    names = {name.lower(): value for name, value in headers.items()}
    message_id = names.get("webhook-id")
    timestamp = names.get("webhook-timestamp")
    signatures = names.get("webhook-signature")
    if not message_id or not timestamp or not signatures:
        missing = next(name for name in HEADERS if not names.get(name))
        return WebhookRefused("webhook_signature_invalid", f"the header {missing} is missing")

    # A header may hold bytes that are not UTF-8; they must be refused, not crash.
    id_bytes = message_id.encode("utf-8", "surrogateescape")
    timestamp_bytes = timestamp.encode("utf-8", "surrogateescape")
    offered = signatures.encode("utf-8", "surrogateescape").split(b" ")[:_SIGNATURES_MAX]
    genuine = False
    for key in keys:
        expected = b"v1," + _digest(key, id_bytes, timestamp_bytes, raw)
        for candidate in offered:
            genuine |= hmac.compare_digest(expected, candidate)
    if not genuine:
        return WebhookRefused("webhook_signature_invalid", "no signature matches")

    if not timestamp_bytes.isdigit() or len(timestamp_bytes) > _TIMESTAMP_DIGITS_MAX:
        return WebhookRefused("webhook_malformed", "the time stamp is not in Unix seconds")
    if abs(now_ms - int(timestamp_bytes) * 1_000) > TOLERANCE_S * 1_000:
        return WebhookRefused(
            "webhook_timestamp_stale", f"the time stamp is more than {TOLERANCE_S} s from now"
        )
    return message_id


def _digest(key: bytes, message_id: bytes, timestamp: bytes, body: bytes) -> bytes:
    return base64.b64encode(hmac.digest(key, b"%b.%b.%b" % (message_id, timestamp, body), "sha256"))
