"""Bugs on purpose: each is a small mutation of the engine, and each must be found.

A mutation patches the engine as a careless change would; there are no switches in the engine.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from engine.actors import answers, ledger_writer, shard, webhook
from engine.actors import router as routing
from engine.domain import change, machine, operation, outcomes, recording
from engine.domain.entry import Batch
from engine.domain.ids import gateway_key
from engine.domain.news import Declined, Failed, StillPending, Unknown
from engine.gateways import breaker
from engine.messages import Committed, Perform, Reply
from engine.ports import KeysTaken, LedgerUnavailable
from engine.simulation import life

Plant = Callable[["Patch"], None]


class Patch:
    """What a plant may do to the engine; the test undoes it."""

    def __init__(self, monkeypatch) -> None:
        self.attribute = monkeypatch.setattr
        self.item = monkeypatch.setitem


PLANTS: dict[str, Plant] = {}


def planted(plant: Plant) -> Plant:
    PLANTS[plant.__name__] = plant
    return plant


# --- the order of things ------------------------------------------------------------------------


@planted
def reply_before_commit(patch):
    took = shard.ShardActor._take_step

    def take_step(self, step, env, request=None, inbox=None):
        recorded = recording.record(step, env, request.claim if request else None, inbox)
        if recorded.answers:
            self._answer(recorded.payment, recorded.answers)
        took(self, step, env, request, inbox)

    patch.attribute(shard.ShardActor, "_take_step", take_step)


@planted
def intent_after_the_call(patch):
    opened = shard.ShardActor._open

    def open_(self, message, command):
        opened(self, message, command)
        step = list(self._writing.values())[-1].step
        for n, call in step.calls:
            self._directory.gateways[command.gateway].put_reserved_nowait(
                Perform(call, message.payment_id, n)
            )

    patch.attribute(shard.ShardActor, "_open", open_)


@planted
def webhook_answered_before_it_is_stored(patch):
    handled = webhook.WebhookActor._handle

    def handle(self, message):
        if isinstance(message, webhook.WebhookReceived):
            self._directory.reply(Reply(message.request_id, webhook.RECEIVED))
            self._dispatch(message.row)
            return
        handled(self, message)

    patch.attribute(webhook.WebhookActor, "_handle", handle)


@planted
def no_line_behind_a_write_under_way(patch):
    patch.attribute(shard.ShardActor, "_in_line", lambda self, payment_id, message: False)


# --- keys ---------------------------------------------------------------------------------------


@planted
def gateway_key_per_attempt(patch):
    attempts = iter(range(10**9))
    patch.attribute(change, "gateway_key", lambda op: gateway_key(f"{op}/{next(attempts)}"))


@planted
def look_up_without_the_key(patch):
    called = change.gateway_call

    def call_(payment, ops, op, *, look_up=False):
        call = called(payment, ops, op, look_up=look_up)
        return msgspec.structs.replace(call, key=call.key[::-1]) if look_up else call

    patch.attribute(change, "gateway_call", call_)
    patch.attribute(shard, "gateway_call", call_)


@planted
def dedupe_forgotten(patch):
    recorded = recording.record

    def record(step, env, claim=None, inbox_done=None):
        return recorded(step, env, None, inbox_done)

    patch.attribute(shard, "record", record)


@planted
def fingerprint_ignored(patch):
    asked = routing.Router.ask

    async def ask(self, ask):
        return await asked(self, msgspec.structs.replace(ask, fingerprint=b""))

    patch.attribute(routing.Router, "ask", ask)


@planted
def replay_made_anew_instead_of_stored(patch):
    async def stored(self, ask, ref):
        claim = await self._ledger.claim(ref)
        if claim is None:
            return None
        if claim.fingerprint != ask.fingerprint:
            return self.reused(ask), False
        found = (await self._ledger.payments([claim.payment_id])).get(claim.payment_id)
        if found is None or not 1 <= claim.op <= len(found.operations):
            return None if claim.answer is None else (claim.answer, True)
        return self._present(found, claim.op), False

    patch.attribute(answers.Answers, "_stored", stored)


@planted
def key_of_the_abandoned_kept(patch):
    recorded = recording.record

    def record(step, env, claim=None, inbox_done=None):
        done = recorded(step, env, claim, inbox_done)
        entry = msgspec.structs.replace(done.entry, claims_released=())
        return msgspec.structs.replace(done, entry=entry)

    patch.attribute(shard, "record", record)


@planted
def keys_forgotten_too_soon(patch):
    patch.attribute(life, "KEYS_KEPT_MS", 60_000)


# --- outcomes -----------------------------------------------------------------------------------


@planted
def unknown_treated_as_failed(patch):
    patch.item(operation.TRANSITIONS, ("processing", Unknown), "fail")


@planted
def absence_believed_at_once(patch):
    def weigh(change, op, news, via):
        op = change.set_op(op.n, status="failed")
        outcomes._fail(change, op, Failed("not_processed"), via)

    patch.item(outcomes._TREATMENTS, "weigh_absence", weigh)


@planted
def webhook_downgrades_a_settled_payment(patch):
    for status, news in (("succeeded", Declined), ("succeeded", Failed)):
        patch.item(operation.TRANSITIONS, (status, news), "fail")


@planted
def webhook_reopens_a_settled_payment(patch):
    patch.item(operation.TRANSITIONS, ("succeeded", StillPending), "wait")


@planted
def reservation_released_while_unknown(patch):
    doubt = outcomes._doubt

    def release(change, op, news, via):
        doubt(change, op, news, via)
        if op.n == 1:
            change.post("hold", op.amount, 1, "void_pending", resolves=change.payment.hold)

    patch.item(outcomes._TREATMENTS, "doubt", release)


@planted
def late_success_ignored(patch):
    for status in ("declined", "failed", "expired", "canceled"):
        patch.item(operation.TRANSITIONS, (status, outcomes.Approved), "ignore")


@planted
def returned_refund_ignored(patch):
    patch.item(outcomes._TREATMENTS, "return_refund", lambda change, op, news, via: None)


# --- money --------------------------------------------------------------------------------------


@planted
def refund_guard_removed(patch):
    def refund(payment, command, asked, env):
        refused = machine._judge(payment, "refund")
        if refused is not None:
            return refused
        amount = command.amount or payment.captured
        op = machine._with(
            asked, type="refund", amount=amount, refund_id=command.refund_id, reason=command.reason
        )
        step = change.Change(payment, env)
        step.start_refund(op)
        return machine._asked(step, payment, step.op(op.n))

    patch.attribute(machine, "_refund", refund)


@planted
def capture_reserves_nothing(patch):
    captured = machine._capture

    def capture(payment, command, asked, env):
        step = captured(payment, command, asked, env)
        if isinstance(step, change.Step):
            after = msgspec.structs.replace(step.payment, capturing=0, releasing=0)
            return msgspec.structs.replace(step, payment=after)
        return step

    patch.attribute(machine, "_capture", capture)


@planted
def fee_posted_and_not_counted(patch):
    charged = outcomes._charge_fee

    def charge(change, op, captured, link):
        charged(change, op, captured, link)
        change.set(fee=change.payment.fee, fee_tax=change.payment.fee_tax)

    patch.attribute(outcomes, "_charge_fee", charge)


@planted
def expiry_races_a_capture(patch):
    def expire(payment, env):
        if payment.expires_ms is None or payment.expires_ms > env.now_ms:
            return None
        rest = payment.authorized - payment.captured - payment.released
        step = change.Change(payment, env)
        step.post("hold", rest, 1, "expire_pending", resolves=payment.hold)
        step.set(released=payment.released + rest, expires_ms=None, released_by="expired")
        step.happened("payment.expired")
        return step.finish()

    patch.attribute(shard, "expire", expire)


@planted
def anybodys_payment_may_be_moved(patch):
    commanded = machine.command_payment

    def command_payment(payment, command, *rest):
        return commanded(
            payment, msgspec.structs.replace(command, merchant_id=payment.merchant_id), *rest
        )

    patch.attribute(shard, "command_payment", command_payment)


# --- the ledger's writer ------------------------------------------------------------------------


@planted
def poison_takes_its_batch_mates(patch):
    async def commit(self, writes, following):
        try:
            await self._commit_group(writes, following)
        except KeysTaken as taken:
            rest = []
            for write in writes:
                claim = write.entry.claim
                if claim is not None and claim.ref in taken.refs:
                    self._refuse(write, "key_taken")
                else:
                    rest.append(write)
            if rest:
                await self._commit(rest, following)
        except ledger_writer.EntryInvalid as invalid:
            for write in writes:
                self._refuse(write, invalid.reason)

    patch.attribute(ledger_writer.LedgerWriterActor, "_commit", commit)


@planted
def lost_commit_written_again_under_a_new_key(patch):
    committed = ledger_writer.LedgerWriterActor._commit_group

    async def commit_group(self, group, following):
        ledger = self._ledger

        class Impatient:
            async def commit(_self, batch, following):  # noqa: N805 - `self` is the writer
                try:
                    return await ledger.commit(batch, following)
                except LedgerUnavailable:
                    ledger._unsettled = None
                    batch = Batch(self._ids.new("b"), batch.recorded_ms, batch.entries)
                    return await ledger.commit(batch, following)

        self._ledger = Impatient()
        try:
            await committed(self, group, following)
        finally:
            self._ledger = ledger

    patch.attribute(ledger_writer.LedgerWriterActor, "_commit_group", commit_group)


@planted
def lost_commit_taken_for_done(patch):
    async def commit_group(self, group, following):
        batch = Batch(
            self._ids.new("b"), self._clock.now_ms(), tuple(write.entry for write in group)
        )
        try:
            await self._ledger.commit(batch)
        except LedgerUnavailable:
            self._ledger._unsettled = None
        for write in group:
            self._tell(write.reply_to, Committed(write.incarnation, (write.token,)))

    patch.attribute(ledger_writer.LedgerWriterActor, "_commit_group", commit_group)


# --- restarts and timers ------------------------------------------------------------------------


@planted
def restart_without_recovery(patch):
    patch.attribute(shard.ShardActor, "_recover", lambda self, payment: None)


@planted
def timer_lost_on_restart(patch):
    patch.attribute(recording, "_timer_changes", lambda before, after: ((), ()))


@planted
def inbox_forgotten_on_restart(patch):
    async def nothing(self):
        return

    patch.attribute(webhook.WebhookActor, "_go_through_inbox", nothing)


@planted
def restart_without_a_barrier(patch):
    async def flush(self):
        return

    patch.attribute(shard.ShardActor, "_flush", flush)


@planted
def breaker_lets_many_trials_through(patch):
    admits = breaker.GatewayBreaker.admits

    def many(self):
        self._is_trial_out = False
        return admits(self)

    patch.attribute(breaker.GatewayBreaker, "admits", many)


@planted
def retry_under_another_key(patch):
    retried = machine.retry

    def retry(payment, env):
        step = retried(payment, env)
        if step is None:
            return None
        calls = tuple(
            (n, msgspec.structs.replace(call, key=f"{call.key}-again")) for n, call in step.calls
        )
        return msgspec.structs.replace(step, calls=calls)

    patch.attribute(shard, "retry", retry)


@planted
def event_forgotten(patch):
    recorded = recording._events
    patch.attribute(recording, "_events", lambda *args: recorded(*args)[:-1])


@planted
def zombie_not_fenced(patch):
    from engine.ledger.memory_store import MemoryStore

    applied = MemoryStore.apply
    patch.attribute(
        MemoryStore, "apply", lambda self, batch, epoch: applied(self, batch, self.epoch)
    )


FIRST = {
    "returned_refund_ignored": 11,
    "fingerprint_ignored": 2,
    "key_of_the_abandoned_kept": 4,
    "keys_forgotten_too_soon": 5,
    "unknown_treated_as_failed": 5,
    "absence_believed_at_once": 5,
    "webhook_downgrades_a_settled_payment": 9,
    "webhook_reopens_a_settled_payment": 15,
    "late_success_ignored": 13,
    "expiry_races_a_capture": 29,
    "lost_commit_written_again_under_a_new_key": 5,
    "lost_commit_taken_for_done": 5,
    "inbox_forgotten_on_restart": 15,
    "restart_without_a_barrier": 118,
    "breaker_lets_many_trials_through": 9,
    "retry_under_another_key": 13,
    "zombie_not_fenced": 12,
}
"""Where to begin: at a seed that finds it. Where it has moved, the search takes longer."""
