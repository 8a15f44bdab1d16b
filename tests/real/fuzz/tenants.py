"""Every route of the OpenAPI document with an id of another merchant, or of the other mode: 404.

What is answered must not even tell that there is such a thing: it is the same answer, to the byte,
as for an id that was never given out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.real.fuzz.tally import Tally
from tests.real.fuzz.target import ALICE, ALICE_LIVE, BOB, OPERATOR, Reply, Target

NOT_A_MERCHANTS = {
    "/v1/webhooks/{gateway}": "a gateway signs it; there is no merchant's key",
    "/simulator/authentications/{reference}/complete": "what a customer's browser does",
    "/v1/dead_letters/{id}/retry": "operators only, and they serve all merchants",
}
"""Routes with a variable part that no merchant's id can stand in, and why."""

NO_MERCHANTS_SCOPE = ("/v1/statistics", "/v1/dead_letters", "/v1/dead_letters/{id}/retry")
NEVER_GIVEN_OUT = {
    "pay": "pay_000000000000000000000001",
    "re": "re_000000000000000000000001",
    "evt": "evt_000000000000000000000001",
    "acct": "acct_7zzzzzzzzzzzz",
    "tr": "tr_7zzzzzzzzzzzz",
}
KIND_OF = {
    "payments": "pay",
    "refunds": "re",
    "events": "evt",
    "accounts": "acct",
    "transfers": "tr",
}
FILTERS = {"payment": "pay", "object": "pay", "reference": "reference", "customer": "customer"}
STRANGERS = {"another merchant": BOB, "the other mode": ALICE_LIVE, "an operator": OPERATOR}
SEEN_BY_BOTH = {("tr", "an operator"): "its other side is an account of the platform"}


class Tenants:
    """Makes things for one merchant and asks for them as somebody else."""

    def __init__(self, target: Target, tally: Tally) -> None:
        self.target = target
        self.tally = tally
        self.document: Any = target.call("GET", "/openapi.json", key=None).json

    def every_route(self) -> int:
        """Try them all; returns how many answers were judged."""
        owned = self._things_of_alice()
        judged = 0
        for path, method, operation in self._operations():
            if "{" in path and path not in NOT_A_MERCHANTS:
                kind = KIND_OF[path.split("/")[2]]
                for who, key in STRANGERS.items():
                    if (kind, who) not in SEEN_BY_BOTH:
                        self._is_not_there(path, method, kind, owned[kind], who, key)
                        judged += 1
            for parameter in operation.get("parameters", ()):
                if parameter.get("in") == "query" and parameter["name"] in FILTERS:
                    judged += self._list_is_empty(path, parameter["name"], owned)
            if "{" not in path and self._is_list(operation):
                judged += self._cursor_fits_nobody_else(path)
        judged += self._operators_only()
        self.tally.count("another merchant's id", judged)
        return judged

    def _operations(self) -> Iterator[tuple[str, str, Any]]:
        for path, methods in self.document["paths"].items():
            for method, operation in methods.items():
                yield path, method, operation

    def uncovered(self) -> list[str]:
        """Routes with a variable part that nothing here knows what to do with."""
        return [
            path
            for path, _, _ in self._operations()
            if "{" in path and path not in NOT_A_MERCHANTS and path.split("/")[2] not in KIND_OF
        ]

    def _things_of_alice(self) -> dict[str, str]:
        call = self.target.call
        body = {"amount": 900, "currency": "USD", "payment_method": "pm_card_visa"}
        more = {"reference": "alice-only", "customer": "cus_06gzv2h2668mcytmmyvpx9qy"}
        made = call(
            "POST",
            "/v1/payments/purchase",
            {**body, **more},
            headers={"Idempotency-Key": "tenants-purchase"},
        )
        payment = made.json["id"]
        refund = call(
            "POST",
            f"/v1/payments/{payment}/refund",
            {"amount": 5},
            headers={"Idempotency-Key": "tenants-refund"},
        )
        assert (made.status, refund.status) == (201, 201), (made, refund)
        event = call("GET", "/v1/events?limit=1").json["data"][0]["id"]
        account = next(
            one["id"]
            for one in call("GET", "/v1/accounts").json["data"]
            if one["kind"] == "merchant_pending"
        )
        transfer = call("GET", f"/v1/accounts/{account}/transfers").json["data"][0]["id"]
        return {
            "pay": payment,
            "re": refund.json["id"],
            "evt": event,
            "acct": account,
            "tr": transfer,
            **more,
        }

    def _is_not_there(
        self, path: str, method: str, kind: str, id_: str, who: str, key: str
    ) -> None:
        theirs = self._ask(path, method, id_, key)
        nobodys = self._ask(path, method, NEVER_GIVEN_OUT[kind], key)
        told = _without(theirs, id_), _without(nobodys, NEVER_GIVEN_OUT[kind])
        if theirs.status != 404 or told[0] != told[1]:
            self.tally.found("tenants", f"{method} {path} as {who}: {theirs.status}", id_, told)
        if method == "get" and path.count("/") == 3:
            own = self._ask(path, method, id_, ALICE)
            if own.status != 200:
                self.tally.found("tenants", f"{method} {path} as its owner: {own.status}", id_, own)

    def _ask(self, path: str, method: str, id_: str, key: str) -> Reply:
        body = {} if method == "post" else None
        headers = {"Idempotency-Key": f"tenants-{id_}-{path.rpartition('/')[2]}"}
        filled = path.replace("{id}", id_)
        return self.target.call(method.upper(), filled, body, key=key, headers=headers)

    def _list_is_empty(self, path: str, name: str, owned: dict[str, str]) -> int:
        query = f"{path}?{name}={owned[FILTERS[name]]}"
        mine = self.target.call("GET", query, key=ALICE)
        if mine.status != 200 or not mine.json["data"]:
            self.tally.found("tenants", f"{query}: the owner finds nothing", query, mine)
        for who, key in STRANGERS.items():
            reply = self.target.call("GET", query, key=key)
            if reply.status != 200 or reply.json["data"] or reply.json["has_more"]:
                self.tally.found("tenants", f"{query} as {who}", query, reply)
        return len(STRANGERS)

    @staticmethod
    def _is_list(operation: Any) -> bool:
        return any(one.get("name") == "cursor" for one in operation.get("parameters", ()))

    def _cursor_fits_nobody_else(self, path: str) -> int:
        first = self.target.call("GET", f"{path}?limit=1", key=ALICE)
        cursor = first.json.get("next_cursor") if first.status == 200 else None
        if cursor is None:
            return 0
        for who, key in STRANGERS.items():
            reply = self.target.call("GET", f"{path}?cursor={cursor}", key=key)
            if reply.status != 400:
                self.tally.found("tenants", f"{path}: a cursor taken from {who}", cursor, reply)
        return len(STRANGERS)

    def _operators_only(self) -> int:
        for path in NO_MERCHANTS_SCOPE:
            method = "POST" if path.endswith("retry") else "GET"
            filled = path.replace("{id}", "dl_000000000000000000000001")
            reply = self.target.call(method, filled, {} if method == "POST" else None, key=BOB)
            if reply.status != 403:
                self.tally.found("tenants", f"{path} without the scope", path, reply)
        return len(NO_MERCHANTS_SCOPE)


def _without(reply: Reply, id_: str) -> str:
    """An answer without what differs from one request to the next."""
    value = reply.json
    text = json.dumps({name: one for name, one in value.items() if name != "request_id"})
    return f"{reply.status} {text.replace(id_, 'ID')}"
