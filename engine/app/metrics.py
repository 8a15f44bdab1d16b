"""Metrics: plain integers on the hot path, Prometheus' objects only when somebody asks.

A counter is an item of a dictionary, a histogram a list of counts; `EngineCollector` reads them,
and the statistics of the actors, at the moment of a scrape.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from engine.actors.gateway import GatewayStatistics
from engine.actors.pruner import PrunerStatistics
from engine.actors.router import RouterStatistics
from engine.actors.shard import ShardStatistics
from engine.http.shell import Statistics as HttpStatistics
from engine.supervisor.mailbox import MailboxStatistics

_PREFIX: Final = "payment_engine"

REQUEST_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
GATEWAY_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
COMMIT_S: Final = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.5, 2.0)
COMMIT_ENTRIES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
LOOP_LAG_S: Final = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)

STALL_CAUSES: Final = ("busy", "waiting")
"""Why the event loop stood still: its thread ran for most of the time; or for less than half of it,
because it did not get the processor, or waited in a system call."""


class Histogram:
    """Counts of observations by upper bound; the last count is of what exceeds every bound."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation. A bound belongs to its own bucket, as in Prometheus."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def counts(self) -> list[int]:
        """How many observations each bound took."""
        return list(self._counts)

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Add the cumulative buckets to a family."""
        buckets = []
        running = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            running += count
            buckets.append((bound, running))
        family.add_metric(labels, buckets, self._sum)


Statistics = Callable[[], Mapping[str, Any]]
"""Frozen statistics by the name of the part; what is not known here is passed over."""


def _no_statistics() -> Mapping[str, Any]:
    return {}


class Metrics:
    """Everything that is counted as it happens."""

    def __init__(self) -> None:
        self._statistics: Statistics = _no_statistics
        self._registry = CollectorRegistry()
        self._registry.register(EngineCollector(self))
        ProcessCollector(registry=self._registry)
        self.requests: dict[tuple[str, int], int] = {}
        """By route template and status."""
        self.request_s: dict[str, Histogram] = {}
        """By route template."""
        self.outcomes: dict[tuple[str, str, str], int] = {}
        """By type of operation, outcome and gateway."""
        self.gateway_s: dict[tuple[str, str, str], Histogram] = {}
        """By gateway, action and outcome."""
        self.commit_entries = Histogram(COMMIT_ENTRIES)
        self.commit_s = Histogram(COMMIT_S)
        self.loop_lag_s = Histogram(LOOP_LAG_S)
        self.loop_stalls = dict.fromkeys(STALL_CAUSES, 0)
        """By cause."""
        self.log_lines: dict[str, int] = {}
        """By level."""

    def request(self, route: str, status: int, took_s: float) -> None:
        """Count and time an HTTP request."""
        key = (route, status)
        self.requests[key] = self.requests.get(key, 0) + 1
        histogram = self.request_s.get(route)
        if histogram is None:
            histogram = self.request_s[route] = Histogram(REQUEST_S)
        histogram.observe(took_s)

    def outcome(self, kind: str, outcome: str, gateway: str) -> None:
        """Count what became of an operation."""
        key = (kind, outcome, gateway)
        self.outcomes[key] = self.outcomes.get(key, 0) + 1

    def gateway_call(self, gateway: str, action: str, outcome: str, took_s: float) -> None:
        """Count and time a call to a gateway."""
        key = (gateway, action, outcome)
        histogram = self.gateway_s.get(key)
        if histogram is None:
            histogram = self.gateway_s[key] = Histogram(GATEWAY_S)
        histogram.observe(took_s)

    def group_commit(self, entries: int, took_s: float) -> None:
        """Count and time a group commit."""
        self.commit_entries.observe(entries)
        self.commit_s.observe(took_s)

    def loop_lag(self, late_s: float) -> None:
        """Note by how much the event loop woke the watchdog too late."""
        self.loop_lag_s.observe(late_s)

    def loop_stall(self, cause: str) -> None:
        """Count a time in which the event loop stood still for too long."""
        self.loop_stalls[cause] += 1

    def watch(self, statistics: Statistics) -> None:
        """Ask these statistics, too, at every scrape from now on."""
        self._statistics = statistics

    def statistics(self) -> Mapping[str, Any]:
        """What the watched parts say at this moment."""
        return self._statistics()

    def exposition(self) -> tuple[str, bytes]:
        """What `/metrics` answers: content type and text, with the process's memory and files."""
        return CONTENT_TYPE_LATEST, generate_latest(self._registry)


BREAKER_STATES: Final = ("closed", "open", "half_open")


class EngineCollector(Collector):
    """Turns the counts and the statistics into Prometheus' families at a scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask parts that do not run yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Every family, with its present values."""
        yield from self._counted()
        yield from self._timed()
        yield from self._asked()

    def _counted(self) -> Iterator[Metric]:
        requests = _counter("http_requests", "HTTP requests.", ["route", "status"])
        for (route, status), count in self._metrics.requests.items():
            requests.add_metric([route, str(status)], count)
        yield requests
        outcomes = _counter(
            "operation_outcomes", "Outcomes of operations.", ["type", "outcome", "gateway"]
        )
        for labels, count in self._metrics.outcomes.items():
            outcomes.add_metric(list(labels), count)
        yield outcomes
        lines = _counter("log_lines", "Log lines.", ["level"])
        for level, count in self._metrics.log_lines.items():
            lines.add_metric([level], count)
        yield lines
        stalls = _counter("event_loop_stalls", "Times the loop stood still.", ["cause"])
        for cause, count in self._metrics.loop_stalls.items():
            stalls.add_metric([cause], count)
        yield stalls

    def _timed(self) -> Iterator[Metric]:
        metrics = self._metrics
        requests = _histogram("http_request_duration_seconds", "Time to answer.", ["route"])
        for route, histogram in metrics.request_s.items():
            histogram.add_to(requests, [route])
        yield requests
        gateway = _histogram(
            "gateway_call_duration_seconds",
            "Time a gateway took.",
            ["gateway", "action", "outcome"],
        )
        for labels, histogram in metrics.gateway_s.items():
            histogram.add_to(gateway, list(labels))
        yield gateway
        for name, text, histogram in (
            ("group_commit_entries", "Entries in a group commit.", metrics.commit_entries),
            ("group_commit_duration_seconds", "Time a commit took.", metrics.commit_s),
            ("event_loop_lag_seconds", "How late the loop ran.", metrics.loop_lag_s),
        ):
            family = _histogram(name, text, [])
            histogram.add_to(family, [])
            yield family

    def _asked(self) -> Iterator[Metric]:
        depth = _gauge("mailbox_depth", "Messages held.", ["actor"])
        high = _gauge("mailbox_high_water", "Most messages ever held.", ["actor"])
        capacity = _gauge("mailbox_capacity", "Messages that fit, reserve excluded.", ["actor"])
        dead = _counter("dead_letters", "Messages parked after crashing their actor.", ["actor"])
        breakers = _gauge("breaker_state", "1 for the state it is in.", ["gateway", "state"])
        in_flight = _gauge("gateway_calls_in_flight", "Calls not answered yet.", ["gateway"])
        payments = _gauge("open_payments", "Payments held in memory.", ["shard"])
        credit = _gauge("admission_credits_free", "Requests that could still be admitted.", [])
        queue = _gauge("admission_queue", "Requests whose intent is not durable yet.", [])
        limited = _gauge("admission_limited_shards", "Shards whose queue would only grow.", [])
        refused = _counter("admission_refused", "Requests refused before any work.", [])
        connections = _gauge("http_connections", "Open connections of clients.", [])
        unseen = _counter("http_refused", "Requests refused before any handler.", ["code"])
        pruned = _counter("idempotency_keys_pruned", "Keys forgotten for their age.", [])
        for name, found in self._metrics.statistics().items():
            if isinstance(found, MailboxStatistics):
                actor = name.removeprefix("mailbox:")
                depth.add_metric([actor], found.depth)
                high.add_metric([actor], found.high_water)
                capacity.add_metric([actor], found.capacity)
                dead.add_metric([actor], found.dead_letters)
            elif isinstance(found, GatewayStatistics):
                for state in BREAKER_STATES:
                    breakers.add_metric([found.name, state], 1 if state == found.breaker else 0)
                in_flight.add_metric([found.name], found.in_flight)
            elif isinstance(found, ShardStatistics):
                payments.add_metric([found.name], found.open_payments)
            elif isinstance(found, RouterStatistics):
                credit.add_metric([], found.credits_free)
                queue.add_metric([], found.queue)
                limited.add_metric([], found.limited_shards)
                refused.add_metric([], found.refused)
            elif isinstance(found, HttpStatistics):
                connections.add_metric([], found.connections)
                for code, count in found.refusals.items():
                    unseen.add_metric([code], count)
            elif isinstance(found, PrunerStatistics):
                pruned.add_metric([], found.keys)
        yield from (depth, high, capacity, dead, breakers, in_flight, payments, credit, refused)
        yield from (queue, limited, connections, unseen, pruned)


def _counter(name: str, text: str, labels: list[str]) -> CounterMetricFamily:
    return CounterMetricFamily(f"{_PREFIX}_{name}", text, labels=labels)


def _gauge(name: str, text: str, labels: list[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=labels)


def _histogram(name: str, text: str, labels: list[str]) -> HistogramMetricFamily:
    return HistogramMetricFamily(f"{_PREFIX}_{name}", text, labels=labels)
