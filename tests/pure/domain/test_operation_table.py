"""The table of what news does to an operation: total, and monotone."""

from itertools import product
from typing import get_args

import pytest

from engine.domain.news import NEWS_KIND, Declined, Expired, Failed, OperationNews
from engine.domain.operation import (
    FINAL,
    LEADS_TO,
    OPEN,
    TRANSITIONS,
    Operation,
    OperationStatus,
    Verdict,
    verdict,
)
from engine.domain.outcomes import _TREATMENTS

NEWS = get_args(OperationNews)
STATUSES = get_args(OperationStatus)


def test_it_is_total_over_statuses_and_news():
    assert set(TRANSITIONS) == set(product(STATUSES, NEWS))
    assert set(NEWS_KIND) == set(NEWS)


def test_a_status_is_open_or_final():
    assert set(STATUSES) == OPEN | FINAL
    assert not OPEN & FINAL


def test_every_verdict_but_ignore_has_a_treatment_and_is_used():
    assert set(_TREATMENTS) == set(get_args(Verdict)) - {"ignore"}
    assert set(TRANSITIONS.values()) | {"return_refund"} == set(get_args(Verdict))
    assert set(LEADS_TO.values()) <= set(STATUSES)


@pytest.mark.parametrize(("status", "news"), sorted(product(FINAL, NEWS), key=str))
def test_no_news_reopens_what_is_final(status, news):
    assert LEADS_TO.get(TRANSITIONS[status, news], status) in FINAL


@pytest.mark.parametrize("news", NEWS)
def test_what_a_gateway_has_told_us_of_never_becomes_unknown(news):
    for status in ("requires_action", "pending"):
        assert LEADS_TO.get(TRANSITIONS[status, news]) != "unknown"


@pytest.mark.parametrize(
    "news", [Declined("x", "y"), Failed("x"), Expired()], ids=lambda news: type(news).__name__
)
def test_a_refusal_after_success_returns_a_refund_and_contradicts_anything_else(news):
    for type_ in ("authorize", "purchase", "capture", "cancel", "refund", "reversal"):
        op = Operation(n=1, type=type_, amount=1, created_ms=0, status="succeeded")
        assert verdict(op, news) == ("return_refund" if type_ == "refund" else "contradict")
