"""One request on its way through a handler, and what handlers may use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from engine.domain.cards import redact
from engine.domain.entry import Answer
from engine.domain.problems import CONTENT_TYPE
from engine.domain.refusals import Refusal
from engine.http.cursors import CursorSeal
from engine.http.exchange import JSON, Request, Response
from engine.http.keys import ApiKey
from engine.http.problems import refused
from engine.http.values import Gateways
from engine.http.views import PartHealth, encoded
from engine.ports import Clock, Front, Ids, LedgerReader, Telemetry

_ID_LENGTH = 28  # "pay_" and 24 characters
_REPLAYED = (("Idempotent-Replayed", "true"),)


class HttpTelemetry(Telemetry, Protocol):
    """Telemetry, as the HTTP layer needs it."""

    def http_request(
        self,
        *,
        method: str,
        route: str,
        status: int,
        code: str,
        merchant: str,
        request_id: str,
        payment: str,
        took_s: float,
        replayed: bool,
        trace_id: str | None,
        items: int = 0,
        items_failed: int = 0,
    ) -> None:
        """The canonical line, and the count, of one request. `code` is empty for a success.

        `items` are those of a batch, `items_failed` those answered 400 or above.
        """
        ...


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What the handlers use. The app passes it in; nothing here is global."""

    front: Front
    reader: LedgerReader
    clock: Clock
    ids: Ids
    telemetry: HttpTelemetry
    keys: Mapping[bytes, ApiKey]
    """By `keys.key_digest`."""
    gateways: Gateways
    default_gateway: str
    """The gateway of a payment that names none; a key of `gateways`."""
    cursors: CursorSeal
    readiness: Callable[[], Sequence[str]]
    """Why work is not taken; empty when it is."""
    health: Callable[[], Sequence[PartHealth]]
    statistics: Callable[[], Mapping[str, Any]]
    """Frozen Structs, or plain values, by the name of the part."""
    metrics: Callable[[], tuple[str, bytes]]
    """Content type and text of the Prometheus exposition."""
    verification: Callable[[], msgspec.Struct | None]
    """The result of the last verification of the ledger."""
    retry_dead_letter: Callable[[str], Awaitable[bool]]
    """Hand a dead letter to the engine again; False where there is none of this id."""
    complete_authentication: Callable[[str, bool], Awaitable[bool]] | None = None
    """Finish a simulated 3-D Secure step, by the gateway's reference, approved or not; None hides
    its two routes."""
    authentication_page: Callable[[str], str] = str
    """The page on which a customer does that, as HTML."""
    authentication_done: str = ""
    """The page a customer sees afterwards, as HTML."""
    version: str = "0"


class Call:
    """A request with what was found out about it. Made for one request, then thrown away."""

    __slots__ = (
        "body",
        "code",
        "documents",
        "idempotency_key",
        "items",
        "items_failed",
        "key",
        "payment_id",
        "query",
        "replayed",
        "request",
        "segment",
    )

    def __init__(self, request: Request, segment: str, documents: Documents) -> None:
        self.request = request
        self.documents = documents
        self.segment = segment
        """What stands in the variable part of the path; empty where there is none."""
        self.key: ApiKey = NOBODY
        self.idempotency_key: str | None = None
        self.body: Any = None
        """The decoded body, of the Struct that the route names."""
        self.query: Mapping[str, Any] = {}
        self.code = ""
        """For the log: the code of the problem that is answered, or nothing."""
        self.payment_id = ""
        """For the log."""
        self.replayed = False
        self.items = 0
        """For the log: how many items a batch had; and how many of them were refused or failed."""
        self.items_failed = 0

    def refused(self, refusal: Refusal) -> Response:
        """The problem document of a refusal."""
        self.code = refusal.code
        request = self.request
        return refused(refusal, instance=self.instance, request_id=request.request_id)

    @property
    def instance(self) -> str:
        """The path as error documents repeat it: cleaned, since anything may stand in it."""
        return redact(self.request.path)

    def answered(self, answer: Answer, *, replayed: bool = False) -> Response:
        """An answer of the actors, as it is."""
        self.code = answer.code
        body = answer.body
        if not self.payment_id and (at := body.find(b'"pay_')) >= 0:
            self.payment_id = body[at + 1 : at + 1 + _ID_LENGTH].decode("ascii", "replace")
        headers: tuple[tuple[str, str], ...] = ()
        if replayed:
            self.replayed = True
            headers = _REPLAYED
        if answer.location is not None:
            headers = (*headers, ("Location", answer.location))
        if answer.retry_after_s is not None:
            headers = (*headers, ("Retry-After", str(answer.retry_after_s)))
        status = answer.status
        if status == 401:
            headers = (*headers, ("WWW-Authenticate", "Webhook-Signature"))
        return Response(status, body, JSON if status < 400 else CONTENT_TYPE, headers)


class Documents(msgspec.Struct, frozen=True):
    """The OpenAPI document and its page in bytes, made once at the start."""

    openapi: bytes
    page: bytes


NOBODY = ApiKey("", False, frozenset())
"""Stands in for the key on routes that need none: it owns nothing."""

Handler = Callable[[Parts, Call], Awaitable[Response]]


def ok(view: msgspec.Struct, status: int = 200) -> Response:
    """A view as an answer."""
    return Response(status, encoded(view))
