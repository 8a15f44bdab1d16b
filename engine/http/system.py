"""The engine about itself: liveness, readiness, health, statistics, metrics, dead letters."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from engine.domain.refusals import Refusal
from engine.http.calls import Call, Parts, ok
from engine.http.commands import payment_not_found
from engine.http.documents import PAGE_TYPE
from engine.http.exchange import Response
from engine.http.pages import page, position_of
from engine.http.views import (
    AuthenticationCompleted,
    DeadLetterRetried,
    HealthView,
    LiveView,
    ReadyView,
    StatisticsView,
    dead_letter_view,
    encoded,
)

_NAME: Final = re.compile(r"[0-9A-Za-z_.\-]{1,128}")
_WORST_FIRST: Final = ("down", "degraded")


async def live(parts: Parts, call: Call) -> Response:
    """The process answers."""
    return ok(LiveView("alive"))


async def ready(parts: Parts, call: Call) -> Response:
    """Whether work is taken; 503 with the reasons when it is not."""
    reasons = list(parts.readiness())
    if reasons:
        return ok(ReadyView("not_ready", reasons), 503)
    return ok(ReadyView("ready", []))


async def health(parts: Parts, call: Call) -> Response:
    """Each part's state."""
    found = list(parts.health())
    states = {part.state for part in found}
    status = next((state for state in _WORST_FIRST if state in states), "ok")
    return ok(HealthView("health", status, parts.version, found))  # type: ignore[arg-type]


async def statistics(parts: Parts, call: Call) -> Response:
    """What every long-lived part counts."""
    return ok(StatisticsView("statistics", msgspec.to_builtins(dict(parts.statistics()))))


async def metrics(parts: Parts, call: Call) -> Response:
    """The metrics in Prometheus' exposition format."""
    content_type, body = parts.metrics()
    return Response(200, body, content_type)


async def list_dead_letters(parts: Parts, call: Call) -> Response:
    """Work that waits for a person, newest first."""
    before = position_of(parts, call)
    if isinstance(before, Refusal):
        return call.refused(before)
    rows = await parts.reader.dead_letters(before=before, limit=call.query["limit"])
    return page(parts, call, [(row.id, encoded(dead_letter_view(row))) for row in rows])


async def retry_dead_letter(parts: Parts, call: Call) -> Response:
    """Hand a dead letter to the engine again."""
    letter_id = call.segment
    if _NAME.fullmatch(letter_id) is None or not await parts.retry_dead_letter(letter_id):
        return call.refused(Refusal("dead_letter_not_found", "There is no such dead letter."))
    return ok(DeadLetterRetried(letter_id, "dead_letter", "retried"))


async def complete_authentication(parts: Parts, call: Call) -> Response:
    """Do, at the simulator, what a customer does at the issuer's page."""
    complete, reference = parts.complete_authentication, call.segment
    if (
        complete is None
        or _NAME.fullmatch(reference) is None
        or not await complete(reference, call.query["outcome"] != "declined")
    ):
        return call.refused(payment_not_found())
    if "text/html" in call.request.headers.get("accept", ""):
        return Response(200, parts.authentication_done.encode(), PAGE_TYPE)
    return ok(AuthenticationCompleted("authentication", reference, "completed"))


async def authentication_page(parts: Parts, call: Call) -> Response:
    """What a customer sees who opens the payment's `next_action` address."""
    if _NAME.fullmatch(call.segment) is None:
        return call.refused(payment_not_found())
    return Response(200, parts.authentication_page(call.segment).encode(), PAGE_TYPE)
