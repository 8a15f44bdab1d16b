"""Cursors of lists: opaque, and sealed so that only what a list gave out is taken back.

A cursor is the position after which the next page starts, with a MAC over it and over what it
belongs to: the list, the merchant and the mode. A changed cursor, one of another list, and one of
another merchant are all the same to the reader: not a cursor.
"""

from __future__ import annotations

import base64
import binascii
from hashlib import blake2b
from hmac import compare_digest
from typing import Final

import msgspec

from engine.domain.refusals import Refusal
from engine.http.keys import ApiKey

_MAC_BYTES: Final = 16
_TEXT_MAX: Final = 256
_SECRET_BYTES_MIN: Final = 16


class CursorSeal(msgspec.Struct, frozen=True):
    """Makes and opens cursors. Every engine behind one address needs the same secret."""

    secret: bytes

    def __post_init__(self) -> None:
        """Raise ValueError for a secret that is no secret."""
        if not _SECRET_BYTES_MIN <= len(self.secret) <= blake2b.MAX_KEY_SIZE:
            raise ValueError("a cursor secret has 16 to 64 bytes")

    def give(self, name: str, key: ApiKey, position: str) -> str:
        """The cursor of list `name` for the page after `position`."""
        text = position.encode()
        return base64.urlsafe_b64encode(self._mac(name, key, text) + text).decode().rstrip("=")

    def take(self, name: str, key: ApiKey, cursor: str) -> str | Refusal:
        """The position of a cursor that `give` made for the same list and key, or a refusal."""
        if len(cursor) > _TEXT_MAX or not cursor.isascii():
            return _REFUSED
        try:
            sealed = base64.b64decode(
                cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True
            )
        except (binascii.Error, ValueError):
            return _REFUSED
        mac, text = sealed[:_MAC_BYTES], sealed[_MAC_BYTES:]
        if not compare_digest(mac, self._mac(name, key, text)):
            return _REFUSED
        return text.decode()

    def _mac(self, name: str, key: ApiKey, text: bytes) -> bytes:
        # A NUL occurs in none of the parts, so no two lists of parts read the same.
        mode = "live" if key.livemode else "test"
        about = f"{name}\0{key.merchant_id}\0{mode}\0".encode()
        return blake2b(about + text, key=self.secret, digest_size=_MAC_BYTES).digest()


_REFUSED: Final = Refusal(
    "wrong_type", "`cursor` must be the `next_cursor` of an earlier page of this list.", "cursor"
)
