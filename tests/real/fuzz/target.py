"""The engine that is fuzzed: the whole product, with two merchants and an operator."""

from __future__ import annotations

import contextlib
import http.client
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import psutil

from tests.real.system.process import API_KEY, EngineProcess, engine_folder

ALICE = "sk_test_fuzzAliceAliceAlice01"
BOB = "sk_test_fuzzBobBobBobBobBob02"
ALICE_LIVE = "sk_live_fuzzAliceAliceAlice03"
OPERATOR = API_KEY
WEBHOOK_SECRET = "whsec_RnV6elNlY3JldEZ1enpTZWNyZXRGdXp6U2VjcmV0"
ANSWER_S_MAX = 25.0
"""No answer takes longer: the engine waits 10 s for an outcome, and then says 202."""


def _settings() -> str:
    keys = [(ALICE, "m_alice", "false"), (BOB, "m_bob", "false"), (ALICE_LIVE, "m_alice", "true")]
    tables = [
        f'[[api_keys]]\nsha256 = "{sha256(key.encode()).hexdigest()}"\n'
        f'merchant = "{merchant}"\nlivemode = {live}\nscopes = ["merchant"]\n'
        for key, merchant, live in keys
    ]
    return "\n".join([*tables, f'[simulator]\nwebhook_secrets = ["{WEBHOOK_SECRET}"]\n'])


class Reply:
    """One answer, whole."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes, took_s: float) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.took_s = took_s

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    def __repr__(self) -> str:
        """Short enough for a finding."""
        return f"{self.status} {self.body[:400]!r}"


class Target:
    """A running engine, the ids that are known there, and calls to it from any thread."""

    def __init__(self, engine: EngineProcess) -> None:
        self.engine = engine
        self._local = threading.local()
        self._ids: dict[str, list[str]] = {}

    def call(
        self,
        method: str,
        path: str,
        body: bytes | Mapping[str, Any] | None = None,
        *,
        key: str | None = ALICE,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request on this thread's connection. Raises OSError, http.client.HTTPException."""
        sent = {"Authorization": f"Bearer {key}"} if key is not None else {}
        raw = json.dumps(body).encode() if isinstance(body, Mapping) else body
        if raw is not None:
            sent["Content-Type"] = "application/json"
        sent.update(headers or {})
        began = time.monotonic()
        for attempt in (1, 2):
            connection = self._connection()
            try:
                connection.request(method, path, raw, sent)
                response = connection.getresponse()
                content = response.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                # A kept connection may have been closed between two requests.
                if attempt == 2 or time.monotonic() - began > 1.0:
                    raise
                continue
            break
        fields = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, fields, content, time.monotonic() - began)

    def _connection(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = http.client.HTTPConnection(
                "127.0.0.1", self.engine.port, timeout=ANSWER_S_MAX
            )
            self._local.connection = connection
        return connection

    # --- ids ----------------------------------------------------------------------------------

    def learn(self, kind: str, id_: str, keep: int = 200) -> None:
        """Remember an id that is there, in place of the oldest."""
        known = self._ids.setdefault(kind, [])
        known.append(id_)
        del known[:-keep]

    def some_id(self, random: Random, kind: str) -> str:
        """An id of this kind that is, or was, there."""
        known = self._ids.get(kind)
        return random.choice(known) if known else f"{kind}_none"

    def pay(self, key: str, method: str = "pm_card_visa", kind: str = "purchase") -> Any:
        """A payment that must succeed."""
        body = {"amount": 1_000, "currency": "USD", "payment_method": method}
        number = f"made-{time.time_ns():x}"
        reply = self.call(
            "POST", f"/v1/payments/{kind}", body, key=key, headers={"Idempotency-Key": number}
        )
        assert reply.status == 201, reply
        return reply.json

    # --- the process --------------------------------------------------------------------------

    def process(self) -> psutil.Process:
        """The engine's own process."""
        assert self.engine._process is not None
        return psutil.Process(self.engine._process.pid)

    def rss_bytes(self) -> int:
        """Memory that the engine's process holds."""
        return int(self.process().memory_info().rss)

    def statistics(self) -> Any:
        """What the engine counts about itself."""
        reply = self.call("GET", "/v1/statistics", key=OPERATOR)
        assert reply.status == 200, reply
        return reply.json


@contextlib.contextmanager
def running_target() -> Iterator[Target]:
    """An engine on a new folder, started and stopped here."""
    with tempfile.TemporaryDirectory(prefix="pe-fuzz-") as folder:
        settings = Path(folder) / "settings.toml"
        settings.write_text(_settings())
        with engine_folder({"ENGINE_CONFIG": str(settings)}) as engine:
            engine.start()
            yield Target(engine)
