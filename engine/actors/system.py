"""The whole of the actors, put together under supervision.

The tree, in the order of its starts (stops are the reverse):

    engine (one_for_one, 10 restarts in a minute, then the process gives up)
    ├── ledger-writer        ├── gateway-<name> ...      ├── reconciler, expiry, retry
    ├── ledger-reader        ├── shard-<n> ... each under a supervisor of its own (3 in 10 s,
    ├── router               │                 then parked and tried again every 30 s)
    ├── webhooks
    ├── totals
    └── pruner

A shard that cannot run is parked and takes no sibling down, so intensities do not multiply up
from there. Everything concrete (ledger, gateways, clock) is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus

from engine.actors.directory import Directory
from engine.actors.gateway import GatewayActor
from engine.actors.ledger_reader import LedgerReaderActor
from engine.actors.ledger_writer import LedgerWriterActor
from engine.actors.pruner import NAME as PRUNER
from engine.actors.pruner import PrunerActor
from engine.actors.router import Router
from engine.actors.settings import ActorSettings
from engine.actors.shard import ShardActor
from engine.actors.timers import TimersActor
from engine.actors.totals import NAME as TOTALS
from engine.actors.totals import TotalsActor
from engine.actors.webhook import NAME as WEBHOOKS
from engine.actors.webhook import WebhookActor
from engine.domain.entry import DeadLetter as Letter
from engine.domain.entry import Entry, InboxRow
from engine.domain.ids import is_id
from engine.domain.refusals import Refusal
from engine.domain.representation import refusal_answer
from engine.messages import Heard, NewsCrashed, Redispatch, Reply, Request, TimerDue, Write
from engine.ports import (
    Breaker,
    Clock,
    Event,
    Gateway,
    Ids,
    LedgerReader,
    LedgerUpkeep,
    LedgerWriter,
    Telemetry,
)
from engine.supervisor.mailbox import DeadLetter, Mailbox
from engine.supervisor.parking import ParkingSupervisor
from engine.supervisor.reports import ChildEnded, ChildStarted, ChildStopped, SupervisionEvent
from engine.supervisor.spec import Backoff, ChildSpec, SupervisorSpec
from engine.supervisor.supervisor import Supervisor

TIMERS = {"reconciler": "look_up", "expiry": "expire", "retry": "retry"}


class ActorSystem:
    """Builds the actors, and runs them until cancelled."""

    def __init__(
        self,
        *,
        ledger_writer: LedgerWriter,
        ledger_reader: LedgerReader,
        ledger_upkeep: LedgerUpkeep,
        gateways: Mapping[str, tuple[Gateway, Breaker]],
        clock: Clock,
        ids: Ids,
        telemetry: Telemetry,
        random: Random,
        settings: ActorSettings,
        new_event: Callable[[], Event] = anyio.Event,
    ) -> None:
        self.settings = settings
        self._clock = clock
        self._ids = ids
        self._telemetry = telemetry
        self._random = random
        self._reader = ledger_reader
        self.directory = Directory(settings.shards, self._reply, self._began, self._begins_anew)
        adapters = {name: gateway for name, (gateway, _) in gateways.items()}
        self.router = Router(
            self.directory, ledger_reader, adapters, clock, ids, settings, new_event
        )
        self._shards: list[ShardActor] = []
        self._children: list[tuple[ChildSpec, bool]] = []
        self._statistics: dict[str, Callable[[], Any]] = {"router": self.router.statistics}

        writer = LedgerWriterActor(
            self._mailbox("ledger-writer"),
            self.directory,
            ledger_writer,
            clock,
            ids,
            telemetry,
            entries_max=settings.batch_entries_max,
            gather_entries=settings.gather_entries,
            told_max=settings.turn_steps,
        )
        self._child("ledger-writer", writer.run, shutdown_s=30.0)
        reader = LedgerReaderActor(
            self._mailbox("ledger-reader"), self.directory, ledger_reader, telemetry
        )
        self._child("ledger-reader", reader.run)
        self._child("router", self.router.run)
        for name, (gateway, breaker) in gateways.items():
            actor_name = f"gateway-{name}"
            self.directory.gateways[name] = mailbox = self._mailbox(actor_name)
            gateway_actor = GatewayActor(
                mailbox, self.directory, gateway, breaker, clock, telemetry, settings, new_event
            )
            self._statistics[actor_name] = gateway_actor.statistics
            self._child(actor_name, gateway_actor.run)
        traits = {name: gateway.traits for name, gateway in adapters.items()}
        for index, name in enumerate(self.directory.shard_names):
            mailbox = self._mailbox(name, capacity=settings.shard_capacity)
            self.directory.shards.append(mailbox)
            shard = ShardActor(
                index,
                mailbox,
                self.directory,
                ledger_reader,
                clock,
                ids,
                telemetry,
                settings,
                traits,
            )
            self._shards.append(shard)
            self._statistics[name] = shard.statistics
            self._child(name, shard.run, parks=True)
        webhooks = WebhookActor(
            self._mailbox(WEBHOOKS),
            self.directory,
            ledger_reader,
            adapters,
            clock,
            ids,
            telemetry,
            settings,
        )
        self._statistics[WEBHOOKS] = webhooks.statistics
        self._child(WEBHOOKS, webhooks.run)
        for name, kind in TIMERS.items():
            timers = TimersActor(
                kind, self._mailbox(name), self.directory, ledger_reader, clock, telemetry, settings
            )
            self._statistics[name] = timers.statistics
            self._child(name, timers.run)
        totals = TotalsActor(ledger_upkeep, telemetry, every_s=settings.totals_every_s)
        self._statistics[TOTALS] = totals.statistics
        self._child(TOTALS, totals.run)
        pruner = PrunerActor(
            ledger_upkeep,
            clock,
            telemetry,
            keys_kept_ms=settings.keys_kept_ms,
            every_s=settings.prune_every_s,
        )
        self._statistics[PRUNER] = pruner.statistics
        self._child(PRUNER, pruner.run)

    # --- building ---------------------------------------------------------------------------

    def _mailbox(self, name: str, capacity: int | None = None) -> Mailbox[Any]:
        mailbox: Mailbox[Any] = Mailbox(
            capacity=capacity or self.settings.credits,
            reserved_capacity=self.settings.reserved,
            on_dead_letter=lambda letter: self._park_message(name, letter),
        )
        self.directory.add(name, mailbox)
        return mailbox

    def _child(
        self, name: str, run: Any, *, parks: bool = False, shutdown_s: float | None = None
    ) -> None:
        spec = ChildSpec(
            id=name,
            start=run,
            mailbox=self.directory.mailboxes.get(name),
            shutdown_s=shutdown_s,
            # A shard reads all its open payments before it has started.
            start_timeout_s=120.0 if parks else 30.0,
        )
        self._children.append((spec, parks))

    def _park_message(self, actor: str, letter: DeadLetter[Any]) -> None:
        """A message that crashed its actor twice: to the work queue, and its client is told."""
        message = letter.message
        self._telemetry.error(
            "message_parked", actor=actor, message=type(message).__name__, reason=letter.reason
        )
        if actor == "ledger-writer":
            return
        if isinstance(message, Heard) and message.inbox is not None:
            # Its inbox row ends with its letter, or it would be sent again for ever.
            self.directory.mailboxes[WEBHOOKS].put_reserved_nowait(
                NewsCrashed(message.inbox, letter.reason[:400])
            )
            return
        self.directory.mailboxes["ledger-writer"].put_reserved_nowait(
            Write(
                "nobody",
                0,
                0,
                Entry(
                    dead_letter=Letter(
                        id=self._ids.new("dl"),
                        kind=f"message:{type(message).__name__}",
                        subject=getattr(message, "payment_id", actor),
                        reason=letter.reason[:500],
                        body=b"{}",
                        created_ms=self._clock.now_ms(),
                    ),
                ),
            )
        )
        if isinstance(message, Request):
            refusal = Refusal("internal_error", "The request could not be handled and is parked.")
            self._reply(
                Reply(
                    message.request_id,
                    refusal_answer(refusal, request_id=message.request_id, path=message.path),
                )
            )

    def _reply(self, reply: Reply) -> None:
        self.router.resolve(reply)

    def _began(self, request_id: str) -> None:
        self.router.began(request_id)

    def _begins_anew(self, shard: int) -> None:
        self.router.begins_anew(shard)

    # --- running ----------------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Start everything, and supervise until cancelled.

        Raises, within a group, MaxIntensityReached when something that everything needs cannot be
        kept running, and Fenced when a newer engine has taken over.
        """
        async with anyio.create_task_group() as host:
            host.start_soon(self._watch_fence)
            children = tuple(
                self._parking(spec, host) if parks else spec for spec, parks in self._children
            )
            root = Supervisor(
                SupervisorSpec(id="engine", children=children, intensity=10, period_s=60.0),
                host=host,
                random=self._random,
                on_event=self._on_event,
            )
            self._statistics["supervisor"] = root.statistics
            await root.run(task_status=task_status)

    async def _watch_fence(self) -> None:
        """A writer that is fenced would be fenced again: it is not restarted, everything ends."""
        await self.directory.was_fenced.wait()
        assert self.directory.fenced is not None
        raise self.directory.fenced

    def _parking(self, spec: ChildSpec, host: TaskGroup) -> ChildSpec:
        index = self.directory.shard_names.index(spec.id)

        def parked(reason: str) -> None:
            self.directory.shard_trouble[index] = f"parked: {reason}"

        parking = ParkingSupervisor(
            SupervisorSpec(
                id=f"{spec.id}-supervisor",
                children=(spec,),
                intensity=3,
                period_s=10.0,
                backoff=Backoff(initial_s=0.05, max_s=1.0),
            ),
            host=host,
            random=self._random,
            on_parked=parked,
            on_resumed=lambda: None,  # the shard itself says when it is back in service
            park_retry_s=self.settings.park_retry_s,
            on_event=self._on_event,
        )
        self._statistics[f"{spec.id}-supervisor"] = parking.statistics
        return ChildSpec(
            id=f"{spec.id}-supervisor",
            start=parking.run,
            type="supervisor",
            start_timeout_s=float("inf"),
        )

    def _on_event(self, event: SupervisionEvent) -> None:
        if isinstance(event, ChildStarted | ChildStopped):
            return
        if isinstance(event, ChildEnded):
            if event.child_id in self.directory.shard_names:
                self.directory.shard_crashes[self.directory.shard_names.index(event.child_id)] += 1
            self._telemetry.warn(
                "child_ended",
                supervisor=event.supervisor_id,
                child=event.child_id,
                ending=event.ending.kind.value,
                reason=event.ending.reason[:500],
            )
            return
        self._telemetry.warn("supervision", kind=type(event).__name__, detail=repr(event)[:500])

    async def retry_dead_letter(self, letter_id: str) -> bool:
        """Take a dead letter off the queue and try its work again. False: there is none.

        A webhook is open again in the inbox as of the commit that closes its letter, so it is not
        lost where its shard cannot take it now.
        """
        letter = await self._reader.dead_letter(letter_id)
        if letter is None:
            return False
        row = msgspec.json.decode(letter.body, type=InboxRow) if letter.kind == "webhook" else None
        self.directory.mailboxes["ledger-writer"].put_reserved_nowait(
            Write("nobody", 0, 0, Entry(inbox=row, dead_letter_done=letter_id))
        )
        if row is not None:
            self.directory.mailboxes[WEBHOOKS].put_reserved_nowait(Redispatch(row))
        elif is_id("pay_", letter.subject):
            self.look_up_now(letter.subject)
        return True

    def look_up_now(self, payment_id: str) -> None:
        """Have a payment's open operations looked up, and failed work of ours tried again."""
        due = TimerDue(payment_id, "revive", self._clock.now_ms())
        self.directory.shard_of(payment_id).put_reserved_nowait(due)

    # --- looking ----------------------------------------------------------------------------

    def statistics(self) -> dict[str, Any]:
        """Every long-lived object's statistics, by name."""
        found = {name: statistics() for name, statistics in self._statistics.items()}
        for name, mailbox in self.directory.mailboxes.items():
            if "#" not in name:
                found[f"mailbox:{name}"] = mailbox.statistics()
        return found

    def open_payments(self) -> int:
        """Payments in memory: a hold, or an operation whose outcome is to come."""
        return sum(shard.statistics().open_payments for shard in self._shards)

    def not_ready_because(self) -> list[str]:
        """Why new work would be refused; empty when ready."""
        reasons = []
        if self.directory.ledger_trouble is not None:
            reasons.append(f"ledger: {self.directory.ledger_trouble}")
        for name, trouble in zip(
            self.directory.shard_names, self.directory.shard_trouble, strict=True
        ):
            if trouble is not None:
                reasons.append(f"{name}: {trouble}")
        return reasons
