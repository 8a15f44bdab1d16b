"""Row 1: durable authorisations over HTTP against a bare echo, in one run and in turns.

Everything is on: fsync, keys, validation, idempotency, logs (to a file), metrics, the in-process
simulator with its books. The servers are pinned to one core; the load and the databases share the
other. Beside it the same job as most teams would write it (`benchmarks/peers/plain_service.py`).

    python -m benchmarks.bench_authorize [--json] [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from benchmarks import processes
from benchmarks.command import run_bench, say
from benchmarks.load import DONE
from benchmarks.processes import Result, Server, good_per_s, load
from benchmarks.table import Row
from engine.ledger.embedded import EmbeddedPostgres

TARGET = 0.5
CONNECTIONS = 128


@contextmanager
def plain_service(folder: Path) -> Iterator[Server]:
    """The plain service on a Postgres of its own, with the settings and the log of the engine's."""
    with EmbeddedPostgres(folder / "plain", lay_wal=True) as postgres:
        for child in psutil.Process().children(recursive=True):
            if str(folder / "plain") in " ".join(child.cmdline()):
                processes.pin(child.pid, processes.LOAD_CORE)
        port = processes.free_port()
        options = [f"--port={port}", f"--dsn={postgres.dsn}", f"--log={folder}/plain-service.log"]
        with Server(["benchmarks.peers.plain_service", *options], port) as server:
            yield server


def describe(name: str, rounds: list[Result]) -> str:
    """Rate and latencies of the middle round, in one line."""
    middle = sorted(rounds, key=good_per_s)[len(rounds) // 2]
    latency = middle["latency"]
    strange = {s: r for s, r in middle["per_s"].items() if s not in DONE}
    return (
        f"{name} {good_per_s(middle):,.0f}/s p50 {latency['p50_ms']:.1f} ms "
        f"p99 {latency['p99_ms']:.1f} ms{f' {strange}' if strange else ''}"
    )


def measure(chosen: argparse.Namespace) -> list[Row]:
    """Start the three, load them in turns, stop them."""
    rounds: dict[str, list[Result]] = {"echo": [], "engine": [], "plain service": []}
    with (
        processes.folder() as folder,
        processes.echo() as echo,
        plain_service(folder) as plain,
        processes.engine(folder / "data") as engine,
    ):
        servers = {"echo": echo, "engine": engine, "plain service": plain}
        for _ in range(chosen.rounds):
            for name, server in servers.items():
                server.pin()  # connections to a database come and go, and each is a process
                result = load(server.port, connections=CONNECTIONS, seconds=chosen.seconds)
                say(describe(name, [result]))
                rounds[name].append(result)
    pairs = zip(rounds["engine"], rounds["echo"], strict=True)
    ratio = statistics.median(good_per_s(ours) / good_per_s(bare) for ours, bare in pairs)
    plain_part = processes.median_of(rounds["plain service"]) / processes.median_of(rounds["echo"])
    return [
        Row(
            "1",
            "authorisations a second over HTTP, as a part of a bare echo's rate",
            TARGET,
            ratio,
            f"{CONNECTIONS} connections; "
            + "; ".join(describe(name, found) for name, found in rounds.items())
            + f"; the plain service is {plain_part:.3f} of the echo",
        )
    ]


if __name__ == "__main__":
    run_bench(measure, __doc__ or "", options={"rounds": 3, "seconds": 5.0})
