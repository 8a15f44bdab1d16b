"""Events, and webhooks that come in from gateways."""

from __future__ import annotations

from engine.domain.ids import is_id
from engine.domain.refusals import Refusal
from engine.http.calls import Call, Parts, ok
from engine.http.exchange import Response
from engine.http.pages import page, position_of
from engine.http.views import encoded, event_view

EVENT = "evt_"


async def get_event(parts: Parts, call: Call) -> Response:
    """One event."""
    key = call.key
    if is_id(EVENT, call.segment):
        event = await parts.reader.event(key.merchant_id, key.livemode, call.segment)
        if event is not None:
            return ok(event_view(event))
    return call.refused(Refusal("event_not_found", "No such event was found for this key."))


async def list_events(parts: Parts, call: Call) -> Response:
    """Events, newest first."""
    query, key = call.query, call.key
    before = position_of(parts, call)
    if isinstance(before, Refusal):
        return call.refused(before)
    rows = await parts.reader.list_events(
        key.merchant_id,
        key.livemode,
        type=query["type"],
        object_id=query["object"],
        before=before,
        limit=query["limit"],
    )
    return page(parts, call, [(row.id, encoded(event_view(row))) for row in rows])


async def gateway_webhook(parts: Parts, call: Call) -> Response:
    """A gateway's webhook: its signature is checked on the raw bytes, then it is stored."""
    gateway, request = call.segment, call.request
    if gateway not in parts.gateways:
        return call.refused(Refusal("gateway_not_found", "There is no such gateway."))
    answer = await parts.front.webhook(gateway, request.headers, request.body, request.request_id)
    return call.answered(answer)
