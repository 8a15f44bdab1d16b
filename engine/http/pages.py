"""Pages of lists: one row more than asked for tells that there are more."""

from __future__ import annotations

from collections.abc import Sequence

from engine.domain.refusals import Refusal
from engine.http.calls import Call, Parts
from engine.http.exchange import Response
from engine.http.views import list_bytes


def position_of(parts: Parts, call: Call) -> str | Refusal | None:
    """Where the page begins: after this position, or (None) at the beginning."""
    cursor = call.query["cursor"]
    if cursor is None:
        return None
    return parts.cursors.take(call.request.path, call.key, cursor)


def page(parts: Parts, call: Call, rows: Sequence[tuple[str, bytes]]) -> Response:
    """Answer a page: at most `limit` of the rows, each its position and its bytes."""
    limit: int = call.query["limit"]
    shown = rows[:limit]
    after = shown[-1][0] if len(rows) > limit else None
    return page_until(parts, call, [body for _, body in shown], after)


def page_until(parts: Parts, call: Call, data: Sequence[bytes], after: str | None) -> Response:
    """Answer a page; the next one begins after `after`, and None says that there is none.

    A cursor belongs to the path it was given out at, so it fits no other list.
    """
    cursor = None if after is None else parts.cursors.give(call.request.path, call.key, after)
    return Response(200, list_bytes(data, cursor))
