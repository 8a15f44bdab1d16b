"""Faults that a unit or a property test can show: each has a test, and it is there.

A row is the fault's number in the list of faults that the engine is built against. Its tests are
named after it (`row_47`), or named here with the words the fault is known by.
"""

from __future__ import annotations

import ast

import pytest

from tests.architecture.source import ROOT, text_of

TESTS = ROOT / "tests"

ROWS: dict[int, tuple[str, tuple[str, ...]]] = {
    24: (
        "5xx, HTML, a truncated reply, 200 with another amount",
        (
            "pure/gateways/test_simulator_wire.py::test_everything_else_is_unknown",
            "pure/gateways/test_simulator_wire.py::test_a_truncated_answer_is_unknown",
            "pure/gateways/test_simulator_wire.py::test_noise_is_unknown",
        ),
    ),
    25: (
        "the gateway forgets an idempotency key",
        (
            "pure/domain/test_owed_work.py::"
            "test_what_is_due_again_after_its_key_may_be_forgotten_is_only_looked_up",
            "pure/domain/test_owed_work.py::"
            "test_what_is_too_old_and_not_there_is_a_persons_also_when_it_is_revived",
        ),
    ),
    27: (
        "a webhook twice, also at once",
        (
            "virtual/actors/test_webhooks.py::test_the_same_webhook_many_times_changes_one_thing",
            "real/system/test_webhooks_in.py::test_one_event_delivered_twenty_times_counts_once",
        ),
    ),
    31: (
        "a forged, replayed or stale signature; an old key in rotation",
        (
            "pure/gateways/test_signatures.py::test_any_changed_byte_of_the_body_is_refused",
            "pure/gateways/test_signatures.py::"
            "test_during_a_rotation_both_secrets_sign_and_either_verifies",
            "real/system/test_webhooks_in.py::"
            "test_what_is_not_genuine_is_refused_and_changes_nothing",
        ),
    ),
    33: (
        "the same key with another body, merchant or mode",
        (
            "pure/http/test_fingerprints.py::test_row_33_two_requests_are_the_same_only_if_equal",
            "pure/http/test_fingerprints.py::test_row_33_spelling_and_order_make_no_other_request",
            "virtual/actors/test_keys.py::test_a_key_is_of_one_merchant_and_mode",
            "real/system/test_idempotency.py::"
            "test_key_of_another_request_is_refused_also_across_endpoints",
        ),
    ),
    35: (
        "amounts: overflow, zero, negative, float, text, exponent",
        (
            "real/fuzz/test_fuzz.py::"
            "test_row_35_row_47_row_51_damaged_payloads_are_refused_by_their_code",
            "contracts/ledger.py::test_numbers_beyond_63_bits_are_refused",
        ),
    ),
    36: (
        "decimals of currencies, unknown currencies, postings of mixed currency",
        (
            "pure/domain/test_money.py::"
            "test_the_contracts_amounts_come_back_exactly_through_our_minor_units",
            "pure/domain/test_money.py::test_normalising_gives_a_known_code_or_nothing",
            "pure/domain/test_postings.py::test_row_36_a_transfer_stays_in_one_currency_and_mode",
        ),
    ),
    37: (
        "allocation and rounding",
        (
            "pure/domain/test_money.py::test_shares_sum_exactly_and_are_less_than_a_unit_off",
            "pure/domain/test_money.py::test_the_order_of_weights_changes_no_weights_share",
            "pure/domain/test_fees.py::test_fee_and_tax_never_exceed_the_amount_and_fit_together",
        ),
    ),
    47: (
        "malformed, truncated, BOM, bad UTF-8, lone surrogate, NUL, duplicate names",
        (
            "pure/http/test_bodies.py::test_no_bytes_make_it_raise",
            "real/fuzz/test_fuzz.py::"
            "test_row_47_row_48_damaged_http_is_refused_or_closed_and_never_hangs",
        ),
    ),
    48: (
        "too large: body, headers, metadata, compressed",
        (
            "real/fuzz/test_fuzz.py::"
            "test_row_47_row_48_damaged_http_is_refused_or_closed_and_never_hangs",
            "real/http/test_server.py::test_an_encoded_body_is_refused_unopened",
            "real/http/test_server.py::test_a_body_is_refused_by_its_length_alone",
        ),
    ),
    49: (
        "deeply nested JSON",
        (
            "pure/http/test_bodies.py::test_depth_counts_only_what_is_nested",
            "real/system/test_bad_input.py::test_bodies_that_are_wrong_are_refused_with_their_code",
        ),
    ),
    50: (
        "log injection; card numbers and secrets anywhere",
        (
            "pure/app/test_telemetry.py::"
            "test_nothing_that_is_logged_ends_a_line_or_moves_a_terminal",
            "real/fuzz/test_fuzz.py::test_row_50_planted_card_numbers_and_secrets_are_nowhere",
        ),
    ),
    51: (
        "SQL injection, LIKE, ORDER BY, damaged cursors",
        (
            "pure/http/test_cursors.py::test_a_changed_cursor_is_refused",
            "real/fuzz/test_fuzz.py::"
            "test_row_35_row_47_row_51_damaged_payloads_are_refused_by_their_code",
        ),
    ),
    53: (
        "ids of another merchant at every route",
        ("real/fuzz/test_fuzz.py::test_row_53_nothing_of_another_merchant_is_there_at_any_route",),
    ),
}
"""Number -> the fault, and where it is shown."""

WANTED = {24, 25, 27, 31, 33, 35, 36, 37, *range(47, 52), 53}


def test_every_fault_is_on_the_list() -> None:
    assert set(ROWS) == WANTED


@pytest.mark.parametrize("row", ROWS)
def test_a_faults_tests_are_there(row: int) -> None:
    fault, places = ROWS[row]
    assert fault
    assert places
    missing = []
    for place in places:
        file, _, name = place.partition("::")
        tree = ast.parse(text_of(TESTS / file))
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        if name not in {node.name for node in ast.walk(tree) if isinstance(node, functions)}:
            missing.append(place)
    assert missing == []


def test_a_test_that_names_a_row_is_on_the_list() -> None:
    named = {place.partition("::")[2] for _, places in ROWS.values() for place in places}
    strays = [
        node.name
        for path in TESTS.rglob("test_*.py")
        if "torture" not in path.parts  # Those faults have a list and a report of their own.
        for node in ast.walk(ast.parse(text_of(path)))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.name.startswith("test_row_")
        and node.name not in named
    ]
    assert strays == []
