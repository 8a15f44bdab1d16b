"""The API on a small world: the real payment machine and the in-memory ledger, no actors.

The front answers from the machine at once. What the gateway says is decided by the payment
method, as with the simulator.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import jsonschema
import msgspec

from engine.domain.change import Env, Step
from engine.domain.commands import Open
from engine.domain.entry import Answer, Batch, Claim, DeadLetter, Entry, KeyRef
from engine.domain.fees import FeeRule, FeeSchedule, fee_schedule
from engine.domain.ids import SLOTS, new_id, slot_of
from engine.domain.machine import command_payment, hear, not_found, open_payment
from engine.domain.news import (
    Approved,
    Card,
    Declined,
    Failed,
    GatewayTraits,
    News,
    Unknown,
)
from engine.domain.operation import Operation
from engine.domain.payment import Payment
from engine.domain.recording import record
from engine.domain.refusals import Refusal
from engine.domain.representation import refusal_answer
from engine.http import documents
from engine.http.api import UNMATCHED, Api
from engine.http.calls import Parts
from engine.http.cursors import CursorSeal
from engine.http.exchange import Request, Response
from engine.http.keys import ApiKey, key_digest
from engine.http.openapi import openapi_document
from engine.http.views import PartHealth
from engine.ledger.memory import MemoryLedger
from engine.ports import Ask, LedgerUnavailable

START_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
ALICE, BOB, OPERATOR, LIVE = "sk_test_alice", "sk_test_bob", "sk_test_operator", "sk_live_alice"
KEYS = {
    key_digest(ALICE): ApiKey("m_alice", False, frozenset({"merchant"})),
    key_digest(LIVE): ApiKey("m_alice", True, frozenset({"merchant"})),
    key_digest(BOB): ApiKey("m_bob", False, frozenset({"merchant"})),
    key_digest(OPERATOR): ApiKey("m_platform", False, frozenset({"merchant", "operator"})),
}
METHODS = frozenset(
    {"pm_card_visa", "pm_card_declined", "pm_card_unreachable", "pm_card_timeout_after_charge"}
)
TRAITS = GatewayTraits("simulator", 6_000, 4_000, True, 256, 7 * 86_400_000, 86_400_000)
AUTHORIZE = {"amount": 1099, "currency": "usd", "payment_method": "pm_card_visa"}

PAGE_HEADERS = [name for name, _ in documents.PAGE_HEADERS]


class World:
    """Clock, ids, front, reader and telemetry in one, and the API on top of them."""

    def __init__(self, **replaced: Any) -> None:
        self.now = START_MS
        self.count = 0
        self.ledger = MemoryLedger()
        self.lines: list[dict[str, Any]] = []
        self.payments: dict[str, Payment] = {}
        self.answers: dict[KeyRef, tuple[bytes, Answer]] = {}
        self.asked: list[Ask] = []
        self.hooks: list[tuple[str, Mapping[str, str], bytes]] = []
        self.reasons: list[str] = []
        self.retried: list[str] = []
        schedule = fee_schedule([FeeRule(valid_from=date(2020, 1, 1), basis_points=290)])
        assert isinstance(schedule, FeeSchedule)
        self.fees = schedule
        parts = Parts(
            front=self,
            reader=self.ledger,
            clock=self,
            ids=self,
            telemetry=self,
            keys=KEYS,
            gateways={"simulator": METHODS.__contains__},
            default_gateway="simulator",
            cursors=CursorSeal(b"a secret of some length"),
            readiness=lambda: self.reasons,
            health=lambda: [PartHealth("ledger", "ok"), PartHealth("gateway", "degraded", "slow")],
            statistics=lambda: {"router": TRAITS},
            metrics=lambda: ("text/plain; version=1.0.0; charset=utf-8", b"# none\n"),
            verification=lambda: None,
            retry_dead_letter=self.retry_dead_letter,
            complete_authentication=self.complete_authentication,
            version="9.9.9",
        )
        self.api = Api(msgspec.structs.replace(parts, **replaced))
        self.document = openapi_document(self.api.routes, version="9.9.9")

    async def start(self) -> "World":
        await self.ledger.take_over("test")
        return self

    # --- clock, ids, telemetry --------------------------------------------------------------

    def now_ms(self) -> int:
        return self.now

    def payment(self, slot_key: str | None) -> str:
        return self.new("pay")

    def new(self, prefix: str, payment_id: str | None = None) -> str:
        self.count += 1
        slot = self.count % SLOTS if payment_id is None else slot_of(payment_id)
        return new_id(f"{prefix}_", self.now, slot, self.count)

    def transfer(self) -> int:
        self.count += 1
        return self.count

    def jitter(self) -> float:
        return 0.5

    def log(self, event: str, **fields: Any) -> None:
        self.lines.append({"event": event, **fields})

    warn = error = log

    def http_request(self, **fields: Any) -> None:
        self.lines.append(fields)

    def payment_outcome(self, payment: Payment, op: int, outcome: str, took_ms: int) -> None:
        pass

    def gateway_call(self, gateway: str, action: str, outcome: str, took_s: float) -> None:
        pass

    def group_commit(self, entries: int, took_s: float) -> None:
        pass

    # --- the front --------------------------------------------------------------------------

    async def ask(self, ask: Ask) -> tuple[Answer, bool]:
        self.asked.append(ask)
        if self.ledger.faults.down:
            raise LedgerUnavailable("down")
        command = ask.command
        ref = KeyRef(command.merchant_id, command.livemode, ask.key or "")
        known = self.answers.get(ref)
        if known is not None:
            if known[0] == ask.fingerprint:
                return known[1], True
            refusal = Refusal("idempotency_key_reused", "Use a new key for a new request.")
            return self.refused(ask, refusal), False
        env = self.env()
        if isinstance(command, Open):
            payment_id = self.payment(None)
            step: Step | Refusal = open_payment(
                command, payment_id, ask.key or "", ask.request_id, ask.path, env
            )
        elif (payment := self.payments.get(ask.payment_id or "")) is None:
            return self.refused(ask, not_found(ask.payment_id or "")), False
        else:
            step = command_payment(payment, command, ask.key or "", ask.request_id, ask.path, env)
        if isinstance(step, Refusal):
            return self.refused(ask, step), False
        claim = Claim(ref, ask.fingerprint, self.now, step.payment.id)
        answer = await self.write(step, claim)
        op = step.payment.operations[-1]
        news = said(step.payment, op)
        heard = hear(self.payments[step.payment.id], op.n, news, "reply", self.env())
        if heard is not None:
            answer = await self.write(heard) or answer
        assert answer is not None
        if answer.final:
            self.answers[ref] = (ask.fingerprint, answer)
        return answer, False

    async def ask_many(self, asks: Sequence[Ask]) -> list[tuple[Answer, bool]]:
        return [await self.ask(ask) for ask in asks]

    def env(self) -> Env:
        self.now += 1
        return Env(self.now, self.transfer, self.new, self.jitter, TRAITS, self.fees)

    async def write(self, step: Step, claim: Claim | None = None) -> Answer | None:
        recorded = record(step, self.env(), claim)
        self.payments[recorded.payment.id] = recorded.payment
        await self.commit(recorded.entry)
        return next(iter(recorded.answers.values()), None)

    async def commit(self, entry: Entry) -> None:
        self.count += 1
        await self.ledger.commit(Batch(f"batch-{self.count}", self.now, (entry,)))

    def refused(self, ask: Ask, refusal: Refusal) -> Answer:
        return refusal_answer(refusal, request_id=ask.request_id, path=ask.path)

    async def webhook(
        self, gateway: str, headers: Mapping[str, str], raw: bytes, request_id: str
    ) -> Answer:
        self.hooks.append((gateway, headers, raw))
        if headers.get("signature") != "good":
            refusal = Refusal("webhook_signature_invalid", "The signature does not match.")
            return refusal_answer(refusal, request_id=request_id, path=f"/v1/webhooks/{gateway}")
        return Answer(200, b'{"received":true}', final=True)

    # --- the rest ---------------------------------------------------------------------------

    async def add_dead_letter(self) -> str:
        letter = DeadLetter(self.new("dl"), "webhook", "pay_x", "crashed twice", b"{}", self.now)
        await self.commit(Entry(dead_letter=letter))
        return letter.id

    async def retry_dead_letter(self, letter_id: str) -> bool:
        self.retried.append(letter_id)
        return any(letter_id == row[0] for row, _ in self.ledger.store.dead_letters.values())

    async def complete_authentication(self, reference: str, approve: bool) -> bool:
        return reference == "sim_1"

    # --- the client -------------------------------------------------------------------------

    async def send(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        key: str | None = ALICE,
        idempotency_key: str | None = "",
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        """Send a request; by default as Alice, and with a fresh idempotency key on a POST."""
        self.count += 1
        sent = {} if key is None else {"authorization": f"Bearer {key}"}
        if idempotency_key == "" and method == "POST":
            idempotency_key = f"key-{self.count}"
        if idempotency_key:
            sent["idempotency-key"] = idempotency_key
        raw = (
            body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
        )
        response = await self.api.handle(
            Request(
                method=method,
                path=path,
                query=query or {},
                headers={**sent, **(headers or {})},
                body=raw,
                peer="192.0.2.1",
                request_id=f"req_{self.count}",
                started_s=0.0,
            )
        )
        self.check_documented(method, response)
        return response

    def check_documented(self, method: str, response: Response) -> None:
        """Every answer has the status, type and shape that the OpenAPI document promises."""
        route = self.lines[-1]["route"]
        if route == UNMATCHED:
            return
        verb = "get" if method == "HEAD" else method.lower()
        documented = self.document["paths"][route][verb]["responses"][str(response.status)]
        media_type = response.content_type.partition(";")[0]
        schema = documented["content"][media_type]["schema"]
        for name, _ in response.headers:
            assert name in documented["headers"] or name in ("WWW-Authenticate", *PAGE_HEADERS)
        if media_type.endswith("json"):
            whole = {**schema, "components": self.document["components"]}
            jsonschema.Draft202012Validator(whole).validate(read(response))

    async def paid(self, *, key: str = ALICE, **changed: object) -> str:
        """The id of a new payment of 10.99 USD that is captured."""
        answer = await self.send("POST", "/v1/payments/purchase", {**AUTHORIZE, **changed}, key=key)
        assert answer.status == 201, answer.body
        return str(read(answer)["id"])


def said(payment: Payment, op: Operation) -> News:
    """What the gateway says to an operation."""
    method = payment.payment_method
    if op.n == 1 and method == "pm_card_declined":
        return Declined("do_not_honor", "try_another_card")
    if op.n == 1 and method == "pm_card_unreachable":
        return Failed("gateway_unreachable", sent=False)
    if op.n == 1 and method == "pm_card_timeout_after_charge":
        return Unknown("timeout")
    return Approved(
        op.amount,
        payment.currency,
        f"sim_{op.n}",
        card=Card("visa", "4242", 12, 2030),
    )


def read(response: Response) -> Any:
    """The JSON of an answer."""
    return msgspec.json.decode(response.body)


def header(response: Response, name: str) -> str | None:
    """The value of a header of an answer."""
    return next((value for found, value in response.headers if found == name), None)
