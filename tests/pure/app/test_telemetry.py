"""Log lines: one per event, safe to read, and without card numbers or secrets."""

import io
import json
from pathlib import Path

import pytest

from engine.app.telemetry import StructlogTelemetry
from engine.domain.operation import Operation
from engine.domain.payment import Payment

NOW_MS = 1_767_225_600_000
PAN = "4242424242424242"
PLANTED = (
    PAN,
    "4242 4242 4242 4242",
    "4242-4242-4242-4242",
    "378282246310005",
    "sk_live_abcdefgh12345678",
    "sk_test_abcdefgh12345678",
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "Bearer abcdefgh12345678",
)


class Closed(io.BytesIO):
    """An output that is gone."""

    def write(self, line: object) -> int:
        raise BrokenPipeError


def telemetry(*, pretty: bool = False) -> tuple[StructlogTelemetry, io.BytesIO]:
    out = io.BytesIO()
    return StructlogTelemetry(out=out, pretty=pretty, now_ms=lambda: NOW_MS), out


def request(found: StructlogTelemetry, **changed: object) -> None:
    fields = {
        "method": "POST",
        "route": "/v1/payments/authorize",
        "status": 201,
        "code": "",
        "merchant": "m_1",
        "request_id": "req_1",
        "payment": "pay_1",
        "took_s": 0.00432,
        "replayed": False,
        "trace_id": None,
        **changed,
    }
    found.http_request(**fields)  # type: ignore[arg-type]


def test_a_request_is_one_line_and_one_count() -> None:
    found, out = telemetry()
    request(found)
    request(found, status=402, code="payment_declined", replayed=True, trace_id="ab")
    found.flush()
    first, second = map(json.loads, out.getvalue().splitlines())
    assert first == {
        "time": "2026-01-01T00:00:00.000Z",
        "level": "info",
        "event": "http_request",
        "method": "POST",
        "route": "/v1/payments/authorize",
        "status": 201,
        "took_ms": 4.32,
        "request_id": "req_1",
        "merchant": "m_1",
        "payment": "pay_1",
    }
    assert (second["code"], second["replayed"], second["trace_id"]) == (
        "payment_declined",
        True,
        "ab",
    )
    assert found.metrics.requests == {
        ("/v1/payments/authorize", 201): 1,
        ("/v1/payments/authorize", 402): 1,
    }


def test_an_outcome_is_one_line_and_one_count() -> None:
    found, out = telemetry()
    op = Operation(1, "purchase", 1099, NOW_MS, "declined", request_id="req_1", code="expired_card")
    payment = Payment("pay_1", "m_1", False, NOW_MS, 1099, "USD", "simulator", "pm", (op,))
    found.payment_outcome(payment, 1, "declined", 12)
    found.flush()
    line = json.loads(out.getvalue())
    assert (line["operation"], line["outcome"], line["code"]) == (
        "pay_1.1",
        "declined",
        "expired_card",
    )
    assert found.metrics.outcomes == {("purchase", "declined", "simulator"): 1}


def test_without_lines_for_requests_they_are_still_counted() -> None:
    out = io.BytesIO()
    found = StructlogTelemetry(out=out, pretty=False, log_requests=False)
    request(found)
    found.flush()
    assert out.getvalue() == b""
    assert found.metrics.requests == {("/v1/payments/authorize", 201): 1}


def test_lines_wait_for_a_flush_and_trouble_does_not() -> None:
    found, out = telemetry()
    found.log("one")
    assert out.getvalue() == b""
    found.warn("two")
    assert [json.loads(line)["event"] for line in out.getvalue().splitlines()] == ["one", "two"]
    found.log("three")
    found.error("four")
    levels = [json.loads(line)["level"] for line in out.getvalue().splitlines()]
    assert levels == ["info", "warning", "info", "error"]
    assert found.metrics.log_lines == {"info": 2, "warning": 1, "error": 1}


def test_many_lines_do_not_wait_for_ever() -> None:
    found, out = telemetry()
    for _ in range(1_000):
        found.log("x", text="y" * 100)
    assert len(out.getvalue()) > 64 * 1024


@pytest.mark.parametrize("pretty", [False, True])
@pytest.mark.parametrize("planted", PLANTED)
def test_card_numbers_and_secrets_are_taken_out(planted: str, pretty: bool) -> None:
    found, out = telemetry(pretty=pretty)
    found.log("event", text=f"a {planted} b", nested={"a": [planted]})
    found.log(planted)
    found.error("failed", error=ValueError(f"bad: {planted}"))
    request(found, route=planted, code=planted)
    found.flush()
    assert planted.removeprefix("Bearer ").encode() not in out.getvalue()
    assert out.getvalue().count(b"\n") == 4


def test_a_card_number_that_is_a_number_is_taken_out_and_the_line_stays_json() -> None:
    found, out = telemetry()
    found.log("event", amount=int(PAN))
    found.flush()
    assert json.loads(out.getvalue())["amount"] == "[card 4242]"


@pytest.mark.parametrize("pretty", [False, True])
def test_nothing_that_is_logged_ends_a_line_or_moves_a_terminal(pretty: bool) -> None:
    found, out = telemetry(pretty=pretty)
    text = 'a\r\nb\x1b[2Jc\x9b2Jd\x7fe\u2028f\u202eg"}\n{"level":"info","event":"forged"}'
    found.log("event", text=text)
    found.flush()
    line = out.getvalue()
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert b"\r" not in line
    assert b"\x1b[2J" not in line
    shown = line.decode()
    assert not set(shown) & {"\x9b", "\x7f", "\u2028", "\u202e"}
    if not pretty:
        assert json.loads(line)["text"] == text


@pytest.mark.parametrize(
    "value", [object(), b"bytes", "\ud800", 10**40, float("nan"), {1, 2}, {("a",): 1}]
)
@pytest.mark.parametrize("pretty", [False, True])
def test_no_value_makes_a_log_call_raise(value: object, pretty: bool) -> None:
    found, out = telemetry(pretty=pretty)
    found.log("event", value=value)
    found.flush()
    assert b"event" in out.getvalue()


def test_an_error_has_its_stack_on_the_same_line() -> None:
    found, out = telemetry()
    try:
        raise KeyError("nothing")
    except KeyError as error:
        found.error("failed", error=error)
    line = json.loads(out.getvalue())
    assert line["error"] == "KeyError: 'nothing'"
    assert "Traceback" in line["traceback"]


def test_an_output_that_is_gone_stops_nothing() -> None:
    found = StructlogTelemetry(out=Closed(), pretty=False)
    found.log("one")
    found.flush()
    found.error("two")


def test_lines_can_go_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    for _ in range(2):
        found = StructlogTelemetry.to(str(path))
        found.error("stopped")
        found.close()
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["stopped"] * 2


def test_an_event_loop_that_stood_still_is_told_with_its_cause_and_not_too_often() -> None:
    found, out = telemetry()
    found.loop_lag(10.0, 0.1, cpu_s=0.1)
    assert not out.getvalue(), "late, but not too late"
    found.loop_lag(20.0, 0.3, cpu_s=0.29)
    found.loop_lag(20.4, 0.3, cpu_s=0.29)
    found.loop_lag(26.0, 0.254, cpu_s=0.015)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    told = [(line["event"], line["late_ms"], line["cpu_ms"], line["cause"]) for line in lines]
    assert told == [
        ("event_loop_stalled", 300, 290, "busy"),
        ("event_loop_stalled", 254, 15, "waiting"),
    ]
    assert found.metrics.loop_stalls == {"busy": 2, "waiting": 1}
    found.loop_lag(30.0, 0.11, cpu_s=0.05 + 0.01)
    assert found.metrics.loop_stalls["waiting"] == 2, "it was busy before, not meanwhile"
