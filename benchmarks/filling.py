"""A data directory with as many payments as asked for, made before the engine that is measured."""

from __future__ import annotations

import asyncio
import json
import shutil
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from benchmarks import processes
from benchmarks.command import say
from benchmarks.replicate import BYTES_EACH, replicate
from engine.config import DEV_KEY
from engine.ledger.embedded import EmbeddedPostgres


class NoRoom(Exception):
    """The disk is too small for what was asked for."""


def post(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """One POST with a key of its own; the answer's body."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        data=json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {DEV_KEY}",
            "Content-Type": "application/json",
            "Idempotency-Key": uuid.uuid4().hex,
        },
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


def fill(data: Path, payments: int, *, settled: bool, **more: Any) -> None:
    """Settled payments (authorised and captured), or open ones. Raises NoRoom.

    `more` is what the order of each says beside its amount and card.
    """
    needed = payments * BYTES_EACH
    free = shutil.disk_usage(data.parent).free
    if needed > free * 0.9:
        raise NoRoom(
            f"{payments:,} payments may take {needed / 2**30:.0f} GiB, and {free / 2**30:.0f} are "
            f"free"
        )
    with processes.engine(data) as engine:
        order = {"amount": 1_099, "currency": "USD", "payment_method": "pm_card_visa", **more}
        payment = post(engine.port, "/v1/payments/authorize", order)["id"]
        if settled:
            post(engine.port, f"/v1/payments/{payment}/capture", {})
    with EmbeddedPostgres(data) as postgres:
        asyncio.run(replicate(postgres.dsn, payment, payments, say))


def verify_holds(data: Path) -> bool:
    """Whether `engine verify` holds, without the simulator's books, which know no copies."""
    with EmbeddedPostgres(data) as postgres:
        return processes.run_engine_command(
            "verify", f"--data={data}", environ={"DATABASE_URL": postgres.dsn}
        )
