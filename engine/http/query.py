"""Query parameters: which there are, and how each is read from its text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

from engine.domain.cards import redact
from engine.domain.refusals import Refusal

LIMIT_DEFAULT: Final = 10
LIMIT_MAX: Final = 100

_TEXT_MAX: Final = 255
_ECHO_MAX: Final = 64
_CURSOR_MAX: Final = 256

_DIGITS: Final = re.compile(r"[0-9]{1,12}")
# RFC 3339, 5.6. A plus sign that was not percent-encoded arrives as a space.
_RFC3339: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?"
    r"(?:([Zz])|([+\- ])([0-9]{2}:[0-9]{2}))"
)
_UNIX_S_MAX: Final = 253_402_300_799  # the last second of the year 9999


class Param(msgspec.Struct, frozen=True):
    """One query parameter: its name, how it is read, and what the OpenAPI document says of it."""

    name: str
    read: Callable[[str, str], Any]
    """Takes the parameter's name and its text; gives the value or a Refusal."""
    schema: dict[str, Any]
    description: str
    default: Any = None


def read_query(params: tuple[Param, ...], given: Mapping[str, str]) -> dict[str, Any] | Refusal:
    """The values of all parameters by name, with defaults, or the first reason to refuse."""
    values = {param.name: param.default for param in params}
    readers = {param.name: param.read for param in params}
    for name, text in given.items():
        read = readers.get(name)
        if read is None:
            shown = redact(name if len(name) <= _ECHO_MAX else f"{name[:_ECHO_MAX]}…")
            return Refusal("unknown_parameter", f"`{shown}` is not a parameter here.", shown)
        if "\0" in text:
            return Refusal("nul_not_allowed", f"`{name}` must not hold a NUL character.", name)
        value = read(name, text)
        if isinstance(value, Refusal):
            return value
        values[name] = value
    return values


def text(name: str, description: str) -> Param:
    """A parameter whose text is taken as it is."""
    return Param(name, _read_text, {"type": "string", "maxLength": _TEXT_MAX}, description)


def _read_text(name: str, given: str) -> str | Refusal:
    if not 1 <= len(given) <= _TEXT_MAX:
        return Refusal(
            "parameter_invalid", f"`{name}` must have 1 to {_TEXT_MAX} characters.", name
        )
    return given


def choice(name: str, values: tuple[str, ...], description: str) -> Param:
    """A parameter that is one of the given words."""

    def read(name: str, given: str) -> str | Refusal:
        if given in values:
            return given
        return Refusal("parameter_invalid", f"`{name}` must be one of: {', '.join(values)}.", name)

    return Param(name, read, {"type": "string", "enum": list(values)}, description)


def moment(name: str, description: str) -> Param:
    """A parameter that is a time; its value is in Unix milliseconds."""
    schema = {
        "anyOf": [
            {"type": "string", "format": "date-time"},
            {"type": "integer", "minimum": 0, "maximum": _UNIX_S_MAX},
        ]
    }
    return Param(name, read_moment, schema, f"{description} RFC 3339, or Unix seconds.")


def read_moment(name: str, given: str) -> int | Refusal:
    """Unix milliseconds of an RFC 3339 time or of Unix seconds."""
    if _DIGITS.fullmatch(given) is not None:
        seconds = int(given)
        if seconds <= _UNIX_S_MAX:
            return seconds * 1000
    elif (found := _RFC3339.fullmatch(given)) is not None:
        day, clock, fraction, utc, sign, offset = found.groups()
        zone = "+00:00" if utc else f"{'-' if sign == '-' else '+'}{offset}"
        # A leap second is the last instant of its minute here, as Unix time has no room for it.
        clock = f"{clock[:6]}59" if clock.endswith(":60") else clock
        try:
            at = datetime.fromisoformat(f"{day}T{clock}{zone}")
            return int(at.timestamp()) * 1000 + int((fraction or "0").ljust(3, "0")[:3])
        except (ValueError, OverflowError):
            pass
    return Refusal(
        "wrong_type", f"`{name}` must be an RFC 3339 time with an offset, or Unix seconds.", name
    )


def _read_limit(name: str, given: str) -> int | Refusal:
    if _DIGITS.fullmatch(given.removeprefix("-")) is None:
        return Refusal("wrong_type", f"`{name}` must be an integer.", name)
    if 1 <= (value := int(given)) <= LIMIT_MAX:
        return value
    return Refusal("parameter_invalid", f"`{name}` must be 1 to {LIMIT_MAX}.", name)


LIMIT: Final = Param(
    "limit",
    _read_limit,
    {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT},
    "How many objects a page holds at most.",
    LIMIT_DEFAULT,
)

CURSOR: Final = Param(
    "cursor",
    _read_text,
    {"type": "string", "maxLength": _CURSOR_MAX},
    "The `next_cursor` of the page before.",
)

PAGE: Final = (LIMIT, CURSOR)
