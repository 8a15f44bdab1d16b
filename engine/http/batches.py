"""Batches: up to 1,000 operations in one request, each with a key and an answer of its own.

An item is the single request it stands for, without the HTTP around it: the same method, path and
body, so the same fingerprint, and one key means the same thing either way. The batch itself fails
only where its envelope is wrong; what is wrong with an item is that item's result.

A body is decoded once, its items go to the actors together, and the answer is put together from
the stored bytes of theirs: nothing of it is encoded again.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Final

import msgspec

from engine.domain.entry import Answer
from engine.domain.refusals import Refusal
from engine.domain.representation import refusal_answer
from engine.http.bodies import decode_each
from engine.http.calls import Call, Parts
from engine.http.commands import change_command, open_command
from engine.http.exchange import Response
from engine.http.idempotency import fingerprint, read_key
from engine.http.keys import ApiKey
from engine.http.requests import (
    AnyItem,
    AuthorizeItem,
    BatchItem,
    CancelItem,
    CancelPayment,
    CaptureItem,
    CapturePayment,
    OpenPayment,
    PaymentBatch,
    PurchaseItem,
    RawBatch,
    RefundItem,
    RefundPayment,
)
from engine.http.values import may_be_private
from engine.ports import Ask

PATH: Final = "/v1/payments/batch"

_FIELD: Final = "idempotency_key"

_whole: Final = msgspec.json.Decoder(PaymentBatch)
_parts: Final = msgspec.json.Decoder(RawBatch)
_part: Final = msgspec.json.Decoder[BatchItem](BatchItem)
_any_item: Final = msgspec.json.Decoder(AnyItem)
_encode: Final = msgspec.json.Encoder().encode

_KEY_MISSING: Final = Refusal(
    "idempotency_key_missing",
    "Give each item an `idempotency_key`: it makes the item safe to send again.",
    _FIELD,
)


class _Plain:
    """Makes the body of a single request of an item: the same fields, without the item's own."""

    __slots__ = ("_names", "_struct", "_values", "is_purchase", "name")

    def __init__(self, name: str, struct: type[msgspec.Struct]) -> None:
        self.name = name
        self.is_purchase = name == "purchase"
        self._struct = struct
        self._names = struct.__struct_fields__
        # A tuple also where there is only one name.
        self._values = attrgetter(*self._names, "__class__")

    def of(self, item: BatchItem) -> Any:
        """The body that the single request would have had."""
        return self._struct(**dict(zip(self._names, self._values(item), strict=False)))


_OPEN: Final[dict[type, _Plain]] = {
    AuthorizeItem: _Plain("authorize", OpenPayment),
    PurchaseItem: _Plain("purchase", OpenPayment),
}
_CHANGE: Final[dict[type, _Plain]] = {
    CaptureItem: _Plain("capture", CapturePayment),
    CancelItem: _Plain("cancel", CancelPayment),
    RefundItem: _Plain("refund", RefundPayment),
}


class Item(msgspec.Struct, frozen=True, gc=False):
    """One item as it was read: its key where it has one, and what to ask, or why not."""

    key: str | None
    asked: Ask | Answer


def read_batch(body: bytes) -> list[BatchItem | Refusal] | Refusal:
    """The items of a body, each decoded or refused; or why the body as a whole is refused."""
    return decode_each(body, _whole, _parts, _part)


async def batch(parts: Parts, call: Call) -> Response:
    """Answer every item, in order."""
    body = call.request.body
    found = read_batch(body)
    if isinstance(found, Refusal):
        return call.refused(found)
    texts: list[msgspec.Raw] = []
    if any(isinstance(item, Refusal) for item in found):
        texts = _parts.decode(body).items
    suspect = may_be_private(body)
    request_id = call.request.request_id
    items: list[Item] = []
    for number, item in enumerate(found, 1):
        item_id = f"{request_id}.{number}"
        if isinstance(item, Refusal):
            items.append(_malformed(item, texts[number - 1], item_id))
        else:
            items.append(read_item(parts, call.key, item, item_id, suspect=suspect))
    asks = [item.asked for item in items if isinstance(item.asked, Ask)]
    answers = iter(await parts.front.ask_many(asks) if asks else ())
    results = []
    failed = 0
    for read in items:
        asked = read.asked
        answer, replayed = next(answers) if isinstance(asked, Ask) else (asked, False)
        failed += answer.status >= 400
        results.append(result_bytes(read.key, answer, replayed=replayed))
    call.items, call.items_failed = len(items), failed
    return Response(200, b'{"object":"batch","data":[%b]}' % b",".join(results))


def read_item(
    parts: Parts, owner: ApiKey, item: BatchItem, request_id: str, *, suspect: bool
) -> Item:
    """What an item asks of the actors, or its answer where it need not be asked.

    `suspect` says that a card number may stand somewhere in the batch.
    """
    plain = _OPEN.get(type(item)) or _CHANGE[type(item)]
    if isinstance(item, AuthorizeItem | PurchaseItem):
        payment_id = None
        path = f"/v1/payments/{plain.name}"
    else:
        payment_id = item.payment
        path = f"/v1/payments/{payment_id}/{plain.name}"
    key = read_key(item.idempotency_key)
    if isinstance(key, Refusal):
        return Item(None, _refused(_of_item(key), request_id, path))
    body = plain.of(item)
    command = (
        open_command(parts, owner, body, purchase=plain.is_purchase, suspect=suspect)
        if payment_id is None
        else change_command(parts, owner, body, payment_id, suspect=suspect)
    )
    if isinstance(command, Refusal):
        return Item(key, _refused(command, request_id, path))
    print_ = fingerprint("POST", path, body)
    return Item(key, Ask(request_id, command, payment_id, key, print_, path))


def _malformed(refusal: Refusal, text: msgspec.Raw, request_id: str) -> Item:
    """An item that cannot be decoded: its key is judged first, as with a single request."""
    try:
        given = _any_item.decode(bytes(text)).idempotency_key
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        given = None
    key = read_key(given) if isinstance(given, str) else None
    if isinstance(key, Refusal):
        return Item(None, _refused(_of_item(key), request_id, PATH))
    if refusal.code == "field_missing" and refusal.param == _FIELD:
        refusal = _KEY_MISSING
    return Item(key, _refused(refusal, request_id, PATH))


def _of_item(refusal: Refusal) -> Refusal:
    """What is wrong with a key, said of the item's field instead of the header."""
    detail = refusal.detail.replace("Idempotency-Key", f"`{_FIELD}`")
    return Refusal(refusal.code, detail, _FIELD)


def _refused(refusal: Refusal, request_id: str, path: str) -> Answer:
    return refusal_answer(refusal, request_id=request_id, path=path)


def result_bytes(key: str | None, answer: Answer, *, replayed: bool) -> bytes:
    """The result of one item, as `views.BatchResult` describes it, around the answer's bytes."""
    more = b',"replayed":true' if replayed else b""
    if answer.location is not None:
        more += b',"location":' + _encode(answer.location)
    if answer.retry_after_s is not None:
        more += b',"retry_after":%d' % answer.retry_after_s
    return b'{"idempotency_key":%b,"status":%d%b,"body":%b}' % (
        _encode(key),
        answer.status,
        more,
        answer.body,
    )
