"""The payment machine: what commands, news and timers do to a payment.

Every road into a payment ends in one of the four functions here, each pure: state and event in, a
`Step` (or a `Refusal`, or None where nothing changes) out. What the answer of a gateway does is in
`outcomes`; the table it follows is `operation.TRANSITIONS`.

The order of effects is the shell's promise: a step's writes are durable before its calls are made,
and before anybody is answered.
"""

from __future__ import annotations

import msgspec

from engine.domain.change import Change, Env, Step, gateway_call, hold_of
from engine.domain.commands import Cancel, Capture, Command, Open, Refund
from engine.domain.entry import TimelineStep
from engine.domain.ids import op_id
from engine.domain.news import (
    Disputed,
    News,
    RefundedElsewhere,
    ReversedByGateway,
)
from engine.domain.operation import Operation
from engine.domain.outcomes import hear_of_operation, hear_of_payment
from engine.domain.payment import COMMANDS, Payment
from engine.domain.refusals import Refusal
from engine.domain.retry import may_resend, review_due_ms


def open_payment(
    command: Open, payment_id: str, key: str, request_id: str, path: str, env: Env
) -> Step:
    """A new payment: the intent and the reserved money, before a byte goes to the gateway."""
    op = Operation(
        n=1,
        type="purchase" if command.purchase else "authorize",
        amount=command.amount,
        created_ms=env.now_ms,
        sent_ms=env.now_ms,
        key=key,
        request_id=request_id,
        path=path,
        transfer=env.new_transfer(),
    )
    payment = Payment(
        id=payment_id,
        merchant_id=command.merchant_id,
        livemode=command.livemode,
        created_ms=env.now_ms,
        amount=command.amount,
        currency=command.currency,
        gateway=command.gateway,
        payment_method=command.payment_method,
        operations=(op,),
        hold=op.transfer,
        customer=command.customer,
        subscription=command.subscription,
        reference=command.reference,
        description=command.description,
        statement_descriptor=command.statement_descriptor,
        return_url=command.return_url,
        metadata=command.metadata,
    )
    # Nothing is there to change yet, so the step is made at once: this is the hottest path.
    operation_id = op_id(payment_id, 1)
    now_ms = env.now_ms
    return Step(
        before=None,
        payment=payment,
        transfers=(hold_of(payment, op, now_ms),),
        events=(),
        calls=((1, gateway_call(payment, payment.operations, op)),),
        timeline=(
            TimelineStep(
                now_ms, "requested", operation_id, {"request_id": request_id, "path": path}
            ),
            TimelineStep(
                now_ms,
                "intent",
                operation_id,
                {"type": op.type, "amount": op.amount, "hold": op.transfer},
            ),
        ),
        release_keys=(),
        parked=None,
    )


def command_payment(
    payment: Payment, command: Command, key: str, request_id: str, path: str, env: Env
) -> Step | Refusal:
    """A merchant's command on an existing payment."""
    if payment.merchant_id != command.merchant_id or payment.livemode != command.livemode:
        return not_found(payment.id)
    asked = Operation(
        n=len(payment.operations) + 1,
        type="capture",
        amount=0,
        created_ms=env.now_ms,
        sent_ms=env.now_ms,
        key=key,
        request_id=request_id,
        path=path,
    )
    if isinstance(command, Capture):
        return _capture(payment, command, asked, env)
    if isinstance(command, Refund):
        return _refund(payment, command, asked, env)
    assert isinstance(command, Cancel), command
    return _cancel(payment, command, asked, env)


def not_found(payment_id: str) -> Refusal:
    """The same words whether it is not there or somebody else's."""
    return Refusal("payment_not_found", f"No payment {payment_id} was found for this key.")


def _judge(payment: Payment, command: str) -> Refusal | None:
    """What the status alone says to a command (`payment.COMMANDS`)."""
    verdict = COMMANDS[payment.status][command]  # type: ignore[index]  # the three literals
    if verdict == "yes":
        return None
    if verdict == "unresolved" or (
        command == "refund"
        and any(op.type == "capture" and op.is_open for op in payment.operations)
    ):
        return Refusal(
            "operation_unresolved",
            f"The payment is {payment.status}: it can be {_DONE[command]} once the outcome of its "
            "open operation is known. Try again shortly.",
            retry_after_s=1,
        )
    return Refusal(
        "invalid_state_transition",
        f"A payment that is {payment.status} cannot be {_DONE[command]}.",
    )


_DONE = {"capture": "captured", "cancel": "canceled", "refund": "refunded"}


def _nothing_left(payment: Payment, verb: str) -> Refusal:
    """Nothing is capturable because what is in flight has reserved it all."""
    return Refusal(
        "operation_unresolved",
        f"Another capture or cancel of this payment is under way; it cannot be {verb} before "
        "that is settled. Try again shortly.",
        retry_after_s=1,
    )


def _capture(payment: Payment, command: Capture, asked: Operation, env: Env) -> Step | Refusal:
    refused = _judge(payment, "capture")
    if refused is not None:
        return refused
    if payment.cancel_requested:
        return Refusal("invalid_state_transition", "The payment is being canceled.")
    if payment.capturable == 0:
        return _nothing_left(payment, "captured")
    if not command.final and not env.traits.multiple_capture:
        return Refusal(
            "multiple_capture_unsupported",
            f"The gateway {payment.gateway} captures an authorisation once; leave out `final`.",
            param="final",
        )
    amount = payment.capturable if command.amount is None else command.amount
    if amount > payment.capturable:
        return Refusal(
            "amount_exceeds_capturable",
            f"At most {payment.capturable} can be captured.",
            param="amount",
        )
    op = _with(
        asked,
        amount=amount,
        final=command.final,
        release=payment.capturable - amount if command.final else 0,
    )
    change = Change(payment, env)
    change.add_op(op)
    change.set(capturing=payment.capturing + op.amount, releasing=payment.releasing + op.release)
    return _asked(change, payment, op)


def _cancel(payment: Payment, command: Cancel, asked: Operation, env: Env) -> Step | Refusal:
    refused = _judge(payment, "cancel")
    if refused is not None:
        return refused
    op = _with(asked, type="cancel", reason=command.reason)
    change = Change(payment, env)
    if payment.origin.is_open:
        if any(o.type == "cancel" and o.is_unfinished for o in payment.operations):
            return _nothing_left(payment, "canceled again")
        # What the gateway has told us of can be voided now; what is unknown, when it is known.
        deferred = payment.origin.status in ("processing", "unknown")
        op = _with(op, deferred=deferred)
        change.add_op(op)
        change.set(cancel_requested=True)
        return _asked(change, payment, op, call=not deferred)
    if payment.capturable == 0 or any(
        o.type == "capture" and o.is_open for o in payment.operations
    ):
        return _nothing_left(payment, "canceled")
    op = _with(op, amount=payment.capturable)
    change.add_op(op)
    change.set(releasing=payment.releasing + op.amount, cancel_requested=True)
    return _asked(change, payment, op)


def _refund(payment: Payment, command: Refund, asked: Operation, env: Env) -> Step | Refusal:
    refused = _judge(payment, "refund")
    if refused is not None:
        return refused
    amount = payment.refundable if command.amount is None else command.amount
    if amount > payment.refundable or amount == 0:
        return Refusal(
            "amount_exceeds_refundable",
            f"At most {payment.refundable} can be refunded.",
            param="amount",
        )
    op = _with(
        asked,
        type="refund",
        amount=amount,
        refund_id=command.refund_id,
        reason=command.reason,
        metadata=command.metadata,
    )
    change = Change(payment, env)
    change.start_refund(op)
    return _asked(change, payment, change.op(op.n))


def _with(op: Operation, **fields: object) -> Operation:
    return msgspec.structs.replace(op, **fields)


def _asked(change: Change, payment: Payment, op: Operation, *, call: bool = True) -> Step:
    """The end of every accepted command: note it, and have the gateway called."""
    change.note("requested", op_id(payment.id, op.n), request_id=op.request_id, path=op.path)
    change.note("intent", op_id(payment.id, op.n), type=op.type, amount=op.amount)
    if call:
        change.call(op)
    return change.finish()


def hear(payment: Payment, n: int, news: News, via: str, env: Env) -> Step | None:
    """News of a gateway, by whichever road. None: it changes nothing."""
    if isinstance(news, Disputed | ReversedByGateway | RefundedElsewhere):
        return hear_of_payment(payment, news, via, env)
    if not 1 <= n <= len(payment.operations):
        return None
    return hear_of_operation(payment, payment.operations[n - 1], news, via, env)


def expire(payment: Payment, env: Env) -> Step | None:
    """The authorisation has lapsed: what is left of the hold is released.

    While a capture or cancel is unresolved the hold may still be used, so it waits for that.
    """
    if payment.expires_ms is None or payment.expires_ms > env.now_ms or payment.capturable <= 0:
        return None
    change = Change(payment, env)
    if any(op.is_open and op.type in ("capture", "cancel") for op in payment.operations):
        change.set(expires_ms=env.now_ms + EXPIRY_POSTPONED_MS)
        return change.finish()
    amount = payment.capturable
    change.post("hold", amount, 1, "expire_pending", resolves=payment.hold)
    change.set(
        released=payment.released + amount,
        expires_ms=None,
        released_by="expired" if payment.captured == 0 else payment.released_by,
    )
    change.note("expired", amount=amount)
    change.happened("payment.expired" if payment.captured == 0 else "payment.captured")
    return change.finish()


EXPIRY_POSTPONED_MS = 60_000


def retry(payment: Payment, env: Env) -> Step | None:
    """What the engine owes, and that failed, is due again: with the same key.

    Where that one is too old by now, since the engine was down, it is looked up once more instead.
    """
    due = [op for op in payment.operations if op.retry_ms is not None and op.retry_ms <= env.now_ms]
    if not due:
        return None
    change = Change(payment, env)
    for op in due:
        again = change.set_op(op.n, attempts=op.attempts + 1)
        change.note("retried", op_id(payment.id, op.n), attempt=again.attempts)
        _try_again(change, again)
    return change.finish()


def _try_again(change: Change, op: Operation) -> None:
    """Send it again, or look it up, where its key might be taken for a new one."""
    now_ms = change.env.now_ms
    op = change.set_op(op.n, status="processing", retry_ms=None, sent_ms=now_ms, checks=0)
    if may_resend(op.created_ms, now_ms, change.env.traits):
        change.call(op)
    else:
        change.set_op(op.n, status="unknown", next_check_ms=now_ms)


def revive(payment: Payment, env: Env) -> Step | None:
    """A person has what the engine owes and failed to do tried again, from the first attempt.

    What was given up has to be there still: a refund that the merchant has made in its place, say,
    is not made twice. What is too old to be sent again under its key is only looked up.
    """
    failed = [
        op
        for op in payment.operations
        if op.owed and not op.is_open and op.status != "succeeded" and not op.returned
    ]
    change = Change(payment, env)
    revived = 0
    for op in failed:
        if op.retry_ms is None and not _reserve_again(change, payment, op):
            continue
        change.note("revived", op_id(payment.id, op.n))
        _try_again(change, change.set_op(op.n, attempts=1))
        revived += 1
    if revived == 0:
        return None
    # What else there is to decide stays flagged.
    excess = payment.excess_captured + payment.excess_refunded
    open_questions = excess > 0 or payment.told != () or revived < len(failed)
    change.set(needs_review=open_questions or any(op.needs_review for op in payment.operations))
    return change.finish()


def _reserve_again(change: Change, payment: Payment, op: Operation) -> bool:
    """Reserve what an operation had given back when it was given up. False: it is not there."""
    if op.type == "refund":
        if op.amount > payment.refundable:
            return False
        transfer = change.post("refund", op.amount, op.n, "pending")
        change.set_op(op.n, transfer=transfer)
        change.set(refunding=payment.refunding + op.amount)
    elif op.type == "cancel":
        others = [o for o in payment.operations if o.type in ("capture", "cancel")]
        if any(o.is_unfinished for o in others):
            return False
        if not payment.origin.is_open and payment.capturable == 0:
            return False
        change.set_op(op.n, amount=payment.capturable)
        change.set(releasing=payment.releasing + payment.capturable, cancel_requested=True)
    return True


def look_ups_due(payment: Payment, env: Env) -> list[Operation]:
    """The operations whose outcome is to be looked up now."""
    return [
        op
        for op in payment.operations
        if op.is_open and op.next_check_ms is not None and op.next_check_ms <= env.now_ms
    ]


def recovered(payment: Payment) -> list[Operation]:
    """What a crash left in the air: asked, durably, and no answer recorded."""
    return [op for op in payment.operations if op.status == "processing" and not op.deferred]


def review(payment: Payment, env: Env) -> Step | None:
    """An operation that nobody could resolve by its deadline goes to a person, and stays open."""
    overdue = [
        op
        for op in payment.operations
        if op.is_open
        and not op.needs_review
        and review_due_ms(op.sent_ms) <= env.now_ms
        and op.status in ("processing", "unknown")
    ]
    if not overdue:
        return None
    change = Change(payment, env)
    for op in overdue:
        change.set_op(op.n, needs_review=True)
        change.note("needs_review", op_id(payment.id, op.n), reason="unresolved past deadline")
    change.set(needs_review=True)
    change.parked = f"operation {op_id(payment.id, overdue[0].n)} is unresolved past its deadline"
    return change.finish()
