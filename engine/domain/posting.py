"""Posting rules: which transfers each event of a payment makes.

A transfer moves one amount from a debit account to a credit account, so it balances by
construction. Holds are two-phase as in TigerBeetle: `pending`, then `post_pending`,
`void_pending` or `expire_pending`, each of which repeats the accounts of what it resolves.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Phase = Literal["posted", "pending", "post_pending", "void_pending", "expire_pending"]

PLATFORM_BOOK = "platform"

DEBIT_NORMAL = frozenset(
    {"gateway_receivable", "settlement_in_transit", "gateway_reserve", "bank", "gateway_fees"}
)
"""Kinds whose balance grows on the debit side; every other kind grows on the credit side."""


class AccountKey(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """What an account is for. Book, currency and mode are fixed for its life.

    Its hash is remembered, and `books_of` gives the same objects again: so a look-up by it is as
    cheap as one by a number.
    """

    book: str
    kind: str
    owner: str
    currency: str
    livemode: bool


class Transfer(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One leg. `resolves` is the pending transfer that a second phase acts on.

    Transfers of one `link` (a capture and its fee) belong to one event; a step's transfers always
    commit together or not at all.
    """

    id: int
    debit: AccountKey
    credit: AccountKey
    amount: int
    kind: str
    phase: Phase
    payment_id: str
    op: int
    event_ms: int
    resolves: int = 0
    link: int = 0


class Books(msgspec.Struct, frozen=True, gc=False):
    """The accounts one payment touches, named once."""

    receivable: AccountKey
    merchant: AccountKey
    fees: AccountKey
    tax: AccountKey
    suspense: AccountKey


_BOOKS: dict[tuple[str, str, str, bool], Books] = {}
_BOOKS_MAX = 100_000


def books_of(merchant_id: str, gateway: str, currency: str, livemode: bool) -> Books:
    """The accounts of a payment, remembered: many payments share a merchant and a currency."""
    key = (merchant_id, gateway, currency, livemode)
    books = _BOOKS.get(key)
    if books is None:

        def account(kind: str, owner: str) -> AccountKey:
            return AccountKey(PLATFORM_BOOK, kind, owner, currency, livemode)

        books = Books(
            receivable=account("gateway_receivable", gateway),
            merchant=account("merchant_pending", merchant_id),
            fees=account("platform_fees", PLATFORM_BOOK),
            tax=account("platform_tax_payable", PLATFORM_BOOK),
            suspense=account("suspense", gateway),
        )
        if len(_BOOKS) >= _BOOKS_MAX:
            _BOOKS.clear()
        _BOOKS[key] = books
    return books


RULES: dict[str, tuple[str, str]] = {
    "hold": ("receivable", "merchant"),  # rows 1 and 2: authorisation, purchase
    "unheld": ("receivable", "merchant"),  # row 3: captured without a hold
    "suspended": ("receivable", "suspense"),  # row 3: above a hold, wrong, or late
    "accepted": ("suspense", "merchant"),  # row 3: then accepted
    "sent_back": ("suspense", "receivable"),  # row 3: or sent back
    "fee": ("merchant", "fees"),  # row 4
    "fee_tax": ("merchant", "tax"),  # row 4
    "refund": ("merchant", "receivable"),  # row 5
    "refund_returned": ("receivable", "merchant"),  # row 6: failed after it succeeded
    "refund_elsewhere": ("merchant", "receivable"),  # row 6: from the gateway's dashboard
    "refund_excess": ("suspense", "receivable"),  # row 6: more than was captured
    "reversal": ("merchant", "receivable"),  # row 7
}
"""Kind of transfer -> (debit, credit), as fields of `Books`."""


def leg(
    books: Books,
    kind: str,
    *,
    id: int,  # noqa: A002 - the field's own name
    amount: int,
    payment_id: str,
    op: int,
    event_ms: int,
    phase: Phase = "posted",
    resolves: int = 0,
    link: int = 0,
) -> Transfer:
    """One transfer of the given kind. Amounts are positive: a zero leg is a bug of ours."""
    assert amount > 0, f"a transfer of {amount}"
    debit, credit = RULES[kind]
    return Transfer(
        id=id,
        debit=getattr(books, debit),
        credit=getattr(books, credit),
        amount=amount,
        kind=kind,
        phase=phase,
        payment_id=payment_id,
        op=op,
        event_ms=event_ms,
        resolves=resolves,
        link=link,
    )
