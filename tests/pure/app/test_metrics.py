"""Metrics: what is counted is what Prometheus reads."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.actors.gateway import GatewayStatistics
from engine.app.metrics import BREAKER_STATES, STALL_CAUSES, Histogram, Metrics
from engine.supervisor.mailbox import Mailbox


def read(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of the exposition."""
    content_type, body = metrics.exposition()
    assert content_type.startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def labels(**given: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(given.items()))


@pytest.mark.parametrize(
    ("value", "counts"), [(0, [1, 0, 0]), (1, [1, 0, 0]), (1.5, [0, 1, 0]), (9, [0, 0, 1])]
)
def test_a_bound_belongs_to_its_own_bucket(value: float, counts: list[int]) -> None:
    histogram = Histogram((1, 2))
    histogram.observe(value)
    assert histogram.counts() == counts


def test_what_is_counted_is_exposed() -> None:
    metrics = Metrics()
    metrics.request("/v1/payments", 200, 0.003)
    metrics.request("/v1/payments", 200, 0.3)
    metrics.request("/v1/payments", 404, 20.0)
    metrics.outcome("purchase", "approved", "simulator")
    metrics.gateway_call("simulator", "authorize", "unknown", 6.0)
    metrics.group_commit(31, 0.003)
    metrics.loop_lag(0.02)
    metrics.loop_stall("waiting")
    samples = read(metrics)
    requests = "payment_engine_http_requests_total"
    assert samples[requests, labels(route="/v1/payments", status="200")] == 2
    assert samples[requests, labels(route="/v1/payments", status="404")] == 1
    duration = "payment_engine_http_request_duration_seconds"
    assert samples[f"{duration}_count", labels(route="/v1/payments")] == 3
    assert samples[f"{duration}_bucket", labels(route="/v1/payments", le="0.005")] == 1
    assert samples[f"{duration}_bucket", labels(route="/v1/payments", le="+Inf")] == 3
    outcome = labels(type="purchase", outcome="approved", gateway="simulator")
    assert samples["payment_engine_operation_outcomes_total", outcome] == 1
    call = labels(gateway="simulator", action="authorize", outcome="unknown")
    assert samples["payment_engine_gateway_call_duration_seconds_count", call] == 1
    assert samples["payment_engine_group_commit_entries_sum", ()] == 31
    assert samples["payment_engine_event_loop_lag_seconds_count", ()] == 1
    stalls = "payment_engine_event_loop_stalls_total"
    assert [samples[stalls, labels(cause=cause)] for cause in STALL_CAUSES] == [0, 1]
    assert samples["process_resident_memory_bytes", ()] > 0


def test_watched_parts_are_asked_at_each_scrape() -> None:
    metrics = Metrics()
    assert not any("mailbox" in name for name, _ in read(metrics))
    mailbox: Mailbox[int] = Mailbox(capacity=8, reserved_capacity=1)
    breaker = "closed"
    metrics.watch(
        lambda: {
            "mailbox:shard-0": mailbox.statistics(),
            "gateway-simulator": GatewayStatistics("simulator", breaker, 3, 0, 7, 0),
            "unheard of": object(),
        }
    )
    mailbox.put_nowait(1)
    assert read(metrics)["payment_engine_mailbox_depth", labels(actor="shard-0")] == 1
    mailbox.put_nowait(2)
    breaker = "open"
    samples = read(metrics)
    assert samples["payment_engine_mailbox_depth", labels(actor="shard-0")] == 2
    states = {
        state: samples["payment_engine_breaker_state", labels(gateway="simulator", state=state)]
        for state in BREAKER_STATES
    }
    assert states == {"closed": 0, "open": 1, "half_open": 0}
    assert samples["payment_engine_gateway_calls_in_flight", labels(gateway="simulator")] == 3
