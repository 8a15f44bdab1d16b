"""The actors' sizes and times, and the inequality between them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from engine.domain.fees import FeeSchedule

NO_FEES = FeeSchedule()


class ActorSettings(msgspec.Struct, frozen=True):
    """How much is admitted, how long is waited. Times in milliseconds.

    `credits` bounds the requests under way. Whatever was admitted is never refused again on its
    way, so every mailbox has reserved room for what `credits` can cause (`reserved`).

    Items of batches run `batch_window` at a time while they are answered promptly, so that a
    request between them does not wait for a whole batch. Where answers are slow, more are let in,
    as far as `batch_credits`.

    A shard lets others run after `turn_messages`: what it has handed to the ledger writer by then
    is committed while it goes on, and nobody's refusal waits for a thousand answers.
    """

    shards: int = 4
    credits: int = 2_000
    shard_capacity: int = 4_000
    wait_ms: int = 10_000
    batch_entries_max: int = 4_000
    turn_messages: int = 128
    gateway_reply_max_ms: int = 20_000
    timer_poll_ms: int = 5_000
    timer_horizon_ms: int = 60_000
    inbox_retry_ms: int = 5_000
    inbox_give_up_ms: int = 3_600_000
    answered_keys_max: int = 20_000
    batch_window: int = 128
    park_retry_s: float = 30.0
    totals_every_s: float = 1.0
    fees: Mapping[str, FeeSchedule] = {}

    def __post_init__(self) -> None:
        """Raises ValueError where a queue could not hold what is admitted."""
        if min(self.shards, self.credits, self.batch_window, self.turn_messages) < 1:
            raise ValueError("shards, credits, batch_window and turn_messages must be at least 1")
        if self.shard_capacity < self.credits:
            raise ValueError(
                f"shard_capacity ({self.shard_capacity}) must be at least credits "
                f"({self.credits}): all admitted requests may belong to one shard"
            )

    @property
    def reserved(self) -> int:
        """Reserved room of each mailbox.

        A request causes at most a handful of messages at any one time, and recovery and timers
        come on top; the room costs nothing until it is used.
        """
        return 1_000_000

    @property
    def batch_credits(self) -> int:
        """The most credits that items of batches hold; the rest is for single requests."""
        return max(1, self.credits // 2)

    def fees_of(self, merchant_id: str) -> FeeSchedule:
        """The fee schedule of a merchant; none means no fee."""
        return self.fees.get(merchant_id, NO_FEES)
