"""The actors' sizes and times, and the inequality between them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from engine.domain.fees import FeeSchedule

NO_FEES = FeeSchedule()
_AT_LEAST_ONE = (
    "shards", "credits", "queue_least", "queue_ms", "batch_window", "batch_entries_max",
    "gather_entries", "turn_steps",
)  # fmt: skip


class ActorSettings(msgspec.Struct, frozen=True):
    """How much is admitted, how long is waited. Times in milliseconds.

    `credits` bounds the requests under way. Whatever was admitted is never refused again on its
    way, so every mailbox has reserved room for what `credits` can cause (`reserved`). Of these, no
    more wait for the engine itself than it begins in `queue_ms`, or `queue_least`, once they have
    queued up for a second (`admission.py`).

    Items of batches run `batch_window` at a time while they are answered promptly, so that a
    request between them does not wait for a whole batch. Where answers are slow, more are let in,
    as far as `batch_credits`.

    A shard, and a gateway's actor, let others run after `turn_steps`, so that nobody's refusal
    waits for a thousand answers. A commit holds at most `batch_entries_max` for the same reason.
    While shards are in the middle of what they took, the ledger writer waits for `gather_entries`:
    small commits are many commits; but it does not wait for more, or engine and database would
    take turns.
    """

    shards: int = 4
    credits: int = 2_000
    queue_least: int = 128
    queue_ms: int = 250
    shard_capacity: int = 4_000
    wait_ms: int = 10_000
    batch_entries_max: int = 512
    gather_entries: int = 128
    turn_steps: int = 64
    gateway_reply_max_ms: int = 20_000
    timer_poll_ms: int = 5_000
    timer_horizon_ms: int = 60_000
    inbox_retry_ms: int = 5_000
    inbox_give_up_ms: int = 3_600_000
    answered_keys_max: int = 20_000
    batch_window: int = 128
    park_retry_s: float = 30.0
    totals_every_s: float = 1.0
    keys_kept_ms: int = 30 * 24 * 3_600_000
    prune_every_s: float = 60.0
    fees: Mapping[str, FeeSchedule] = {}

    def __post_init__(self) -> None:
        """Raises ValueError where a queue could not hold what is admitted."""
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
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
