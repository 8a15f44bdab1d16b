"""Payments and refunds as they are read, listed and told."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from engine.domain.entry import TimelineStep
from engine.domain.ids import encode_int_id, is_id
from engine.domain.payment import Payment
from engine.domain.refusals import Refusal
from engine.domain.representation import payment_bytes, rfc3339
from engine.http.calls import Call, Parts, ok
from engine.http.commands import PAYMENT, payment_not_found
from engine.http.exchange import Response
from engine.http.pages import page, position_of
from engine.http.views import TRANSFER, TimelineEntry, TimelineView, transfer_view
from engine.ports import PaymentFilter, TimelineRow, TransferRow

REFUND = "re_"

_steps = msgspec.json.Decoder(list[TimelineStep])

# Which facts of a step are the ids of transfers. They go out as every id does.
_TRANSFER_FACTS = ("hold", "transfer", "transfers")


async def _payment(parts: Parts, call: Call) -> Payment | None:
    """The payment of the path, if it is there and the key's own."""
    payment_id = call.segment
    if not is_id(PAYMENT, payment_id):
        return None
    call.payment_id = payment_id
    payment = (await parts.reader.payments((payment_id,))).get(payment_id)
    key = call.key
    if (
        payment is None
        or payment.merchant_id != key.merchant_id
        or payment.livemode != key.livemode
    ):
        return None
    return payment


async def get_payment(parts: Parts, call: Call) -> Response:
    """One payment."""
    payment = await _payment(parts, call)
    if payment is None:
        return call.refused(payment_not_found())
    return Response(200, payment_bytes(payment))


async def list_payments(parts: Parts, call: Call) -> Response:
    """Payments, newest first."""
    query, key = call.query, call.key
    before = position_of(parts, call)
    if isinstance(before, Refusal):
        return call.refused(before)
    rows = await parts.reader.list_payments(
        PaymentFilter(
            merchant_id=key.merchant_id,
            livemode=key.livemode,
            status=query["status"],
            customer=query["customer"],
            subscription=query["subscription"],
            reference=query["reference"],
            created_gte_ms=query["created[gte]"],
            created_lte_ms=query["created[lte]"],
            before=before,
            limit=query["limit"],
        )
    )
    return page(parts, call, [(payment.id, payment_bytes(payment)) for payment in rows])


async def get_refund(parts: Parts, call: Call) -> Response:
    """One refund."""
    key = call.key
    if is_id(REFUND, call.segment):
        body = await parts.reader.refund(key.merchant_id, key.livemode, call.segment)
        if body is not None:
            return Response(200, body)
    return call.refused(Refusal("refund_not_found", "No such refund was found for this key."))


async def list_refunds(parts: Parts, call: Call) -> Response:
    """Refunds, newest first."""
    query, key = call.query, call.key
    before = position_of(parts, call)
    if isinstance(before, Refusal):
        return call.refused(before)
    rows = await parts.reader.list_refunds(
        key.merchant_id,
        key.livemode,
        payment_id=query["payment"],
        status=query["status"],
        before=before,
        limit=query["limit"],
    )
    return page(parts, call, rows)


async def timeline(parts: Parts, call: Call) -> Response:
    """Every step of a payment, with the transfers that were made."""
    payment = await _payment(parts, call)
    if payment is None:
        return call.refused(payment_not_found())
    rows = await parts.reader.timeline(payment.id)
    decoded = [(row, _steps.decode(row.steps)) for row in rows]
    wanted = _transfer_ids(payment, [step for _, steps in decoded for step in steps])
    transfers = await parts.reader.payment_transfers(payment.id, wanted)
    return ok(TimelineView("timeline", payment.id, _merged(payment.id, decoded, transfers)))


def _transfer_ids(payment: Payment, steps: Sequence[TimelineStep]) -> list[int]:
    """Every transfer that the payment or a step of it names, in order."""
    ids = {payment.hold, *(op.transfer for op in payment.operations)}
    for step in steps:
        for fact in _TRANSFER_FACTS:
            ids.update(_ids_in(step.detail.get(fact)))
    ids.discard(0)
    return sorted(ids)


def _ids_in(value: str | int | bool | None) -> list[int]:
    """The transfer ids of a fact: one integer, or several with commas between."""
    if isinstance(value, str):
        return [int(part) for part in value.split(",") if part.isdecimal()]
    return [] if value is None or isinstance(value, bool) else [value]


def _merged(
    payment_id: str,
    rows: Sequence[tuple[TimelineRow, list[TimelineStep]]],
    transfers: Sequence[TransferRow],
) -> list[TimelineEntry]:
    """Steps and transfers in the order in which they happened.

    Within one commit an answer comes last, since it was given because of everything else. The
    sort is stable: what happened in the same millisecond stays in the order it was written in.
    """
    by_batch: dict[int, list[TransferRow]] = {}
    for transfer in transfers:
        by_batch.setdefault(transfer.batch, []).append(transfer)
    entries: list[tuple[int, TimelineEntry]] = []
    for row, steps in rows:
        answers = [step for step in steps if step.step == "answered"]
        entries += [_step_entry(row, step) for step in steps if step.step != "answered"]
        # A later commit of the same batch has steps of its own, but the transfers came once.
        entries += [_transfer_entry(transfer) for transfer in by_batch.pop(row.batch, ())]
        entries += [_step_entry(row, step) for step in answers]
    for left in by_batch.values():
        entries += [_transfer_entry(transfer) for transfer in left]
    entries.sort(key=lambda entry: entry[0])
    return [entry for _, entry in entries]


def _step_entry(row: TimelineRow, step: TimelineStep) -> tuple[int, TimelineEntry]:
    detail = dict(step.detail)
    for fact in _TRANSFER_FACTS:
        if fact in detail:
            ids = _ids_in(detail[fact])
            detail[fact] = ",".join(encode_int_id(TRANSFER, one) for one in ids) or None
    return step.at_ms, TimelineEntry(
        at=rfc3339(step.at_ms),
        step=step.step,
        recorded=rfc3339(row.recorded_ms),
        batch=row.batch,
        operation=step.op,
        detail=detail,
    )


def _transfer_entry(transfer: TransferRow) -> tuple[int, TimelineEntry]:
    view = transfer_view(transfer)
    return transfer.event_ms, TimelineEntry(
        at=view.occurred,
        step="transfer",
        recorded=view.created,
        batch=transfer.batch,
        operation=view.operation,
        transfer=view,
    )
