r"""Finds card numbers (PANs) and secrets in text, and takes them out.

The engine never asks for a card number, but people paste them into names and metadata, and
gateways quote them in error texts. PCI DSS 3.4 and 3.5 allow no more than the last four digits
where nothing further is needed, so nothing here gives more away.

A card number is 13 to 19 digits, single spaces or dashes anywhere between them, of a length that
its first four digits (ISO/IEC 7812 issuer ranges) allow, with a correct Luhn digit. It does not
start or end inside a longer alphanumeric word, so ids and hashes with runs of digits stay whole;
what JSON escapes to ``\n`` or ``\u001b[31m`` does not count as part of a word.

Log lines pass through here, so the usual case, nothing found, is one table look-up per byte and
some substring searches.
"""

import re
from collections.abc import Iterator
from itertools import accumulate
from typing import AnyStr, Final, Literal

_DIGITS_MIN: Final = 13

# (first and last value of the first four digits, lengths). Published ranges, made coarser: where
# networks overlap (Maestro, UnionPay, Discover, RuPay, Elo, Troy in 6xxx) every length passes.
_ISSUER_RANGES: Final = (
    (2200, 2205, (16, 17, 18, 19)),  # Mir, BORICA
    (2221, 2720, (16,)),  # Mastercard
    (3000, 3059, (14, 15, 16, 17, 18, 19)),  # Diners Club
    (3095, 3095, (14, 15, 16, 17, 18, 19)),  # Diners Club
    (3400, 3499, (15,)),  # American Express
    (3528, 3589, (16, 17, 18, 19)),  # JCB
    (3600, 3699, (14, 15, 16, 17, 18, 19)),  # Diners Club
    (3700, 3799, (15,)),  # American Express
    (3800, 3999, (14, 15, 16, 17, 18, 19)),  # Diners Club
    (4000, 4999, (13, 16, 18, 19)),  # Visa
    (5000, 5099, (13, 14, 15, 16, 17, 18, 19)),  # Maestro, Dankort, Elo, Verve
    (5100, 5599, (16,)),  # Mastercard
    (5600, 5899, (13, 14, 15, 16, 17, 18, 19)),  # Maestro
    (6000, 6999, (13, 14, 15, 16, 17, 18, 19)),  # UnionPay, Discover, Maestro and others
    (8100, 8299, (16, 17, 18, 19)),  # UnionPay, RuPay
    (8600, 8600, (16,)),  # Uzcard
    (9792, 9792, (16,)),  # Troy
    (9860, 9860, (16,)),  # Humo
)
_LENGTHS_BY_PREFIX: Final[dict[int, tuple[int, ...]]] = {
    prefix: lengths for first, last, lengths in _ISSUER_RANGES for prefix in range(first, last + 1)
}

# Pasted text brings no-break spaces, thin spaces and typographic dashes (U+00A0, U+2000 to
# U+2015, U+202F), written here as the UTF-8 bytes they are.
_SEPARATOR: Final = rb"(?:[ \-]|\xc2\xa0|\xe2\x80[\x80-\x95\xaf])"
_SEPARATOR_BYTES: Final = b" -\xc2\xa0\xe2\x80\xaf" + bytes(range(0x81, 0x96))

# Where a number may begin: not after a letter or digit, unless that belongs to a JSON escape or
# to the colour sequence of a terminal. Integer ids are the one word with an underscore that can
# be all digits behind it. Each look back includes the first digit, because a pattern that begins
# with a plain digit is searched several times faster than one that begins with a look back.
_START: Final = (
    rb"[0-9](?:(?<![0-9A-Za-z].)|(?<=\\[bfnrt].)|(?<=\\u[0-9A-Fa-f]{4}.)"
    rb"|(?<=\[m.)|(?<=\[[0-9]m.)|(?<=\[[0-9]{2}m.)|(?<=;[0-9]m.)|(?<=;[0-9]{2}m.))"
    rb"(?<!\btr_.)(?<!\bacct_.)"
)
_RUN: Final = re.compile(
    _START + rb"(?:" + _SEPARATOR + rb"?[0-9]){" + str(_DIGITS_MIN - 1).encode() + rb",}"
)
_GROUP: Final = re.compile(rb"[0-9]+")
_WORD_BYTES: Final = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")

_SECRET: Final = re.compile(
    rb"(?i:(sk_(?:test|live)_|whsec_)[0-9a-z+/_=\-]+|(bearer(?:[ \t]|%20)+)[0-9a-z\-._~+/=]{8,})"
)

# Not in the middle of a word, and longer than a word that only speaks of keys.
_KEPT_SECRET: Final = re.compile(
    rb"(?<![0-9A-Za-z])(?i:sk_(?:test|live)_|whsec_)[0-9A-Za-z+/_=\-]{8,}"
)

# For the first look: digits become "0", letters lower case, separators vanish.
_FOLD: Final = bytes(48 if 48 <= byte <= 57 else byte for byte in bytes(range(256)).lower())
_DIGITS_FOLDED: Final = "0" * _DIGITS_MIN

# A digit's part of the Luhn sum (ISO/IEC 7812-1, annex B), counted once and doubled.
_ONCE: Final = bytes(byte - 48 if 48 <= byte <= 57 else 0 for byte in range(256))
_DOUBLED: Final = bytes(
    (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)[byte - 48] if 48 <= byte <= 57 else 0 for byte in range(256)
)


def find_pan(text: str | bytes) -> str | None:
    """The last four digits of the first card number in `text`, or None where there is none.

    Never more than those four, so that the answer itself may be shown.
    """
    line = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if _DIGITS_FOLDED not in _folded(line):
        return None
    for _, _, last_four in _pans(line):
        return last_four.decode()
    return None


def find_private(text: str | bytes) -> Literal["card number", "secret"] | None:
    """What in `text` must not be kept: a card number, an API key or a webhook's secret.

    A bearer token does not count here: "bearer" is also a word of ordinary text.
    """
    line = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    folded = _folded(line)
    if _DIGITS_FOLDED in folded:
        for _ in _pans(line):
            return "card number"
    may_be_secret = "sk_live_" in folded or "sk_test_" in folded or "whsec_" in folded
    return "secret" if may_be_secret and _KEPT_SECRET.search(line) is not None else None


def redact(text: AnyStr) -> AnyStr:
    """`text` without card numbers, API keys, webhook secrets and bearer tokens.

    A card number becomes `[card 4242]`; of a secret its kind remains, as in
    `sk_live_[redacted]`. A line of JSON stays JSON: where the card number was a bare number, a
    string takes its place.
    """
    if isinstance(text, bytes):
        return _redact_bytes(text)
    line = text.encode("utf-8", "surrogatepass")
    clean = _redact_bytes(line)
    return text if clean is line else clean.decode("utf-8", "surrogatepass")


def _folded(line: bytes) -> str:
    # As text, because `in` on bytes costs twice as much: it first tries its argument as a number.
    return line.translate(_FOLD, _SEPARATOR_BYTES).decode("latin-1")


def _redact_bytes(line: bytes) -> bytes:
    folded = _folded(line)
    has_secret = (
        "sk_live_" in folded or "sk_test_" in folded or "whsec_" in folded or "bearer" in folded
    )
    if has_secret:
        # The kind of the secret stays, its value goes; of the two groups one is always empty.
        line = _SECRET.sub(rb"\1\2[redacted]", line)
    return _without_pans(line) if _DIGITS_FOLDED in folded else line


def _without_pans(line: bytes) -> bytes:
    is_json = line.startswith((b"{", b"["))
    quotes = 0
    pieces: list[bytes] = []
    at = 0
    for start, end, last_four in _pans(line):
        before = line[at:start]
        quotes += before.replace(b"\\\\", b"").replace(b'\\"', b"").count(b'"')
        mask = b"[card " + last_four + b"]"
        # After an even number of quotes no string is open: this was a number of the JSON.
        pieces += (before, b'"%b"' % mask if is_json and quotes % 2 == 0 else mask)
        at = end
    return b"".join((*pieces, line[at:])) if pieces else line


def _pans(line: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Start, end and last four digits of every card number in `line`, in order."""
    for run in _RUN.finditer(line):
        first, last = run.span()
        # Positions of the groups in the line, and of their beginnings in the digits alone.
        groups = [(m.start(), m.end()) for m in _GROUP.finditer(line, first, last)]
        lengths = [end - start for start, end in groups]
        begins = list(accumulate(lengths, initial=0))
        digits = b"".join([line[start:end] for start, end in groups])
        if last < len(line) and line[last] in _WORD_BYTES:
            # The last group goes on as a word, so no number can end with it.
            begins.pop()
        sums = _luhn_sums(digits)
        ends = dict(zip(begins[1:], groups, strict=False))
        skip_to = 0
        for begin, (start, _) in zip(begins, groups, strict=False):
            if begin < skip_to:
                continue
            for length in reversed(_LENGTHS_BY_PREFIX.get(int(digits[begin : begin + 4]), ())):
                end = begin + length
                if end in ends and _is_luhn(sums, begin, end):
                    yield start, ends[end][1], digits[end - 4 : end]
                    skip_to = end
                    break


def _luhn_sums(digits: bytes) -> tuple[list[int], list[int]]:
    """Running sums with every even, and with every odd position doubled.

    They answer for any part of the digits at once, however many parts are asked for: a body
    full of single digits must not buy a number's work for each of them.
    """
    once, doubled = digits.translate(_ONCE), digits.translate(_DOUBLED)
    even = bytearray(once)
    even[::2] = doubled[::2]
    odd = bytearray(once)
    odd[1::2] = doubled[1::2]
    return list(accumulate(even, initial=0)), list(accumulate(odd, initial=0))


def _is_luhn(sums: tuple[list[int], list[int]], begin: int, end: int) -> bool:
    # The last digit is counted once and every second one before it doubled.
    running = sums[end % 2]
    return (running[end] - running[begin]) % 10 == 0
