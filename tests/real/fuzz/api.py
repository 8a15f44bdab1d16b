"""The API from its own OpenAPI document, with schemathesis: one operation at a time, and chains.

The document does not know which payment methods the simulator has, so part of what is generated is
replaced by what works: payments come to exist, and ids to be known. Every answer is held to the
document: its status, its content type, its schema.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable
from random import Random
from typing import Any

import hypothesis.strategies as st
import requests
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test
from schemathesis import openapi
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.real.fuzz.tally import Budget, Tally
from tests.real.fuzz.target import ALICE, ANSWER_S_MAX, BOB, OPERATOR, Target

CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
# What is drawn depends on what was answered, and ids are new at every run. And CPython 3.11 fails
# now and then when two threads parse Python at once, which Hypothesis does to name its strategies.
DRAWN_OTHERWISE = (Flaky, SystemError)
PHASES = (Phase.explicit, Phase.generate)

# Answered at once. Those whose answer takes seconds are for the long run only.
QUICK_METHODS = (
    *("pm_card_visa", "pm_card_mastercard", "pm_card_declined", "pm_card_3ds", "pm_card_pending"),
    *("pm_card_insufficient_funds", "pm_card_webhook_twice", "pm_card_refund_fails"),
    *("pm_card_refund_fails_late", "pm_card_dispute", "pm_card_wrong_amount", "pm_x"),
)
FAULTY_METHODS = (
    *("pm_card_5xx_after_charge", "pm_card_garbage_reply", "pm_card_unreachable"),
    *("pm_card_webhook_early", "pm_card_webhook_lost", "pm_card_slow"),
)
ID_OF = {
    "/v1/payments/": "pay",
    "/v1/refunds/": "re",
    "/v1/events/": "evt",
    "/v1/accounts/": "acct",
    "/v1/transfers/": "tr",
    "/v1/dead_letters/": "dl",
}


class Explorer:
    """One schema, loaded from the running engine."""

    def __init__(self, target: Target, tally: Tally, *, faults: bool = False) -> None:
        self.target = target
        self.tally = tally
        self.methods = QUICK_METHODS + FAULTY_METHODS if faults else QUICK_METHODS
        self.schema = openapi.from_url(f"{target.engine.address}/openapi.json")
        self.operations = [result.ok() for result in self.schema.get_all_operations()]

    # --- one operation at a time --------------------------------------------------------------

    def every_operation(self, budget: Budget, examples: int, first_seed: int = 0) -> None:
        """Each operation with some examples, round after round until the budget ends."""
        for number in itertools.count(first_seed):
            for operation in self.operations:
                if not budget.take():
                    return
                self._operation(operation, budget, examples, number)

    def _operation(self, operation: Any, budget: Budget, examples: int, number: int) -> None:
        session = requests.Session()

        @seed(number)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=PHASES,
        )
        @given(case=operation.as_strategy(), chance=st.integers(0, 2**32 - 1))
        def run(case: Any, chance: int) -> None:
            if budget.left_s > 0:
                self._send("api", case, Random(chance), session)

        with session:
            try:
                run()
            except DRAWN_OTHERWISE:
                self.tally.count("api drawn otherwise")

    def _send(self, attack: str, case: Any, random: Random, session: requests.Session) -> None:
        self._make_it_work(case, random)
        key = random.choice((ALICE, ALICE, ALICE, BOB, OPERATOR))
        began = time.monotonic()
        try:
            response = case.call(
                base_url=self.target.engine.address,
                headers={"Authorization": f"Bearer {key}"},
                timeout=ANSWER_S_MAX,
                session=session,
            )
        except Exception as trouble:
            if not _is_of_the_network(trouble):
                # What the client cannot put into a request is never sent.
                self.tally.answered(attack, "not sendable")
                return
            self.tally.found(attack, f"no answer: {trouble!r}", case.as_curl_command())
            return
        self.judge(attack, case, response, time.monotonic() - began)

    def judge(self, attack: str, case: Any, response: Any, took_s: float) -> None:
        """Hold an answer to the document, and learn the ids in it."""
        tally = self.tally
        tally.answered(attack, response.status_code, took_s)
        retry_after = (response.headers.get("retry-after") or [None])[0]
        tally.judge(
            attack, response.status_code, retry_after, response.content, case.as_curl_command()
        )
        if case.operation.label == "GET /readyz" and response.status_code != 200:
            tally.found(attack, "not ready", "", response.content)
        try:
            case.validate_response(response, checks=CHECKS)
        except (Failure, FailureGroup) as failure:
            tally.found(attack, f"{case.operation.label}: {_text(failure)}", case.as_curl_command())
        self._learn(response)

    def _learn(self, response: Any) -> None:
        try:
            value = response.json()
        except ValueError:
            return
        objects = [value] if isinstance(value, dict) else []
        if objects and isinstance(value.get("data"), list):
            objects = value["data"]
        for one in objects:
            if isinstance(one, dict) and isinstance(one.get("id"), str) and "object" in one:
                self.target.learn(one["id"].partition("_")[0], one["id"])

    def _make_it_work(self, case: Any, random: Random) -> None:
        """Replace parts, by chance, with what lets the request come further."""
        path = case.operation.path
        if isinstance(case.body, dict) and "payment_method" in case.body and random.random() < 0.8:
            case.body["payment_method"] = random.choice(self.methods)
            case.body["currency"] = random.choice(("USD", "EUR", "JPY", "kwd"))
            if random.random() < 0.8:
                for name in ("customer", "subscription", "gateway", "return_url"):
                    case.body.pop(name, None)
                case.body.pop("statement_descriptor", None)
        for prefix, kind in ID_OF.items():
            if path.startswith(prefix) and "id" in case.path_parameters and random.random() < 0.8:
                case.path_parameters["id"] = self.target.some_id(random, kind)
        if "gateway" in case.path_parameters and random.random() < 0.8:
            case.path_parameters["gateway"] = "simulator"
        # A key that is always new, now and then one of few: those are used again by others.
        if case.headers is not None and "Idempotency-Key" in case.headers:
            chance = random.random()
            if chance < 0.9:
                few = f"again-{random.randrange(20)}"
                case.headers["Idempotency-Key"] = str(uuid.uuid4()) if chance < 0.8 else few

    # --- chains of operations -----------------------------------------------------------------

    def chains(self, budget: Budget, examples: int, steps: int, first_seed: int = 0) -> None:
        """What one answer names is asked for in the next request, until the budget ends."""
        for number in itertools.count(first_seed):
            if not budget.take():
                return
            try:
                run_state_machine_as_test(
                    self._machine(number),
                    settings=settings(
                        max_examples=examples,
                        stateful_step_count=steps,
                        deadline=None,
                        database=None,
                        suppress_health_check=list(HealthCheck),
                        phases=(Phase.generate,),
                    ),
                )
            except DRAWN_OTHERWISE:
                self.tally.count("api chains drawn otherwise")

    def _machine(self, number: int) -> Callable[[], Any]:
        explorer, random = self, Random(number)

        class Chain(self.schema.as_state_machine()):  # type: ignore[misc]
            def get_call_kwargs(self, case: Any) -> dict[str, Any]:
                return {
                    "headers": {"Authorization": f"Bearer {OPERATOR}"},
                    "base_url": explorer.target.engine.address,
                    "timeout": ANSWER_S_MAX,
                }

            def before_call(self, case: Any) -> None:
                ids = dict(case.path_parameters or {})
                explorer._make_it_work(case, random)
                case.path_parameters.update(ids)

            def validate_response(self, response: Any, case: Any, **_: Any) -> None:
                explorer.judge("api chains", case, response, response.elapsed)

        return seed(number)(Chain)  # type: ignore[no-any-return]


def _is_of_the_network(trouble: Exception) -> bool:
    return isinstance(trouble, (requests.Timeout, requests.ConnectionError))


def _text(failure: BaseException) -> str:
    parts = failure.exceptions if isinstance(failure, BaseExceptionGroup) else [failure]
    return "; ".join(" ".join(str(part).split()) for part in parts)
