"""The hash chain of the journal: what a batch's hash covers, in canonical form.

    hash = SHA-256(previous hash + JSON of [lane, number, key, recorded_ms, accounts, transfers])

JSON is what msgspec writes: no spaces, UTF-8, integers in decimal. A change of any account's
identity, any transfer, their order, or the number or time of a batch changes every later hash.
This form must never change: databases are verified against it for as long as they live.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

import msgspec

GENESIS: Final = bytes(32)
"""The previous hash of a lane's first batch."""

TransferTuple = tuple[int, int, int, int, str, str, int, int, str, int, int]
"""id, debit account, credit account, amount, kind, phase, resolves, link, payment id, op, event_ms.

`resolves` and `link` are 0 for none; amounts are in minor units.
"""

AccountTuple = tuple[int, str, str, str, str, bool]
"""id, book, kind, owner, currency, livemode: what never changes of an account."""

_encode = msgspec.json.Encoder().encode


def seal(
    prev_hash: bytes,
    number: int,
    key: str,
    recorded_ms: int,
    transfers: Sequence[TransferTuple],
    *,
    accounts: Sequence[AccountTuple] = (),
    lane: int = 0,
) -> bytes:
    """The 32-byte hash of a batch.

    `transfers` by id, `accounts` (those the batch opened) by id. Raises UnicodeEncodeError where
    text has no UTF-8 form.
    """
    content = _encode((lane, number, key, recorded_ms, accounts, transfers))
    return sha256(prev_hash + content).digest()
