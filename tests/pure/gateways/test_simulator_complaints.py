"""A webhook that nobody takes is said once, then ever more rarely, until one is taken."""

import pytest

from engine.gateways.http_client import Lost, NotSent, Response
from engine.gateways.simulator_complaints import Complaints

URL = "http://127.0.0.1:1/hooks"
REFUSED = NotSent("ClientConnectorError")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (REFUSED, "no connection: nobody listens there, or its name is not known"),
        (NotSent("NonHttpUrlClientError"), "that is no http address"),
        (Lost("ServerTimeoutError"), "no answer came"),
        (Response(404, {}, b""), "it answered 404"),
        (Response(302, {}, b""), "it answered 302"),
    ],
)
def test_the_first_failure_names_the_address_and_the_reason(answer, reason):
    said = []
    assert not Complaints(URL, said.append).note(answer, 1_000)
    assert said == [f"a webhook was not accepted by {URL}: {reason}"]


def test_later_failures_are_said_at_growing_intervals():
    said = []
    complaints = Complaints(URL, said.append)
    times = []
    for now_ms in range(0, 100_000, 1_000):
        before = len(said)
        complaints.note(REFUSED, now_ms)
        if len(said) > before:
            times.append(now_ms)
    assert times == [0, 10_000, 30_000, 70_000]
    assert said[-1].endswith("(71 attempts so far)")


def test_the_first_one_that_is_taken_again_is_said_and_all_begins_anew():
    said = []
    complaints = Complaints(URL, said.append)
    good = Response(200, {}, b"")
    assert complaints.note(good, 0)
    assert said == []
    complaints.note(REFUSED, 0)
    assert complaints.note(good, 1)
    assert said[1:] == [f"webhooks are accepted again by {URL}"]
    complaints.note(REFUSED, 2)
    assert len(said) == 3
