"""What the news of a gateway does to a payment: the treatment behind each verdict of the table.

Nothing here decides *whether* news counts (`operation.TRANSITIONS` does); it says what a verdict
means for the money. What a gateway reports as done is a fact and is always recorded, also where it
breaks the bounds of what was asked: the excess goes to suspense and the payment is flagged.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.domain.change import Change, Env, Step
from engine.domain.fees import fee_for
from engine.domain.ids import op_id
from engine.domain.news import (
    NEWS_KIND,
    ActionRequired,
    Approved,
    Declined,
    Disputed,
    Failed,
    News,
    NotFound,
    OperationNews,
    PaymentNews,
    RefundedElsewhere,
    ReversedByGateway,
    StillPending,
    Unknown,
)
from engine.domain.operation import LEADS_TO, UNDONE, Operation, Verdict, verdict
from engine.domain.payment import Payment
from engine.domain.posting import Phase
from engine.domain.retry import lookup_due_ms, may_resend, retry_due_ms


def hear_of_operation(
    payment: Payment, op: Operation, news: OperationNews, via: str, env: Env
) -> Step | None:
    """News about one operation of ours. None: it changes nothing."""
    if op.deferred:
        return None  # It has not been asked of the gateway yet, so nothing can be known of it.
    believed = _credible(payment, op, news, via)
    found = verdict(op, believed)
    if found == "ignore" or _known_already(payment, op, found, believed):
        return None
    change = Change(payment, env)
    detail = believed.reason if isinstance(believed, Unknown) else getattr(believed, "code", None)
    change.note(
        _ROADS[via], op_id(payment.id, op.n), outcome=NEWS_KIND[type(believed)], detail=detail
    )
    status = LEADS_TO.get(found)
    if status is not None and found != "succeed":
        op = change.set_op(op.n, status=status)
    _TREATMENTS[found](change, op, believed, via)
    return change.finish()


_ROADS = {"reply": "gateway_replied", "look_up": "looked_up", "webhook": "webhook_received"}


def _known_already(payment: Payment, op: Operation, found: Verdict, news: OperationNews) -> bool:
    """A contradiction and a late success are recorded once; hearing them again changes nothing."""
    if found == "contradict":
        return _contradiction(op) in payment.told
    if found != "late_success":
        return False
    if _is_foreign(payment, op, news):
        return _foreign(op) in payment.told
    if op.retry_ms is not None:
        return False  # It was to be tried again, and need not be.
    if op.n == 1:
        return any(other.type == "reversal" for other in payment.operations)
    if op.type == "cancel":
        return payment.capturable == 0  # There is nothing left that it could have released.
    return op.returned  # That it was made is old news then.


def _credible(payment: Payment, op: Operation, news: OperationNews, via: str) -> OperationNews:
    """An approval of something else than was asked is not one.

    A reply that names another amount is doubted and looked up. What a look-up or a webhook
    confirms is a fact, except another currency and another authorised amount: those a person sees.
    Whatever was done although it had failed is a fact, and is undone.
    """
    if not isinstance(news, Approved) or op.type in ("cancel", "reversal"):
        return news
    if news.amount < 1:
        return Unknown("wrong_amount")
    if op.status in UNDONE:
        return news
    if news.currency != payment.currency:
        return Unknown("wrong_currency")
    if news.amount == op.amount:
        return news
    if via == "reply" or op.type == "authorize":
        return Unknown("wrong_amount")
    return news


def _contradiction(op: Operation) -> str:
    return f"{op.n} contradicted"


def _foreign(op: Operation) -> str:
    return f"{op.n} in another currency"


def _is_foreign(payment: Payment, op: Operation, news: OperationNews) -> bool:
    """Whether it tells of money in another currency, which no account here is in."""
    return (
        isinstance(news, Approved)
        and op.type not in ("cancel", "reversal")
        and news.currency != payment.currency
    )


# --- done -------------------------------------------------------------------------------------


def _succeed(change: Change, op: Operation, news: OperationNews, via: str) -> None:
    assert isinstance(news, Approved), news
    op = change.set_op(
        op.n,
        status="succeeded",
        reference=news.reference or op.reference,
        next_check_ms=None,
        retry_ms=None,
        code=None,
    )
    _SUCCEEDED[op.type](change, op, news)


def _authorized(change: Change, op: Operation, news: Approved) -> None:
    _known_card(change, news)
    expires_ms = news.expires_ms or change.env.now_ms + change.env.traits.authorization_ms
    change.set(
        authorized=op.amount,
        expires_ms=expires_ms,
        gateway_reference=news.reference,
        next_action=None,
    )
    change.happened("payment.authorized")
    _cancel_if_wanted(change)


def _purchased(change: Change, op: Operation, news: Approved) -> None:
    payment = change.payment
    _known_card(change, news)
    posted = min(news.amount, op.amount)
    change.set(
        authorized=op.amount,
        captured=posted,
        released=op.amount - posted,
        gateway_reference=news.reference,
        next_action=None,
    )
    first = change.post("hold", posted, op.n, "post_pending", resolves=payment.hold)
    change.post("hold", op.amount - posted, op.n, "void_pending", resolves=payment.hold, link=first)
    _charge_fee(change, op, posted, first)
    _suspend_excess(change, op, news.amount - posted, first)
    if news.amount != op.amount:
        _flag(change, op, "wrong amount confirmed by the gateway")
    change.happened("payment.captured")
    _refund_if_canceled(change)


def _captured(change: Change, op: Operation, news: Approved) -> None:
    payment = change.payment
    posted = min(news.amount, op.amount)
    release = op.release + (op.amount - posted if op.final else 0)
    change.set(
        capturing=payment.capturing - op.amount,
        captured=payment.captured + posted,
        releasing=payment.releasing - op.release,
        released=payment.released + release,
    )
    _post_capture(change, op, posted, release)
    if news.amount != op.amount:
        _suspend_excess(change, op, news.amount - posted, 0)
        _flag(change, op, "wrong amount confirmed by the gateway")
    _capture_event(change)


def _post_capture(change: Change, op: Operation, posted: int, release: int) -> None:
    """The capture, its fee and what it releases: linked, all or none."""
    hold = change.payment.hold
    first = change.post("hold", posted, op.n, "post_pending", resolves=hold)
    _charge_fee(change, op, posted, first)
    change.post("hold", release, op.n, "void_pending", resolves=hold, link=first)
    _end_hold(change)


def _end_hold(change: Change) -> None:
    """A hold that is used up has nothing left to expire; what is in flight may come back yet."""
    state = change.state()
    if state.authorized == state.captured + state.released:
        change.set(expires_ms=None)


def _capture_event(change: Change) -> None:
    done = change.state().status == "captured"
    change.happened("payment.captured" if done else "payment.partially_captured")


def _canceled(change: Change, op: Operation, news: Approved) -> None:
    payment = change.payment
    origin = change.op(1)
    if origin.is_open:
        change.set_op(1, status="canceled", next_check_ms=None)
        change.post("hold", payment.origin.amount, op.n, "void_pending", resolves=payment.hold)
        change.set(next_action=None)
        change.happened("payment.canceled")
        return
    if origin.status != "succeeded":
        return
    # The hold may have been approved after the void was asked for: then it is all of it.
    amount = op.amount or payment.capturable
    reserved = payment.releasing - op.amount
    change.set_op(op.n, amount=amount)
    change.set(releasing=reserved, released=payment.released + amount)
    _end_hold(change)
    change.post("hold", amount, op.n, "void_pending", resolves=payment.hold)
    change.happened("payment.canceled" if payment.captured == 0 else "payment.captured")


def _refunded(change: Change, op: Operation, news: Approved) -> None:
    payment = change.payment
    posted = min(news.amount, op.amount)
    change.set(
        refunding=payment.refunding - op.amount,
        refunded=payment.refunded + posted,
    )
    first = change.post("refund", posted, op.n, "post_pending", resolves=op.transfer)
    change.post(
        "refund", op.amount - posted, op.n, "void_pending", resolves=op.transfer, link=first
    )
    excess = news.amount - posted
    if excess > 0:
        change.post("refund_excess", excess, op.n, link=first)
        change.set(excess_refunded=payment.excess_refunded + excess)
    if news.amount != op.amount:
        change.set_op(op.n, counted=posted)
        _flag(change, op, "wrong amount confirmed by the gateway")
    change.happened("refund.succeeded", op.n)


def _reversed_late(change: Change, op: Operation, news: Approved) -> None:
    """The late success is undone at the gateway: what waited in suspense goes back."""
    if change.payment.origin.type == "purchase":
        change.post("sent_back", op.amount, op.n)
    change.happened("payment.late_success_reversed")


_SUCCEEDED: dict[str, Callable[[Change, Operation, Approved], None]] = {
    "authorize": _authorized,
    "purchase": _purchased,
    "capture": _captured,
    "cancel": _canceled,
    "refund": _refunded,
    "reversal": _reversed_late,
}


def _known_card(change: Change, news: OperationNews) -> None:
    card = getattr(news, "card", None)
    if card is not None:
        change.set(card=card)


def _charge_fee(change: Change, op: Operation, captured: int, link: int) -> None:
    """The platform's fee, dated at the capture and linked to it."""
    if captured == 0:
        return
    payment = change.payment
    fee = fee_for(
        change.env.fees,
        gateway=payment.gateway,
        method=payment.payment_method,
        currency=payment.currency,
        amount_minor=captured,
        at_ms=change.env.now_ms,
    )
    change.post("fee", fee.fee_minor, op.n, link=link)
    change.post("fee_tax", fee.tax_minor, op.n, link=link)
    change.set(fee=payment.fee + fee.fee_minor, fee_tax=payment.fee_tax + fee.tax_minor)


def _suspend_excess(change: Change, op: Operation, excess: int, link: int) -> None:
    if excess > 0:
        change.post("suspended", excess, op.n, link=link)
        change.set(excess_captured=change.payment.excess_captured + excess)


def _flag(change: Change, op: Operation, reason: str, fact: str = "") -> None:
    """Only a person can decide this: the payment says so, and the work queue has it.

    `fact` is its name where no other field shows, when it is heard again, that it was told.
    """
    change.set(needs_review=True)
    if fact:
        change.set(told=(*change.payment.told, fact))
    change.note("needs_review", op_id(change.payment.id, op.n), reason=reason)
    change.parked = reason


def _cancel_if_wanted(change: Change) -> None:
    """A cancel that waited for the outcome is carried out now.

    One that is under way already (the gateway had told us of what it cancels) gets the hold that
    has come about meanwhile, so that nothing else can.
    """
    for op in change.ops:
        if op.type == "cancel" and op.is_unfinished:
            amount = change.state().capturable
            due = change.set_op(op.n, amount=amount)
            change.set(releasing=change.payment.releasing + amount)
            if op.deferred:
                change.call(_sent_now(change, due))


def _void_if_wanted(change: Change) -> None:
    """What the gateway has told us of can be voided, so a cancel that waited is sent now."""
    for op in change.ops:
        if op.type == "cancel" and op.deferred and op.is_open:
            change.call(_sent_now(change, op))


def _sent_now(change: Change, op: Operation) -> Operation:
    return change.set_op(op.n, deferred=False, owed=True, sent_ms=change.env.now_ms)


def _refund_if_canceled(change: Change) -> None:
    """A purchase that was to be canceled and turns out captured is refunded by the engine."""
    if not change.payment.cancel_requested:
        return
    for op in change.ops:
        if op.type == "cancel" and op.is_unfinished:
            _settle(change, op)
    captured = change.state().captured
    refund = Operation(
        n=len(change.ops) + 1,
        type="refund",
        amount=captured,
        created_ms=change.env.now_ms,
        sent_ms=change.env.now_ms,
        refund_id=change.env.new_id("re"),
        reason="canceled while its outcome was unknown",
        owed=True,
    )
    change.start_refund(refund)
    change.call(change.op(refund.n))


# --- not done ---------------------------------------------------------------------------------


def _decline(change: Change, op: Operation, news: OperationNews, via: str) -> None:
    assert isinstance(news, Declined), news
    op = change.set_op(op.n, code=news.code, next_check_ms=None)
    if op.n == 1:
        _known_card(change, news)
        change.set(decline_code=news.code, advice=news.advice)
    _undo(change, op, "payment.declined")


def _fail(change: Change, op: Operation, news: OperationNews, via: str) -> None:
    code = news.code if isinstance(news, Failed) else "not_processed"
    op = change.set_op(op.n, code=code, next_check_ms=None)
    if op.n == 1:
        change.set(failure_code=code)
    elif op.type == "refund" and via != "reply" and isinstance(news, Failed):
        # Told later, not in reply: it had been made and came back, so a success that turns up
        # behind this is older news. What was only concluded, or never sent, may be done yet.
        change.set_op(op.n, returned=code not in _CONCLUDED)
    _undo(change, op, "payment.failed")


_CONCLUDED = frozenset({"not_processed", "abandoned", "gateway_unreachable", "gateway_unavailable"})


def _expire(change: Change, op: Operation, news: OperationNews, via: str) -> None:
    op = change.set_op(op.n, code="expired", next_check_ms=None)
    _undo(change, op, "payment.expired", phase_expired=True)


def _undo(change: Change, op: Operation, event: str, *, phase_expired: bool = False) -> None:
    """Give back what the operation had reserved; what is owed keeps it until it is given up."""
    payment = change.payment
    if op.owed and _retry_later(change, op):
        return
    if op.n == 1:
        phase: Phase = "expire_pending" if phase_expired else "void_pending"
        change.post("hold", op.amount, 1, phase, resolves=payment.hold)
        change.set(next_action=None)
        _settle_waiting_cancel(change)
        change.happened(event)
    elif op.type == "capture":
        change.set(
            capturing=payment.capturing - op.amount, releasing=payment.releasing - op.release
        )
        change.happened("payment.capture_failed")
    elif op.type == "cancel":
        change.set(releasing=payment.releasing - op.amount, cancel_requested=False)
    elif op.type == "refund":
        _give_refund_up(change, op)
    if op.owed:
        reason = f"the {op.type} failed {op.attempts} times: {op.code}"
        is_old = not may_resend(op.created_ms, change.env.now_ms, change.env.traits)
        if is_old and not payment.reversed:
            reason += "; it is too old to be sent again, so it has to be made at the gateway itself"
        _flag(change, op, reason)


def _give_refund_up(change: Change, op: Operation) -> None:
    change.set(refunding=change.payment.refunding - op.amount)
    change.post("refund", op.amount, op.n, "void_pending", resolves=op.transfer)
    change.happened("refund.failed", op.n)


def _settle_waiting_cancel(change: Change) -> None:
    """Nothing was charged, so a cancel that waited for it has nothing left to do."""
    for op in change.ops:
        waits = (op.deferred and op.is_open) or op.retry_ms is not None
        if op.type == "cancel" and waits:
            _settle(change, op)


def _settle(change: Change, cancel: Operation) -> None:
    """What was to be canceled is settled by other means."""
    change.set_op(
        cancel.n, deferred=False, status="succeeded", code=None, next_check_ms=None, retry_ms=None
    )


def _retry_later(change: Change, op: Operation) -> bool:
    """What is owed is tried again (after 5, 15, 30 minutes). False: it is a person's now."""
    due_ms = retry_due_ms(op.attempts, change.env.now_ms)
    if due_ms is not None and not may_resend(op.created_ms, due_ms, change.env.traits):
        due_ms = None  # The gateway would take it for something new.
    if op.type == "refund" and change.payment.reversed:
        due_ms = None  # The customer has the money back already, by way of the bank.
    change.set_op(op.n, retry_ms=due_ms)
    return due_ms is not None


# --- not yet known ----------------------------------------------------------------------------


def _next_check(change: Change, op: Operation, checks: int) -> int:
    return lookup_due_ms(checks, change.env.now_ms, change.env.jitter())


def _wait_for_customer(change: Change, op: Operation, news: OperationNews, via: str) -> None:
    assert isinstance(news, ActionRequired), news
    _known_card(change, news)
    change.set_op(
        op.n,
        reference=news.reference,
        code=None,
        checks=0,
        next_check_ms=_next_check(change, op, 0),
    )
    if op.n == 1:
        change.set(next_action=news.next_action, gateway_reference=news.reference)
        change.happened("payment.requires_action")
        _void_if_wanted(change)


def _wait_for_gateway(change: Change, op: Operation, news: OperationNews, via: str) -> None:
    assert isinstance(news, StillPending), news
    _known_card(change, news)
    change.set_op(
        op.n,
        reference=news.reference or op.reference,
        code=None,
        checks=0,
        next_check_ms=_next_check(change, op, 0),
    )
    if op.n == 1:
        change.set(gateway_reference=news.reference or change.payment.gateway_reference)
        change.happened("payment.pending")
        _void_if_wanted(change)


def _doubt(change: Change, op: Operation, news: OperationNews, via: str) -> None:
    assert isinstance(news, Unknown), news
    # The commit before it, its queue, or a connection may have taken their time: it may have left
    # just before it broke, but no call does later than a deadline after its step.
    latest_ms = op.sent_ms + change.env.traits.deadline_ms
    sent_ms = max(op.sent_ms, min(change.env.now_ms, latest_ms))
    change.set_op(
        op.n,
        code=news.reason,
        sent_ms=sent_ms,
        checks=0,
        next_check_ms=_next_check(change, op, 0),
    )
    if op.n == 1:
        change.happened("payment.unknown")
    elif op.type == "refund":
        change.happened("refund.unknown", op.n)


def _ask_again(change: Change, op: Operation, news: OperationNews, via: str) -> None:
    if via != "look_up":
        # A reply or webhook that says nothing new does not slow the look-ups down.
        change.set_op(op.n, next_check_ms=op.next_check_ms or _next_check(change, op, 0))
        return
    checks = op.checks + 1
    change.set_op(op.n, checks=checks, next_check_ms=_next_check(change, op, checks))
    if isinstance(news, Unknown) and news.reason in ("wrong_amount", "wrong_currency"):
        change.set_op(op.n, needs_review=True)
        if not change.payment.needs_review:
            _flag(change, op, f"the gateway confirms a {news.reason.replace('_', ' ')}")


def _weigh_absence(change: Change, op: Operation, news: OperationNews, via: str) -> None:
    """ "Not found" is an answer only once nothing sent could still turn up.

    A request that was on the wire may be worked on until the deadline, and be seen by look-ups
    only after the provider's lag. Where the first look-up comes later than that, the request was
    held up on its way (by a slow commit, a queue, a crash), nobody knows for how long: then the
    time counts from now. It also counts from this engine's start at the earliest: until then the
    clock may have been set. An operation whose reply nobody ever saw (`processing`) was cut off by
    a crash: it is abandoned, and its key may run again, since a customer may by now have paid
    elsewhere. What is owed is not: it is tried again.
    """
    assert isinstance(news, NotFound), news
    traits, now_ms = change.env.traits, change.env.now_ms
    asked_ms = now_ms if news.asked_ms is None else news.asked_ms
    cut_off = op.status == "processing"
    # What was cut off may have waited in a queue that lived on, for up to a deadline.
    queued_ms = traits.deadline_ms if cut_off else 0
    if op.sent_ms > now_ms:
        # The clock was ahead then and has been put right since, over a restart: as above.
        op = change.set_op(op.n, sent_ms=now_ms)
    since_ms = max(op.sent_ms + queued_ms, change.env.since_ms)
    if op.checks == 0 and asked_ms >= since_ms + traits.settled_ms:
        since_ms = now_ms
        op = change.set_op(op.n, sent_ms=now_ms - queued_ms)
    if asked_ms < since_ms + traits.settled_ms:
        # Asked again no later than the answer counts, however many restarts asked before.
        op = change.set_op(op.n, checks=op.checks + 1)
        due_ms = min(_next_check(change, op, op.checks), max(now_ms, since_ms + traits.settled_ms))
        change.set_op(op.n, next_check_ms=due_ms)
        return
    abandoned = cut_off and not op.owed
    if abandoned and op.key:
        change.release_keys.append(op.key)
    op = change.set_op(op.n, status="failed", answered=op.answered or abandoned)
    _fail(change, op, Failed("abandoned" if cut_off else "not_processed"), via)


# --- facts that nobody asked for --------------------------------------------------------------


def _contradict(change: Change, op: Operation, news: OperationNews, via: str) -> None:
    """A refusal after a success: the success stands, and a person looks."""
    reason = f"{NEWS_KIND[type(news)]} was reported after the {op.type} had succeeded"
    _flag(change, op, reason, _contradiction(op))


def _return_refund(change: Change, op: Operation, news: OperationNews, via: str) -> None:
    """A refund that had succeeded came back: its money is the merchant's again (row 6)."""
    code = getattr(news, "code", "expired")
    amount = op.amount if op.counted is None else op.counted
    change.set_op(op.n, code=code, next_check_ms=None, returned=True)
    change.set(refunded=change.payment.refunded - amount)
    change.post("refund_returned", amount, op.n)
    change.happened("refund.failed", op.n)
    if op.owed:
        # Under its key the gateway would only tell of the one that came back.
        _flag(change, op, "the refund of a canceled purchase came back: it has to be made anew")


def _late_success(change: Change, op: Operation, news: OperationNews, via: str) -> None:
    """A success after a final failure: always recorded, never a revival of the payment."""
    assert isinstance(news, Approved), news
    payment = change.payment
    if _is_foreign(payment, op, news):
        reason = f"the {op.type} had failed, and was done in {news.currency} after all"
        _flag(change, op, reason, _foreign(op))
        return
    if op.n == 1:
        _flag_other_amount(change, op, news)
        _reverse(change, op, news)
        return
    room = payment.refundable if op.type == "refund" else payment.capturable
    if op.type == "reversal" or op.retry_ms is not None:
        op = change.set_op(op.n, status="succeeded")
        _succeed(change, op, news, via)
    elif op.type == "refund" and news.amount <= room:
        change.set_op(
            op.n, status="succeeded", code=None, reference=news.reference, counted=news.amount
        )
        change.post("refund_elsewhere", news.amount, op.n)
        change.set(refunded=payment.refunded + news.amount)
        _flag_other_amount(change, op, news)
        change.happened("refund.succeeded", op.n)
    elif op.type == "refund":
        change.post("refund_excess", news.amount, op.n)
        change.set(excess_refunded=payment.excess_refunded + news.amount)
        change.set_op(op.n, status="succeeded", code=None, reference=news.reference, counted=0)
        _flag(change, op, "a refund that had failed was made after all, beyond what was left")
    elif op.type == "capture" and news.amount <= room:
        change.set_op(op.n, status="succeeded", code=None, reference=news.reference)
        # A final capture gave the rest back at the gateway, as far as it is still there to give.
        wanted = op.release + max(0, op.amount - news.amount) if op.final else 0
        release = min(wanted, room - news.amount)
        change.set(captured=payment.captured + news.amount, released=payment.released + release)
        _post_capture(change, op, news.amount, release)
        _flag_other_amount(change, op, news)
        _capture_event(change)
    elif op.type == "capture":
        change.set_op(op.n, status="succeeded", code=None, reference=news.reference)
        _suspend_excess(change, op, news.amount, 0)
        _flag(change, op, "a capture that had failed was made after all, without a hold")
    elif room > 0:
        change.set_op(op.n, status="succeeded", code=None, amount=room)
        change.set(released=payment.released + room)
        _end_hold(change)
        change.post("hold", room, op.n, "void_pending", resolves=payment.hold)
        change.happened("payment.canceled" if payment.captured == 0 else "payment.captured")


def _flag_other_amount(change: Change, op: Operation, news: Approved) -> None:
    if news.amount != op.amount:
        _flag(change, op, "wrong amount confirmed by the gateway")


def _reverse(change: Change, op: Operation, news: Approved) -> None:
    """Undo a late authorisation or purchase at the gateway, as work of the engine's own."""
    payment = change.payment
    change.set_op(1, reference=news.reference)
    if op.type == "purchase":
        change.post("suspended", news.amount, op.n)
    reversal = Operation(
        n=len(change.ops) + 1,
        type="reversal",
        amount=news.amount,
        created_ms=change.env.now_ms,
        sent_ms=change.env.now_ms,
        reason=f"late success of a payment that is {payment.status}",
        owed=True,
    )
    change.add_op(reversal)
    change.note("late_success", op_id(payment.id, op.n), amount=news.amount)
    change.call(reversal)


_TREATMENTS: dict[Verdict, Callable[[Change, Operation, OperationNews, str], None]] = {
    "succeed": _succeed,
    "decline": _decline,
    "fail": _fail,
    "expire": _expire,
    "require_action": _wait_for_customer,
    "wait": _wait_for_gateway,
    "doubt": _doubt,
    "ask_again": _ask_again,
    "weigh_absence": _weigh_absence,
    "contradict": _contradict,
    "return_refund": _return_refund,
    "late_success": _late_success,
}


def hear_of_payment(payment: Payment, news: PaymentNews, via: str, env: Env) -> Step | None:
    """News about the payment as a whole, which no operation of ours asked for."""
    change = Change(payment, env)
    if isinstance(news, Disputed):
        if news.dispute in payment.disputes:
            return None
        change.set(
            disputed=payment.disputed + news.amount, disputes=(*payment.disputes, news.dispute)
        )
        change.note("disputed", amount=news.amount, reason=news.reason)
        change.happened("dispute.opened")
        return change.finish()
    if isinstance(news, ReversedByGateway):
        if payment.reversed or payment.captured == 0:
            return None
        return _reversed_by_gateway(change, news)
    return _refunded_elsewhere(change, news)


def is_early(payment: Payment, news: News) -> bool:
    """Whether it may be about money of which this engine is still to hear that it was captured."""
    if isinstance(news, ReversedByGateway):
        known = payment.captured - payment.refunded
    elif isinstance(news, RefundedElsewhere):
        known = payment.refundable
    else:
        return False
    return news.amount > known and any(
        op.is_open and op.type in ("purchase", "capture") for op in payment.operations
    )


def _reversed_by_gateway(change: Change, news: ReversedByGateway) -> Step | None:
    """Everything was taken back (row 7); what had been refunded before is gone twice.

    What a refund under way gives back need not be part of it.
    """
    payment = change.payment
    left = payment.captured - payment.refunded
    amount = min(news.amount, left)
    if amount < 1:
        if "reversed" in payment.told:
            return None
        reason = "reversed at the gateway after it was refunded in full"
        _flag(change, payment.origin, reason, "reversed")
        return change.finish()
    change.post("reversal", amount, 1)
    change.set(reversed=amount)
    if news.amount > left:
        change.post("refund_excess", news.amount - left, 1)
        change.set(excess_refunded=payment.excess_refunded + news.amount - left)
        _flag(change, payment.origin, "more was reversed at the gateway than was left")
    elif amount < left - payment.refunding:
        _flag(change, payment.origin, "less was reversed at the gateway than was left")
    for op in payment.operations:
        if op.type == "refund" and op.retry_ms is not None:
            change.set_op(op.n, retry_ms=None)
            _give_refund_up(change, op)
    change.note("reversed", amount=amount, reason=news.reason)
    change.happened("payment.reversed")
    return change.finish()


def _refunded_elsewhere(change: Change, news: RefundedElsewhere) -> Step | None:
    """A refund from the gateway's dashboard (row 6), as an operation that is already done."""
    payment = change.payment
    if any(op.reference == news.reference for op in payment.operations if op.type == "refund"):
        return None
    if news.currency != payment.currency or news.amount < 1:
        if news.reference in payment.told:
            return None
        reason = "a refund in another currency was made at the gateway"
        _flag(change, payment.origin, reason, news.reference)
        return change.finish()
    amount = min(news.amount, payment.refundable)
    op = Operation(
        n=len(change.ops) + 1,
        type="refund",
        amount=news.amount,
        status="succeeded",
        created_ms=change.env.now_ms,
        refund_id=change.env.new_id("re"),
        reference=news.reference,
        reason="made at the gateway",
        counted=amount,
    )
    change.add_op(op)
    change.post("refund_elsewhere", amount, op.n)
    change.set(refunded=payment.refunded + amount)
    if news.amount > amount:
        change.post("refund_excess", news.amount - amount, op.n)
        change.set(excess_refunded=payment.excess_refunded + news.amount - amount)
        _flag(change, op, "more was refunded at the gateway than had been captured")
    change.happened("refund.created", op.n)
    change.happened("refund.succeeded", op.n)
    return change.finish()
