"""A step in the making: one payment's change, gathered until it is whole.

`Change` is the only mutable thing in the core and lives no longer than one call of
`machine`. What comes out is a frozen `Step`: the new state and everything that must be
written and done because of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from engine.domain.entry import TimelineStep
from engine.domain.fees import FeeSchedule
from engine.domain.ids import gateway_key, op_id
from engine.domain.news import Action, GatewayCall, GatewayTraits
from engine.domain.operation import Operation
from engine.domain.payment import Payment
from engine.domain.posting import Books, Phase, Transfer, books_of, leg


class Env(msgspec.Struct, frozen=True, gc=False):
    """What a step may know of the world: time, fresh ids, chance, the gateway and the fees.

    `since_ms` is when whoever takes the step began to watch: from then on time has passed steadily.
    A clock may have been set before that, so nothing older is proof that time has passed.
    """

    now_ms: int
    new_transfer: Callable[[], int]
    new_id: Callable[[str], str]
    jitter: Callable[[], float]
    traits: GatewayTraits
    fees: FeeSchedule
    since_ms: int = 0


class Happened(msgspec.Struct, frozen=True, gc=False):
    """An event to publish: its type, the operation it is about (0: the payment), its number.

    Every object counts its own events from 1, so a reader of one object sees a gap.
    """

    type: str
    op: int
    sequence: int


class Step(msgspec.Struct, frozen=True, gc=False):
    """What one event did to a payment. `calls` are made after the commit of everything else."""

    before: Payment | None
    payment: Payment
    transfers: tuple[Transfer, ...]
    events: tuple[Happened, ...]
    calls: tuple[tuple[int, GatewayCall], ...]
    timeline: tuple[TimelineStep, ...]
    release_keys: tuple[str, ...]
    parked: str | None


ACTIONS: dict[str, Action] = {
    "authorize": "authorize",
    "purchase": "purchase",
    "capture": "capture",
    "cancel": "void",
    "refund": "refund",
}


class Change:
    """Gathers one step of one payment."""

    __slots__ = (
        "books",
        "calls",
        "env",
        "events",
        "fields",
        "ops",
        "parked",
        "payment",
        "release_keys",
        "sequence",
        "timeline",
        "transfers",
    )

    def __init__(self, payment: Payment, env: Env) -> None:
        self.payment = payment
        self.sequence = payment.sequence
        self.env = env
        self.ops = list(payment.operations)
        self.fields: dict[str, Any] = {}
        self.transfers: list[Transfer] = []
        self.events: list[Happened] = []
        self.calls: list[tuple[int, GatewayCall]] = []
        self.timeline: list[TimelineStep] = []
        self.release_keys: list[str] = []
        self.parked: str | None = None
        self.books: Books = books_of(
            payment.merchant_id, payment.gateway, payment.currency, payment.livemode
        )

    # --- state ------------------------------------------------------------------------------

    def state(self) -> Payment:
        """The payment with the changes so far."""
        return msgspec.structs.replace(self.payment, operations=tuple(self.ops), **self.fields)

    def op(self, n: int) -> Operation:
        """Operation `n` as it stands in this step."""
        return self.ops[n - 1]

    def set_op(self, n: int, **changes: Any) -> Operation:
        """Change fields of operation `n`."""
        changed = msgspec.structs.replace(self.ops[n - 1], **changes)
        self.ops[n - 1] = changed
        return changed

    def add_op(self, op: Operation) -> None:
        """Append an operation; it must carry the next number."""
        assert op.n == len(self.ops) + 1, op.n
        self.ops.append(op)

    def set(self, **fields: Any) -> None:
        """Change fields of the payment."""
        self.fields.update(fields)

    # --- what goes with it ------------------------------------------------------------------

    def post(
        self,
        kind: str,
        amount: int,
        op: int,
        phase: Phase = "posted",
        resolves: int = 0,
        link: int = 0,
    ) -> int:
        """Add a transfer; returns its id. A zero amount adds nothing and returns 0."""
        if amount == 0:
            return 0
        transfer_id = self.env.new_transfer()
        self.transfers.append(
            leg(
                self.books,
                kind,
                id=transfer_id,
                amount=amount,
                payment_id=self.payment.id,
                op=op,
                event_ms=self.env.now_ms,
                phase=phase,
                resolves=resolves,
                link=link,
            )
        )
        return transfer_id

    def start_refund(self, op: Operation) -> None:
        """Add a refund operation and reserve its money."""
        transfer = self.post("refund", op.amount, op.n, "pending")
        self.add_op(msgspec.structs.replace(op, transfer=transfer))
        self.set(refunding=self.fields.get("refunding", self.payment.refunding) + op.amount)
        self.happened("refund.created", op.n)

    def call(self, op: Operation, *, look_up: bool = False) -> None:
        """Ask the gateway (after the commit) to do `op`, or what became of it."""
        self.calls.append((op.n, gateway_call(self.payment, tuple(self.ops), op, look_up=look_up)))

    def happened(self, kind: str, op: int = 0) -> None:
        """Publish an event, about the payment or about a refund operation."""
        if op:
            number = self.op(op).events + 1
            self.set_op(op, events=number)
        else:
            number = self.sequence = self.sequence + 1
        self.events.append(Happened(kind, op, number))

    def note(self, step: str, op: str | None = None, **detail: str | int | bool | None) -> None:
        """Add a line to the timeline."""
        self.timeline.append(TimelineStep(self.env.now_ms, step, op, detail))

    def finish(self) -> Step:
        """The step, whole."""
        self.fields["version"] = self.payment.version + 1
        if self.transfers and self.timeline:
            # The hold of a new payment is told by its intent; all others are told here.
            last = self.timeline[-1]
            ids = ",".join([str(transfer.id) for transfer in self.transfers])
            self.timeline[-1] = msgspec.structs.replace(
                last, detail={**last.detail, "transfers": ids}
            )
        self.fields["sequence"] = self.sequence
        return Step(
            before=self.payment,
            payment=self.state(),
            transfers=tuple(self.transfers),
            events=tuple(self.events),
            calls=tuple(self.calls),
            timeline=tuple(self.timeline),
            release_keys=tuple(self.release_keys),
            parked=self.parked,
        )


def hold_of(payment: Payment, op: Operation, now_ms: int) -> Transfer:
    """The reserved money of an authorize or purchase, under the id its operation carries."""
    books = books_of(payment.merchant_id, payment.gateway, payment.currency, payment.livemode)
    return leg(
        books,
        "hold",
        id=op.transfer,
        amount=op.amount,
        payment_id=payment.id,
        op=op.n,
        event_ms=now_ms,
        phase="pending",
    )


def gateway_call(
    payment: Payment, ops: tuple[Operation, ...], op: Operation, *, look_up: bool = False
) -> GatewayCall:
    """The request to the gateway that carries `op` out, or asks what became of it.

    The key is derived from the operation and never from the attempt, so a resend is safe
    (DESIGN: reserve before you call).
    """
    origin = ops[0]
    operation_id = op_id(payment.id, op.n)
    acts_on_another = op.n > 1
    if op.type == "reversal":
        action: Action = "refund" if origin.type == "purchase" else "void"
    else:
        action = ACTIONS[op.type]
    return GatewayCall(
        gateway=payment.gateway,
        op_id=operation_id,
        key=gateway_key(operation_id),
        action=action,
        amount=op.amount or payment.amount,
        currency=payment.currency,
        payment_method=payment.payment_method,
        livemode=payment.livemode,
        look_up=look_up,
        final=op.final,
        target=origin.reference if acts_on_another else None,
        target_key=gateway_key(op_id(payment.id, 1)) if acts_on_another else None,
        reference=op.reference,
        request_id=op.request_id,
    )
