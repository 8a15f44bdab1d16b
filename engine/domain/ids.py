"""Ids: opaque, prefixed, time-sortable, and never digits only.

An object's id is its prefix and 24 characters of Crockford's base 32 in lower case
(https://www.crockford.com/base32.html: no i, l, o, u), 120 bits:

    48 bits  milliseconds since the epoch, so that ids sort by time as text
    12 bits  the slot (partition) the object belongs to, so that no look-up is needed to route
    60 bits  random

A refund, and any other part of a payment, carries its payment's slot; a payment of a subscription
carries the subscription's. Accounts and transfers are 63-bit integers inside the ledger and 13
characters outside. Prefixes include their underscore: "pay_".
"""

import hashlib
import re
import zlib
from typing import Final

SLOTS: Final = 4_096

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_BODY_LENGTH: Final = 24
_INT_BODY_LENGTH: Final = 13
_INT_MAX: Final = 2**63 - 1
_TIME_MAX_MS: Final = 2**48 - 1
_RANDOM_MAX: Final = 2**60 - 1
_OPERATION_MAX: Final = 999_999

# Two characters at a time: a table of 1,024 pairs halves the steps of encoding.
_PAIRS: Final = tuple(high + low for high in _ALPHABET for low in _ALPHABET)
_PAIR_VALUES: Final = {pair: value for value, pair in enumerate(_PAIRS)}
_VALUES: Final = {char: value for value, char in enumerate(_ALPHABET)}
# int() reads base 32 with the letters a to v, and much faster than a loop would.
_TO_PYTHONS_BASE_32: Final = str.maketrans(_ALPHABET, "0123456789abcdefghijklmnopqrstuv")

_BODY: Final = re.compile(rf"[{_ALPHABET}]{{{_BODY_LENGTH}}}")
# 13 characters are 65 bits; the first one stays below 8 so that 63 remain.
_INT_BODY: Final = re.compile(rf"[0-7][{_ALPHABET}]{{{_INT_BODY_LENGTH - 1}}}")
# Without leading zeros, so that an operation has exactly one spelling.
_OPERATION: Final = re.compile(r"0|[1-9][0-9]{0,5}")


def new_id(prefix: str, now_ms: int, slot: int, random60: int) -> str:
    """A new id from the time in milliseconds since the epoch, a slot and 60 random bits."""
    assert 0 <= now_ms <= _TIME_MAX_MS, now_ms
    assert 0 <= slot < SLOTS, slot
    assert 0 <= random60 <= _RANDOM_MAX, random60
    p = _PAIRS
    t = now_ms << 12 | slot
    r = random60
    return (
        f"{prefix}{p[t >> 50]}{p[t >> 40 & 1023]}{p[t >> 30 & 1023]}{p[t >> 20 & 1023]}"
        f"{p[t >> 10 & 1023]}{p[t & 1023]}{p[r >> 50]}{p[r >> 40 & 1023]}{p[r >> 30 & 1023]}"
        f"{p[r >> 20 & 1023]}{p[r >> 10 & 1023]}{p[r & 1023]}"
    )


def is_id(prefix: str, text: str) -> bool:
    """Whether `text` is an id with this prefix, spelled exactly as `new_id` spells it."""
    return text.startswith(prefix) and _BODY.fullmatch(text, len(prefix)) is not None


def slot_of(text: str) -> int:
    """The slot an id carries, 0 to 4,095. The id is one that `is_id` accepts.

    Raises ValueError where the characters that hold the slot cannot be read.
    """
    try:
        # The slot ends at bit 60, the middle of the body: 2 bits of one character, 10 of a pair.
        return (_VALUES[text[-15]] & 3) << 10 | _PAIR_VALUES[text[-14:-12]]
    except LookupError:
        raise ValueError("not an id that carries a slot") from None


def created_ms_of(text: str) -> int:
    """The time an id carries, in milliseconds since the epoch. ValueError as for `slot_of`."""
    body = text[-_BODY_LENGTH:]
    if _BODY.fullmatch(body) is None:
        raise ValueError("not an id that carries a time")
    # Ten characters are 50 bits; the last two of them belong to the slot.
    return int(body[:10].translate(_TO_PYTHONS_BASE_32), 32) >> 2


def slot_of_key(text: str) -> int:
    """The slot of any text, 0 to 4,095, the same in every process and release (CRC-32)."""
    return zlib.crc32(text.encode()) & (SLOTS - 1)


def op_id(payment_id: str, n: int) -> str:
    """The id of a payment's nth operation: derived, so that a restart derives the same one."""
    assert 0 <= n <= _OPERATION_MAX, n
    return f"{payment_id}.{n}"


def parse_op_id(text: str) -> tuple[str, int] | None:
    """The payment id and the number of an operation id, or None where it is not one."""
    payment_id, _, number = text.partition(".")
    if is_id("pay_", payment_id) and _OPERATION.fullmatch(number) is not None:
        return payment_id, int(number)
    return None


def encode_int_id(prefix: str, n: int) -> str:
    """A 63-bit integer id as text of 13 characters after the prefix; sorts as the integer does."""
    assert 0 <= n <= _INT_MAX, n
    p = _PAIRS
    return (
        f"{prefix}{_ALPHABET[n >> 60]}{p[n >> 50 & 1023]}{p[n >> 40 & 1023]}{p[n >> 30 & 1023]}"
        f"{p[n >> 20 & 1023]}{p[n >> 10 & 1023]}{p[n & 1023]}"
    )


def decode_int_id(prefix: str, text: str) -> int | None:
    """The integer of an id made by `encode_int_id`, or None where it is not one of this prefix."""
    start = len(prefix)
    if not text.startswith(prefix) or _INT_BODY.fullmatch(text, start) is None:
        return None
    return int(text[start:].translate(_TO_PYTHONS_BASE_32), 32)


def gateway_key(operation_id: str) -> str:
    """The idempotency key sent to a gateway for an operation: 43 ASCII characters.

    It depends on the operation only, never on the attempt, so a resend is recognised. At most
    45 characters fit all of Stripe, PayPal and Square. It must never change between releases:
    an operation may be sent by one and sent again by the next.
    """
    digest = hashlib.sha256(b"gateway-key:" + operation_id.encode()).hexdigest()
    return f"op_{digest[:40]}"


def gateway_reference20(operation_id: str) -> str:
    """A reference of 20 characters (100 bits) for gateways with room for no more.

    Authorize.Net's invoice number has 20 characters, and an operation whose reply was lost is
    found there by it alone. As lasting as `gateway_key`.
    """
    digest = hashlib.sha256(b"gateway-reference:" + operation_id.encode()).digest()
    value = int.from_bytes(digest[:13], "big") >> 4
    return "".join(_PAIRS[value >> shift & 1023] for shift in range(90, -1, -10))
