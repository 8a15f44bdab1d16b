"""What must be true of one payment: its document, its columns, its transfers, its timers. Pure.

Everything here is computed from the document, by other arithmetic than the machine's, and
compared with what the rows say. Sentences name amounts in minor units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec

from engine.domain.ids import op_id, slot_of
from engine.domain.operation import Operation
from engine.domain.payment import Payment, timers
from engine.domain.posting import DEBIT_NORMAL, RULES, AccountKey, books_of
from engine.domain.retry import LOOKUPS, review_due_ms
from engine.ledger.verify_witness import Moved, recorded

REVIEW_SLACK_MS: Final = int(LOOKUPS.delays_ms[-1] * (1 + LOOKUPS.jitter_ratio))
"""A payment is reviewed when a look-up wakes it, so at most one gap after its deadline."""

COUNTERS: Final = (
    "amount",
    "authorized",
    "capturing",
    "captured",
    "releasing",
    "released",
    "refunding",
    "refunded",
    "excess_captured",
    "excess_refunded",
)

SAME: Final = (
    *("id", "merchant_id", "livemode", "version", "created_ms", *COUNTERS),
    *("status", "currency", "customer", "subscription", "reference"),
    "reference_held",
)
"""Columns that repeat a field or property of the document under its name."""


def columns(payment: Payment, row: Mapping[str, object]) -> Iterator[str]:
    """Where a payment's columns and its document disagree. `status` is derived, not stored."""
    for name in SAME:
        said, is_so = row[name], getattr(payment, name)
        if said != is_so:
            yield f"{name} is {said} in its column and {is_so} by its document"
    if row["open"] is not payment.is_open:
        yield f"open is {row['open']} in its column and {payment.is_open} by its document"
    if payment.has_work and not row["has_work"]:
        # The other way round a start looks at one document more; so it is after a migration.
        yield "has_work is False in its column and True by its document, so no start resumes it"
    try:
        slot = slot_of(payment.id)
    except ValueError:
        yield "its id carries no slot"
        return
    if row["slot"] != slot:
        yield f"slot is {row['slot']} in its column and {slot} by its id"


def bounds(payment: Payment) -> Iterator[str]:
    """What was asked for stays within what was authorised and captured; facts are flagged."""
    negative = [name for name in COUNTERS if getattr(payment, name) < 0]
    if negative:
        yield f"{' and '.join(negative)} is below zero"
    used = payment.captured + payment.capturing + payment.released + payment.releasing
    if used > payment.authorized:
        yield f"{used} is captured or released of {payment.authorized} authorized"
    if payment.refunded + payment.refunding > payment.captured:
        yield f"{payment.refunded + payment.refunding} is refunded of {payment.captured} captured"
    excess = payment.excess_captured + payment.excess_refunded
    if excess and not payment.needs_review:
        yield f"{excess} went beyond what was asked for, and nobody is told"


def amounts(payment: Payment, moved: Moved) -> Iterator[str]:
    """Where the document's amounts are not what its transfers say."""
    totals: dict[tuple[str, str], int] = {}
    for (_, kind, phase), amount in moved.items():
        totals[kind, phase] = totals.get((kind, phase), 0) + amount

    def total(kind: str, *phases: str) -> int:
        return sum(totals.get((kind, phase), 0) for phase in phases or ("posted",))

    late, sent_back = late_success(payment)
    origin = payment.origin
    begun = origin.status == "succeeded"
    gone = 0 if origin.is_open else origin.amount
    expected: tuple[tuple[str, int, int], ...] = (
        ("amount", payment.amount, origin.amount),
        ("authorized", payment.authorized, origin.amount if begun else 0),
        ("the hold", origin.amount, total("hold", "pending")),
        ("captured", payment.captured, total("hold", "post_pending")),
        (
            "released",
            payment.released if begun else gone,
            total("hold", "void_pending", "expire_pending"),
        ),
        ("capturing", payment.capturing, _asked(payment, "capture", _amount)),
        (
            "releasing",
            payment.releasing,
            _asked(payment, "capture", _release) + _asked(payment, "cancel", _amount),
        ),
        ("refunding", payment.refunding, _asked(payment, "refund", _amount)),
        (
            "held for refunds",
            payment.refunding,
            total("refund", "pending") - total("refund", "post_pending", "void_pending"),
        ),
        (
            "refunded",
            payment.refunded,
            total("refund", "post_pending") + total("refund_elsewhere") - total("refund_returned"),
        ),
        ("excess_captured and late", payment.excess_captured + late, total("suspended")),
        ("sent back", sent_back, total("sent_back")),
        ("excess_refunded", payment.excess_refunded, total("refund_excess")),
        ("reversed", payment.reversed, total("reversal")),
        ("fee", payment.fee, total("fee")),
        ("fee_tax", payment.fee_tax, total("fee_tax")),
    )
    for name, said, found in expected:
        if said != found:
            source = "operations" if name in _BY_OPERATIONS else "transfers"
            yield f"{name} is {said} by its document and {found} by its {source}"
    for kind, phase in sorted(totals):
        if (kind, phase) not in _EXPLAINED:
            yield f"its {kind} transfers ({phase}) are explained by nothing in its document"
    yield from _pendings(payment, moved)


_BY_OPERATIONS: Final = frozenset({"amount", "authorized", "capturing", "releasing", "refunding"})

_EXPLAINED: Final = frozenset(
    {(kind, "posted") for kind in RULES if kind not in ("hold", "refund", "unheld", "accepted")}
    | {("hold", phase) for phase in ("pending", "post_pending", "void_pending", "expire_pending")}
    | {("refund", phase) for phase in ("pending", "post_pending", "void_pending")}
)


def _pendings(payment: Payment, moved: Moved) -> Iterator[str]:
    """Every operation that reserves or moves money has done so, with its own amount."""
    for op in payment.operations:
        moves = op.type in ("purchase", "capture", "refund") and op.status == "succeeded"
        if moves and recorded(op, moved) != op.amount and not payment.needs_review:
            yield (
                f"{op.type} {op_id(payment.id, op.n)} is of {op.amount} and moved "
                f"{recorded(op, moved)}"
            )
        if op.type == "refund" and op.transfer:
            held = moved.get((op.n, "refund", "pending"), 0)
            # What is owed may have been given up, and reserved again when a person revived it.
            if held != op.amount and not (op.owed and held and held % op.amount == 0):
                yield f"refund {op_id(payment.id, op.n)} is of {op.amount} and holds {held}"
    if payment.hold != payment.origin.transfer:
        yield f"its hold is {payment.hold}, and its first operation made {payment.origin.transfer}"


def _amount(op: Operation) -> int:
    return op.amount


def _release(op: Operation) -> int:
    return op.release


def _asked(payment: Payment, type: str, of: Callable[[Operation], int]) -> int:  # noqa: A002
    return sum(of(op) for op in payment.operations if op.type == type and op.is_unfinished)


def late_success(payment: Payment) -> tuple[int, int]:
    """What a purchase that succeeded too late put into suspense, and what was sent back of it."""
    if payment.origin.type != "purchase":
        return 0, 0
    reversals = [op for op in payment.operations if op.type == "reversal"]
    late = sum(op.amount for op in reversals)
    return late, sum(op.amount for op in reversals if op.status == "succeeded")


class Tied(msgspec.Struct, gc=False):
    """What payments say an account must hold; `net` is posted debits less posted credits."""

    debits_pending: int = 0
    credits_pending: int = 0
    net: int = 0


def tie(payment: Payment, tied: dict[AccountKey, Tied]) -> None:
    """Add what one payment says of the accounts it touches."""
    books = books_of(payment.merchant_id, payment.gateway, payment.currency, payment.livemode)
    origin = payment.origin
    if origin.status == "succeeded":
        held = payment.authorized - payment.captured - payment.released
    else:
        held = origin.amount if origin.is_open else 0
    late, sent_back = late_success(payment)
    suspended = payment.excess_captured + late - sent_back - payment.excess_refunded
    earned = payment.captured - payment.refunded - payment.reversed
    fees = payment.fee + payment.fee_tax
    for key, debited, credited, net in (
        (books.receivable, held, payment.refunding, earned + suspended),
        (books.merchant, payment.refunding, held, fees - earned),
        (books.fees, 0, 0, -payment.fee),
        (books.tax, 0, 0, -payment.fee_tax),
        (books.suspense, 0, 0, -suspended),
    ):
        account = tied.get(key)
        if account is None:
            account = tied[key] = Tied()
        account.debits_pending += debited
        account.credits_pending += credited
        account.net += net


def untied(key: AccountKey, has: Tied, should: Tied) -> Iterator[str]:
    """Where an account does not hold what the payments say."""
    name = f"{key.kind} of {key.owner} in {key.currency}"
    for side, said, is_so in (
        ("pending debits", has.debits_pending, should.debits_pending),
        ("pending credits", has.credits_pending, should.credits_pending),
    ):
        if said != is_so:
            yield f"{name} has {side} of {said}, and the payments' open holds are {is_so}"
    if has.net != should.net:
        sign = 1 if key.kind in DEBIT_NORMAL else -1
        yield (
            f"{name} has a posted balance of {sign * has.net}, and the payments say "
            f"{sign * should.net}"
        )


def work(
    payment: Payment, set_timers: set[tuple[str, int]], letter_ms: int, now_ms: int
) -> Iterator[tuple[str, str]]:
    """Ids and sentences for what is unresolved and nobody will see to.

    `letter_ms` is when the payment last got an entry in the work queue, 0 for never.
    """
    for kind, due_ms in timers(payment).items():
        if (kind, due_ms) not in set_timers:
            yield payment.id, f"its {kind} timer for {due_ms} is missing"
    for op in payment.operations:
        if not op.is_open:
            continue
        operation_id = op_id(payment.id, op.n)
        if op.status != "processing" and op.next_check_ms is None:
            yield operation_id, f"is {op.status}, and nothing will look it up"
        overdue = review_due_ms(op.sent_ms) + REVIEW_SLACK_MS <= now_ms
        if op.status in ("processing", "unknown") and overdue and letter_ms < op.created_ms:
            yield operation_id, f"is {op.status} past its deadline, and not in the work queue"
    if payment.needs_review and not letter_ms:
        yield payment.id, "is flagged for review, and not in the work queue"
