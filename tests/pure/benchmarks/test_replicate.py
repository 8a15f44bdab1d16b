"""Copies of a payment carry names of their own wherever the template carried its."""

from __future__ import annotations

from benchmarks.replicate import quote, text_sql, value_sql

TOKENS = {"pay_1": "c.pid", "k-1": "md5(c.n)"}
NUMBERS = {7: "c.transfer + 0", 8: "c.transfer + 1"}


def test_names_and_numbers_of_transfers_are_replaced() -> None:
    sql = text_sql('{"id":"pay_1","hold":7,"key":"k-1"}', TOKENS, NUMBERS)
    assert sql == (
        'concat(\'{"id":"\', c.pid, \'","hold":\', c.transfer + 0, \',"key":"\', md5(c.n), \'"}\')'
    )


def test_a_list_of_transfers_is_replaced_one_by_one() -> None:
    sql = text_sql('"transfers":"7,8"', TOKENS, NUMBERS)
    assert sql == "concat('\"transfers\":\"', c.transfer + 0, ',', c.transfer + 1, '\"')"


def test_an_amount_that_looks_like_a_transfer_is_kept() -> None:
    assert text_sql('{"amount":7}', TOKENS, NUMBERS) == "concat('{\"amount\":7}')"


def test_values_become_literals() -> None:
    assert value_sql(None, {}, {}) == "NULL"
    assert value_sql(True, {}, {}) == "true"
    assert value_sql(5, {}, {}) == "5"
    assert value_sql(b"\xff\x00", {}, {}) == "'\\xff00'::bytea"
    assert value_sql(b"pay_1", TOKENS, {}) == "convert_to(concat(c.pid), 'UTF8')"
    assert quote("it's") == "'it''s'"
