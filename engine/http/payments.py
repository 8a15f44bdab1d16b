"""Payments: what moves money. Each handler makes a command of the request and asks the actors."""

from __future__ import annotations

from engine.domain.commands import Command
from engine.domain.refusals import Refusal
from engine.http.calls import Call, Parts
from engine.http.commands import change_command, open_command
from engine.http.exchange import Response
from engine.http.idempotency import fingerprint
from engine.http.values import may_be_private
from engine.ports import Ask


async def authorize(parts: Parts, call: Call) -> Response:
    """Reserve an amount."""
    return await _open(parts, call, purchase=False)


async def purchase(parts: Parts, call: Call) -> Response:
    """Reserve an amount and capture it in one step."""
    return await _open(parts, call, purchase=True)


async def _open(parts: Parts, call: Call, *, purchase: bool) -> Response:
    suspect = may_be_private(call.request.body)
    command = open_command(parts, call.key, call.body, purchase=purchase, suspect=suspect)
    return await _ask(parts, call, command, None)


async def change(parts: Parts, call: Call) -> Response:
    """Capture, cancel or refund: the body, of the Struct that the route names, tells which."""
    suspect = may_be_private(call.request.body)
    command = change_command(parts, call.key, call.body, call.segment, suspect=suspect)
    return await _ask(parts, call, command, call.segment)


async def _ask(
    parts: Parts, call: Call, command: Command | Refusal, payment_id: str | None
) -> Response:
    if isinstance(command, Refusal):
        return call.refused(command)
    request = call.request
    if payment_id is not None:
        call.payment_id = payment_id
    answer, replayed = await parts.front.ask(
        Ask(
            request.request_id,
            command,
            payment_id,
            call.idempotency_key,
            fingerprint(request.method, request.path, call.body),
            request.path,
        )
    )
    return call.answered(answer, replayed=replayed)
