"""The simulator's books against ours: two records that owe each other nothing."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from engine.gateways.simulator_books import Effect
from tests.real.system.client import Client
from tests.real.system.process import EngineProcess

UNRESOLVED = frozenset({"processing", "unknown", "needs_review"})


def effects_by_operation(engine: EngineProcess) -> dict[str, Effect]:
    """What the simulator did for each operation. Fails where it acted twice for one."""
    effects = engine.books()
    twice = [op for op, count in Counter(effect.op_id for effect in effects).items() if count > 1]
    assert not twice, f"done more than once: {twice}"
    return {effect.op_id: effect for effect in effects}


def disagreements(engine: EngineProcess, payments: list[Any]) -> list[str]:
    """Where the two books differ, in words; for payments whose outcomes are known."""
    effects = effects_by_operation(engine)
    now_ms = time.time_ns() // 1_000_000
    found = []
    for payment in payments:
        for op in payment["operations"]:
            effect = effects.pop(op["id"], None)
            if op["status"] in ("pending", *UNRESOLVED):
                found.append(f"{op['id']} is {op['status']}")
                continue
            moved = effect is not None and effect.is_done(now_ms)
            if moved != (op["status"] == "succeeded"):
                found.append(f"{op['id']} {op['type']} is {op['status']}; there: {effect}")
            elif effect is not None and moved and op["type"] not in ("cancel", "reversal"):
                told = (effect.amount, effect.currency)
                if told != (op["amount"], payment["currency"]):
                    found.append(f"{op['id']} is over {op['amount']}; there: {told}")
    found += [f"{op_id} is not in our books" for op_id in effects]
    return found


async def assert_books_agree(client: Client) -> None:
    """Every payment's every operation, compared; nothing may be missing on either side."""
    payments = await client.list_all("/v1/payments")
    found = disagreements(client.engine, payments)
    if found:
        raise AssertionError(f"{len(found)} disagreements: {found[:10]}")
    await assert_accounts_follow_from(client, payments)


async def assert_accounts_follow_from(client: Client, payments: list[Any]) -> None:
    """The merchant's posted balance is the sum of what its payments say."""
    expected: Counter[str] = Counter()
    for payment in payments:
        net = payment["amount_captured"] - payment["amount_refunded"]
        fees = payment["fees"]["platform_fee"] + payment["fees"]["tax"]
        expected[payment["currency"]] += net - fees
    balances: Counter[str] = Counter()
    posted: Counter[str] = Counter()
    for account in await client.list_all("/v1/accounts"):
        if account["kind"] == "merchant_pending":
            balances[account["currency"]] += account["balance"]
        posted[account["currency"]] += account["debits_posted"] - account["credits_posted"]
        assert min(account["debits_pending"], account["credits_pending"]) >= 0, account
    assert {code: amount for code, amount in posted.items() if amount} == {}
    for code in expected.keys() | balances.keys():
        assert balances[code] == expected[code], f"{code}: {balances[code]} != {expected[code]}"


def assert_verified(engine: EngineProcess) -> None:
    """`engine verify` proves the books, beside the running engine or without it."""
    done = engine.run_command("verify", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
