"""A payment's document: the bytes it is stored as, in the ledger and in a shard's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from engine.domain.payment import Payment

to_document: Final[Callable[[Payment], bytes]] = msgspec.json.Encoder().encode
"""JSON, without what has its default."""

from_document: Final[Callable[[bytes], Payment]] = msgspec.json.Decoder(Payment).decode
"""The payment. Raises DOCUMENT_ERRORS for what is none."""

DOCUMENT_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError)
