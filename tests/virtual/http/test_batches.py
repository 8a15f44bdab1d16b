"""Batches through the API: each item as the single request it stands for."""

from typing import Any

import pytest

from engine.http.exchange import Response
from engine.http.routes import ROUTES
from tests.virtual.http.world import AUTHORIZE, BOB, World, read

pytestmark = pytest.mark.trio
PATH = "/v1/payments/batch"
PAN = "4242424242424242"


def item(key: str, operation: str = "authorize", **fields: Any) -> dict[str, Any]:
    shared = AUTHORIZE if operation in ("authorize", "purchase") else {}
    return {"idempotency_key": key, "operation": operation, **shared, **fields}


async def sent(world: World, *items: Any, **more: Any) -> list[Any]:
    answer = await world.send("POST", PATH, {"items": items}, idempotency_key=None, **more)
    assert answer.status == 200, answer.body
    results = read(answer)["data"]
    assert len(results) == len(items)
    return list(results)


def codes(results: list[Any]) -> list[tuple[int, str | None]]:
    return [(one["status"], one["body"].get("code")) for one in results]


async def alone(world: World, one: dict[str, Any]) -> Response:
    """The single request that an item stands for."""
    body = dict(one)
    key, operation = body.pop("idempotency_key"), body.pop("operation")
    payment = body.pop("payment", None)
    path = f"/v1/payments/{payment}/{operation}" if payment else f"/v1/payments/{operation}"
    return await world.send("POST", path, body, idempotency_key=key)


async def test_every_operation_is_answered_as_by_itself() -> None:
    world = await World().start()
    opened = await sent(world, item("a"), item("b", "purchase"), item("c"))
    assert [(one["status"], one["body"]["status"]) for one in opened] == [
        (201, "authorized"),
        (201, "captured"),
        (201, "authorized"),
    ]
    ids = [one["body"]["id"] for one in opened]
    assert [one["location"] for one in opened] == [f"/v1/payments/{id_}" for id_ in ids]
    assert [one["idempotency_key"] for one in opened] == ["a", "b", "c"]
    changed = await sent(
        world,
        item("d", "capture", payment=ids[0], amount=500, final=False),
        item("e", "refund", payment=ids[1], reason="returned"),
        item("f", "cancel", payment=ids[2]),
        item("g", "refund", payment=ids[0], amount=500),
    )
    assert [one["status"] for one in changed] == [200, 201, 200, 201]
    assert [one["body"]["object"] for one in changed] == ["payment", "refund", "payment", "refund"]
    assert changed[1]["location"] == f"/v1/refunds/{changed[1]['body']['id']}"


async def test_an_item_and_its_single_request_replay_one_another() -> None:
    world = await World().start()
    payment_id = await world.paid()
    items = [
        item("a", metadata={"b": "1", "a": "2"}),
        item("b", "purchase", payment_method="pm_card_declined"),
        item("c", "refund", payment=payment_id, amount=5),
        item("d", "refund", payment=payment_id, amount=6, metadata={"x": "y"}),
    ]
    singles = [await alone(world, one) for one in items[:2]]
    results = await sent(world, *items)
    assert [one.get("replayed", False) for one in results] == [True, True, False, False]
    singles += [await alone(world, one) for one in items[2:]]
    answer = await world.send("POST", PATH, {"items": items}, idempotency_key=None)
    for one, single in zip(results, singles, strict=True):
        assert (one["status"], one["body"]) == (single.status, read(single))
        assert single.body in answer.body
    assert all(one["replayed"] for one in read(answer)["data"])
    assert len(world.asked) == 1 + 2 + 4 + 2 + 4


async def test_a_key_of_another_request_is_refused_across_both() -> None:
    world = await World().start()
    first = await sent(world, item("a"), item("a"), item("a", amount=7), item("a", "purchase"))
    reused = (422, "idempotency_key_reused")
    assert codes(first) == [(201, None), (201, None), reused, reused]
    assert first[0]["body"] == first[1]["body"]
    single = await alone(world, item("a", amount=8))
    assert (single.status, read(single)["code"]) == reused


@pytest.mark.parametrize(
    ("bad", "status", "code", "param"),
    [
        ({"amount": 1.5}, 400, "wrong_type", "amount"),
        ({"amount": 0}, 422, "amount_invalid", "amount"),
        ({"sum": 1}, 400, "unknown_field", "sum"),
        ({"operation": "steal"}, 422, "parameter_invalid", "operation"),
        ({"operation": "capture"}, 400, "unknown_field", None),
        ({"currency": "XXX"}, 422, "currency_unsupported", "currency"),
        ({"payment_method": "pm_nobody"}, 422, "payment_method_unknown", "payment_method"),
        ({"description": PAN}, 422, "pan_not_allowed", "description"),
        ({"idempotency_key": "two words"}, 400, "idempotency_key_invalid", "idempotency_key"),
        ({"idempotency_key": ""}, 400, "idempotency_key_invalid", "idempotency_key"),
        ({"idempotency_key": PAN}, 422, "pan_not_allowed", "idempotency_key"),
        ({"idempotency_key": PAN, "amount": "1"}, 422, "pan_not_allowed", "idempotency_key"),
        ({"idempotency_key": None}, 400, "wrong_type", "idempotency_key"),
        ({"customer": "bob"}, 422, "parameter_invalid", "customer"),
    ],
)
async def test_a_bad_item_among_good_ones_fails_alone(
    bad: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    world = await World().start()
    results = await sent(world, item("a"), {**item("b"), **bad}, item("c"))
    assert codes(results) == [(201, None), (status, code), (201, None)]
    problem = results[1]["body"]
    assert param in (problem.get("param"), None)
    assert (problem["status"], problem["retryable"]) == (status, False)
    is_key_bad = param == "idempotency_key"
    assert results[1]["idempotency_key"] == (None if is_key_bad else "b")
    assert PAN not in str(results)
    assert len(world.asked) == 2
    # A refusal of the shape leaves the key free.
    assert codes(await sent(world, item("b"))) == [(201, None)]


async def test_an_item_without_a_key_is_told_so() -> None:
    world = await World().start()
    [result] = await sent(world, {"operation": "authorize", **AUTHORIZE})
    assert codes([result]) == [(400, "idempotency_key_missing")]
    assert result["idempotency_key"] is None


async def test_items_for_payments_that_are_not_ones_own_are_404() -> None:
    world = await World().start()
    payment_id = await world.paid()
    nowhere = payment_id[:-1] + ("1" if payment_id[-1] != "1" else "2")
    items = [item("k", "refund", payment=name) for name in (nowhere, "pay_1", "re_1", "")]
    assert codes(await sent(world, *items)) == [(404, "payment_not_found")] * 4
    [result] = await sent(world, item("k", "refund", payment=PAN))
    assert PAN not in str(result["body"])
    [result] = await sent(world, item("k", "refund", payment=payment_id), key=BOB)
    assert codes([result]) == [(404, "payment_not_found")]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"items": []}, 422, "parameter_invalid"),
        ({"items": [item("k")] * 1_001}, 422, "parameter_invalid"),
        ({"items": item("k")}, 400, "wrong_type"),
        ([item("k")], 400, "wrong_type"),
        ({"items": [item("k")], "mode": "all"}, 400, "unknown_field"),
        (b'{"items":[', 400, "malformed_json"),
        (b"", 400, "malformed_json"),
    ],
)
async def test_a_bad_envelope_refuses_the_batch(body: Any, status: int, code: str) -> None:
    world = await World().start()
    answer = await world.send("POST", PATH, body)
    assert (answer.status, read(answer)["code"]) == (status, code)
    assert not world.asked
    assert world.lines[-1]["items"] == 0


async def test_requests_of_items_are_told_apart_by_their_ids() -> None:
    world = await World().start()
    results = await sent(world, item("a"), item("b", amount=0), item("c"))
    request_id = world.lines[-1]["request_id"]
    assert results[1]["body"]["request_id"] == f"{request_id}.2"
    assert [ask.request_id for ask in world.asked] == [f"{request_id}.1", f"{request_id}.3"]


async def test_one_line_is_logged_for_a_batch_with_the_counts_of_its_items() -> None:
    world = await World().start()
    await sent(world, item("a"), item("b", amount=0), item("c", payment_method="pm_card_declined"))
    [line] = world.lines
    assert (line["route"], line["status"], line["code"]) == (PATH, 200, "")
    assert (line["items"], line["items_failed"]) == (3, 2)


async def test_a_batch_needs_a_key_with_the_scope_of_payments() -> None:
    world = await World().start()
    answer = await world.send("POST", PATH, {"items": [item("a")]}, key="sk_test_nobody")
    assert (answer.status, read(answer)["code"]) == (401, "invalid_api_key")
    assert not world.asked


async def test_the_example_of_the_document_works() -> None:
    world = await World().start()
    route = next(route for route in ROUTES if route.template == PATH)
    assert codes(await sent(world, *dict(route.example or {})["items"])) == [(201, None)] * 2
