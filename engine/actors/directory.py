"""Where every actor's mailbox is, and what the router must know before it admits a request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio

from engine.domain.ids import slot_of
from engine.domain.refusals import Refusal
from engine.messages import Reply
from engine.ports import Fenced
from engine.supervisor.mailbox import Mailbox

SLOTS = 4096
STARTING = "starting"
"""What is in the way of the ledger until its writer runs."""

LEDGER_DOWN = Refusal(
    "ledger_unavailable",
    "The ledger cannot be reached; nothing was done. Try again shortly.",
    retry_after_s=1,
)

_STARTING = Refusal(
    "starting", "The engine is starting; nothing was done. Try again shortly.", retry_after_s=2
)

_STANDING_BY = Refusal(
    "starting",
    "This engine stands by: another one has the database and takes the work. Nothing was done.",
    retry_after_s=5,
)


class Directory:
    """Addresses by name, and the doors: what is out of service at the moment and why."""

    def __init__(
        self,
        shards: int,
        reply: Callable[[Reply], None],
        began: Callable[[str], None],
        begins_anew: Callable[[int], None],
    ) -> None:
        """`reply` takes answers, `began` the ids of requests whose intent is durable, and
        `begins_anew` the numbers of shards that know nothing of requests any more.
        """
        self.reply = reply
        self.began = began
        self.begins_anew = begins_anew
        self.mailboxes: dict[str, Mailbox[Any]] = {}
        self.shards: list[Mailbox[Any]] = []
        self.gateways: dict[str, Mailbox[Any]] = {}
        self.shard_names = [f"shard-{n}" for n in range(shards)]
        self.shard_trouble: list[str | None] = [STARTING] * shards
        # How often each has crashed: who sent it something can tell that it may have been lost.
        self.shard_crashes = [0] * shards
        # Who gave way in the middle of what was taken: more for the ledger is about to come.
        self.gave_way: set[str] = set()
        self.commit_s = 0.0
        """What a group commit takes at the moment, in seconds."""
        self.ledger_trouble: str | None = STARTING
        self.is_standing_by: Callable[[], bool] = lambda: False
        self.fenced: Fenced | None = None
        self.was_fenced = anyio.Event()
        self.gateway_admits: dict[str, Callable[[], float | None]] = {}
        # Two list look-ups find a payment's mailbox on the hot path.
        self._shard_of_slot = [slot * shards // SLOTS for slot in range(SLOTS)]

    def add(self, name: str, mailbox: Mailbox[Any]) -> None:
        """Register a mailbox under its actor's name."""
        self.mailboxes[name] = mailbox

    def no_ledger(self) -> Refusal | None:
        """Why nothing can be committed; one not asked for yet is not one that is out of reach."""
        if self.ledger_trouble is None:
            return None
        if self.ledger_trouble != STARTING:
            return LEDGER_DOWN
        return _STANDING_BY if self.is_standing_by() else _STARTING

    def no_shard(self, shard: int) -> Refusal | None:
        """Why nothing can be done for a shard's payments: it is not in service."""
        trouble = self.shard_trouble[shard]
        if trouble is None:
            return None
        code = "starting" if trouble == STARTING else "shard_parked"
        return Refusal(
            code, "This payment's shard is not in service; nothing was done.", retry_after_s=2
        )

    def no_gateway(self, gateway: str) -> Refusal | None:
        """Why nothing new may be asked of a gateway: its breaker gives it a rest."""
        refuses_for_s = self.gateway_admits.get(gateway)
        wait_s = refuses_for_s() if refuses_for_s is not None else None
        if wait_s is None:
            return None
        return Refusal(
            "gateway_unavailable",
            f"The gateway {gateway} is failing and is given a rest; nothing was done.",
            retry_after_s=max(1, round(wait_s)),
        )

    def shard_index(self, payment_id: str) -> int:
        """The shard that owns a payment."""
        return self._shard_of_slot[slot_of(payment_id)]

    def shard_of(self, payment_id: str) -> Mailbox[Any]:
        """The mailbox of the shard that owns a payment."""
        return self.shards[self._shard_of_slot[slot_of(payment_id)]]

    def trouble_of(self, payment_id: str) -> str | None:
        """Why the shard that owns a payment is not in service; None: it is."""
        return self.shard_trouble[self._shard_of_slot[slot_of(payment_id)]]

    def slots_of(self, shard: int) -> range:
        """The slots a shard owns: contiguous, so that the ledger can be asked for a range."""
        count = len(self.shard_names)
        return range(-(-shard * SLOTS // count), -(-(shard + 1) * SLOTS // count))
