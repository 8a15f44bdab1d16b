"""Targets, queries, headers and answers between text and plain values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.refusals import Refusal
from engine.http.exchange import Response
from engine.http.limits import Limits, affordable_connections
from engine.http.wire import is_json, read_headers, read_query, split_target, write_response


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", ""),
        ("/a/b?c=d?e", "/a/b", "c=d?e"),
        ("/a%20b/%C3%A9", "/a b/é", ""),
        ("/a%2Fb", "/a%2Fb", ""),
        ("/a%252Fb", "/a%252Fb", ""),
        ("/a%00", "/a%00", ""),
        ("/a%0d%0ab", "/a%0d%0ab", ""),
        ("/a%FF", "/a%FF", ""),
        ("/a%zz", "/a%zz", ""),
        ("/a\udcc3\udca9?b=\udcff", "/aé", "b=%FF"),
        ("http://host:1/a?b=c", "/a", "b=c"),
        ("http://host", "/", ""),
        ("*", "*", ""),
        ("host:443", "host:443", ""),
    ],
)
def test_targets_are_split_and_decoded_once(target: str, path: str, query: str) -> None:
    assert split_target(target) == (path, query)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {}),
        ("a=1&b=&c", {"a": "1", "b": "", "c": ""}),
        (
            "created[gte]=2026-01-01T00%3A00%3A00%2B01%3A00",
            {"created[gte]": "2026-01-01T00:00:00+01:00"},
        ),
        ("a=x+y%C3%A9", {"a": "x yé"}),
        ("a=1&a=1", "duplicate_parameter"),
        ("a=1&%61=2", "duplicate_parameter"),
        ("a=%ff", "bad_utf8"),
        ("a=%00", "nul_not_allowed"),
        ("&".join(f"a{n}=1" for n in range(101)), "malformed_http"),
    ],
)
def test_queries_are_read_strictly(query: str, expected: dict[str, str] | str) -> None:
    parameters = read_query(query)
    if isinstance(parameters, Refusal):
        assert parameters.code == expected
    else:
        assert parameters == expected


def test_headers_are_a_plain_mapping_by_lower_case_name() -> None:
    assert read_headers([("Host", "t"), ("X-A", "1"), ("x-a", "2")]) == {"host": "t", "x-a": "1, 2"}


@pytest.mark.parametrize("name", ["Authorization", "Idempotency-Key", "Content-Type"])
def test_a_header_that_decides_something_may_stand_once(name: str) -> None:
    refusal = read_headers([(name, "a"), (name.upper(), "a")])
    assert isinstance(refusal, Refusal)
    assert refusal.code == "malformed_http"


@given(st.binary())
def test_any_header_value_can_be_encoded_again(raw: bytes) -> None:
    headers = read_headers([("X", raw.decode("utf-8", "surrogateescape"))])
    assert isinstance(headers, dict)
    headers["x"].encode()


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/json", True),
        ("application/json;charset=UTF-8", True),
        ('application/json ; charset="utf-8"', True),
        ("application/json; charset=latin-1", False),
        ("application/problem+json", False),
        ("text/json", False),
        ("", False),
    ],
)
def test_json_is_told_by_its_media_type(content_type: str, expected: bool) -> None:
    assert is_json(content_type) is expected


def test_an_answer_is_written_whole() -> None:
    raw = write_response(Response(201, b"{}", headers=(("Location", "/x"),)), "req_1", "close")
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[:3] == [
        "HTTP/1.1 201 Created",
        "Content-Type: application/json",
        "Content-Length: 2",
    ]
    assert lines[4:] == ["Request-Id: req_1", "Location: /x", "Connection: close"]
    assert body == b"{}"


@pytest.mark.parametrize(
    "response",
    [
        Response(200, headers=(("A", "b\r\nC: d"),)),
        Response(200, headers=(("A\n", "b"),)),
        Response(200, headers=(("A", "☃"),)),
        Response(200, content_type="text/plain\r\nA: b"),
    ],
)
def test_no_header_can_be_smuggled_into_an_answer(response: Response) -> None:
    with pytest.raises(ValueError, match=r"control character|can't encode"):
        write_response(response, "req_1")


@pytest.mark.parametrize(
    "settings",
    [
        {"head_s": 0},
        {"linger_s": -1},
        {"connections_max": 0},
        {"headers_max": 1},
        {"line_bytes_max": 8_192},
        {"head_bytes_max": 1_024},
    ],
)
def test_limits_that_contradict_themselves_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        Limits(**settings)  # type: ignore[arg-type]


def test_connections_leave_files_for_the_rest() -> None:
    assert affordable_connections(Limits(connections_max=3)) <= 3
