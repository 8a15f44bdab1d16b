"""The smallest durable thing: one row, one commit, one client. Prints its latencies as JSON.

Run as a process of its own, pinned where the engine is, because it is the engine's part that it
stands for: `python -m benchmarks.durable_commit --dsn DSN --seconds S`.
"""

from __future__ import annotations

import argparse
import json
import time

import asyncpg
import uvloop

from benchmarks.percentiles import summary_ms


async def measure(dsn: str, seconds: float) -> dict[str, float]:
    """Insert a row, again and again, each in a transaction of its own."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS bench_commit (id bigserial PRIMARY KEY, amount bigint)"
        )
        insert = await connection.prepare("INSERT INTO bench_commit (amount) VALUES ($1)")
        latencies_s = []
        until = time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            await insert.fetch(1_099)
            latencies_s.append(time.perf_counter() - began)
        await connection.execute("DROP TABLE bench_commit")
    finally:
        await connection.close()
    return summary_ms(latencies_s[20:] or latencies_s)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--seconds", type=float, default=2.0)
    chosen = parser.parse_args()
    print(json.dumps(uvloop.run(measure(chosen.dsn, chosen.seconds))))


if __name__ == "__main__":
    main()
