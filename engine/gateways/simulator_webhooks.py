"""The simulator's webhooks: how they are written and read, and the outbox that sends them."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, get_args

import anyio
import msgspec

from engine.domain.news import Disputed, News
from engine.gateways.signatures import signed_headers, verify
from engine.gateways.simulator_books import Books, Delivered, Effect, Notice
from engine.ports import Clock, WebhookEvent, WebhookRefused

Deliver = Callable[[Mapping[str, str], bytes], Awaitable[bool]]
"""Sends one webhook; True when it was accepted (2xx). It must not raise for a refusal."""

_RETRY_FIRST_MS: Final = 1_000
_RETRY_MAX_MS: Final = 60_000
_ATTEMPTS_MAX: Final = 20
_CONCURRENT_MAX: Final = 32


class WebhookBody(msgspec.Struct, frozen=True):
    """What is signed and sent. `news` is one of the engine's own words, told apart by `type`."""

    id: str
    created_ms: int
    livemode: bool
    op_id: str
    news: msgspec.Raw


class _Tag(msgspec.Struct, frozen=True):
    type: str


_encoder = msgspec.json.Encoder()
_body_decoder = msgspec.json.Decoder(WebhookBody)
_tag_decoder = msgspec.json.Decoder(_Tag)
_news_decoder: msgspec.json.Decoder[News] = msgspec.json.Decoder(News)
_KNOWN_TAGS: Final = frozenset(str(type_.__struct_config__.tag) for type_ in get_args(News))


def event_id_of(kind: str, key: str, seq: int) -> str:
    """The id of an event: the same for every copy and attempt, after a restart as before."""
    digest = hashlib.sha256(f"{kind}:{key}:{seq}".encode()).hexdigest()
    return f"evt_sim_{digest[:32]}"


def write_webhook(
    keys: Sequence[bytes],
    *,
    event_id: str,
    op_id: str,
    livemode: bool,
    news: News,
    now_ms: int,
) -> tuple[dict[str, str], bytes]:
    """Headers and body of a webhook, signed with every key."""
    body = _encoder.encode(
        WebhookBody(event_id, now_ms, livemode, op_id, msgspec.Raw(_encoder.encode(news)))
    )
    headers = signed_headers(keys, event_id, now_ms // 1_000, body)
    headers["content-type"] = "application/json"
    return headers, body


def read_webhook(
    keys: Sequence[bytes], headers: Mapping[str, str], raw: bytes, now_ms: int
) -> WebhookEvent | WebhookRefused:
    """Check a webhook's signature and time stamp, then read it. Pure."""
    event_id = verify(keys, headers, raw, now_ms)
    return event_id if isinstance(event_id, WebhookRefused) else read_verified(event_id, raw)


def read_verified(event_id: str, raw: bytes) -> WebhookEvent | WebhookRefused:
    """Read a webhook whose signature has been checked. Pure.

    News of a kind nobody knows yet is accepted and says nothing (`news` None), so that a newer
    gateway does not fill an older engine's log with refusals.
    """
    try:
        body = _body_decoder.decode(raw)
        tag = _tag_decoder.decode(body.news).type
        news = _news_decoder.decode(body.news) if tag in _KNOWN_TAGS else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return WebhookRefused("webhook_malformed", f"the body can't be read: {error}")
    if body.id != event_id:
        return WebhookRefused("webhook_malformed", "the body names another event than the header")
    return WebhookEvent(event_id, news, body.op_id or None)


class Outbox:
    """Webhooks that are due, or will be, until they have been accepted."""

    def __init__(
        self,
        *,
        clock: Clock,
        books: Books,
        keys: Sequence[bytes],
        deliver: Deliver,
        news_of: Callable[[Notice, int], News | None],
    ) -> None:
        """`news_of` tells what a notice says at a time; None: there is nothing to tell."""
        self._clock = clock
        self._books = books
        self._keys = keys
        self._deliver = deliver
        self._news_of = news_of
        self._waiting: dict[str, Notice] = {}
        self._attempts: dict[str, int] = {}
        self._due: list[tuple[int, str]] = []
        self._bell = anyio.Event()
        self.delivered = 0
        self.given_up = 0

    @property
    def waiting(self) -> int:
        """How many webhooks have not been accepted yet."""
        return len(self._waiting)

    def restore(self, notices: Sequence[Notice]) -> None:
        """Take over what an earlier process left unsent."""
        for notice in notices:
            self.hold(notice)
            self._schedule(notice.event_id, notice.due_ms)

    def add(self, notice: Notice) -> None:
        """Write a notice into the books (the caller flushes) and send it when it is due."""
        self._books.add(notice)
        self.hold(notice)
        self._schedule(notice.event_id, notice.due_ms)

    def add_early(self, notice: Notice) -> None:
        """The same, but the caller sends it first, with `send_early`."""
        self._books.add(notice)
        self.hold(notice)

    def hold(self, notice: Notice) -> None:
        """Count a notice as unsent."""
        self._waiting[notice.event_id] = notice

    async def send_early(self, notice: Notice) -> None:
        """Send a notice now, before the reply; what goes wrong is tried again behind it."""
        try:
            await self._attempt(notice)
        finally:
            if notice.event_id in self._waiting:
                self._schedule(notice.event_id, self._clock.now_ms() + _RETRY_FIRST_MS)

    async def run(self) -> None:
        """Send what is due, for ever. Started again, it takes up whatever is unsent."""
        scheduled = {event_id for _, event_id in self._due}
        for event_id, notice in self._waiting.items():
            if event_id not in scheduled:
                self._schedule(event_id, notice.due_ms)
        limiter = anyio.Semaphore(_CONCURRENT_MAX)
        async with anyio.create_task_group() as tasks:
            while True:
                self._bell = anyio.Event()
                now_ms = self._clock.now_ms()
                while self._due and self._due[0][0] <= now_ms:
                    _, event_id = heapq.heappop(self._due)
                    if event_id in self._waiting:
                        await limiter.acquire()
                        tasks.start_soon(self._send, self._waiting[event_id], limiter)
                if self._bell.is_set():
                    continue
                wait_s = (self._due[0][0] - now_ms) / 1_000 if self._due else float("inf")
                with anyio.move_on_after(max(wait_s, 0.001)):
                    await self._bell.wait()

    def _schedule(self, event_id: str, due_ms: int) -> None:
        heapq.heappush(self._due, (due_ms, event_id))
        if self._due[0][1] == event_id:
            self._bell.set()

    async def _send(self, notice: Notice, limiter: anyio.Semaphore) -> None:
        try:
            accepted = await self._attempt(notice)
        finally:
            limiter.release()
        if accepted:
            return
        attempts = self._attempts[notice.event_id]
        if attempts >= _ATTEMPTS_MAX:
            self.given_up += 1
            self._settle(notice)
            return
        pause_ms = min(_RETRY_FIRST_MS << (attempts - 1), _RETRY_MAX_MS)
        self._schedule(notice.event_id, self._clock.now_ms() + pause_ms)

    async def _attempt(self, notice: Notice) -> bool:
        news = self._news_of(notice, self._clock.now_ms())
        if news is None:
            self._settle(notice)
            return True
        self._attempts[notice.event_id] = self._attempts.get(notice.event_id, 0) + 1
        for _ in range(notice.copies):
            headers, body = write_webhook(
                self._keys,
                event_id=notice.event_id,
                op_id=notice.op_id,
                livemode=notice.livemode,
                news=news,
                now_ms=self._clock.now_ms(),
            )
            if not await self._deliver(headers, body):
                return False
        self.delivered += 1
        self._settle(notice)
        return True

    def _settle(self, notice: Notice) -> None:
        """Never send this again."""
        self._waiting.pop(notice.event_id, None)
        self._attempts.pop(notice.event_id, None)
        self._books.add(Delivered(notice.event_id, self._clock.now_ms()))
        try:
            self._books.flush()
        except OSError:
            # The line stays for the next write; at worst a restart sends this webhook again.
            return


def outcome_notice(kind: str, effect: Effect, due_ms: int, copies: int = 1) -> Notice:
    """A webhook about what became of an effect by `due_ms`; `kind` tells its events apart."""
    return Notice(
        event_id_of(kind, effect.key, effect.seq),
        "outcome",
        effect.seq,
        effect.key,
        effect.op_id,
        effect.livemode,
        due_ms,
        copies,
    )


def dispute_notice(effect: Effect, due_ms: int) -> Notice:
    """A dispute of all that a purchase or capture took, opened at `due_ms`."""
    return Notice(
        event_id_of("dispute", effect.key, effect.seq),
        "dispute",
        effect.seq,
        effect.key,
        effect.op_id,
        effect.livemode,
        due_ms,
        amount=effect.amount,
    )


def disputed(notice: Notice) -> Disputed:
    """What the webhook of a dispute says."""
    return Disputed(f"dp_{notice.event_id[-24:]}", notice.amount, "fraudulent")
