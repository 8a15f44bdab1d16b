"""Strict decoding of JSON bodies (RFC 8259, I-JSON of RFC 7493): one value, or why it is refused.

A body is read twice by msgspec, once into its Struct and once untyped: together that costs less
than any check in Python, and the second reading proves that no name occurs twice. Everything
slower runs only for a body that is refused, or that the cheap proof does not settle.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from engine.domain.cards import redact
from engine.domain.money import AMOUNT_MAX_MINOR, AMOUNT_MIN_MINOR
from engine.domain.refusals import Refusal

T = TypeVar("T")

DEPTH_MAX: Final = 32
"""Objects and arrays may be nested this deep."""

_ECHO_MAX: Final = 64

_untyped: Final = msgspec.json.Decoder().decode

# A byte is found in half the time when it is asked for as a number.
_OPENING: Final = ord("[")
_BACKSLASH: Final = ord("\\")
_NESTED: Final = (dict, list)

# The closing quote is optional, so that a body of quotes that never close takes linear time.
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T | Refusal:
    """Decode `body` as the decoder's type, or say why not; never raises for any bytes.

    The type should forbid unknown fields. Where the body is optional, give `b"{}"` for none.
    """
    objects = body.count(b"{")
    brackets = objects + body.count(b"[") if _OPENING in body else objects
    if brackets > DEPTH_MAX and _too_deep(body):
        return _DEPTH_EXCEEDED
    try:
        value = decoder.decode(body)
        if _BACKSLASH not in body or b"\\u0000" not in body:
            # Each name in the text is followed by a colon, so there are at least as many colons
            # as names; a name that occurred twice is decoded once. Equal counts prove none did.
            members = _untyped(body)
            names = len(members) if brackets == 1 and objects else _names(members)
            if names == body.count(b":"):
                return value
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _explain(body, error)
    return _examine(body) or value


def decode_each(
    body: bytes,
    whole: msgspec.json.Decoder[Any],
    parts: msgspec.json.Decoder[Any],
    part: msgspec.json.Decoder[T],
) -> list[T | Refusal] | Refusal:
    """Decode a body of many items, so that one that is malformed does not fail the others.

    The usual body is decoded as a `whole`. Only where that fails it is taken apart: what is wrong
    with the body itself refuses it all, what is wrong with an item becomes that item's refusal.
    `whole` has a list of `items`, `parts` the same list as `msgspec.Raw`, `part` is one of them.
    The types must be closed (no field of any shape), which bounds the depth of what they accept.
    """
    try:
        items: list[T | Refusal] = whole.decode(body).items
        may_hold_nul = _BACKSLASH in body and b"\\u0000" in body
        # The names are counted as in `decode`.
        if not may_hold_nul and _names(_untyped(body)) == body.count(b":"):
            return items
        if _examine(body) is None:
            return items
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        texts = parts.decode(body).items
        # Items are skipped over above; this reads every byte of them.
        _untyped(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _explain(body, error)
    members = json.loads(body, object_pairs_hook=list, parse_int=_zero, parse_float=_zero)
    try:
        _once(members)
    except _DuplicateError as error:
        return _duplicate(error)
    found: list[T | Refusal] = []
    for text in texts:
        item = decode(bytes(text), part)
        found.append(item)
    return found


_DEPTH_EXCEEDED: Final = Refusal(
    code="depth_exceeded", detail=f"Objects and arrays may be nested {DEPTH_MAX} deep."
)


def _names(value: object) -> int:
    """Count the names in all objects of a decoded value."""
    count = 0
    if type(value) is dict:
        count = len(value)
        for item in value.values():
            if type(item) in _NESTED:
                count += _names(item)
    elif type(value) is list:
        for item in value:
            if type(item) in _NESTED:
                count += _names(item)
    return count


def _too_deep(body: bytes) -> bool:
    """Whether brackets outside strings are nested deeper than allowed."""
    depth = 0
    for bracket in _STRING.sub(b"", body).translate(None, _NOT_BRACKETS):
        if bracket in b"[{":
            depth += 1
            if depth > DEPTH_MAX:
                return True
        else:
            depth -= 1
    return False


class _DuplicateError(Exception):
    """Carries the name that occurs twice in one object."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _DuplicateError(name)
            seen.add(name)
    return members


def _duplicate(error: _DuplicateError) -> Refusal:
    name = _echo(error.args[0])
    return Refusal("duplicate_key", f"`{name}` occurs more than once.", name)


def _zero(_number: str) -> int:
    """Stand in for a number: its digits do not matter here, and may be too many for Python."""
    return 0


def _examine(body: bytes) -> Refusal | None:
    """Decide exactly whether valid JSON has a name twice in one object, or a NUL in a string."""
    try:
        value = json.loads(body, object_pairs_hook=_once, parse_int=_zero, parse_float=_zero)
    except _DuplicateError as error:
        return _duplicate(error)
    return _nul(value, "") if b"\\u0000" in body else None


def _nul(value: object, path: str) -> Refusal | None:
    """Refuse the first string or name that holds a NUL, which Postgres cannot store."""
    if isinstance(value, str) and "\0" in value:
        return Refusal("nul_not_allowed", "Text must not hold a NUL character.", path or None)
    inner: list[tuple[str, object]] = []
    if isinstance(value, dict):
        for name, item in value.items():
            if "\0" in name:
                return Refusal(
                    "nul_not_allowed", "A name must not hold a NUL character.", path or None
                )
            inner.append((_join(path, _echo(name)), item))
    elif isinstance(value, list):
        inner = [(f"{path}[{position}]", item) for position, item in enumerate(value)]
    for where, item in inner:
        if (refusal := _nul(item, where)) is not None:
            return refusal
    return None


def _explain(body: bytes, error: Exception) -> Refusal:
    """Say why msgspec refused a body, from the most to the least specific reason."""
    if isinstance(error, RecursionError):
        return _DEPTH_EXCEEDED
    try:
        text = body.decode()
    except UnicodeDecodeError as bad:
        # UTF-16 and UTF-32 are full of NULs; naming those would mislead.
        return Refusal("bad_utf8", f"The body must be UTF-8; byte {bad.start} is not.")
    if "\0" in text:
        return Refusal("nul_not_allowed", "The body must not hold a NUL byte.")
    if isinstance(error, msgspec.ValidationError):
        return _explain_value(body, str(error))
    if text.startswith("\ufeff"):
        detail = "The body must not begin with a byte order mark."
    elif not text.strip(" \t\r\n"):
        detail = "The body is empty; a JSON object is expected."
    elif "surrogate" in str(error) or _HALF.search(text):
        detail = "The body holds half of a surrogate pair."
    elif (found := _BYTE.search(str(error))) is not None:
        detail = f"The body is not valid JSON: {found[1]} at byte {found[2]}."
    else:
        detail = "The body is not valid JSON: it ends too early."
    return Refusal("malformed_json", detail)


_HALF: Final = re.compile(r"\\u[dD][89aAbB]..(?!\\u[dD][c-fC-F])")
_BYTE: Final = re.compile(r"^JSON is malformed: (.*) \(byte (\d+)\)$")
_WHERE: Final = re.compile(r" - at (`key` in )?`\$([^`]*)`$")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`$", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(.*)`$", re.DOTALL)
_TYPE: Final = re.compile(r"Expected `([^`]*)`, got `([^`]*)`$")
_LENGTH: Final = re.compile(r"Expected `([^`]*)` of length (<=|>=) (\d+)$")
_BOUND: Final = re.compile(r"Expected `(?:int|float)` (<=|>=|<|>) (\S+)$")


def _explain_value(body: bytes, message: str) -> Refusal:
    """Turn the text of a msgspec ValidationError into a refusal with a code and a path."""
    found = _WHERE.search(message)
    text = message[: found.start()] if found else message
    where = _place(body, found, text) if found else ""
    if unknown := _UNKNOWN.match(text):
        name = _join(where, _echo(unknown[1]))
        return Refusal("unknown_field", f"`{name}` is not a field here.", name)
    if missing := _MISSING.match(text):
        name = _join(where, missing[1])
        return Refusal("field_missing", f"`{name}` is required.", name)
    subject = f"`{where}`" if where else "The body"
    param = where or None
    if wrong := _TYPE.match(text):
        expected = " or ".join(_word(kind) for kind in wrong[1].split(" | "))
        detail = f"{subject} must be {expected}, not {_word(wrong[2])}."
        return Refusal("wrong_type", detail, param)
    if text == "Number out of range":
        return Refusal("wrong_type", f"{subject} must be a plain number.", param)
    if length := _LENGTH.match(text):
        unit = "characters" if length[1] == "str" else "entries"
        kind = "at most" if length[2] == "<=" else "at least"
        detail = f"{subject} must have {kind} {length[3]} {unit}."
        return Refusal("parameter_invalid", detail, param)
    bound = _BOUND.match(text)
    if where.rpartition(".")[2] == "amount" and (bound or text == "Integer value out of range"):
        # An amount has codes of its own, wherever it stands.
        low = bound is not None and bound[1].startswith(">")
        if low:
            return Refusal(
                "amount_invalid", f"{subject} must be at least {AMOUNT_MIN_MINOR}.", param
            )
        return Refusal("amount_too_large", f"{subject} must be at most {AMOUNT_MAX_MINOR}.", param)
    if bound:
        return Refusal("parameter_invalid", f"{subject} must be {bound[1]} {bound[2]}.", param)
    # The value itself is never repeated: it may be a card number.
    return Refusal("parameter_invalid", f"{subject} has a value that is not allowed.", param)


def _place(body: bytes, found: re.Match[str], text: str) -> str:
    """Write msgspec's path as ours, and find the name it leaves out of a mapping (`[...]`)."""
    before, left_out, _ = found[2].partition("[...]")
    path = _echo(before.lstrip("."))
    if not (left_out or found[1]):
        return path
    try:
        mapping = _untyped(body)
        for name, position in _STEP.findall(before):
            mapping = mapping[name] if name else mapping[int(position)]
        items = mapping.items()
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
        # The rest of the body is no JSON, or the path is made up inside an unknown field's name.
        return path
    at_fault = _fault(text)
    for name, item in items:
        if at_fault(name if found[1] else item):
            return _join(path, _echo(name))
    return path


_STEP: Final = re.compile(r"\.([^.\[]+)|\[(\d{1,9})\]")

# msgspec's name of a type, the type, and what a person calls it.
_TYPES: Final[dict[str, tuple[type, str]]] = {
    "int": (int, "an integer"),
    "float": (float, "a decimal number"),
    "str": (str, "a string"),
    "bool": (bool, "a boolean"),
    "null": (type(None), "null"),
    "array": (list, "an array"),
    "object": (dict, "an object"),
}


def _word(kind: str) -> str:
    return _TYPES[kind][1] if kind in _TYPES else kind


def _fault(text: str) -> Callable[[Any], bool]:
    """What the value that msgspec complained of looks like; nothing where the text is not known."""
    if (wrong := _TYPE.match(text)) and wrong[2] in _TYPES:
        got = _TYPES[wrong[2]][0]
        return lambda value: type(value) is got
    if length := _LENGTH.match(text):
        bound = int(length[3])
        if length[2] == "<=":
            return lambda value: hasattr(value, "__len__") and len(value) > bound
        return lambda value: hasattr(value, "__len__") and len(value) < bound
    return lambda _value: False


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _echo(name: str) -> str:
    """Make a name from the body safe to repeat: short, and never a card number."""
    name = redact(name)
    return name if len(name) <= _ECHO_MAX else f"{name[:_ECHO_MAX]}…"
