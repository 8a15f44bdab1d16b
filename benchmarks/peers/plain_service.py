"""The same job as most teams would write it: FastAPI, SQLAlchemy async, a request a transaction.

What it does for `POST /v1/payments/authorize`, with the durability of the engine:

1. the API key is looked up in memory by its digest, the body is validated by pydantic;
2. first transaction: the idempotency key is claimed by a unique index, the payment is inserted as
   `processing`, the merchant's account row is locked FOR UPDATE and the amount reserved on it;
3. the gateway is called outside of any transaction (in this process, without latency, as the
   engine's simulator in this comparison);
4. second transaction: the payment becomes `authorized`, a ledger line is written, the account row
   is locked and brought up to date, the answer is stored under the key.

Two transactions, because a gateway must not be called while a row is locked, and because the
intent must be durable before it. A used key is answered with what was stored. It has no look-ups
of unknown outcomes, no hash chain, no events, no timeline and no supervision. It counts requests
and writes one log line for each.

Tuned as one would: one uvicorn worker on uvloop and httptools, a warm pool of 20 connections, Core
statements that are compiled once, no ORM identity map, `msgspec` for the stored answer. More
workers would need more cores, which the engine does not get either.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import msgspec
import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI, Header, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

KEYS = {hashlib.sha256(b"sk_test_dev").hexdigest(): "m_dev"}
POOL = 20
CURRENCIES = frozenset({"USD", "EUR", "GBP", "JPY"})
PLACE = "/v1/payments/authorize"

metadata = sa.MetaData()
accounts = sa.Table(
    "plain_accounts",
    metadata,
    sa.Column("merchant", sa.Text, primary_key=True),
    sa.Column("currency", sa.Text, primary_key=True),
    sa.Column("pending", sa.BigInteger, nullable=False),
    sa.Column("authorized", sa.BigInteger, nullable=False),
)
payments = sa.Table(
    "plain_payments",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("merchant", sa.Text, nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("method", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("reference", sa.Text),
    sa.Column("created", sa.BigInteger, nullable=False),
)
keys = sa.Table(
    "plain_idempotency",
    metadata,
    sa.Column("merchant", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("fingerprint", sa.LargeBinary, nullable=False),
    sa.Column("payment", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary),
)
lines = sa.Table(
    "plain_ledger",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=True),
    sa.Column("payment", sa.Text, nullable=False),
    sa.Column("debit", sa.Text, nullable=False),
    sa.Column("credit", sa.Text, nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
)

ACCOUNT = (accounts.c.merchant == sa.bindparam("m")) & (accounts.c.currency == sa.bindparam("c"))
LOCK = sa.select(accounts.c.pending).where(ACCOUNT).with_for_update()
RESERVE = (
    sa.update(accounts).where(ACCOUNT).values(pending=accounts.c.pending + sa.bindparam("amount"))
)
SETTLE = (
    sa.update(accounts)
    .where(ACCOUNT)
    .values(
        pending=accounts.c.pending - sa.bindparam("amount"),
        authorized=accounts.c.authorized + sa.bindparam("amount"),
    )
)
CLAIM, PAY, LINE = sa.insert(keys), sa.insert(payments), sa.insert(lines)
DONE = (
    sa.update(payments)
    .where(payments.c.id == sa.bindparam("p"))
    .values(status="authorized", reference=sa.bindparam("ref"))
)
ANSWERED = (
    sa.update(keys)
    .where((keys.c.merchant == sa.bindparam("m")) & (keys.c.key == sa.bindparam("k")))
    .values(body=sa.bindparam("answer"))
)
FIND = sa.select(keys.c.fingerprint, keys.c.body).where(
    (keys.c.merchant == sa.bindparam("m")) & (keys.c.key == sa.bindparam("k"))
)


class Authorize(BaseModel):
    """The body; unknown fields and floats are refused, as the engine does."""

    model_config = ConfigDict(extra="forbid", strict=True)

    amount: Annotated[int, Field(gt=0, lt=10**12)]
    currency: Annotated[str, Field(min_length=3, max_length=3)]
    payment_method: Annotated[str, Field(min_length=1, max_length=255)]


def problem(status: int, code: str) -> Response:
    """A refusal."""
    body = msgspec.json.encode({"status": status, "code": code})
    return Response(body, status, media_type="application/problem+json")


async def call_gateway(payment_id: str) -> str:
    """The fake gateway: approves, and gives a reference."""
    return f"ch_{payment_id}"


class Service:
    """The two transactions around the gateway's call."""

    def __init__(self, database: AsyncEngine) -> None:
        self.database = database
        self.counts: Counter[int] = Counter()
        self.log = logging.getLogger("plain")

    async def authorize(self, merchant: str, key: str, body: Authorize, raw: bytes) -> Response:
        """Reserve, call, settle; or the stored answer of a key that was used."""
        fingerprint = hashlib.sha256(raw).digest()
        payment_id = f"pay_{uuid.uuid4().hex}"
        now = time.time_ns() // 1_000_000
        account = {"m": merchant, "c": body.currency}
        try:
            await self._reserve(merchant, key, fingerprint, payment_id, body, now)
        except IntegrityError:
            return await self._replay(merchant, key, fingerprint)
        reference = await call_gateway(payment_id)
        answer = msgspec.json.encode(
            {"id": payment_id, "object": "payment", "status": "authorized", "created": now,
             "amount": body.amount, "amount_authorized": body.amount, "currency": body.currency,
             "payment_method": body.payment_method, "gateway_reference": reference}
        )  # fmt: skip
        line = {"payment": payment_id, "debit": "gateway", "credit": merchant,
                "amount": body.amount, "created": now}  # fmt: skip
        async with self.database.begin() as connection:
            await connection.execute(DONE, {"p": payment_id, "ref": reference})
            await connection.execute(LINE, line)
            await connection.execute(LOCK, account)
            await connection.execute(SETTLE, {**account, "amount": body.amount})
            await connection.execute(ANSWERED, {"m": merchant, "k": key, "answer": answer})
        return Response(answer, 201, media_type="application/json")

    async def _reserve(
        self,
        merchant: str,
        key: str,
        fingerprint: bytes,
        payment_id: str,
        body: Authorize,
        now: int,
    ) -> None:
        account = {"m": merchant, "c": body.currency}
        claim = {"merchant": merchant, "key": key, "fingerprint": fingerprint,
                 "payment": payment_id}  # fmt: skip
        payment = {"id": payment_id, "merchant": merchant, "amount": body.amount,
                   "currency": body.currency, "method": body.payment_method,
                   "status": "processing", "created": now}  # fmt: skip
        async with self.database.begin() as connection:
            await connection.execute(CLAIM, claim)
            await connection.execute(PAY, payment)
            await connection.execute(LOCK, account)
            await connection.execute(RESERVE, {**account, "amount": body.amount})

    async def _replay(self, merchant: str, key: str, fingerprint: bytes) -> Response:
        async with self.database.connect() as connection:
            found = (await connection.execute(FIND, {"m": merchant, "k": key})).one()
        if found.fingerprint != fingerprint:
            return problem(422, "idempotency_key_reused")
        if found.body is None:
            return problem(409, "idempotency_in_progress")
        return Response(found.body, 201, media_type="application/json")


def application(dsn: str) -> FastAPI:
    """The service on a database of its own."""
    database = create_async_engine(
        dsn.replace("postgresql://", "postgresql+asyncpg://"), pool_size=POOL, max_overflow=0
    )
    service = Service(database)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with database.begin() as connection:
            await connection.run_sync(metadata.create_all)
            empty = [{"merchant": "m_dev", "currency": c, "pending": 0, "authorized": 0}
                     for c in sorted(CURRENCIES)]  # fmt: skip
            await connection.execute(sa.insert(accounts), empty)
        yield
        await database.dispose()

    app = FastAPI(lifespan=lifespan, openapi_url=None)

    @app.post(PLACE)
    async def authorize(
        request: Request,
        body: Authorize,
        authorization: Annotated[str, Header()] = "",
        idempotency_key: Annotated[str, Header()] = "",
    ) -> Response:
        began = time.perf_counter()
        digest = hashlib.sha256(authorization.removeprefix("Bearer ").encode()).hexdigest()
        merchant = KEYS.get(digest)
        if merchant is None:
            answer = problem(401, "invalid_api_key")
        elif not 1 <= len(idempotency_key) <= 255:
            answer = problem(400, "idempotency_key_missing")
        elif body.currency not in CURRENCIES:
            answer = problem(422, "currency_unsupported")
        else:
            raw = await request.body()
            answer = await service.authorize(merchant, idempotency_key, body, raw)
        service.counts[answer.status_code] += 1
        took_ms = (time.perf_counter() - began) * 1000
        service.log.info("authorize %s %d %.1f ms", merchant, answer.status_code, took_ms)
        return answer

    return app


def main() -> None:
    """Serve on loopback until ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--log", required=True)
    chosen = parser.parse_args()
    logging.basicConfig(filename=chosen.log, level=logging.WARNING)
    logging.getLogger("plain").setLevel(logging.INFO)
    uvicorn.run(
        application(chosen.dsn), host="127.0.0.1", port=chosen.port, loop="uvloop",
        http="httptools", access_log=False, log_level="warning",
    )  # fmt: skip


if __name__ == "__main__":
    main()
