"""One payment against a gateway's own books: what differs, what is in flight, what is in order."""

from __future__ import annotations

import msgspec
import pytest

from engine.domain.ids import new_id, op_id
from engine.domain.news import Action
from engine.domain.operation import Operation, OperationStatus, OperationType
from engine.domain.payment import Payment
from engine.domain.witness import WitnessEffect
from engine.ledger.verify_report import CheckResult, Findings, Problem, Report, render
from engine.ledger.verify_witness import IN_FLIGHT, Moved, compare, unknown_payment

NOW_MS = 1_800_000_000_000
OLD_MS = NOW_MS - 3_600_000
GRACE_MS = 30_000
PAYMENT = new_id("pay_", OLD_MS, 17, 1)
AMOUNT = 1_000


def operation(n: int, kind: OperationType, status: OperationStatus, **fields: object) -> Operation:
    made = Operation(n=n, type=kind, amount=AMOUNT, created_ms=OLD_MS, status=status, transfer=n)
    return msgspec.structs.replace(made, **fields)


def payment(*operations: Operation, **fields: object) -> Payment:
    made = Payment(
        id=PAYMENT,
        merchant_id="mer_1",
        livemode=False,
        created_ms=OLD_MS,
        amount=AMOUNT,
        currency="EUR",
        gateway="simulator",
        payment_method="pm_card_visa",
        operations=operations,
    )
    return msgspec.structs.replace(made, **fields)


def effect(n: int, action: Action, **fields: object) -> WitnessEffect:
    made = WitnessEffect(
        op_id=op_id(PAYMENT, n),
        action=action,
        amount=AMOUNT,
        currency="EUR",
        done=True,
        at_ms=OLD_MS,
        changed_ms=OLD_MS,
    )
    return msgspec.structs.replace(made, **fields)


def differences(of: Payment, moved: Moved, *effects: WitnessEffect) -> list[str]:
    found = compare(of, moved, effects, now_ms=NOW_MS, grace_ms=GRACE_MS)
    return [what for _, what in found]


def test_a_hold_that_was_voided_agrees() -> None:
    of = payment(
        operation(1, "authorize", "succeeded"),
        operation(2, "cancel", "succeeded"),
        authorized=AMOUNT,
        released=AMOUNT,
    )
    moved = {(2, "hold", "void_pending"): AMOUNT}
    assert differences(of, moved, effect(1, "authorize"), effect(2, "void")) == []
    assert "was not done there" in differences(of, moved, effect(1, "authorize"))[0]


def test_a_cancel_that_had_nothing_to_release_need_not_be_there() -> None:
    of = payment(operation(1, "purchase", "declined"), operation(2, "cancel", "succeeded"))
    assert differences(of, {}) == []


def test_a_cancel_that_failed_here_and_was_done_there_matters_only_if_money_is_held() -> None:
    of = payment(
        operation(1, "authorize", "succeeded"),
        operation(2, "cancel", "failed"),
        authorized=AMOUNT,
    )
    there = (effect(1, "authorize"), effect(2, "void"))
    assert "the cancel is failed here" in differences(of, {}, *there)[0]
    assert differences(msgspec.structs.replace(of, released=AMOUNT), {}, *there) == []


def test_an_approval_just_before_its_void_is_in_order() -> None:
    of = payment(operation(1, "authorize", "canceled"), operation(2, "cancel", "succeeded"))
    moved = {(2, "hold", "void_pending"): AMOUNT}
    assert differences(of, moved, effect(1, "authorize"), effect(2, "void")) == []


def test_a_refund_that_came_back_is_in_flight_until_it_is_old() -> None:
    of = payment(operation(1, "purchase", "succeeded"), operation(2, "refund", "succeeded"))
    moved = {
        (1, "hold", "post_pending"): AMOUNT,
        (2, "refund", "post_pending"): AMOUNT,
    }
    bought = effect(1, "purchase")
    returned = effect(2, "refund", done=False, changed_ms=NOW_MS - 1)
    assert differences(of, moved, bought, returned) == [IN_FLIGHT]
    old = msgspec.structs.replace(returned, changed_ms=NOW_MS - GRACE_MS - 1)
    assert "was not done there" in differences(of, moved, bought, old)[0]


def test_a_refund_made_at_the_gateway_itself_is_not_looked_for() -> None:
    of = payment(
        operation(1, "purchase", "succeeded"), operation(2, "refund", "succeeded", transfer=0)
    )
    moved = {
        (1, "hold", "post_pending"): AMOUNT,
        (2, "refund_elsewhere", "posted"): AMOUNT,
    }
    assert differences(of, moved, effect(1, "purchase")) == []


@pytest.mark.parametrize(
    ("status", "fields", "expected"),
    [
        ("processing", {}, [IN_FLIGHT, IN_FLIGHT]),
        ("failed", {"retry_ms": NOW_MS + 1}, [IN_FLIGHT]),
        ("failed", {}, ["the purchase is failed here, was done there, and its reversal failed"]),
    ],
)
def test_a_late_success_waits_for_its_reversal(
    status: OperationStatus, fields: dict[str, object], expected: list[str]
) -> None:
    of = payment(operation(1, "purchase", "failed"), operation(2, "reversal", status, **fields))
    moved = {(1, "suspended", "posted"): AMOUNT}
    assert differences(of, moved, effect(1, "purchase")) == expected


def test_a_late_success_that_was_reversed_is_in_order() -> None:
    of = payment(operation(1, "purchase", "failed"), operation(2, "reversal", "succeeded"))
    moved = {(1, "suspended", "posted"): AMOUNT, (2, "sent_back", "posted"): AMOUNT}
    there = (effect(1, "purchase"), effect(2, "refund"))
    assert differences(of, moved, *there) == []
    more = (effect(1, "purchase", amount=AMOUNT + 1), effect(2, "refund"))
    assert "is 1000 here and 1001 there" in differences(of, moved, *more)[0]


def test_the_reversal_of_an_authorisation_is_a_void() -> None:
    of = payment(operation(1, "authorize", "failed"), operation(2, "reversal", "succeeded"))
    assert differences(of, {}, effect(1, "authorize"), effect(2, "void")) == []
    wrong = differences(of, {}, effect(1, "authorize"), effect(2, "refund"))
    assert "as another action: refund" in wrong[0]


def test_what_has_just_been_done_there_may_not_have_been_heard() -> None:
    of = payment(operation(1, "purchase", "failed"))
    assert differences(of, {}, effect(1, "purchase", changed_ms=NOW_MS)) == [IN_FLIGHT]
    assert "failed here, but was done there" in differences(of, {}, effect(1, "purchase"))[0]


def test_what_was_done_there_is_in_flight_until_the_look_up_is_overdue() -> None:
    done = effect(1, "authorize")
    coming = operation(1, "authorize", "pending", next_check_ms=NOW_MS + 300_000)
    assert differences(payment(coming), {}, done) == [IN_FLIGHT]
    overdue = operation(1, "authorize", "pending", next_check_ms=NOW_MS - GRACE_MS - 1)
    assert differences(payment(overdue), {}, done) == [
        "the authorize is pending here, but it was done there, and not just now"
    ]


def test_an_operation_that_waits_on_both_sides_is_in_flight_however_old() -> None:
    of = payment(operation(1, "purchase", "pending"))
    assert differences(of, {}, effect(1, "purchase", done=False)) == [IN_FLIGHT]


def test_the_excess_that_was_suspended_is_part_of_what_was_captured() -> None:
    of = payment(operation(1, "purchase", "succeeded"))
    moved = {(1, "hold", "post_pending"): AMOUNT, (1, "suspended", "posted"): 5}
    assert differences(of, moved, effect(1, "purchase", amount=AMOUNT + 5)) == []
    assert "is 1005 here and 1000 there" in differences(of, moved, effect(1, "purchase"))[0]


def test_what_was_refused_for_an_unknown_operation_is_nothing() -> None:
    there = [effect(1, "purchase", done=False)]
    assert list(unknown_payment(there, now_ms=NOW_MS)) == []


def test_findings_keep_the_first_problems_and_count_all() -> None:
    told: list[tuple[str, int]] = []
    findings = Findings("work", "p", "rows", lambda name, rows: told.append((name, rows)))
    for n in range(25):
        findings.add(str(n), "wrong")
    findings.add_more(5)
    findings.look(4_999)
    assert told == []
    findings.look(2)
    result = findings.result()
    assert told == [("work", 5_001), ("work", 5_001)]
    assert (len(result.problems), result.problem_count, result.holds) == (20, 30, False)


def test_the_screen_names_the_first_problems_of_a_broken_check() -> None:
    problems = tuple(Problem(f"pay_{n}", "is wrong") for n in range(5))
    check = CheckResult("payments", "all is well", "rows", 1_234, 5, problems, False, in_flight=7)
    text = render(Report(NOW_MS, 3, "ab" * 32, (check,), False))
    assert "BROKEN payments" in text
    assert "1,234 rows, 7 in flight" in text
    assert "! pay_2: is wrong" in text
    assert "pay_3" not in text
    assert "and 2 more" in text
    assert text.endswith("5 problems.")
