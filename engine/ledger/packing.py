"""Rows as the bytes that Postgres reads: arrays of composites in its binary format.

The driver can encode a composite too, field by field. For rows of numbers, of which there are many,
one `struct` that packs them with their headers takes a third to two thirds of that time. For rows
that are texts and documents it is no faster, so these are left to the driver.

An array is its dimensions and its elements; an element is its length, the number of its columns,
and per column the type, the length and the value. The columns are those of the input types in
`schema.sql`, which the server compares with the types named here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from engine.ports import EntryInvalid

Row = tuple[Any, ...]
Packer = Callable[[int, Sequence[Any]], bytes]

# The header of a column: the number of its type (pg_type.dat) and its length. A fixed-width one is
# packed as a single number, which is cheaper than two.
_BYTEA, _INT8, _INT4, _TEXT = 17, 20, 23, 25
_i: Final = _INT4 << 32 | 4
_q: Final = _INT8 << 32 | 8
_TEXT_HEAD: Final = _TEXT << 32
_BYTEA_HEAD: Final = _BYTEA << 32

_array = struct.Struct(">iiIii").pack
_head = struct.Struct(">q").pack
_SHORT: Final = tuple(_head(_TEXT_HEAD | length) for length in range(64))

OUT_OF_RANGE: Final = "invalid: NumericValueOutOfRangeError"
_REMEMBERED_MAX: Final = 20_000


class _Remembered(dict[str, bytes]):
    """Text columns whose values come again and again, with their headers."""

    def __missing__(self, value: str) -> bytes:
        text = value.encode()
        made = _head(_TEXT_HEAD | len(text)) + text
        if len(self) >= _REMEMBERED_MAX:
            self.clear()
        self[value] = made
        return made


_often = _Remembered()


def _text(value: str) -> bytes:
    """A text column whose value is its row's own."""
    text = value.encode()
    length = len(text)
    return (_SHORT[length] if length < 64 else _head(_TEXT_HEAD | length)) + text


def _array_of(type_: int, parts: list[bytes], count: int) -> bytes:
    return _array(1, 0, type_, count, 1) + b"".join(parts)


_transfer = struct.Struct(">iiqqqqqqqq").pack
_transfer_middle = struct.Struct(">qqqqq").pack
_transfer_end = struct.Struct(">qiqq").pack
_TRANSFER_SIZE: Final = 4 + 7 * 16 + 12 + 8


def pack_transfers(type_: int, rows: Sequence[Row]) -> bytes:
    """`transfer_input`."""
    parts: list[bytes] = []
    add = parts.extend
    kinds: dict[tuple[str, str], bytes] = {}
    find = kinds.get
    for id_, debit, credit, amount, kind, phase, resolves, link, payment_id, op, event_ms in rows:
        texts = find((kind, phase))
        if texts is None:
            texts = kinds[kind, phase] = _often[kind] + _often[phase]
        payment = payment_id.encode()
        add((
            _transfer(_TRANSFER_SIZE + len(texts) + len(payment), 11, _q, id_, _q, debit,
                      _q, credit, _q, amount),
            texts,
            _transfer_middle(_q, resolves, _q, link, _TEXT_HEAD | len(payment)),
            payment,
            _transfer_end(_i, op, _q, event_ms),
        ))  # fmt: skip
    return _array_of(type_, parts, len(rows))


TRANSFER_COLUMNS: Final = (
    "id", "batch", "debit_account", "credit_account", "amount", "resolves", "link", "event_ms",
    "op", "kind", "phase", "payment_id",
)  # fmt: skip
"""The columns in the order of `copy_of_transfers`."""

COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
COPY_TRAILER: Final = b"\xff\xff"
_copied = struct.Struct(">hiqiqiqiqiqiqiqiqii").pack
_length = struct.Struct(">i").pack


def copy_of_transfers(number: int, rows: Sequence[Row], *, first: bool, last: bool) -> bytes:
    """Transfers of batch `number` in the binary format of COPY: a piece of the whole.

    A third cheaper for Postgres than an insert from an array, since rows are put into the table
    page by page. Raises as `pack` does.
    """
    parts = [COPY_HEADER] if first else []
    add = parts.extend
    kinds: dict[tuple[str, str], bytes] = {}
    find = kinds.get
    try:
        for id_, debit, credit, amount, kind, phase, resolves, link, payment_id, op, event in rows:
            texts = find((kind, phase))
            if texts is None:
                texts = kinds[kind, phase] = _often[kind][4:] + _often[phase][4:]
            payment = payment_id.encode()
            add((
                _copied(12, 8, id_, 8, number, 8, debit, 8, credit, 8, amount, 8, resolves,
                        8, link, 8, event, 4, op),
                texts, _length(len(payment)), payment,
            ))  # fmt: skip
    except struct.error as error:
        raise EntryInvalid(OUT_OF_RANGE) from error
    if last:
        parts.append(COPY_TRAILER)
    return b"".join(parts)


_start = struct.Struct(">ii").pack
_int = struct.Struct(">qi").pack
_long = struct.Struct(">qq").pack


def pack_timeline(type_: int, rows: Sequence[Row]) -> bytes:
    """`timeline_input`."""
    parts: list[bytes] = []
    add = parts.extend
    for payment_id, version, steps in rows:
        name = _text(payment_id)
        add((
            _start(4 + 12 + 8 + len(name) + len(steps), 3),
            name, _int(_i, version), _head(_BYTEA_HEAD | len(steps)), steps,
        ))  # fmt: skip
    return _array_of(type_, parts, len(rows))


def pack_timers(type_: int, rows: Sequence[Row]) -> bytes:
    """`timer_input`."""
    parts: list[bytes] = []
    add = parts.extend
    for kind, due_ms, payment_id in rows:
        row = _often[kind] + _long(_q, due_ms) + _text(payment_id)
        add((_start(4 + len(row), 3), row))
    return _array_of(type_, parts, len(rows))


PACKERS: Final[dict[str, Packer]] = {
    "transfer_input": pack_transfers,
    "timeline_input": pack_timeline,
    "timer_input": pack_timers,
}
"""The input types that are packed here; the driver encodes the rest.

For each there is a domain over its arrays, whose name ends in `s`: the driver lets a domain be
bytes, and no array.
"""


def domain_of(type_: str) -> str:
    """The name of the domain over an input type's arrays: `transfer_inputs`."""
    return f"{type_}s"


def pack(type_: str, number: int, rows: Sequence[Row]) -> bytes | None:
    """The rows of an input type, which the database knows by `number`. None: there are none.

    Raises EntryInvalid for an integer beyond its type, and UnicodeEncodeError where text has no
    UTF-8 form.
    """
    if not rows:
        return None
    try:
        return PACKERS[type_](number, rows)
    except struct.error as error:
        raise EntryInvalid(OUT_OF_RANGE) from error
