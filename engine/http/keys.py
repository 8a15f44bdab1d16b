"""API keys: whose request it is, and what it may do."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Final

import msgspec

MERCHANT: Final = "merchant"
OPERATOR: Final = "operator"

_SCHEME: Final = "bearer "
_KEY_LENGTH_MAX: Final = 255


class ApiKey(msgspec.Struct, frozen=True):
    """What a key stands for: one merchant, one mode, and its scopes."""

    merchant_id: str
    livemode: bool
    scopes: frozenset[str]


def key_digest(key: str) -> bytes:
    """The form in which a key is known here: its SHA-256, never the key itself."""
    return sha256(key.encode()).digest()


def find_key(keys: Mapping[bytes, ApiKey], authorization: str | None) -> ApiKey | None:
    """The key of an `Authorization: Bearer` header (RFC 6750, 2.1), or None.

    Looking up the digest takes no longer for a key that is nearly right, so the time it takes
    tells nothing about the keys there are.
    """
    if authorization is None or authorization[:7].lower() != _SCHEME:
        return None
    key = authorization[7:].strip(" ")
    if len(key) > _KEY_LENGTH_MAX or not key.isascii():
        return None
    return keys.get(sha256(key.encode()).digest())
