"""The `Idempotency-Key` header, and what makes two requests the same request.

The header follows the IETF draft (draft-ietf-httpapi-idempotency-key-header): a structured-field
string in quotes. The bare form that most clients send means the same key.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Any, Final

import msgspec

from engine.domain.cards import find_private
from engine.domain.refusals import Refusal

HEADER: Final = "Idempotency-Key"

KEY_LENGTH_MAX: Final = 255

# Visible ASCII; a bare key does not begin with a quote.
_BARE: Final = re.compile(rf"[!#-~][!-~]{{0,{KEY_LENGTH_MAX - 1}}}")
_QUOTED: Final = re.compile(rf'"((?:[!#-\[\]-~]|\\["\\]){{1,{KEY_LENGTH_MAX}}})"')
_ESCAPE: Final = re.compile(r'\\(["\\])')

_FINGERPRINT_BYTES: Final = 16

# Mappings are sorted, because the order of names in JSON means nothing.
_encode: Final = msgspec.json.Encoder(order="deterministic").encode

_INVALID: Final = Refusal(
    "idempotency_key_invalid",
    f"The Idempotency-Key must be 1 to {KEY_LENGTH_MAX} visible ASCII characters,"
    " in double quotes or bare.",
    HEADER,
)
_PAN: Final = Refusal(
    "pan_not_allowed", "The Idempotency-Key must not contain a card number.", HEADER
)
_SECRET: Final = Refusal(
    "secret_not_allowed", "The Idempotency-Key must not contain a secret.", HEADER
)


def read_key(value: str) -> str | Refusal:
    """The key that a header value stands for, or why it is refused."""
    if _BARE.fullmatch(value) is not None:
        key = value
    else:
        quoted = _QUOTED.fullmatch(value.strip(" "))
        if quoted is None:
            return _INVALID
        key = _ESCAPE.sub(r"\1", quoted[1])
    # A key is stored, and stored text never holds a card number or a secret.
    private = find_private(key)
    if private is None:
        return key
    return _PAN if private == "card number" else _SECRET


def fingerprint(method: str, path: str, body: Any) -> bytes:
    """16 bytes of SHA-256 over method, path and the parsed body in canonical form.

    Spaces, the order of names and a default that is spelled out make no other request. What has
    its default is left out, so a field that a release adds changes no request without it.
    """
    digest = sha256(f"{method} {path}\n".encode())
    digest.update(_encode(body))
    return digest.digest()[:_FINGERPRINT_BYTES]
