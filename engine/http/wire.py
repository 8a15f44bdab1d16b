"""Between the text of HTTP/1.1 and plain values (RFC 9110, RFC 9112): pure, and hot."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from types import MappingProxyType
from typing import Final
from urllib.parse import parse_qsl, quote, unquote

from engine.domain.cards import redact
from engine.domain.refusals import Refusal
from engine.http.exchange import Response

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

_PARAMETERS_MAX: Final = 100
_LINES_MAX: Final = 256

# Sent twice, these would leave open which of the two is meant.
_SINGLE: Final = frozenset(
    ("authorization", "content-length", "content-type", "host", "idempotency-key", "traceparent")
)
_TARGET: Final = "!#$%&'()*+,/:;=?@[]~"
_NO_QUERY: Final[Mapping[str, str]] = MappingProxyType({})
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_WITHOUT_BODY: Final = frozenset((HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED))


def split_target(target: str) -> tuple[str, str]:
    """Split a request target into its path and its query, both still as sent.

    A target in absolute form is accepted (RFC 9112, 3.2.2); its authority says nothing here.
    """
    if not target.isascii():
        # Bytes that should have been percent-encoded are read as if they were.
        target = quote(target.encode("utf-8", "surrogateescape"), safe=_TARGET)
    path, _, query = target.partition("?")
    if not path.startswith("/") and "://" in path:
        _, _, path = path.partition("://")[2].partition("/")
        path = f"/{path}"
    if "%" in path:
        path = _decoded(path)
    return path, query


def _decoded(path: str) -> str:
    """Percent-decode a path once, unless that changes its segments or gives no plain text.

    What stays as sent matches no route and no id, so it is answered 404.
    """
    try:
        decoded = unquote(path, errors="strict")
    except UnicodeDecodeError:
        return path
    if decoded.count("/") != path.count("/") or "%" in decoded or _CONTROL.search(decoded):
        return path
    return decoded


def read_query(query: str) -> Mapping[str, str] | Refusal:
    """Decode a query; refused: a name that occurs twice, bad UTF-8, NUL, too many parameters."""
    if not query:
        return _NO_QUERY
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, errors="strict", max_num_fields=_PARAMETERS_MAX
        )
    except UnicodeDecodeError:
        return Refusal("bad_utf8", "The query, percent-decoded, must be UTF-8.")
    except ValueError:
        return Refusal("malformed_http", f"The query has more than {_PARAMETERS_MAX} parameters.")
    parameters: dict[str, str] = {}
    for name, value in pairs:
        if "\0" in name or "\0" in value:
            return Refusal("nul_not_allowed", "The query must not hold a NUL character.")
        if name in parameters:
            shown = redact(name)[:64]
            return Refusal("duplicate_parameter", f"`{shown}` is given more than once.", shown)
        parameters[name] = value
    return parameters


def read_headers(items: Iterable[tuple[str, str]]) -> dict[str, str] | Refusal:
    """Make a plain mapping by lower-case name of the fields of a head.

    A field that may hold a list and occurs several times is joined with commas (RFC 9110, 5.3).
    """
    headers: dict[str, str] = {}
    for mixed, value in items:
        name = mixed.lower()
        if name in headers:
            if name in _SINGLE:
                return Refusal("malformed_http", f"The header `{name}` is given more than once.")
            value = f"{headers[name]}, {value}"  # noqa: PLW2901 - the joined value replaces it
        if not value.isascii():
            value = _legible(value)  # noqa: PLW2901 - the same
        headers[name] = value
    return headers


def _legible(value: str) -> str:
    """Read bytes that are no UTF-8 as Latin-1, so that the text can be encoded again."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogateescape").decode("latin-1")
    return value


def is_json(content_type: str) -> bool:
    """Whether a content type is JSON in UTF-8 (RFC 8259, 8.1)."""
    if content_type == "application/json":
        return True
    media, _, parameters = content_type.lower().partition(";")
    charset = parameters.replace(" ", "").replace('"', "")
    return media.strip() == "application/json" and charset in ("", "charset=utf-8")


_lines: dict[tuple[int, str], str] = {}
_date = ""
_date_s = 0


def date_now() -> str:
    """The `Date` of this second (RFC 9110, 6.6.1)."""
    global _date, _date_s
    now_s = int(time.time())
    if now_s != _date_s:
        _date, _date_s = formatdate(now_s, usegmt=True), now_s
    return _date


def _status_line(status: int, content_type: str) -> str:
    """The lines that are the same for every answer of a kind, made once."""
    line = _lines.get((status, content_type))
    if line is None:
        if _CONTROL.search(content_type):
            raise ValueError("a control character in a content type")
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = ""
        line = f"HTTP/1.1 {status} {phrase}\r\n"
        if status not in _WITHOUT_BODY:
            line += f"Content-Type: {content_type}\r\n"
        if len(_lines) >= _LINES_MAX:
            _lines.clear()
        _lines[status, content_type] = line
    return line


def write_response(
    response: Response, request_id: str, connection: str = "", head_only: bool = False
) -> bytes:
    """Write a whole answer. `connection` is the value of that header, if it needs one.

    Raises ValueError for a header with a control character or outside Latin-1.
    """
    status = response.status
    body = response.body
    head = _status_line(status, response.content_type)
    if status in _WITHOUT_BODY:
        head = f"{head}Date: {date_now()}\r\nRequest-Id: {request_id}\r\n"
        body = b""
    else:
        head = f"{head}Content-Length: {len(body)}\r\nDate: {date_now()}\r\n"
        head = f"{head}Request-Id: {request_id}\r\n"
    for name, value in response.headers:
        if _CONTROL.search(value) or _CONTROL.search(name):
            raise ValueError(f"a control character in the header {name!r}")
        head = f"{head}{name}: {value}\r\n"
    if connection:
        head = f"{head}Connection: {connection}\r\n"
    raw = f"{head}\r\n".encode("latin-1")
    return raw if head_only else raw + body
