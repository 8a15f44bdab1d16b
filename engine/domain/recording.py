"""From a step to what is written of it: one `Entry`, with the answers and events built in."""

from __future__ import annotations

import msgspec

from engine.domain.change import Env, Step
from engine.domain.document import to_document
from engine.domain.entry import (
    Answer,
    Claim,
    DeadLetter,
    Entry,
    EventRow,
    InboxRef,
    KeyAnswer,
    KeyRef,
    RefundRow,
    TimelineStep,
    TimerRow,
)
from engine.domain.ids import op_id
from engine.domain.operation import Operation
from engine.domain.payment import NO_TIMERS, Payment, timers
from engine.domain.representation import (
    answer_for,
    event_bytes,
    payment_bytes,
    previous_attributes,
    refund_bytes,
)


class Recorded(msgspec.Struct, frozen=True, gc=False):
    """A step ready to be written. `answers`: by operation number, also those not final."""

    entry: Entry
    payment: Payment
    answers: dict[int, Answer]


def record(
    step: Step, env: Env, claim: Claim | None = None, inbox_done: InboxRef | None = None
) -> Recorded:
    """Everything one step writes.

    The final answer of every operation the step settled goes in with it, so a client that asks
    again after a crash gets the same bytes.
    """
    payment, before = step.payment, step.before
    if before is None:
        # A new payment has asked and heard nothing: there is only the intent.
        entry = Entry(
            payment=payment,
            transfers=step.transfers,
            claim=claim,
            timeline=step.timeline,
            inbox_done=inbox_done,
        )
        return Recorded(entry, payment, {})
    body: bytes | None = None
    answers: dict[int, Answer] = {}
    stored: list[KeyAnswer] = []
    refunds: list[RefundRow] = []
    timeline = step.timeline
    operations = list(payment.operations)
    for op in payment.operations:
        if not _moved(before, op):
            continue
        if op.refund_id is not None:
            refunds.append(_refund_row(payment, op))
        if op.answered or not _has_news(before, op):
            continue
        if body is None:
            body = payment_bytes(payment)
        answer = answer_for(payment, op, body)
        assert answer is not None, op
        answers[op.n] = answer
        if op.request_id:  # The engine's own work answers nobody.
            timeline = (
                *timeline,
                TimelineStep(
                    env.now_ms, "answered", op_id(payment.id, op.n), {"status": answer.status}
                ),
            )
        if answer.final and op.request_id:
            operations[op.n - 1] = msgspec.structs.replace(op, answered=True)
            if op.key and op.key not in step.release_keys:
                stored.append(KeyAnswer(_key_ref(payment, op.key), answer))
    if stored or answers:
        payment = msgspec.structs.replace(payment, operations=tuple(operations))
    timers_set, timers_cleared = _timer_changes(before, payment)
    entry = Entry(
        payment=payment,
        # Where nothing more is under way, the shard keeps it as this too: it is made once.
        document=None if payment.has_work else to_document(payment),
        transfers=step.transfers,
        claim=claim,
        answers=tuple(stored),
        claims_released=tuple([_key_ref(payment, key) for key in step.release_keys]),
        events=_events(step, payment, env, body) if step.events else (),
        refunds=tuple(refunds),
        timeline=timeline,
        timers_set=timers_set,
        timers_cleared=timers_cleared,
        inbox_done=inbox_done,
        dead_letter=_dead_letter(step, payment, env) if step.parked is not None else None,
    )
    return Recorded(entry, payment, answers)


def _key_ref(payment: Payment, key: str) -> KeyRef:
    return KeyRef(payment.merchant_id, payment.livemode, key)


def _moved(before: Payment | None, op: Operation) -> bool:
    if before is None or op.n > len(before.operations):
        return True
    return before.operations[op.n - 1] is not op


def _has_news(before: Payment, op: Operation) -> bool:
    """Whether there is something to answer: its status is another one than it was.

    A look-up that found nothing new moves the operation too, but nobody waits for that: whoever
    asked was told that the outcome is unknown when it became so.
    """
    if op.status == "processing" and not op.deferred:
        return False
    return op.n > len(before.operations) or before.operations[op.n - 1].status != op.status


def _timer_changes(
    before: Payment | None, after: Payment
) -> tuple[tuple[TimerRow, ...], tuple[TimerRow, ...]]:
    """The timer rows to set and to clear."""
    has = timers(after)
    had = NO_TIMERS if before is None else timers(before)
    if had == has:
        return (), ()
    wanted = [TimerRow(due, after.id, kind) for kind, due in has.items() if had.get(kind) != due]
    unwanted = [TimerRow(due, after.id, kind) for kind, due in had.items() if has.get(kind) != due]
    return tuple(wanted), tuple(unwanted)


def _events(step: Step, payment: Payment, env: Env, body: bytes | None) -> tuple[EventRow, ...]:
    rows = []
    for happened in step.events:
        if happened.op:
            op = payment.operations[happened.op - 1]
            assert op.refund_id is not None, happened
            object_id, content = op.refund_id, refund_bytes(payment, op)
            previous = _previous_refund(step.before, op)
        else:
            if body is None:
                body = payment_bytes(payment)
            object_id, content = payment.id, body
            previous = previous_attributes(step.before, payment)
        event_id = env.new_id("evt")
        rows.append(
            EventRow(
                event_id,
                happened.type,
                payment.merchant_id,
                payment.livemode,
                object_id,
                happened.sequence,
                env.now_ms,
                event_bytes(
                    event_id=event_id,
                    type=happened.type,
                    at_ms=env.now_ms,
                    livemode=payment.livemode,
                    sequence=happened.sequence,
                    body=content,
                    previous=previous,
                ),
            )
        )
    return tuple(rows)


def _previous_refund(before: Payment | None, op: Operation) -> dict[str, str]:
    if before is None or op.n > len(before.operations):
        return {}
    was = _refund_status(before.operations[op.n - 1])
    return {} if was == _refund_status(op) else {"status": was}


def _refund_row(payment: Payment, op: Operation) -> RefundRow:
    assert op.refund_id is not None, op
    return RefundRow(
        op.refund_id,
        payment.id,
        payment.merchant_id,
        payment.livemode,
        _refund_status(op),
        op.created_ms,
        refund_bytes(payment, op),
    )


def _refund_status(op: Operation) -> str:
    if op.is_unfinished:
        return "unknown" if op.status == "unknown" else "pending"
    return "succeeded" if op.status == "succeeded" else "failed"


def _dead_letter(step: Step, payment: Payment, env: Env) -> DeadLetter:
    """What only a person can decide goes to the work queue, in the same commit."""
    assert step.parked is not None, step
    return DeadLetter(
        id=env.new_id("dl"),
        kind="payment_review",
        subject=payment.id,
        reason=step.parked,
        body=b"{}",
        created_ms=env.now_ms,
    )
