"""Telemetry: one line of JSON per event on standard output, and the counts behind `/metrics`.

structlog's native bytes logger, without the standard library's logging. A line is written to a
buffer, because a write to a pipe per request costs more than the rest of the line together; the
app flushes it often, and a warning or an error takes everything before it along at once.

Every line passes the redaction of card numbers and secrets as bytes, after rendering: there is no
field, and no text of an exception, that gets around it.
"""

from __future__ import annotations

import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, cast

import msgspec
import structlog

from engine.app.metrics import Metrics
from engine.domain.cards import redact
from engine.domain.ids import op_id
from engine.domain.payment import Payment
from engine.domain.representation import rfc3339

FLUSH_EVERY_S: Final = 0.02
"""How often the app calls `flush`: a line at level info is never older than this."""

STALL_S: Final = 0.1
"""An event loop that is late by more than this has stood still."""
STALL_TOLD_EVERY_S: Final = 5.0

_STALL_MEANS: Final = {
    "busy": "one turn of the event loop was that much work, and nothing else was done meanwhile",
    "waiting": "the process did not run: the machine's processors were taken, or a write blocked",
}

_BUFFER_BYTES_MAX: Final = 64 * 1024

_Event = dict[str, Any]

# What JSON allows in a string and a terminal, or a reader of lines, may act on: DEL, the C1
# controls, line and paragraph separator, and what turns the direction of text.
_UNSAFE: Final = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_DEL: Final = b"\x7f"


class LineBuffer:
    """A binary file that keeps what is written until it is flushed."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._lines: list[bytes] = []
        self._size = 0

    def write(self, line: bytes) -> None:
        """Keep a line; too many of them are written out at once."""
        self._lines.append(line)
        self._size += len(line)
        if self._size >= _BUFFER_BYTES_MAX:
            self.write_out()

    def flush(self) -> None:
        """Do nothing: the logger asks for it after every line."""

    def write_out(self) -> None:
        """Write what was kept. A broken pipe or a full disk loses lines, never a payment."""
        if not self._lines:
            return
        lines, self._lines, self._size = b"".join(self._lines), [], 0
        try:
            self._out.write(lines)
            self._out.flush()
        except (OSError, ValueError):
            pass


def _fallback(value: object) -> str:
    """Anything that is not JSON appears as its type and text; a log call never raises."""
    return f"{type(value).__name__}: {value}"


_encode: Final = msgspec.json.Encoder(enc_hook=_fallback).encode


def render(event: _Event) -> bytes:
    """One line of JSON, without what could end it or move a terminal, and redacted."""
    try:
        line = _encode(event)
    except Exception:
        # A lone surrogate, or a number too long: say it another way rather than not at all.
        line = _encode({name: _encodable(value) for name, value in event.items()})
    if _DEL in line or not line.isascii():
        text = line.decode("utf-8", "replace")
        line = _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode()
    return redact(line)


def _encodable(value: object) -> str | int:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value if isinstance(value, int) and abs(value) < 2**63 else ascii(value)


class _Pretty:
    """Renders for a terminal, with colours; what was logged can't bring colours of its own."""

    def __init__(self) -> None:
        self._console = structlog.dev.ConsoleRenderer(colors=True)

    def __call__(self, event: _Event) -> bytes:
        safe = {name: _legible(value) for name, value in event.items() if value not in ("", None)}
        safe["timestamp"] = safe.pop("time")
        return redact(str(self._console(None, event["level"], safe)).encode("utf-8", "replace"))


def _legible(value: Any) -> Any:
    if not isinstance(value, str):
        return value if isinstance(value, int | float | bool) else _legible(_fallback(value))
    return redact(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", value))


class StructlogTelemetry:
    """Implements `ports.Telemetry` and `http.calls.HttpTelemetry`. No call of it raises."""

    def __init__(
        self,
        *,
        out: BinaryIO | None = None,
        pretty: bool | None = None,
        log_requests: bool = True,
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        """`out` is standard output by default; `pretty` by default where that is a terminal.

        Without `log_requests` the canonical lines of requests and outcomes are counted only.
        """
        target = sys.stdout.buffer if out is None else out
        self.metrics = Metrics()
        self._owned: BinaryIO | None = None
        self._log_requests = log_requests
        self._buffer = LineBuffer(target)
        self._now_ms = now_ms or _wall_ms
        self._stall_told_s = -STALL_TOLD_EVERY_S
        if pretty is None:
            pretty = target.isatty()
        self._render: Callable[[_Event], bytes] = _Pretty() if pretty else render
        # Of a success every field is the engine's own, so there is nothing to make safe.
        self._render_own: Callable[[_Event], bytes] = self._render if pretty else _encode
        # Only the native logger, without structlog's chain of processors around it: every line
        # takes the same two steps, and the chain would cost as much as both of them.
        self._write = structlog.BytesLogger(cast(BinaryIO, self._buffer)).msg

    @classmethod
    def to(cls, path: str | None, *, log_requests: bool = True) -> StructlogTelemetry:
        """Write to the end of a file, or (None) to standard output. Raises OSError."""
        if path is None:
            return cls(log_requests=log_requests)
        # The buffer here is the only one: what was flushed has left the process.
        out = cast(BinaryIO, Path(path).open("ab", buffering=0))  # noqa: SIM115 - for good
        telemetry = cls(out=out, pretty=False, log_requests=log_requests)
        telemetry._owned = out
        return telemetry

    def flush(self) -> None:
        """Write out what was kept. The app calls it every `FLUSH_EVERY_S` and at the end."""
        self._buffer.write_out()

    def loop_lag(self, now: float, late_s: float, *, cpu_s: float) -> None:
        """By how much the event loop was late, `FLUSH_EVERY_S` after the last time it was seen.

        `cpu_s` is for how much of all that time its thread ran. All in seconds, `now` of a steady
        clock. One line at most every few seconds says that it stood still, and why; all of them
        are counted.
        """
        self.metrics.loop_lag(late_s)
        if late_s <= STALL_S:
            return
        cause = "busy" if cpu_s > (FLUSH_EVERY_S + late_s) / 2 else "waiting"
        self.metrics.loop_stall(cause)
        if now >= self._stall_told_s + STALL_TOLD_EVERY_S:
            self._stall_told_s = now
            self.warn(
                "event_loop_stalled",
                late_ms=round(late_s * 1000),
                cpu_ms=round(cpu_s * 1000),
                cause=cause,
                meaning=_STALL_MEANS[cause],
            )

    def close(self) -> None:
        """Write out what was kept and close a file that `to` opened."""
        self.flush()
        if self._owned is not None:
            self._owned.close()

    def _line(self, level: str, event: str, fields: dict[str, Any]) -> None:
        self._write(self._render({**self._stamp(level, event), **fields}))

    def _stamp(self, level: str, event: str) -> dict[str, Any]:
        """How every line begins; counts the line."""
        lines = self.metrics.log_lines
        lines[level] = lines.get(level, 0) + 1
        return {"time": rfc3339(self._now_ms()), "level": level, "event": event}

    def log(self, event: str, **fields: Any) -> None:
        """A line at level info."""
        self._line("info", event, fields)

    def warn(self, event: str, **fields: Any) -> None:
        """A line at level warning, written out at once."""
        self._urgent("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """A line at level error, written out at once."""
        self._urgent("error", event, fields)

    def _urgent(
        self, level: Literal["warning", "error"], event: str, fields: dict[str, Any]
    ) -> None:
        failure = fields.get("error")
        if isinstance(failure, BaseException):
            fields["error"] = _fallback(failure)
            fields["traceback"] = "".join(traceback.format_exception(failure))
        self._line(level, event, fields)
        self._buffer.write_out()

    def http_request(
        self,
        *,
        method: str,
        route: str,
        status: int,
        code: str,
        merchant: str,
        request_id: str,
        payment: str,
        took_s: float,
        replayed: bool,
        trace_id: str | None,
        items: int = 0,
        items_failed: int = 0,
    ) -> None:
        """The canonical line, and the count, of one request. What is not known is left out."""
        self.metrics.request(route, status, took_s)
        if not self._log_requests:
            return
        fields: dict[str, Any] = {
            **self._stamp("info", "http_request"),
            "method": method,
            "route": route,
            "status": status,
            "took_ms": int(took_s * 1_000_000) / 1000,
            "request_id": request_id,
        }
        own = status < 400 and not code
        if merchant:
            fields["merchant"] = merchant
        if payment:
            fields["payment"] = payment
        if code:
            fields["code"] = code
        if replayed:
            fields["replayed"] = True
        if trace_id is not None:
            fields["trace_id"] = trace_id
        if items:
            fields["items"] = items
            fields["items_failed"] = items_failed
        self._write(self._render_own(fields) if own else self._render(fields))

    def payment_outcome(self, payment: Payment, op: int, outcome: str, took_ms: int) -> None:
        """The canonical line, and the count, of an operation's outcome."""
        operation = payment.operations[op - 1]
        self.metrics.outcome(operation.type, outcome, payment.gateway)
        if not self._log_requests:
            return
        fields: dict[str, Any] = {
            **self._stamp("info", "payment_outcome"),
            "payment": payment.id,
            "operation": op_id(payment.id, op),
            "type": operation.type,
            "outcome": outcome,
            "status": payment.status,
            "amount": operation.amount,
            "currency": payment.currency,
            "gateway": payment.gateway,
            "merchant": payment.merchant_id,
            "livemode": payment.livemode,
            "took_ms": took_ms,
        }
        if operation.request_id:
            fields["request_id"] = operation.request_id
        if operation.code is None:
            self._write(self._render_own(fields))
            return
        fields["code"] = operation.code
        self._write(self._render(fields))

    def gateway_call(self, gateway: str, action: str, outcome: str, took_s: float) -> None:
        """Count and time a gateway call."""
        self.metrics.gateway_call(gateway, action, outcome, took_s)

    def group_commit(self, entries: int, took_s: float) -> None:
        """Count and time a group commit."""
        self.metrics.group_commit(entries, took_s)


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
