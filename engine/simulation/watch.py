"""What is judged at the moment it happens: calls, commits and answers.

The first thing that is wrong ends the run, so that the trace ends where the trouble begins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from engine.domain.change import ACTIONS
from engine.domain.document import from_document
from engine.domain.entry import Batch
from engine.domain.ids import gateway_key, parse_op_id
from engine.domain.news import GatewayCall
from engine.domain.operation import Operation
from engine.domain.payment import COMMANDS, Payment
from engine.http.exchange import Response

if TYPE_CHECKING:
    from engine.simulation.clients import Promise
    from engine.simulation.world import World

RULES: Final[dict[str, str]] = {
    "I1 books balance": "totals are the fold of the transfers, and every book balances",
    "I2 journal": "batches have no gap or repeat, and the chain holds",
    "I3 gateway": "the gateway did what succeeded here, once, and nothing else",
    "I4 bounds": "what is asked for stays within what was authorised and captured",
    "I5 durable answers": "an answer is durable before it is given; a refusal has no effect",
    "I6 idempotency": "a key runs once and answers the same; another body is refused",
    "I7 events": "every change has its event, numbered without gap",
    "I8 nothing left over": "when faults stop, everything is resolved or in the work queue",
    "I10 no secrets": "no card number and no NUL anywhere",
    "I11 healthy": "the engine ends idle and ready, with all credits back",
    "intent first": "nothing is asked of a gateway that is not durable here",
    "one key": "an operation has one key at its gateway, whatever the attempt",
    "one trial": "a half-open breaker lets one call through at a time",
    "ledger refuses": "the engine writes nothing that the ledger has to refuse",
    "no errors of its own": "no actor fails except where the plan makes it fail",
    "reads own writes": "what was read or acknowledged once is never unread again",
    "refused with reason": "a refusal is true of the payment it shows",
    "answers in time": "every request is answered",
    "own payments only": "nobody sees or moves another merchant's payment",
}

_STORED_BY_STATUS: Final = frozenset({200, 201, 402, 502})
_STORED_BY_CODE: Final = frozenset(
    {
        "invalid_state_transition",
        "amount_exceeds_capturable",
        "amount_exceeds_refundable",
        "reference_taken",
    }
)


class RunEnded(BaseException):
    """The run has ended with a finding, and nothing sensible can follow here."""


class Violation(msgspec.Struct, frozen=True):
    """A rule that does not hold, and where."""

    rule: str
    what: str


class Watch:
    """Judges, and ends the run at the first thing that is wrong."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.violations: list[Violation] = []
        self.seen: dict[str, dict[str, Any]] = {}
        """The newest view of each payment that any client has been shown."""

    def fail(self, rule: str, what: str) -> None:
        """Note that a rule does not hold."""
        assert rule in RULES, rule
        self._world.trace.say("CHECK", "{}: {}", rule, what.replace("{", "(").replace("}", ")"))
        self.violations.append(Violation(rule, what))
        self._world.over.set()

    # --- calls and commits --------------------------------------------------------------------

    def called(self, call: GatewayCall) -> None:
        """A call leaves for the gateway, or a look-up."""
        if not self._is_there(call.op_id):
            self.fail("intent first", f"{call.action} {call.op_id} is sent and not durable")
            raise RunEnded
        payment, op = self.operation(call.op_id)
        if call.key != gateway_key(call.op_id):
            self.fail("one key", f"{call.action} {call.op_id} is sent under another key")
        if call.look_up:
            return
        # A void may be overtaken, while it waits for its turn, by the news that settles it; it then
        # finds nothing to release.
        was_overtaken = op.type == "cancel" and op.status == "succeeded"
        if op.deferred or not (op.is_open or was_overtaken):
            self.fail("intent first", f"{call.op_id} is sent although it is {op.status}")
        if op.type != "reversal" and ACTIONS[op.type] != call.action:
            self.fail("intent first", f"{call.op_id} is sent as {call.action}: it is {op.type}")
        if (call.amount, call.currency) != (op.amount or payment.amount, payment.currency):
            self.fail("intent first", f"{call.op_id} is sent over {call.amount} {call.currency}")

    def _is_there(self, op_id: str) -> bool:
        name = parse_op_id(op_id)
        if name is None or name[0] not in self._world.store.payments:
            return False
        return 1 <= name[1] <= len(self.payment(name[0]).operations)

    def operation(self, op_id: str) -> tuple[Payment, Operation]:
        """An operation as it is stored, and its payment."""
        name = parse_op_id(op_id)
        assert name is not None, op_id
        payment = self.payment(name[0])
        return payment, payment.operations[name[1] - 1]

    def payment(self, payment_id: str) -> Payment:
        """A payment as it is stored."""
        return from_document(self._world.store.payments[payment_id][22])

    def committed(self, batch: Batch) -> None:
        """A batch has been applied: a settled operation stays what it is."""
        note = self._world.note
        for entry in batch.entries:
            payment = entry.payment
            if payment is None:
                continue
            former = self._world.former.get(payment.id, ())
            for before, after in zip(former, payment.operations, strict=False):
                if before is after or before.status == after.status:
                    continue
                note(f"{after.type}: {before.status} to {after.status}")
                if before.status == "succeeded" and before.type != "refund":
                    self.fail(
                        "I3 gateway", f"{payment.id}.{after.n} was succeeded, is {after.status}"
                    )
            self._world.former[payment.id] = payment.operations
            if entry.claims_released:
                note("an abandoned operation released its key")
            if entry.dead_letter is not None:
                note(f"a dead letter: {entry.dead_letter.kind}")

    # --- answers ------------------------------------------------------------------------------

    def answered(self, promise: Promise, response: Response) -> None:
        """A client has an answer to something that moves money."""
        status = response.status
        shown = msgspec.json.decode(response.body)
        code = "" if status < 400 else shown["code"]
        self._world.note(f"answered {status} {code}".rstrip())
        promise.last = f"{status} {code}".rstrip()
        if status == 500:
            if not self._world.was_poisoned:
                self.fail("no errors of its own", f"{promise.key} was answered 500")
            return
        self._plausible(promise, status, code, shown)
        if status == 202 or (status >= 400 and shown["retryable"]):
            return
        if code == "idempotency_key_reused" and promise.is_reuse:
            promise.is_settled = True
            return
        self._final(promise, status, code, response.body)
        if status < 400:
            self.saw(shown if shown["object"] == "payment" else None)

    def _final(self, promise: Promise, status: int, code: str, body: bytes) -> None:
        """A final answer is stored, and is the only one that its key ever gets."""
        is_abandoned = status == 502 and b'"failure_code":"abandoned"' in body
        is_stored = status in _STORED_BY_STATUS or code in _STORED_BY_CODE
        former = promise.final
        if former is not None and (former[0] != status or (is_stored and former[1] != body)):
            self.fail("I6 idempotency", f"{promise.key} got two final answers")
        promise.final = (status, body)
        promise.is_settled = True
        if is_stored and not is_abandoned:
            row = self._world.store.claims.get((promise.merchant, False, promise.key))
            if row is None or row[7] is None:
                self.fail("I5 durable answers", f"{status} for {promise.key} is not durable")
            elif (row[7], row[8]) != (status, body):
                self.fail("I5 durable answers", f"{promise.key} is stored as another answer")

    def _plausible(self, promise: Promise, status: int, code: str, shown: dict[str, Any]) -> None:
        """Whether an answer can be true."""
        if promise.is_foreign and status != 404 and status < 500 and code not in (
            "idempotency_in_progress", "idempotency_key_reused",
        ):  # fmt: skip
            self.fail("own payments only", f"{promise.key} was answered {status} {code}")
        if promise.is_reuse and status in (200, 201):
            self.fail("I6 idempotency", f"{promise.key} ran with another body")
        if code == "idempotency_key_reused" and not promise.is_reuse:
            self.fail("I6 idempotency", f"{promise.key} is told that its key is another's")
        if code == "payment_not_found" and not promise.is_foreign:
            self.fail("reads own writes", f"{promise.path} is not found")
        if code == "reference_taken" and not promise.body.get("reference"):
            self.fail("refused with reason", f"{promise.key} has no reference to be taken")
        if code == "parameter_invalid":
            self.fail("refused with reason", f"{promise.key}: {shown['detail']}")
        if status < 400 and shown["object"] == "payment" and promise.what in OPENS:
            asked = (promise.body["amount"], promise.body["currency"])
            if (shown["amount"], shown["currency"].lower()) != asked:
                self.fail("I6 idempotency", f"{promise.key} is shown another payment")
        payment = shown.get("payment")
        if code in COMMAND_REFUSALS and isinstance(payment, dict) and not promise.is_reuse:
            self._refusal(promise, code, payment)

    def _refusal(self, promise: Promise, code: str, payment: dict[str, Any]) -> None:
        """A refusal shows the payment it is about: it must follow from what it shows."""
        if code == "invalid_state_transition":
            verdict = COMMANDS[payment["status"]][promise.what]  # type: ignore[index]  # a status
            if verdict != "no" and not payment["cancel_requested"]:
                self.fail("refused with reason", f"{promise.what} of {payment['status']}")
        amount = promise.body.get("amount")
        left = payment[
            "amount_refundable" if code == "amount_exceeds_refundable" else "amount_capturable"
        ]
        if code.startswith("amount_exceeds") and (left if amount is None else amount - left) < 0:
            self.fail("refused with reason", f"{promise.what} of {amount}, {left} are left")

    def saw(self, view: dict[str, Any] | None) -> None:
        """A client has been shown this state of a payment."""
        if view is None:
            return
        known = self.seen.get(view["id"])
        if known is None or older(known, view) is None:
            self.seen[view["id"]] = view

    def read(self, before: dict[str, Any] | None, view: dict[str, Any]) -> None:
        """A payment was read after `before` had been shown to somebody."""
        what = None if before is None else older(before, view)
        if what is not None:
            self.fail("reads own writes", f"{view['id']}: {what}")
        self.saw(view)


OPENS: Final = ("authorize", "purchase")
COMMAND_REFUSALS: Final = frozenset(
    {"invalid_state_transition", "amount_exceeds_capturable", "amount_exceeds_refundable"}
)


def older(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """What of a former view is missing in a later one; None where nothing is."""
    if len(after["operations"]) < len(before["operations"]):
        return f"it had {len(before['operations'])} operations, has {len(after['operations'])}"
    for was, now in zip(before["operations"], after["operations"], strict=False):
        settled = was["status"] in ("succeeded", "failed")
        may_turn = was["type"] == "refund" or was["status"] == "failed"
        if (was["id"], was["type"]) != (now["id"], now["type"]):
            return f"{was['id']} is {now['id']} now"
        if settled and was["status"] != now["status"] and not may_turn:
            return f"{was['id']} was {was['status']} and is {now['status']}"
    for name in ("amount_authorized", "amount_captured", "amount_released"):
        if after[name] < before[name]:
            return f"{name} was {before[name]} and is {after[name]}"
    return None
