"""Run the scenarios: `python -m loadtests [--only NAME,...] [--soak] [--seconds S]`.

Each starts a gateway and an engine of its own on new data, lets locust's customers come, disturbs
what is to be disturbed, and judges. Reports are HTML files in `loadtests/reports/`. Exit status 0
when every threshold holds. Everything listens on loopback and ends by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import processes
from benchmarks.processes import Server
from loadtests.judging import growth_of, in_words, troubles_of
from loadtests.scenarios import SCENARIOS, SOAK, Disturbance, Scenario

HERE = Path(__file__).parent
REPORTS = HERE / "reports"
STRAGGLERS_S = 50
"""More than a customer's patience and the time-outs of its last attempt."""
SETTLE_S = 20.0


class Stage:
    """The processes of one scenario, and what is done to them."""

    def __init__(self, folder: Path, scenario: Scenario) -> None:
        self.scenario = scenario
        self.data = folder / "data"
        self.data.mkdir()
        self.keys = [f"sk_test_load_{n}" for n in range(scenario.merchants)]
        # In the engine's data directory its books are found by `engine verify`.
        self.gateway = processes.simulator(
            self.data, latency_ms=scenario.latency_ms, rates=scenario.rates
        )
        self.engine = processes.engine(self.data, settings=self._settings())
        self.memory: list[int] = []
        self.troubles: list[str] = []
        self.ended = threading.Event()

    def _settings(self) -> str:
        keys = "".join(
            f'[[api_keys]]\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'
            f'merchant = "m_load_{n}"\n'
            for n, key in enumerate(self.keys)
        )
        return f'{keys}[simulator]\nurl = "http://127.0.0.1:{self.gateway.port}"\n'

    def disturb(self, disturbance: Disturbance) -> None:
        """Do what the scenario says."""
        kind = disturbance.kind
        if kind in ("gateway_out", "gateway_back"):
            set_outage(self.gateway, kind == "gateway_out")
        elif kind == "kill_engine":
            self.engine.stop(kill=True)
        else:
            self.engine.spawn()
            self.engine.wait_ready()

    def watch(self) -> None:
        """Watch until the end; what keeps from it is a trouble."""
        try:
            self._watch()
        except Exception as trouble:
            self.troubles.append(f"could not be watched to its end: {trouble!r}")

    def _watch(self) -> None:
        """Disturb at the right moments; where memory is judged, read it once a second."""
        limits = self.scenario.thresholds
        began = time.monotonic()
        todo = sorted(self.scenario.disturbances, key=lambda d: d.at)
        while not self.ended.wait(0.2 if todo else 1.0):
            elapsed_s = time.monotonic() - began
            if todo and elapsed_s >= todo[0].at * self.scenario.seconds:
                self.disturb(todo.pop(0))
            elif limits.memory_growth_max is not None and elapsed_s >= limits.memory_from_s:
                self.memory.append(self.engine.memory_bytes())
        self.troubles += [f"{left.kind} did not come about" for left in todo]


def set_outage(gateway: Server, on: bool) -> None:
    """Tell the simulator to refuse every connection, or no longer."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{gateway.port}/v1/outage", data=json.dumps({"on": on}).encode(),
        headers={"Content-Type": "application/json"},
    )  # fmt: skip
    urllib.request.urlopen(request, timeout=10).close()


def locust(stage: Stage, result: Path) -> None:
    """The customers, in a process of their own on the other core, for as long as it says."""
    scenario = stage.scenario
    files = ",".join(filter(None, (str(HERE / "locustfile.py"), scenario.shape)))
    command = [
        sys.executable, "-m", "locust", "-f", files, scenario.user, "--headless", "--only-summary",
        "--host", f"http://127.0.0.1:{stage.engine.port}", "--loglevel", "WARNING",
        "--html", str(REPORTS / f"{scenario.name}.html"), "--stop-timeout", str(STRAGGLERS_S),
    ]  # fmt: skip
    if scenario.shape is None:
        command += ["-u", str(scenario.users), "-r", str(scenario.users)]
        command += ["-t", f"{scenario.seconds}s"]
    environ = {
        **os.environ,
        "LOADTEST_KEYS": ",".join(stage.keys),
        "LOADTEST_RESULT": str(result),
        "LOADTEST_USERS": str(scenario.users),
        "LOADTEST_SECONDS": str(scenario.seconds),
    }
    with (REPORTS / f"{scenario.name}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log, cwd=HERE.parent)
    processes.pin(process.pid, processes.LOAD_CORE)
    try:
        process.wait(scenario.seconds + STRAGGLERS_S + 60)
    except subprocess.TimeoutExpired:
        print("    locust did not end by itself", flush=True)
    finally:
        process.kill()
        process.wait(30)


def is_settled(stage: Stage) -> bool:
    """Whether nothing is under way, with no request and no merchant."""
    port = stage.engine.port
    status, body = processes.get(port, "/v1/statistics")
    if status != 200 or json.loads(body)["parts"]["router"]["waiting"]:
        return False
    for key in stage.keys:
        status, body = processes.get(port, "/v1/payments?status=unknown&limit=1", key=key)
        if status != 200 or json.loads(body)["data"]:
            return False
    return True


def wait_settled(stage: Stage) -> bool:
    """Wait until nothing is under way: unknown outcomes are looked up after their load."""
    deadline = time.monotonic() + SETTLE_S
    while not is_settled(stage):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def run(scenario: Scenario) -> list[str]:
    """One scenario; returns what did not hold."""
    with processes.folder() as folder:
        stage = Stage(folder, scenario)
        result = folder / "result.json"
        with stage.gateway, stage.engine:
            watching = threading.Thread(target=stage.watch, daemon=True)
            watching.start()
            locust(stage, result)
            stage.ended.set()
            watching.join(60)
            if not result.exists():
                return ["locust left no result"]
            seen: dict[str, Any] = json.loads(result.read_text())
            if not wait_settled(stage):
                stage.troubles.append(f"not settled {SETTLE_S:.0f} s after its end")
        verified = processes.run_engine_command("verify", f"--data={stage.data}", environ={})
    print(f"    {in_words(seen)}", flush=True)
    limits = scenario.thresholds
    if limits.memory_growth_max is not None and growth_of(stage.memory) is None:
        print(f"    memory is not judged: it settles after {limits.memory_from_s} s", flush=True)
    return stage.troubles + troubles_of(scenario, seen, stage.memory, verified)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtests", description=__doc__)
    parser.add_argument("--only", default="", help="names of scenarios, with commas between")
    parser.add_argument("--soak", action="store_true", help="the soak, and nothing else")
    parser.add_argument("--seconds", type=int, help="how long each one lasts")
    chosen = parser.parse_args()
    REPORTS.mkdir(exist_ok=True)
    wanted = set(filter(None, chosen.only.split(",")))
    scenarios = [SOAK] if chosen.soak else [s for s in SCENARIOS if not wanted or s.name in wanted]
    missed = 0
    began = time.monotonic()
    if chosen.seconds:
        scenarios = [msgspec.structs.replace(s, seconds=chosen.seconds) for s in scenarios]
    for scenario in scenarios:
        print(f"{scenario.name}: {scenario.what}", flush=True)
        troubles = run(scenario)
        missed += bool(troubles)
        for trouble in troubles:
            print(f"    MISSED: {trouble}", flush=True)
        if not troubles:
            print("    holds", flush=True)
    took_s = time.monotonic() - began
    print(f"{len(scenarios) - missed} of {len(scenarios)} hold; {took_s:.0f} s; HTML in {REPORTS}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
