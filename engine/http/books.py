"""The ledger as it is read: accounts, transfers, and the last verification.

A merchant sees the accounts it owns and their transfers. The platform's own accounts need the
operator scope. Another merchant's are not there, whatever the scope.
"""

from __future__ import annotations

from typing import Final

import msgspec

from engine.domain.ids import decode_int_id
from engine.domain.posting import PLATFORM_BOOK
from engine.domain.refusals import Refusal
from engine.http.calls import Call, Parts, ok
from engine.http.exchange import Response
from engine.http.keys import OPERATOR, ApiKey
from engine.http.pages import page, page_until, position_of
from engine.http.views import (
    ACCOUNT,
    TRANSFER,
    VerificationView,
    account_view,
    encoded,
    transfer_view,
)
from engine.ports import Balance

_ACCOUNT_NOT_FOUND: Final = Refusal("account_not_found", "No such account was found for this key.")
_TRANSFER_NOT_FOUND: Final = Refusal(
    "transfer_not_found", "No such transfer was found for this key."
)
_OPERATOR_NEEDED: Final = Refusal(
    "permission_denied", "The platform's accounts need a key with the operator scope."
)

# An operator's list passes over the merchants' accounts; a page looks at no more than this many
# rows, and the next one goes on from there.
_SCAN_PAGE: Final = 100
_SCAN_PAGES_MAX: Final = 10


def _owns(key: ApiKey, account: Balance) -> bool:
    return account.livemode == key.livemode and key.merchant_id in (account.owner, account.book)


def _is_platform(account: Balance) -> bool:
    """Whether it is the platform's own, and not one it keeps for a merchant."""
    return account.book == PLATFORM_BOOK and not account.kind.startswith("merchant_")


def _sees(key: ApiKey, account: Balance) -> bool:
    return account.livemode == key.livemode and (
        _owns(key, account) or (OPERATOR in key.scopes and _is_platform(account))
    )


async def _account(parts: Parts, call: Call, at_ms: int | None) -> Balance | Refusal:
    account_id = decode_int_id(ACCOUNT, call.segment)
    if account_id is None:
        return _ACCOUNT_NOT_FOUND
    account = await parts.reader.account(account_id, at_ms)
    if account is None or account.livemode != call.key.livemode:
        return _ACCOUNT_NOT_FOUND
    if _sees(call.key, account):
        return account
    return _OPERATOR_NEEDED if _is_platform(account) else _ACCOUNT_NOT_FOUND


async def get_account(parts: Parts, call: Call) -> Response:
    """One account, now or as it was recorded at a time."""
    at_ms: int | None = call.query["at"]
    account = await _account(parts, call, at_ms)
    if isinstance(account, Refusal):
        return call.refused(account)
    return ok(account_view(account, at_ms))


async def list_accounts(parts: Parts, call: Call) -> Response:
    """Accounts, oldest first."""
    position = position_of(parts, call)
    if isinstance(position, Refusal):
        return call.refused(position)
    key, limit = call.key, call.query["limit"]
    after = 0 if position is None else int(position)
    if OPERATOR in key.scopes:
        return await _list_for_operator(parts, call, after, limit)
    rows = await parts.reader.accounts(
        owner=key.merchant_id, livemode=key.livemode, after=after, limit=limit
    )
    return page(parts, call, [(str(row.id), encoded(account_view(row))) for row in rows])


async def _list_for_operator(parts: Parts, call: Call, after: int, limit: int) -> Response:
    seen: list[bytes] = []
    for _ in range(_SCAN_PAGES_MAX):
        rows = await parts.reader.accounts(
            owner=None, livemode=call.key.livemode, after=after, limit=_SCAN_PAGE
        )
        for row in rows[:_SCAN_PAGE]:
            if _sees(call.key, row):
                if len(seen) == limit:
                    return page_until(parts, call, seen, str(after))
                seen.append(encoded(account_view(row)))
            after = row.id
        if len(rows) <= _SCAN_PAGE:
            return page_until(parts, call, seen, None)
    return page_until(parts, call, seen, str(after))


async def account_transfers(parts: Parts, call: Call) -> Response:
    """Transfers on either side of an account, newest first."""
    position = position_of(parts, call)
    if isinstance(position, Refusal):
        return call.refused(position)
    account = await _account(parts, call, None)
    if isinstance(account, Refusal):
        return call.refused(account)
    rows = await parts.reader.account_transfers(
        account.id,
        before=None if position is None else int(position),
        limit=call.query["limit"],
    )
    return page(parts, call, [(str(row.id), encoded(transfer_view(row))) for row in rows])


async def get_transfer(parts: Parts, call: Call) -> Response:
    """One transfer, of which at least one side is the key's to see."""
    transfer_id = decode_int_id(TRANSFER, call.segment)
    transfer = None if transfer_id is None else await parts.reader.transfer(transfer_id)
    if transfer is None or transfer.livemode != call.key.livemode:
        return call.refused(_TRANSFER_NOT_FOUND)
    for side in (transfer.credit_account, transfer.debit_account):
        account = await parts.reader.account(side)
        if account is not None and _sees(call.key, account):
            return ok(transfer_view(transfer))
    return call.refused(_TRANSFER_NOT_FOUND)


async def get_verification(parts: Parts, call: Call) -> Response:
    """The result of the last verification of the ledger."""
    result = parts.verification()
    facts = None if result is None else msgspec.to_builtins(result)
    return ok(VerificationView("ledger_verification", facts))
