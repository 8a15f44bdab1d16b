"""The closed table of problems, and the documents made from it."""

from __future__ import annotations

import json
import re

import msgspec
import pytest

from engine.domain.problems import PROBLEMS, problem_bytes
from engine.domain.refusals import Refusal
from engine.http.problems import method_not_allowed, problem, refused

# The contract's table of statuses.
STATUSES = {400, 401, 402, 403, 404, 405, 408, 409, 413, 414, 415, 422, 429, 431, 500, 502, 503}


@pytest.mark.parametrize("code", PROBLEMS)
def test_every_kind_is_complete(code: str) -> None:
    kind = PROBLEMS[code]
    assert re.fullmatch(r"[a-z][a-z0-9_]{2,39}", code)
    assert kind.status in STATUSES
    assert kind.title
    assert not kind.title.endswith(".")


def test_what_is_stored_is_never_retryable() -> None:
    """A retryable refusal is not stored; 402, 422 and 502 always are, once admitted."""
    for code, kind in PROBLEMS.items():
        if kind.status in (402, 422, 502):
            assert not kind.retryable, code
        if kind.status in (408, 429, 503):
            assert kind.retryable, code


def test_the_document_has_the_members_of_rfc_9457_and_ours() -> None:
    document = json.loads(
        problem_bytes(
            "payment_declined",
            detail="The issuer declined.",
            instance="/v1/payments/authorize",
            request_id="req_1",
            param="payment_method",
            extra={
                "decline_code": "do_not_honor",
                "advice": "try_another_method",
                "payment": msgspec.Raw(b'{"id":"pay_1"}'),
            },
        )
    )
    assert document == {
        "type": "/problems/payment_declined",
        "title": "The payment was declined",
        "status": 402,
        "detail": "The issuer declined.",
        "instance": "/v1/payments/authorize",
        "code": "payment_declined",
        "param": "payment_method",
        "request_id": "req_1",
        "retryable": False,
        "decline_code": "do_not_honor",
        "advice": "try_another_method",
        "payment": {"id": "pay_1"},
    }


def test_the_same_arguments_give_the_same_bytes() -> None:
    def build() -> bytes:
        return problem_bytes("overloaded", detail="d", instance="/i", request_id="r")

    assert build() == build()
    assert b'"param"' not in build()


def test_a_code_outside_the_table_cannot_be_answered() -> None:
    with pytest.raises(KeyError):
        problem_bytes("nonsense", detail="d", instance="/i", request_id="r")


@pytest.mark.parametrize("member", ["status", "code", "param", "request_id"])
def test_an_extra_member_cannot_contradict_the_document(member: str) -> None:
    with pytest.raises(ValueError, match=member):
        problem_bytes("overloaded", detail="", instance="/", request_id="", extra={member: 1})


def test_a_card_number_in_a_path_is_not_repeated() -> None:
    raw = problem_bytes(
        "route_not_found", detail="d", instance="/v1/payments/4111111111111111", request_id="r"
    )
    assert b"4111111111111111" not in raw


def test_a_refusal_becomes_an_answer() -> None:
    response = refused(
        Refusal("overloaded", "Too busy.", "amount", 3), instance="/p", request_id="r"
    )
    assert (response.status, response.content_type) == (503, "application/problem+json")
    assert response.headers == (("Retry-After", "3"),)
    assert json.loads(response.body)["param"] == "amount"


def test_a_401_carries_a_challenge_and_a_405_what_is_allowed() -> None:
    response = problem("invalid_api_key", detail="d", instance="/", request_id="r")
    assert response.headers == (("WWW-Authenticate", "Bearer"),)
    for code, kind in PROBLEMS.items():
        names = dict(problem(code, detail="d", instance="/", request_id="r").headers)
        assert ("WWW-Authenticate" in names) == (kind.status == 401)
    response = method_not_allowed(("GET", "HEAD"), instance="/", request_id="r")
    assert (response.status, response.headers) == (405, (("Allow", "GET, HEAD"),))
