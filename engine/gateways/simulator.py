"""The simulator gateway: every fault a gateway can have, on purpose, and books of its own.

It runs in the engine's process or, with `simulator_http`, as one of its own. Payment methods
choose the fault (`simulator_methods`), the configuration adds latency and chance, the registry
does what is asked, and the books (`simulator_books`) keep it, so that after a crash it still
knows.

What is done is done, and written, before the reply is held back or lost: a caller that gives up,
or is killed, finds the operation in the books.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio
import anyio.abc
import msgspec

from engine.domain.news import (
    Approved,
    Failed,
    GatewayCall,
    GatewayTraits,
    News,
    NotFound,
    OperationNews,
    Unknown,
)
from engine.gateways.signatures import secret_key
from engine.gateways.simulator_books import Books, Effect, Notice
from engine.gateways.simulator_charges import (
    CHARGING,
    action_required,
    is_same_request,
    looked_up,
    news_of,
)
from engine.gateways.simulator_config import (
    Chance,
    FailureRates,
    SimulatorConfig,
    SimulatorStatistics,
)
from engine.gateways.simulator_methods import (
    AUTHORIZATION_MS,
    DISPUTED_AFTER_MS,
    METHODS,
    PLAIN_CARDS,
    Method,
    ReplyKind,
)
from engine.gateways.simulator_registry import Registry
from engine.gateways.simulator_webhooks import (
    Deliver,
    Outbox,
    dispute_notice,
    disputed,
    outcome_notice,
    read_verified,
    read_webhook,
)
from engine.ports import Clock, WebhookEvent, WebhookRefused

BOOKS_UNWRITABLE: Final = "simulator_books_unwritable"


class Reply(msgspec.Struct, frozen=True):
    """What goes back for a call, how, and when. `early` is a webhook to be sent before it."""

    kind: ReplyKind
    news: OperationNews
    wait_ms: int = 0
    early: Notice | None = None


class Simulator:
    """The gateway. Implements `engine.ports.Gateway`."""

    def __init__(
        self,
        books: Path | Books | None,
        *,
        clock: Clock,
        config: SimulatorConfig,
        deliver: Deliver,
    ) -> None:
        """Read the books (None: keep them in memory). Blocks for as long as that takes.

        Raises BooksInUse, BooksCorrupt or OSError.
        """
        self._clock = clock
        self._config = config
        self._traits = config.traits
        self._keys = tuple(secret_key(secret) for secret in config.webhook_secrets)
        self._chance = Chance(config)
        self._books = books if isinstance(books, Books) else Books(books)
        self._registry = Registry(self._books)
        self._outbox = Outbox(
            clock=clock,
            books=self._books,
            keys=self._keys,
            deliver=deliver,
            news_of=self._news_of_notice,
        )
        self._is_out = False
        self._calls = self._look_ups = self._replays = self._books_failures = 0
        try:
            self._outbox.restore(self._registry.load())
        except BaseException:
            self._books.close()
            raise

    @property
    def traits(self) -> GatewayTraits:
        """Its numbers."""
        return self._traits

    def perform_now(self, calls: Sequence[GatewayCall]) -> list[OperationNews | None]:
        """Answer what needs no waiting, with one write for all of it; None: `perform` it."""
        if not self._chance.is_idle and not self._is_out:
            return [None] * len(calls)
        now_ms = self._clock.now_ms()
        # A webhook for everything leaves no call on the short way.
        cards = {} if self._config.send_webhooks or self._is_out else PLAIN_CARDS
        registry, add = self._registry, self._books.add
        effects = registry.effects
        answers: list[OperationNews | None] = []
        answer = answers.append
        for call in calls:
            key, method, action = call.key, call.payment_method, call.action
            if (
                method not in cards
                or call.look_up
                or key in effects
                or (action != "authorize" and action != "purchase")
            ):
                answer(self._answer_now(call, now_ms))
                continue
            registry.seq = seq = registry.seq + 1
            reference = f"ch_{key}"
            amount, currency = call.amount, call.currency
            expires_ms = now_ms + AUTHORIZATION_MS if action == "authorize" else 0
            effects[key] = effect = Effect(
                now_ms, seq, key, call.op_id, action, amount, currency, method, call.livemode,
                reference, "done", "", True, "", 0, 0, expires_ms,
            )  # fmt: skip
            add(effect)
            answer(Approved(amount, currency, reference, expires_ms or None, cards[method]))
            self._calls += 1
        if self._flushed():
            return answers
        return [None if news is None else Unknown(BOOKS_UNWRITABLE) for news in answers]

    async def perform(self, call: GatewayCall, in_time_s: float = math.inf) -> OperationNews:
        """Make the call. Where no reply comes, this waits for ever: the caller has a deadline.

        It leaves at once, so always in time.
        """
        reply = self.act(call)
        await self.hold_back(reply)
        return reply.news

    def act(self, call: GatewayCall) -> Reply:
        """Do it and write it down, and say what the reply will be. Never waits."""
        target = self._registry.target_of(call)
        method = self._method_for(call, target)
        reply = self._reply(call, method, target, self._clock.now_ms())
        if self._flushed():
            return reply
        return Reply("server_error", Unknown(BOOKS_UNWRITABLE))

    async def hold_back(self, reply: Reply) -> None:
        """Wait for as long as the reply is held back; for ever where there is none."""
        if reply.wait_ms:
            await anyio.sleep(reply.wait_ms / 1_000)
        if reply.early is not None:
            await self._outbox.send_early(reply.early)
        if reply.kind == "none":
            await anyio.sleep_forever()

    def complete(self, reference: str, *, approve: bool = True) -> OperationNews:
        """The customer acts on an open 3-D Secure request: what became of it.

        Done a second time it changes nothing; `Expired` when it is too late, `NotFound` where no
        such request was ever made.
        """
        now_ms = self._clock.now_ms()
        effect = self._registry.by_reference(reference)
        if effect is None:
            return NotFound()
        if effect.outcome == "open" and effect.is_waiting(now_ms):
            effect = self._registry.complete(effect, approve=approve, now_ms=now_ms)
            self._notify(effect, METHODS[effect.method], now_ms)
        return news_of(effect, now_ms) if self._flushed() else Unknown(BOOKS_UNWRITABLE)

    def operation_of(self, reference: str) -> str | None:
        """The engine's id of the operation that got this reference."""
        effect = self._registry.by_reference(reference)
        return effect.op_id if effect is not None else None

    def completion_url(self, reference: str) -> str:
        """Where a customer completes an open request."""
        return f"{self._config.base_url}/simulator/authentications/{reference}/complete"

    def set_outage(self, is_out: bool) -> None:
        """Refuse every connection from now on, or no longer."""
        self._is_out = is_out

    def set_rates(self, rates: FailureRates) -> None:
        """The faults that calls meet by chance from now on."""
        self._chance.set_rates(rates)

    def verify_webhook(
        self, headers: Mapping[str, str], raw: bytes, now_ms: int
    ) -> WebhookEvent | WebhookRefused:
        """Check signature and time stamp on the raw bytes, and read them. Pure."""
        return read_webhook(self._keys, headers, raw, now_ms)

    def read_webhook(self, event_id: str, raw: bytes) -> WebhookEvent | WebhookRefused:
        """Read one whose signature has been checked. Pure."""
        return read_verified(event_id, raw)

    async def run(
        self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Send webhooks when they are due, for ever. Needed only for that."""
        task_status.started()
        await self._outbox.run()

    async def close(self) -> None:
        """Close the books. Nothing may be asked of it afterwards."""
        self._books.close()

    def statistics(self) -> SimulatorStatistics:
        """A snapshot of the counters."""
        return SimulatorStatistics(
            operations=len(self._registry.effects),
            calls=self._calls,
            look_ups=self._look_ups,
            replays=self._replays,
            books_bytes=self._books.written_bytes,
            books_failures=self._books_failures,
            webhooks_waiting=self._outbox.waiting,
            webhooks_delivered=self._outbox.delivered,
            webhooks_given_up=self._outbox.given_up,
            is_out=self._is_out,
        )

    # --- answering ----------------------------------------------------------------------------

    def _answer_now(self, call: GatewayCall, now_ms: int) -> OperationNews | None:
        """The answer to a call off the short way; None where its method makes it wait."""
        target = self._registry.target_of(call)
        method = self._method_for(call, target)
        if (
            (method.reply == "none" or method.wait_ms or method.webhook == "early")
            and not self._is_out
            and not call.look_up
            and self._remembered(call, now_ms) is None
        ):
            return None
        return self._reply(call, method, target, now_ms).news

    def _reply(
        self, call: GatewayCall, method: Method, target: Effect | None, now_ms: int
    ) -> Reply:
        self._calls += 1
        if self._is_out:
            return _unreachable(call)
        wait_ms = self._chance.latency_ms()
        if call.look_up:
            self._look_ups += 1
            weather = self._chance.fault(_FAIR, charging=False)
            if weather.reply != "news":
                return _lost(weather.reply, call, wait_ms)
            found = self._registry.effects.get(call.key)
            return Reply("news", looked_up(found, call, now_ms), wait_ms)

        method = self._chance.fault(method, charging=call.action in CHARGING)
        if method.reply == "unreachable":
            return _unreachable(call)
        found = self._remembered(call, now_ms)
        if found is not None:
            self._replays += 1
            return Reply("news", self._replay(found, call, target, now_ms), wait_ms)
        if method.course == "nothing":
            return _lost(method.reply, call, wait_ms)

        effect = self._registry.do(call, method, target, now_ms, wait_ms)
        early = self._notify(effect, method, now_ms)
        wait_ms += method.wait_ms
        if method.reply != "news":
            # Its reply is lost, not what it has done: the webhook is sent all the same.
            return msgspec.structs.replace(_lost(method.reply, call, wait_ms), early=early)
        return Reply("news", self._first_news(effect, method, now_ms), wait_ms, early)

    def _remembered(self, call: GatewayCall, now_ms: int) -> Effect | None:
        """What was done under the call's key, as long as the key is kept."""
        found = self._registry.effects.get(call.key)
        if found is not None and now_ms - found.at_ms < self._config.keys_kept_ms:
            return found
        return None

    def _replay(
        self, found: Effect, call: GatewayCall, target: Effect | None, now_ms: int
    ) -> OperationNews:
        if not is_same_request(found, call, target.reference if target is not None else ""):
            return Failed("idempotency_key_reused")
        if found.outcome == "open" and found.is_waiting(now_ms):
            return action_required(found, self.completion_url(found.reference))
        return news_of(found, now_ms)

    def _first_news(self, effect: Effect, method: Method, now_ms: int) -> OperationNews:
        if effect.outcome == "open":
            return action_required(effect, self.completion_url(effect.reference))
        news = news_of(effect, now_ms)
        if method.reply_amount_off and isinstance(news, Approved):
            return msgspec.structs.replace(news, amount=news.amount + method.reply_amount_off)
        return news

    def _method_for(self, call: GatewayCall, target: Effect | None) -> Method:
        """How a call is treated: its method where that applies to the action, else plainly."""
        # A charge's own method counts, whatever the later call says.
        name = call.payment_method if target is None else target.method
        if call.action in self._config.faults_on:
            return METHODS.get(name) or msgspec.structs.replace(_FAIR, name=name)
        return _WITHOUT_FAULTS.get(name) or msgspec.structs.replace(_FAIR, name=name)

    def _flushed(self) -> bool:
        try:
            self._books.flush()
        except OSError:
            # Not known to be written, so not known to be done: the caller looks it up later.
            self._books_failures += 1
            return False
        return True

    # --- webhooks -----------------------------------------------------------------------------

    def _notify(self, effect: Effect, method: Method, now_ms: int) -> Notice | None:
        """Put an effect's webhooks into the outbox; the one to be sent early is returned."""
        takes_money = effect.action in ("purchase", "capture") and effect.outcome == "done"
        if method.disputed and takes_money and self._registry.open_dispute(effect):
            self._outbox.add(dispute_notice(effect, now_ms + DISPUTED_AFTER_MS))
        if effect.fails_ms:
            self._outbox.add(outcome_notice("returned", effect, effect.fails_ms))
        asked_for = method.webhook in ("twice", "early") or self._config.send_webhooks
        if not asked_for or method.webhook == "never":
            return None
        if method.webhook == "early":
            notice = outcome_notice("outcome", effect, now_ms)
            self._outbox.add_early(notice)
            return notice
        due_ms = now_ms
        if effect.is_waiting(now_ms):
            due_ms = effect.settles_ms or effect.expires_ms
        copies = 2 if method.webhook == "twice" else 1
        self._outbox.add(outcome_notice("outcome", effect, due_ms, copies))
        return None

    def _news_of_notice(self, notice: Notice, now_ms: int) -> News | None:
        if notice.kind == "dispute":
            return disputed(notice)
        return self._registry.news_of_notice(notice, now_ms)


_FAIR: Final = METHODS["pm_card_visa"]

_WITHOUT_FAULTS: Final = {
    method.name: Method(
        name=method.name,
        card=method.card,
        webhook="never" if method.webhook == "never" else "as_configured",
        refunds=method.refunds,
        disputed=method.disputed,
    )
    for method in METHODS.values()
}
"""The methods as they treat an action their faults do not apply to."""


def _unreachable(call: GatewayCall) -> Reply:
    """A refused connection. That a question was not sent tells nothing of the operation."""
    if call.look_up:
        return Reply("unreachable", Unknown("gateway_unreachable"))
    return Reply("unreachable", Failed("gateway_unreachable", sent=False))


def _lost(kind: ReplyKind, call: GatewayCall, wait_ms: int) -> Reply:
    """A reply from which nothing can be learned."""
    if kind == "unreachable":
        return _unreachable(call)
    reasons = {"none": "timeout", "server_error": "server_error", "garbage": "unreadable_reply"}
    return Reply(kind, Unknown(reasons[kind]), wait_ms)
