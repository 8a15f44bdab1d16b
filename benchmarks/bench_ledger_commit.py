"""How many entries the ledger commits per second, at several sizes of the group.

    python -m benchmarks.bench_ledger_commit [--json] [--dsn DSN] [--entries N]

Three kinds of entry, each with what it has in the engine, and with a timer that the engine sets
only for what is to be looked up: `intents` (payment, claim, hold, timeline, timer), `authorized`
(new version, answer, event, timeline, timers) and `captured` (new version, the hold posted, a fee,
event, timeline). On the embedded Postgres in a folder that is removed afterwards, with fsync on,
unless a DSN of an empty database is given.

`python_us` is this process's CPU time per entry in microseconds, building the entries excluded.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from engine.domain.entry import (
    Answer,
    Batch,
    Claim,
    Entry,
    EventRow,
    KeyAnswer,
    KeyRef,
    TimelineStep,
    TimerRow,
)
from engine.domain.ids import new_id
from engine.domain.operation import Operation
from engine.domain.payment import Payment
from engine.domain.posting import books_of, leg
from engine.ledger.embedded import EmbeddedPostgres
from engine.ledger.migrate import migrate
from engine.ledger.postgres import PostgresLedger

SIZES = (1, 32, 256)
ENTRIES = 8192
START_MS = 1_800_000_000_000
MERCHANTS = 50
BODY = b'{"object":"payment","amount":10000,"currency":"EUR","pad":"' + b"x" * 600 + b'"}'
FINGERPRINT = bytes(32)


class Source:
    """Payments, and the entries that move them on."""

    def __init__(self) -> None:
        self.made = 0
        self.transfer = 0

    def intents(self, count: int) -> Iterator[Entry]:
        """New payments, each with its claim, its hold and a timer."""
        for _ in range(count):
            self.made += 1
            self.transfer += 1
            n = self.made
            slot = n % 4096
            payment_id = new_id("pay_", START_MS + n, slot, n * 7919)
            merchant = f"mer_{n % MERCHANTS:024d}"
            op = Operation(
                n=1,
                type="authorize",
                amount=10_000,
                created_ms=START_MS + n,
                sent_ms=START_MS + n,
                key=f"key-{n:032d}",
                request_id=f"req_{n:024d}",
                path="/v1/payments/authorize",
                transfer=self.transfer,
            )
            payment = Payment(
                id=payment_id,
                merchant_id=merchant,
                livemode=True,
                created_ms=START_MS + n,
                amount=10_000,
                currency="EUR",
                gateway="simulator",
                payment_method="tok_visa",
                operations=(op,),
                hold=op.transfer,
                customer=f"cus_{n % 1000}",
                reference=f"order-{n}",
                metadata={"cart": str(n)},
            )
            hold = leg(
                books_of(merchant, "simulator", "EUR", True),
                "hold",
                id=op.transfer,
                amount=op.amount,
                payment_id=payment_id,
                op=1,
                event_ms=START_MS + n,
                phase="pending",
            )
            steps = (
                TimelineStep(START_MS + n, "requested", op.key, {"path": op.path}),
                TimelineStep(START_MS + n, "intent", op.key, {"amount": op.amount}),
            )
            yield Entry(
                payment=payment,
                transfers=(hold,),
                claim=Claim(
                    KeyRef(merchant, True, op.key), FINGERPRINT, START_MS + n, payment_id, 1
                ),
                timeline=steps,
                timers_set=(TimerRow(START_MS + n + 60_000, payment_id, "look_up"),),
            )

    def authorized(self, payments: list[Payment]) -> Iterator[Entry]:
        """The gateway's approval of each intent."""
        for payment in payments:
            op = msgspec.structs.replace(
                payment.operations[0], status="succeeded", reference="gw_1", answered=True
            )
            after = msgspec.structs.replace(
                payment, operations=(op,), version=2, sequence=1, authorized=payment.amount,
                gateway_reference="gw_1", expires_ms=START_MS + 10**9,
            )  # fmt: skip
            ref = KeyRef(payment.merchant_id, True, op.key)
            yield Entry(
                payment=after,
                answers=(KeyAnswer(ref, Answer(201, BODY, final=True, code="created")),),
                events=(event(after, "payment.authorized"),),
                timeline=(TimelineStep(payment.created_ms, "authorized", op.key),),
                timers_cleared=(TimerRow(payment.created_ms + 60_000, payment.id, "look_up"),),
                timers_set=(TimerRow(START_MS + 10**9, payment.id, "expire"),),
            )

    def captured(self, payments: list[Payment]) -> Iterator[Entry]:
        """Each hold posted, with a fee."""
        for payment in payments:
            after = msgspec.structs.replace(
                payment, version=3, sequence=2, captured=payment.amount, fee=390
            )
            books = books_of(payment.merchant_id, "simulator", "EUR", True)
            self.transfer += 2
            first = self.transfer - 1
            common: dict[str, Any] = {
                "payment_id": payment.id, "op": 1, "event_ms": payment.created_ms, "link": first,
            }  # fmt: skip
            yield Entry(
                payment=after,
                transfers=(
                    leg(books, "hold", id=first, amount=payment.amount, phase="post_pending",
                        resolves=payment.hold, **common),
                    leg(books, "fee", id=first + 1, amount=390, **common),
                ),
                events=(event(after, "payment.captured"),),
                timeline=(TimelineStep(payment.created_ms, "captured", "op"),),
                timers_cleared=(TimerRow(START_MS + 10**9, payment.id, "expire"),),
            )  # fmt: skip


def event(payment: Payment, kind: str) -> EventRow:
    """An event with a body of usual size."""
    id_ = new_id("evt_", START_MS, payment.version, int(payment.created_ms - START_MS))
    return EventRow(
        id_, kind, payment.merchant_id, True, payment.id, payment.sequence, START_MS, BODY
    )


async def timed(
    ledger: PostgresLedger, kind: str, size: int, entries: list[Entry]
) -> dict[str, Any]:
    """Commit the entries in groups of `size`."""
    batches = [
        Batch(f"{kind}-{size}-{at}", START_MS + at, tuple(entries[at : at + size]))
        for at in range(0, len(entries), size)
    ]
    began, cpu = time.perf_counter(), time.process_time()
    for batch in batches:
        await ledger.commit(batch)
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {
        "kind": kind,
        "group": size,
        "entries_per_s": round(len(entries) / took),
        "commit_ms": round(took / len(batches) * 1000, 2),
        "python_us": round(cpu / len(entries) * 1e6, 1),
    }


async def run(dsn: str, entries_max: int) -> list[dict[str, Any]]:
    """All kinds at all sizes."""
    await migrate(dsn)
    ledger = PostgresLedger(dsn)
    await ledger.open()
    await ledger.take_over("benchmark")
    source, results = Source(), []
    await timed(ledger, "warm-up", 32, list(source.intents(320)))
    for size in SIZES:
        intents = list(source.intents(min(entries_max, size * 1000)))
        results.append(await timed(ledger, "intents", size, intents))
        authorized = list(source.authorized([e.payment for e in intents if e.payment]))
        results.append(await timed(ledger, "authorized", size, authorized))
        captured = list(source.captured([e.payment for e in authorized if e.payment]))
        results.append(await timed(ledger, "captured", size, captured))
    await ledger.close()
    return results


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_ledger_commit")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.add_argument("--dsn", help="an empty database instead of the embedded one")
    parser.add_argument("--entries", type=int, default=ENTRIES, help="entries per measurement")
    options = parser.parse_args()
    if options.dsn:
        results = uvloop.run(run(options.dsn, options.entries))
    else:
        with (
            tempfile.TemporaryDirectory(prefix="bench-ledger-") as folder,
            EmbeddedPostgres(Path(folder)) as postgres,
        ):
            results = uvloop.run(run(postgres.dsn, options.entries))
    if options.json:
        json.dump({"python": sys.version.split()[0], "results": results}, sys.stdout, indent=2)
        return
    print(f"{'kind':<12}{'group':>6}{'entries/s':>11}{'commit ms':>11}{'python us':>11}")
    for r in results:
        print(
            f"{r['kind']:<12}{r['group']:>6}{r['entries_per_s']:>11}{r['commit_ms']:>11}"
            f"{r['python_us']:>11}"
        )


if __name__ == "__main__":
    main()
