"""Rows as the bytes that Postgres reads: arrays of composites in its binary format.

The driver can encode a composite too, field by field, at about a third of a microsecond each; that
was the largest part of what an entry cost the engine. Here one `struct` packs a row's fixed-width
columns with their headers, and texts that come again (a merchant's id, a status) are made once.

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
_BOOL, _BYTEA, _INT8, _INT2, _INT4, _TEXT = 16, 17, 20, 21, 23, 25
_b: Final = _BOOL << 32 | 1
_h: Final = _INT2 << 32 | 2
_i: Final = _INT4 << 32 | 4
_q: Final = _INT8 << 32 | 8
_TEXT_HEAD: Final = _TEXT << 32
_BYTEA_HEAD: Final = _BYTEA << 32

_array = struct.Struct(">iiIii").pack
_head = struct.Struct(">q").pack
_SHORT: Final = tuple(_head(_TEXT_HEAD | length) for length in range(64))
_NO_TEXT: Final = struct.pack(">ii", _TEXT, -1)
_NO_ANSWER: Final = struct.pack(">iiiiiiii", _INT2, -1, _BYTEA, -1, _TEXT, -1, _TEXT, -1)

_REMEMBERED_MAX: Final = 20_000


class _Remembered(dict[str | None, bytes]):
    """Text columns whose values come again and again, with their headers."""

    def __missing__(self, value: str | None) -> bytes:
        if value is None:
            made = _NO_TEXT
        else:
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


_balance = struct.Struct(">iiqqqqqqqqqqqqqq").pack
_BALANCE_SIZE: Final = 4 + 7 * 16


def pack_balances(type_: int, rows: Sequence[Row]) -> bytes:
    """`balance_input`."""
    parts = [
        _balance(_BALANCE_SIZE, 7, _q, id_, _q, dp, _q, dd, _q, cp, _q, cc, _q, first, _q, last)
        for id_, dp, dd, cp, cc, first, last in rows
    ]
    return _array_of(type_, parts, len(rows))


_transfer = struct.Struct(">iiqqqqqqqq").pack
_transfer_middle = struct.Struct(">qqqq").pack
_transfer_end = struct.Struct(">qiqq").pack
_TRANSFER_SIZE: Final = 4 + 7 * 16 + 12


def pack_transfers(type_: int, rows: Sequence[Row]) -> bytes:
    """`transfer_input`."""
    parts: list[bytes] = []
    add = parts.extend
    often = _often
    for id_, debit, credit, amount, kind, phase, resolves, link, payment_id, op, event_ms in rows:
        kinds = often[kind] + often[phase]
        payment = _text(payment_id)
        add((
            _transfer(_TRANSFER_SIZE + len(kinds) + len(payment), 11, _q, id_, _q, debit,
                      _q, credit, _q, amount),
            kinds,
            _transfer_middle(_q, resolves, _q, link),
            payment,
            _transfer_end(_i, op, _q, event_ms),
        ))  # fmt: skip
    return _array_of(type_, parts, len(rows))


_start = struct.Struct(">ii").pack
_payment = struct.Struct(">q?q?qhqi" + "qq" * 11).pack
_PAYMENT_SIZE: Final = 4 + 9 + 9 + 10 + 12 + 11 * 16


def pack_payments(type_: int, rows: Sequence[Row]) -> bytes:
    """`payment_input`."""
    parts: list[bytes] = []
    add = parts.extend
    often = _often
    for (
        id_, merchant, live, open_, slot, version, created_ms, amount, authorized, capturing,
        captured, releasing, released, refunding, refunded, excess_captured, excess_refunded,
        status, currency, customer, subscription, reference, doc,
    ) in rows:  # fmt: skip
        names = _text(id_) + often[merchant]
        texts = (
            often[status] + often[currency] + often[customer] + often[subscription]
            + (_NO_TEXT if reference is None else _text(reference))
            + _head(_BYTEA_HEAD | len(doc)) + doc
        )  # fmt: skip
        add((
            _start(_PAYMENT_SIZE + len(names) + len(texts), 23),
            names,
            _payment(
                _b, live, _b, open_, _h, slot, _i, version, _q, created_ms, _q, amount,
                _q, authorized, _q, capturing, _q, captured, _q, releasing, _q, released,
                _q, refunding, _q, refunded, _q, excess_captured, _q, excess_refunded,
            ),
            texts,
        ))  # fmt: skip
    return _array_of(type_, parts, len(rows))


_change = struct.Struct(">qiqiq?" + "qq" * 9).pack
_CHANGE_SIZE: Final = 4 + 12 + 12 + 9 + 9 * 16


def pack_payment_changes(type_: int, rows: Sequence[Row]) -> bytes:
    """`payment_change`."""
    parts: list[bytes] = []
    add = parts.extend
    often = _often
    for (
        id_, expected, version, open_, authorized, capturing, captured, releasing, released,
        refunding, refunded, excess_captured, excess_refunded, status, doc,
    ) in rows:  # fmt: skip
        name = _text(id_)
        texts = often[status] + _head(_BYTEA_HEAD | len(doc)) + doc
        add((
            _start(_CHANGE_SIZE + len(name) + len(texts), 15),
            name,
            _change(
                _i, expected, _i, version, _b, open_, _q, authorized, _q, capturing, _q, captured,
                _q, releasing, _q, released, _q, refunding, _q, refunded, _q, excess_captured,
                _q, excess_refunded,
            ),
            texts,
        ))  # fmt: skip
    return _array_of(type_, parts, len(rows))


_bool = struct.Struct(">q?").pack
_int = struct.Struct(">qi").pack
_long = struct.Struct(">qq").pack
_status = struct.Struct(">qh").pack
_LIVE: Final = (_bool(_b, False), _bool(_b, True))


def _answer(status: int | None, body: bytes, code: str, location: str | None) -> bytes:
    """The last four columns of a claim or an answer."""
    if status is None:
        return _NO_ANSWER
    return (
        _status(_h, status) + _head(_BYTEA_HEAD | len(body)) + body + _often[code]
        + (_NO_TEXT if location is None else _text(location))
    )  # fmt: skip


def pack_claims(type_: int, rows: Sequence[Row]) -> bytes:
    """`claim_input`."""
    parts: list[bytes] = []
    add = parts.extend
    for merchant, live, key, fingerprint, created_ms, payment_id, op, *end in rows:
        row = (
            _often[merchant] + _LIVE[live] + _text(key)
            + _head(_BYTEA_HEAD | len(fingerprint)) + fingerprint
            + _long(_q, created_ms) + _text(payment_id) + _int(_i, op) + _answer(*end)
        )  # fmt: skip
        add((_start(4 + len(row), 11), row))
    return _array_of(type_, parts, len(rows))


def pack_answers(type_: int, rows: Sequence[Row]) -> bytes:
    """`answer_input`."""
    parts: list[bytes] = []
    add = parts.extend
    for merchant, live, key, *end in rows:
        row = _often[merchant] + _LIVE[live] + _text(key) + _answer(*end)
        add((_start(4 + len(row), 7), row))
    return _array_of(type_, parts, len(rows))


_event = struct.Struct(">q?qiqq").pack


def pack_events(type_: int, rows: Sequence[Row]) -> bytes:
    """`event_input`."""
    parts: list[bytes] = []
    add = parts.extend
    often = _often
    for merchant, live, sequence, created_ms, id_, kind, object_id, body in rows:
        row = (
            often[merchant] + _event(_b, live, _i, sequence, _q, created_ms) + _text(id_)
            + often[kind] + _text(object_id) + _head(_BYTEA_HEAD | len(body)) + body
        )  # fmt: skip
        add((_start(4 + len(row), 8), row))
    return _array_of(type_, parts, len(rows))


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
    "balance_input": pack_balances,
    "transfer_input": pack_transfers,
    "payment_input": pack_payments,
    "payment_change": pack_payment_changes,
    "claim_input": pack_claims,
    "answer_input": pack_answers,
    "event_input": pack_events,
    "timeline_input": pack_timeline,
    "timer_input": pack_timers,
}
"""The input types of the hot path. Rows of the other types are rare, and the driver encodes them.

For each there is a domain over its arrays, whose name ends in `s`: the driver lets a domain be
bytes, and no array.
"""


def domain_of(type_: str) -> str:
    """The name of the domain over an input type's arrays: `payment_inputs`."""
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
        raise EntryInvalid("invalid: NumericValueOutOfRangeError") from error
