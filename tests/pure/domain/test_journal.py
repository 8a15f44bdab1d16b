"""The hash chain: its form never changes, and every part of a batch counts."""

from __future__ import annotations

from typing import Any

import pytest

from engine.domain.journal import GENESIS, AccountTuple, TransferTuple, seal

TRANSFER: TransferTuple = (1, 2, 3, 400, "hold", "pending", 0, 0, "pay_1", 1, 5)
ACCOUNT: AccountTuple = (2, "platform", "merchant_pending", "mer_1", "EUR", True)


def sealed(**changes: Any) -> bytes:
    values: dict[str, Any] = {
        "prev_hash": GENESIS, "number": 1, "key": "k", "recorded_ms": 9,
        "transfers": [TRANSFER], "accounts": [ACCOUNT], "lane": 0,
    }  # fmt: skip
    return seal(**values | changes)


def test_the_canonical_form_is_fixed() -> None:
    # Databases are verified against this form: a change here breaks every one that exists.
    assert sealed().hex() == "ca6b30d1f20940e01163e96a4c264cd2f8a4e3404057ba1881fee707ae28a116"
    assert sealed(transfers=(TRANSFER,), accounts=(ACCOUNT,)) == sealed()


@pytest.mark.parametrize(
    "change",
    [
        {"prev_hash": bytes(31) + b"\x01"},
        {"number": 2},
        {"key": "l"},
        {"recorded_ms": 10},
        {"lane": 1},
        {"transfers": []},
        {"transfers": [TRANSFER, TRANSFER]},
        {"accounts": []},
        {"accounts": [(*ACCOUNT[:3], "mer_2", *ACCOUNT[4:])]},
        *({"transfers": [(*TRANSFER[:n], 77, *TRANSFER[n + 1 :])]} for n in range(11)),
    ],
)
def test_every_part_counts(change: dict[str, Any]) -> None:
    assert sealed(**change) != sealed()
