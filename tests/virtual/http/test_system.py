"""Health, statistics, documents, webhooks in, dead letters, and what is not there."""

import json

import pytest

from engine.http.docs_page import docs_page
from tests.virtual.http.world import ALICE, AUTHORIZE, OPERATOR, World, header, read

pytestmark = pytest.mark.trio


async def test_liveness_and_readiness_need_no_key() -> None:
    world = await World().start()
    assert (await world.send("GET", "/livez", key=None)).status == 200
    ready = await world.send("GET", "/readyz", key=None)
    assert (ready.status, read(ready)) == (200, {"status": "ready", "reasons": []})
    world.reasons = ["shard-1: parked"]
    ready = await world.send("GET", "/readyz", key=None)
    assert ready.status == 503
    assert read(ready) == {"status": "not_ready", "reasons": ["shard-1: parked"]}
    assert (await world.send("GET", "/livez", key=None)).status == 200


async def test_health_is_as_good_as_its_worst_part() -> None:
    world = await World().start()
    health = read(await world.send("GET", "/v1/health"))
    assert health["status"] == "degraded"
    assert [part["name"] for part in health["parts"]] == ["ledger", "gateway"]


async def test_statistics_are_the_parts_own() -> None:
    world = await World().start()
    statistics = read(await world.send("GET", "/v1/statistics", key=OPERATOR))
    assert statistics["parts"]["router"]["inflight_max"] == 256


async def test_metrics_are_prometheus_text() -> None:
    world = await World().start()
    answer = await world.send("GET", "/metrics", key=None)
    assert answer.content_type.startswith("text/plain")
    assert answer.body == b"# none\n"


async def test_the_documents_are_served() -> None:
    world = await World().start()
    document = await world.send("GET", "/openapi.json", key=None)
    assert read(document) == world.document
    assert read(document)["info"]["version"] == "9.9.9"
    page = await world.send("GET", "/docs", key=None)
    assert page.content_type == "text/html; charset=utf-8"
    assert page.body == docs_page(world.document)
    assert "default-src 'none'" in (header(page, "Content-Security-Policy") or "")


async def test_examples_name_the_address_the_page_was_asked_for_at() -> None:
    world = await World().start()

    async def page(**headers: str) -> str:
        answer = await world.send("GET", "/docs", key=None, headers=headers)
        return answer.body.decode()

    assert "curl http://127.0.0.1:8123/v1/payments/authorize" in await page(host="127.0.0.1:8123")
    assert "curl http://[::1]:8123/v1/payments/authorize" in await page(host="[::1]:8123")
    for host in ("<b>", "a b", "x;reboot", "$(id)", "a:123456", "-o", ""):
        assert "curl http://localhost:8080/v1/payments/authorize" in await page(host=host)


@pytest.mark.parametrize(
    ("field", "value", "detail"),
    [
        ("amount", 0, "`amount` must be at least 1."),
        ("amount", 10**12, "`amount` must be at most 999999999999."),
        ("amount", 2**70, "`amount` must be at most 999999999999."),
        ("payment_method", "pm_x", "The gateway simulator does not know this payment method. "),
    ],
)
async def test_a_refused_value_is_told_what_is_allowed(
    field: str, value: object, detail: str
) -> None:
    world = await World().start()
    body = json.dumps({**AUTHORIZE, field: value}).encode()
    answer = read(await world.send("POST", "/v1/payments/authorize", body))
    assert answer["detail"].startswith(detail)


async def test_the_root_leads_to_the_documents() -> None:
    world = await World().start()
    answer = await world.send("GET", "/", key=None)
    assert (answer.status, header(answer, "Location")) == (302, "/docs")
    assert (await world.send("POST", "/", {})).status == 404


async def test_a_post_to_a_list_is_told_where_posts_go() -> None:
    world = await World().start()
    wrong = read(await world.send("POST", "/v1/payments", {}))
    assert wrong["detail"] == (
        "Allowed here: GET, HEAD. A POST goes to /v1/payments/authorize, /v1/payments/batch, "
        "/v1/payments/purchase."
    )
    assert read(await world.send("DELETE", "/v1/payments"))["detail"] == "Allowed here: GET, HEAD."


async def test_a_verification_is_null_until_there_is_one() -> None:
    world = await World().start()
    verified = read(await world.send("GET", "/v1/ledger/verify"))
    assert verified == {"object": "ledger_verification", "result": None}


async def test_dead_letters_are_listed_and_retried() -> None:
    world = await World().start()
    letter = await world.add_dead_letter()
    [listed] = read(await world.send("GET", "/v1/dead_letters", key=OPERATOR))["data"]
    assert (listed["id"], listed["reason"]) == (letter, "crashed twice")
    assert "body" not in listed
    path = f"/v1/dead_letters/{letter}/retry"
    for body in (None, {}):
        retried = await world.send("POST", path, body, key=OPERATOR, idempotency_key=None)
        assert read(retried)["status"] == "retried"
    unknown = await world.send("POST", path, {"force": True}, key=OPERATOR)
    assert (unknown.status, read(unknown)["code"]) == (400, "unknown_field")
    for other in ("dl_nobody", "a b", "x" * 200):
        missing = await world.send("POST", f"/v1/dead_letters/{other}/retry", key=OPERATOR)
        assert (missing.status, read(missing)["code"]) == (404, "dead_letter_not_found")
    assert world.retried == [letter, letter, "dl_nobody"]


async def test_a_webhook_is_handed_on_raw_and_needs_no_key() -> None:
    world = await World().start()
    raw = b"\x00\xff not json"
    answer = await world.send(
        "POST",
        "/v1/webhooks/simulator",
        raw,
        key=None,
        idempotency_key=None,
        headers={"signature": "good", "content-type": "application/octet-stream"},
    )
    assert answer.status == 200
    [(gateway, headers, seen)] = world.hooks
    assert (gateway, seen, headers["signature"]) == ("simulator", raw, "good")


async def test_a_webhook_with_a_bad_signature_is_401() -> None:
    world = await World().start()
    answer = await world.send("POST", "/v1/webhooks/simulator", b"{}", key=None)
    assert (answer.status, read(answer)["code"]) == (401, "webhook_signature_invalid")
    assert header(answer, "WWW-Authenticate") is not None


async def test_a_webhook_of_an_unknown_gateway_is_404() -> None:
    world = await World().start()
    answer = await world.send("POST", "/v1/webhooks/nobody", b"{}", key=None)
    assert (answer.status, read(answer)["code"]) == (404, "gateway_not_found")
    assert not world.hooks


async def test_a_simulated_authentication_is_completed() -> None:
    world = await World().start()
    done = await world.send("POST", "/simulator/authentications/sim_1/complete", key=None)
    assert read(done) == {
        "object": "authentication",
        "reference": "sim_1",
        "status": "completed",
    }
    missing = await world.send("POST", "/simulator/authentications/sim_2/complete", key=None)
    assert missing.status == 404


async def test_a_browser_that_completes_an_authentication_gets_a_page() -> None:
    world = await World(authentication_done="<p>Thank you.</p>").start()
    done = await world.send(
        "POST",
        "/simulator/authentications/sim_1/complete",
        key=None,
        headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"},
    )
    assert (done.status, done.content_type) == (200, "text/html; charset=utf-8")
    assert done.body == b"<p>Thank you.</p>"


async def test_without_a_simulator_its_route_is_not_there() -> None:
    world = World(complete_authentication=None)
    answer = await world.send("POST", "/simulator/authentications/sim_1/complete", key=None)
    assert (answer.status, read(answer)["code"]) == (404, "route_not_found")
    assert not any(path.startswith("/simulator") for path in world.document["paths"])


async def test_what_is_not_there_is_404_and_what_is_not_allowed_405() -> None:
    world = await World().start()
    missing = await world.send("GET", "/v1/nothing/4242424242424242")
    assert (missing.status, read(missing)["code"]) == (404, "route_not_found")
    assert b"4242424242424242" not in missing.body
    assert world.lines[-1]["route"] == "unmatched"
    wrong = await world.send("DELETE", "/v1/payments")
    assert (wrong.status, read(wrong)["code"]) == (405, "method_not_allowed")
    assert header(wrong, "Allow") == "GET, HEAD"


async def test_a_head_is_answered_like_a_get() -> None:
    world = await World().start()
    answer = await world.send("HEAD", "/v1/payments", key=ALICE)
    assert answer.status == 200


async def test_a_default_gateway_that_is_not_there_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="no gateway 'stripe'"):
        World(default_gateway="stripe")
