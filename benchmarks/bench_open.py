"""Row 10: open payments in memory, and how long a start takes to rebuild them.

Open (authorised) payments are copies of one that the engine made; see `benchmarks/replicate.py`.
Memory is what the process holds more than one without payments, divided by their number. From the
start on, somebody asks for authorisations every few milliseconds: how many are granted before all
open payments are in memory tells whether other shards serve meanwhile.

    python -m benchmarks.bench_open [--json] [--payments N]
"""

from __future__ import annotations

import argparse
import json
import threading
import time
import urllib.error
from typing import Any

from benchmarks import processes
from benchmarks.command import run_bench, say
from benchmarks.filling import NoRoom, fill, post
from benchmarks.processes import Server
from benchmarks.table import Row

BYTES_EACH, REBUILT_S = 1_024.0, 15.0
ORDER = {"customer": "cus_06dqdpn80m09xq7w3ntk2vzr", "metadata": {"order": "A-1001"}}
"""What a merchant says of a payment, which is kept as it was said: each byte more is one more."""
GIVE_UP_S = 300.0


class Asking(threading.Thread):
    """Somebody who wants to pay from the first moment on; notes when that was granted."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self.granted: list[float] = []
        self.stopped = False

    def run(self) -> None:
        """Until told to stop."""
        order = {"amount": 1_099, "currency": "USD", "payment_method": "pm_card_visa"}
        while not self.stopped:
            try:
                if post(self._port, "/v1/payments/authorize", order)["status"] == "authorized":
                    self.granted.append(time.monotonic())
            except (urllib.error.HTTPError, OSError):
                pass
            time.sleep(0.02)


def open_payments(engine: Server) -> int:
    """How many open payments the shards say they hold."""
    status, body = processes.get(engine.port, "/v1/statistics")
    if status != 200:
        return 0
    parts: dict[str, Any] = json.loads(body)["parts"]
    return sum(
        part.get("open_payments", 0)
        for name, part in parts.items()
        if name.startswith("shard-") and isinstance(part, dict)
    )


def rebuilt(engine: Server, payments: int) -> tuple[float, int]:
    """Seconds from the start until all are in memory, and payments granted before that."""
    engine.spawn()
    began = time.monotonic()
    asking = Asking(engine.port)
    asking.start()
    try:
        while not (open_payments(engine) >= payments and engine.is_ready()):
            if time.monotonic() - began > GIVE_UP_S:
                raise RuntimeError(f"not rebuilt within {GIVE_UP_S:.0f} s")
            time.sleep(0.05)
        took_s = time.monotonic() - began
    finally:
        asking.stopped = True
        asking.join(30)
    return took_s, sum(at < began + took_s for at in asking.granted)


def measure(chosen: argparse.Namespace) -> list[Row]:
    """Fill, start without and with the payments, compare."""
    count = chosen.payments - chosen.payments % 1_000
    names = (
        f"memory for each of {count:,} open payments",
        f"a start rebuilds {count:,} open payments",
        "authorisations granted before all of them were rebuilt",
    )
    with processes.folder() as folder:
        try:
            fill(folder / "full", count, settled=False, **ORDER)
        except NoRoom as trouble:
            note = f"not measured: {trouble}"
            return [
                Row("10a", names[0], BYTES_EACH, None, note, "at most", "bytes"),
                Row("10b", names[1], REBUILT_S, None, "", "at most", "s"),
                Row("10c", names[2], 1.0, None),
            ]
        with processes.engine(folder / "empty") as empty:
            without = empty.memory_bytes()
        engine = processes.engine(folder / "full")
        try:
            took_s, granted = rebuilt(engine, count)
            time.sleep(3)
            memory = engine.memory_bytes()
        finally:
            engine.stop()
    each = (memory - without) / count
    say(f"rebuilt in {took_s:.1f} s, {each:.0f} bytes each, {granted} granted meanwhile")
    note = f"{memory / 2**20:,.0f} MiB against {without / 2**20:,.0f} MiB without; each has a "
    note += "customer and one entry of metadata"
    return [
        Row("10a", names[0], BYTES_EACH, each, note, "at most", "bytes"),
        Row("10b", names[1], REBUILT_S, took_s, "from the start of the process, its "
            "Postgres included; nothing pinned", "at most", "s"),
        Row("10c", names[2], 1.0, float(granted), "one caller, asking every 20 ms"),
    ]  # fmt: skip


if __name__ == "__main__":
    run_bench(measure, __doc__ or "", options={"payments": 1_000_000})
