"""The contract of the ledger: what holds for the one on Postgres holds for the one in memory.

A test module subclasses `LedgerContract` and gives it a `bench` fixture: a fresh database, the
ledgers opened on it, and the two ways in which a commit's answer can be lost.
"""

from __future__ import annotations

import itertools
from typing import Any, Protocol

import anyio
import msgspec
import pytest

from engine.domain.document import from_document
from engine.domain.entry import (
    Answer,
    Batch,
    Claim,
    DeadLetter,
    Entry,
    EventRow,
    InboxRef,
    InboxRow,
    KeyAnswer,
    KeyRef,
    RefundRow,
    TimelineStep,
    TimerRow,
)
from engine.domain.ids import new_id
from engine.domain.journal import GENESIS
from engine.domain.operation import Operation, OperationStatus
from engine.domain.payment import Payment
from engine.domain.posting import Transfer, books_of, leg
from engine.ports import (
    EntryInvalid,
    Fenced,
    KeysTaken,
    LedgerReader,
    LedgerUnavailable,
    LedgerUpkeep,
    LedgerWriter,
    PaymentFilter,
    Receipt,
    TakePayments,
)

NOW = 1_800_000_000_000
MERCHANT = "mer_one"
BODY = '{"text":"as it was: \u00e9\u2713"}'.encode()


class Ledger(LedgerReader, LedgerWriter, LedgerUpkeep, Protocol):
    """Both halves, and what is done beside them."""


class Bench(Protocol):
    """One database. Every ledger it opens is an engine of its own."""

    async def open(self) -> Ledger:
        """A ledger that has taken over."""
        ...

    def lose_reply(self, ledger: Ledger) -> None:
        """The next commit is applied, and its answer lost."""
        ...

    def lose_batch(self, ledger: Ledger) -> None:
        """The next commit never arrives."""
        ...

    def take_a_while(self, ledger: Ledger) -> None:
        """The next commit waits for something, if only for the database."""
        ...


class Maker:
    """Payments, transfers and batches with ids of their own."""

    def __init__(self) -> None:
        self.counter = itertools.count(1)

    def payment(self, slot: int = 1, **fields: Any) -> Payment:
        """A payment with a hold that was never asked for: version 1, processing."""
        n = next(self.counter)
        op = Operation(n=1, type="authorize", amount=1000, created_ms=NOW, transfer=n)
        values: dict[str, Any] = {
            "id": new_id("pay_", NOW + n, slot, n),
            "merchant_id": MERCHANT,
            "livemode": True,
            "created_ms": NOW + n,
            "amount": 1000,
            "currency": "EUR",
            "gateway": "simulator",
            "payment_method": "tok_visa",
            "operations": (op,),
            "hold": n,
        }
        return Payment(**values | fields)

    def transfer(self, kind: str = "hold", amount: int = 1000, **fields: Any) -> Transfer:
        """A transfer of this merchant; posted unless said otherwise."""
        merchant = fields.pop("merchant", MERCHANT)
        gateway = fields.pop("gateway", "simulator")
        values: dict[str, Any] = {
            "id": next(self.counter),
            "payment_id": "pay_x",
            "op": 1,
            "event_ms": NOW,
        }
        return leg(books_of(merchant, gateway, "EUR", True), kind, amount=amount, **values | fields)

    def batch(self, *entries: Entry, at_ms: int = NOW) -> Batch:
        """A group commit under a new key."""
        return Batch(f"batch-{next(self.counter)}", at_ms, entries)


def later(payment: Payment, **fields: Any) -> Payment:
    """The payment's next version."""
    return msgspec.structs.replace(payment, version=payment.version + 1, **fields)


def authorized(payment: Payment, **fields: Any) -> Payment:
    """The payment's next version, with its hold confirmed."""
    op = msgspec.structs.replace(payment.origin, status="succeeded")
    return later(payment, operations=(op,), authorized=payment.amount, **fields)


def ended(payment: Payment, status: OperationStatus) -> Payment:
    """The payment's next version, whose first operation has come to nothing."""
    return later(payment, operations=(msgspec.structs.replace(payment.origin, status=status),))


def claim(key: str, **fields: Any) -> Claim:
    """A claim of this merchant."""
    return Claim(KeyRef(MERCHANT, True, key), bytes(32), NOW, **fields)


async def open_payments(ledger: Ledger, slots: range) -> list[Payment]:
    """The open payments, oldest first."""
    quiet: dict[str, bytes] = {}
    working: list[bytes] = []
    await ledger.open_payments(slots, into(quiet, working))
    documents = (*quiet.values(), *working)
    return sorted((from_document(doc) for doc in documents), key=lambda payment: payment.id)


def by_id(*payments: Payment) -> dict[str, Payment]:
    """Payments under their ids."""
    return {payment.id: payment for payment in payments}


async def by_work(ledger: Ledger) -> tuple[dict[str, Payment], dict[str, Payment]]:
    """The open payments without work, and those that may have some."""
    quiet: dict[str, bytes] = {}
    working: list[bytes] = []
    await ledger.open_payments(range(4_096), into(quiet, working))
    without = {id_: from_document(document) for id_, document in quiet.items()}
    return without, by_id(*map(from_document, working))


def into(quiet: dict[str, bytes], working: list[bytes]) -> TakePayments:
    """Take open payments into these."""

    def take(some: dict[str, bytes], others: list[bytes]) -> None:
        quiet.update(some)
        working.extend(others)

    return take


async def chain(ledger: Ledger, make: Maker, count: int) -> list[Receipt]:
    """Some commits, one after the other."""
    return [
        await ledger.commit(make.batch(Entry(transfers=(make.transfer(),)))) for _ in range(count)
    ]


class LedgerContract:
    """The tests. Subclasses provide `bench`."""

    @pytest.fixture
    def make(self) -> Maker:
        """A maker of payments."""
        return Maker()

    # --- payments -------------------------------------------------------------------------

    async def test_a_payment_is_read_back_whole(self, bench: Bench, make: Maker) -> None:
        ledger = await bench.open()
        payment = make.payment(metadata={"a": "\u00e9"}, reference="r1", customer="cus_1")
        await ledger.commit(make.batch(Entry(payment=payment)))
        assert await ledger.payments([payment.id, "pay_none"]) == {payment.id: payment}

    async def test_a_later_version_replaces_the_one_before(self, bench: Bench, make: Maker) -> None:
        ledger = await bench.open()
        payment = make.payment()
        await ledger.commit(make.batch(Entry(payment=payment)))
        after = authorized(payment)
        await ledger.commit(make.batch(Entry(payment=after)))
        assert await ledger.payments([payment.id]) == {payment.id: after}

    async def test_a_stale_version_is_refused_and_changes_nothing(
        self, bench: Bench, make: Maker
    ) -> None:
        ledger = await bench.open()
        payment = make.payment()
        await ledger.commit(make.batch(Entry(payment=payment)))
        skipped = later(later(payment))
        with pytest.raises(EntryInvalid, match="invalid: stale_version"):
            await ledger.commit(make.batch(Entry(payment=skipped)))
        with pytest.raises(EntryInvalid, match="invalid: stale_version"):
            await ledger.commit(make.batch(Entry(payment=later(make.payment()))))
        assert await ledger.payments([payment.id]) == {payment.id: payment}

    async def test_the_same_payment_twice_is_refused(self, bench: Bench, make: Maker) -> None:
        ledger = await bench.open()
        payment = make.payment()
        await ledger.commit(make.batch(Entry(payment=payment)))
        with pytest.raises(EntryInvalid, match="invalid: payments_pkey"):
            await ledger.commit(make.batch(Entry(payment=payment)))

    async def test_several_versions_in_one_batch_keep_the_last_and_every_step(
        self, bench: Bench, make: Maker
    ) -> None:
        ledger = await bench.open()
        first = make.payment()
        second = authorized(first)
        third = later(second, capturing=400)
        entries = [
            Entry(payment=p, timeline=(TimelineStep(NOW, f"step {p.version}"),))
            for p in (first, second, third)
        ]
        await ledger.commit(make.batch(*entries[:2]))
        await ledger.commit(make.batch(*entries[2:], Entry(payment=later(third))))
        assert (await ledger.payments([first.id]))[first.id] == later(third)
        rows = await ledger.timeline(first.id)
        assert [(row.version, row.batch) for row in rows] == [(1, 1), (2, 1), (3, 2)]
        assert b"step 2" in rows[1].steps

    async def test_versions_in_one_batch_leave_no_gap(self, bench: Bench, make: Maker) -> None:
        ledger = await bench.open()
        first = make.payment()
        with pytest.raises(EntryInvalid, match="invalid: stale_version"):
            await ledger.commit(
                make.batch(Entry(payment=first), Entry(payment=later(later(first))))
            )
        assert await ledger.payments([first.id]) == {}

    @pytest.mark.parametrize(
        ("counters", "constraint"),
        [
            ({"authorized": 1000, "captured": 600, "capturing": 401}, "within_authorized"),
            ({"authorized": 1000, "released": 600, "releasing": 401}, "within_authorized"),
            ({"authorized": 1000, "captured": 600, "refunding": 601}, "within_captured"),
            ({"authorized": 1000, "refunding": -1}, "counters_not_negative"),
            ({"excess_refunded": -1}, "counters_not_negative"),
        ],
    )
    async def test_the_guarded_counters_hold(
        self, bench: Bench, make: Maker, counters: dict[str, int], constraint: str
    ) -> None:
        ledger = await bench.open()
        payment = make.payment()
        await ledger.commit(make.batch(Entry(payment=payment)))
        bad = Entry(
            payment=later(payment, **counters),
            transfers=(make.transfer(),),
            claim=claim("k"),
            timers_set=(TimerRow(NOW, payment.id, "retry"),),
        )
        with pytest.raises(EntryInvalid, match=f"invalid: payments_{constraint}"):
            await ledger.commit(make.batch(bad))
        assert await ledger.payments([payment.id]) == {payment.id: payment}
        assert await ledger.claim(KeyRef(MERCHANT, True, "k")) is None
        assert await ledger.timers_due("retry", NOW, 10) == []
        assert await ledger.accounts(owner=None, livemode=True, after=0, limit=10) == []

    async def test_a_reference_names_one_payment_of_a_merchant(
        self, bench: Bench, make: Maker
    ) -> None:
        ledger = await bench.open()
        await ledger.commit(make.batch(Entry(payment=make.payment(reference="order-1"))))
        await ledger.commit(
            make.batch(Entry(payment=make.payment(reference="order-1", merchant_id="mer_two")))
        )
        with pytest.raises(EntryInvalid) as raised:
            await ledger.commit(make.batch(Entry(payment=make.payment(reference="order-1"))))
        assert raised.value.reason == "reference_taken"

    @pytest.mark.parametrize("status", ["declined", "failed", "expired", "canceled"])
    async def test_a_payment_that_never_came_about_gives_its_reference_up(
        self, bench: Bench, make: Maker, status: OperationStatus
    ) -> None:
        ledger = await bench.open()
        first, second, third = (make.payment(reference="order-1") for _ in range(3))
        undone = ended(first, status)
        await ledger.commit(make.batch(Entry(payment=first)))
        with pytest.raises(EntryInvalid) as raised:
            await ledger.commit(make.batch(Entry(payment=undone), Entry(payment=second)))
        assert raised.value.reason == "reference_taken", "within one commit it is not free yet"
        await ledger.commit(make.batch(Entry(payment=undone)))
        await ledger.commit(make.batch(Entry(payment=second)))
        with pytest.raises(EntryInvalid) as raised:
            await ledger.commit(make.batch(Entry(payment=third)))
        assert raised.value.reason == "reference_taken"
        with pytest.raises(EntryInvalid) as raised:
            await ledger.commit(make.batch(Entry(payment=authorized(undone))))
        assert raised.value.reason == "reference_taken", "and it is not claimed back"
        failed = ended(second, "failed")
        await ledger.commit(make.batch(Entry(payment=failed), Entry(payment=later(undone))))
        await ledger.commit(make.batch(Entry(payment=third)))
        found = await ledger.list_payments(PaymentFilter(MERCHANT, True, reference="order-1"))
        assert [payment.id for payment in found] == [third.id, second.id, first.id]
        found = await ledger.list_payments(
            PaymentFilter(MERCHANT, True, reference="order-1", before=third.id, limit=1)
        )
        assert [payment.id for payment in found] == [second.id, first.id]
        assert await ledger.payments([first.id]) == {first.id: later(undone)}

    async def test_open_payments_are_handed_over_by_slots(self, bench: Bench, make: Maker) -> None:
        ledger = await bench.open()
        payments = [make.payment(slot=n % 7) for n in range(1700)]
        await ledger.commit(make.batch(*(Entry(payment=p) for p in payments)))
        op = msgspec.structs.replace(payments[0].origin, status="declined")
        await ledger.commit(make.batch(Entry(payment=later(payments[0], operations=(op,)))))
        second = payments[1] = later(payments[1], authorized=1000)
        await ledger.commit(make.batch(Entry(payment=second)))

        def of_slots(*slots: int) -> list[Payment]:
            found = [p for n, p in enumerate(payments) if n and n % 7 in slots]
            return sorted(found, key=lambda p: p.id)

        assert await open_payments(ledger, range(6)) == of_slots(*range(6))
        assert await open_payments(ledger, range(4, 6)) == of_slots(4, 5)
        assert await open_payments(ledger, range(6, 6)) == []

    async def test_open_payments_without_work_are_told_from_those_that_may_have_some(
        self, bench: Bench, make: Maker
    ) -> None:
        ledger = await bench.open()
        asked, waiting, at_once = make.payment(), make.payment(), authorized(make.payment())
        at_once = msgspec.structs.replace(at_once, version=1)
        await ledger.commit(make.batch(*(Entry(payment=p) for p in (asked, waiting, at_once))))
        waiting = authorized(waiting)
        await ledger.commit(make.batch(Entry(payment=waiting)))
        assert await by_work(ledger) == (by_id(waiting, at_once), by_id(asked))

        capture = Operation(n=2, type="capture", amount=1000, created_ms=NOW)
        capturing = later(waiting, capturing=1000, operations=(*waiting.operations, capture))
        asked = authorized(asked)
        # Two versions of one payment in a commit: the last one counts.
        await ledger.commit(
            make.batch(
                Entry(payment=capturing),
                Entry(payment=asked),
                Entry(payment=(at_once := later(at_once, description="changed"))),
                Entry(payment=(at_once := later(at_once, description="and again"))),
            )
        )
        assert await by_work(ledger) == (by_id(asked, at_once), by_id(capturing))

    @pytest.mark.parametrize(
        "broken",
        [
            ZeroDivisionError("a bug"),
            OSError("not the database's"),
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "a document that cannot be read"),
        ],
    )
    async def test_what_breaks_while_open_payments_are_taken_is_told_as_it_is(
        self, bench: Bench, make: Maker, broken: Exception
    ) -> None:
        ledger = await bench.open()
        await ledger.commit(make.batch(*(Entry(payment=make.payment()) for _ in range(3))))

        def refuse(quiet: dict[str, bytes], working: list[bytes]) -> None:
            raise broken

        with pytest.raises(type(broken)) as raised:
            await ledger.open_payments(range(4_096), refuse)
        assert raised.value is broken
        assert len(await open_payments(ledger, range(4_096))) == 3, "and it can be asked again"

    # --- lists ----------------------------------------------------------------------------

    async def test_payments_are_listed_newest_first_with_filters_and_cursor(
        self, bench: Bench, make: Maker
    ) -> None:
        ledger = await bench.open()
        payments = [
            make.payment(customer=f"cus_{n % 2}", subscription=f"sub_{n % 3}", reference=f"r{n}")
            for n in range(6)
        ]
        others = [make.payment(livemode=False), make.payment(merchant_id="mer_two")]
        await ledger.commit(make.batch(*(Entry(payment=p) for p in payments + others)))

        async def listed(**fields: Any) -> list[int]:
            found = await ledger.list_payments(PaymentFilter(MERCHANT, True, **fields))
            return [payments.index(p) for p in found]

        assert await listed() == [5, 4, 3, 2, 1, 0]
        assert await listed(limit=2) == [5, 4, 3]
        assert await listed(limit=2, before=payments[4].id) == [3, 2, 1]
        assert await listed(customer="cus_1") == [5, 3, 1]
        assert await listed(subscription="sub_1") == [4, 1]
        assert await listed(reference="r3") == [3]
        assert await listed(reference="r3", customer="cus_0") == []
        assert await listed(status="processing", limit=1) == [5, 4]
        assert await listed(status="captured") == []
        assert await listed(created_gte_ms=payments[4].created_ms) == [5, 4]
        assert await listed(created_lte_ms=payments[1].created_ms) == [1, 0]

    async def test_refunds_are_kept_in_their_last_form(self, bench: Bench, make: Maker) -> None:
        ledger = await bench.open()

        def refund(n: int, status: str) -> RefundRow:
            body = f"{n} {status}".encode()
            return RefundRow(f"re_{n}", f"pay_{n % 2}", MERCHANT, True, status, NOW, body)

        first = Entry(refunds=tuple(refund(n, "processing") for n in range(4)))
        await ledger.commit(make.batch(first, Entry(refunds=(refund(1, "pending"),))))
        await ledger.commit(make.batch(Entry(refunds=(refund(2, "succeeded"),))))
        assert await ledger.refund(MERCHANT, True, "re_1") == b"1 pending"
        assert await ledger.refund(MERCHANT, False, "re_1") is None
        assert await ledger.refund("mer_two", True, "re_1") is None

        async def listed(**fields: Any) -> list[str]:
            wanted: dict[str, Any] = {
                "payment_id": None, "status": None, "before": None, "limit": 10,
            }  # fmt: skip
            found = await ledger.list_refunds(MERCHANT, True, **wanted | fields)
            return [id_ for id_, _body in found]

        assert await listed() == ["re_3", "re_2", "re_1", "re_0"]
        assert await listed(limit=1, before="re_3") == ["re_2", "re_1"]
        assert await listed(payment_id="pay_0") == ["re_2", "re_0"]
        assert await listed(status="succeeded", payment_id="pay_0") == ["re_2"]

    async def test_events_are_read_and_listed(self, bench: Bench, make: Maker) -> None:
        ledger = await bench.open()
        rows = tuple(
            EventRow(f"evt_{n}", f"type.{n % 2}", MERCHANT, True, f"pay_{n % 3}", n, NOW + n, BODY)
            for n in range(6)
        )
        await ledger.commit(make.batch(Entry(events=rows)))
        event = await ledger.event(MERCHANT, True, "evt_4")
        assert event is not None
        assert (event.type, event.object_id, event.sequence, event.created_ms, event.body) == (
            "type.0", "pay_1", 4, NOW + 4, BODY,
        )  # fmt: skip
        assert await ledger.event(MERCHANT, False, "evt_4") is None

        async def listed(**fields: Any) -> list[str]:
            wanted: dict[str, Any] = {"type": None, "object_id": None, "before": None, "limit": 9}
            found = await ledger.list_events(MERCHANT, True, **wanted | fields)
            return [event.id for event in found]

        assert await listed(limit=1) == ["evt_5", "evt_4"]
        assert await listed(before="evt_2") == ["evt_1", "evt_0"]
        assert await listed(type="type.1", object_id="pay_0") == ["evt_3"]
        with pytest.raises(EntryInvalid, match="invalid: events_pkey"):
            await ledger.commit(make.batch(Entry(events=rows[:1])))

    # --- idempotency ----------------------------------------------------------------------

    async def test_taken_keys_are_named_and_nothing_is_written(
        self, bench: Bench, make: Maker
    ) -> None:
        ledger = await bench.open()
        await ledger.commit(make.batch(Entry(claim=claim("a")), Entry(claim=claim("b"))))
        payment = make.payment()
        with pytest.raises(KeysTaken) as raised:
            await ledger.commit(
                make.batch(
                    Entry(payment=payment, claim=claim("new")),
                    Entry(claim=claim("b")),
                    Entry(claim=claim("a")),
                )
            )
        assert raised.value.refs == {KeyRef(MERCHANT, True, "a"), KeyRef(MERCHANT, True, "b")}
        assert await ledger.claim(KeyRef(MERCHANT, True, "new")) is None
        assert await ledger.payments([payment.id]) == {}

    async def test_a_key_is_unique_per_merchant_and_mode(self, bench: Bench, make: Maker) -> None:
        ledger = await bench.open()
        refs = [KeyRef(MERCHANT, True, "k"), KeyRef(MERCHANT, False, "k"), KeyRef("m2", True, "k")]
        await ledger.commit(make.batch(*(Entry(claim=Claim(r, b"f", NOW)) for r in refs)))
        assert [await ledger.claim(ref) for ref in refs] == [Claim(r, b"f", NOW) for r in refs]

    async def test_keys_that_look_alike_are_different_keys(self, bench: Bench, make: Maker) -> None:
        ledger = await bench.open()
        keys = ["A", "a", "\\x41", "\\101", "\\", "\\\\", "\\\\x41", '"', "'", "%", "1 A", "ä", "€"]
        refs = [KeyRef(MERCHANT, mode, key) for key in keys for mode in (True, False)]
        refs += [KeyRef("b", True, "ca"), KeyRef("ab", True, "c"), KeyRef("cab", True, "")]
        claims: dict[KeyRef, Claim | None] = {r: Claim(r, r.key.encode(), NOW) for r in refs}
        await ledger.commit(make.batch(*(Entry(claim=one) for one in claims.values())))

        answer = Answer(201, b"{}", final=True, code="")
        answered, released, taken = refs[4], refs[7], refs[8]
        await ledger.commit(make.batch(Entry(answers=(KeyAnswer(answered, answer),))))
        await ledger.commit(make.batch(Entry(claims_released=(released,))))
        claims |= {answered: Claim(answered, answered.key.encode(), NOW, answer=answer)}
        claims |= {released: None}
        assert {ref: await ledger.claim(ref) for ref in refs} == claims
        with pytest.raises(KeysTaken) as raised:
            await ledger.commit(make.batch(Entry(claim=Claim(taken, b"f", NOW))))
        assert raised.value.refs == {taken}

    async def test_two_claims_of_one_key_in_a_batch_are_refused(
        self, bench: Bench, make: Maker
    ) -> None:
        ledger = await bench.open()
        with pytest.raises(EntryInvalid, match="two claims of one key"):
            await ledger.commit(make.batch(Entry(claim=claim("k")), Entry(claim=claim("k"))))

    async def test_an_answer_is_replayed_byte_for_byte_and_never_replaced(
        self, bench: Bench, make: Maker
    ) -> None:
        ledger = await bench.open()
        ref = KeyRef(MERCHANT, True, "k")
        answer = Answer(201, BODY, final=True, code="", location="/v1/payments/x")
        await ledger.commit(make.batch(Entry(claim=claim("k", payment_id="pay_x", op=2))))
        assert await ledger.claim(ref) == claim("k", payment_id="pay_x", op=2)
        await ledger.commit(make.batch(Entry(answers=(KeyAnswer(ref, answer),))))
        other = Answer(500, b"other", final=True, code="other")
        await ledger.commit(make.batch(Entry(answers=(KeyAnswer(ref, other),))))
        assert await ledger.claim(ref) == claim("k", payment_id="pay_x", op=2, answer=answer)

    async def test_an_answer_may_come_with_the_claim(self, bench: Bench, make: Maker) -> None:
        ledger = await bench.open()
        answer = Answer(422, b"{}", final=True, code="amount_too_large")
        await ledger.commit(make.batch(Entry(claim=claim("k", answer=answer))))
        assert await ledger.claim(KeyRef(MERCHANT, True, "k")) == claim("k", answer=answer)
        ref = KeyRef(MERCHANT, True, "l")
        await ledger.commit(
            make.batch(Entry(claim=claim("l")), Entry(answers=(KeyAnswer(ref, answer),)))
        )
        assert await ledger.claim(ref) == claim("l", answer=answer)

    async def test_a_released_key_can_be_claimed_again(self, bench: Bench, make: Maker) -> None:
        ledger = await bench.open()
        ref = KeyRef(MERCHANT, True, "k")
        await ledger.commit(make.batch(Entry(claim=claim("k"))))
        await ledger.commit(make.batch(Entry(claims_released=(ref,))))
        assert await ledger.claim(ref) is None
        await ledger.commit(make.batch(Entry(claim=claim("k"))))

    async def test_answered_keys_from_before_a_time_are_forgotten_oldest_first(
        self, bench: Bench, make: Maker
    ) -> None:
        ledger = await bench.open()
        answer = Answer(201, BODY, final=True, code="")
        refs = {age: KeyRef(MERCHANT, True, f"k{age}") for age in (3, 1, 4, 2, 0)}
        claims = {age: Claim(ref, b"f", NOW - age) for age, ref in refs.items()}
        await ledger.commit(make.batch(*(Entry(claim=one) for one in claims.values())))
        answers = tuple(KeyAnswer(refs[age], answer) for age in (0, 1, 2, 4))
        await ledger.commit(make.batch(Entry(answers=answers), at_ms=NOW - 5))

        async def kept() -> list[int]:
            return [age for age in range(5) if await ledger.claim(refs[age]) is not None]

        assert await ledger.prune_keys(NOW - 4, 9) == 0
        assert await ledger.prune_keys(NOW, 1) == 1
        assert await kept() == [0, 1, 2, 3]
        # The third one waits for its answer.
        assert await ledger.prune_keys(NOW, 2) == 2
        assert await kept() == [0, 3]
        assert await ledger.prune_keys(NOW, 9) == 0
        await ledger.commit(make.batch(Entry(answers=(KeyAnswer(refs[3], answer),)), at_ms=NOW - 5))
        assert await ledger.prune_keys(NOW, 9) == 1
        assert await kept() == [0]

    async def test_a_key_that_was_answered_late_is_kept_from_then_on(
        self, bench: Bench, make: Maker
    ) -> None:
        ledger = await bench.open()
        ref = KeyRef(MERCHANT, True, "k")
        answer = Answer(201, BODY, final=True, code="")
        await ledger.commit(make.batch(Entry(claim=claim("k"))))
        await ledger.commit(make.batch(Entry(answers=(KeyAnswer(ref, answer),)), at_ms=NOW + 50))
        assert await ledger.prune_keys(NOW + 50, 9) == 0
        assert await ledger.claim(ref) == claim("k", answer=answer)
        assert await ledger.prune_keys(NOW + 51, 9) == 1
        assert await ledger.claim(ref) is None

    async def test_what_time_it_is_follows_a_clock_only_so_far(self, bench: Bench) -> None:
        ledger = await bench.open()
        assert await ledger.believe_time(NOW, 5) == NOW
        assert await ledger.believe_time(NOW + 3, 5) == NOW + 3
        assert await ledger.believe_time(NOW + 100, 5) == NOW + 8
        after = await bench.open()
        assert await after.believe_time(NOW + 100, 0) == NOW + 8
        assert await after.believe_time(NOW - 100, 5) == NOW + 3
        assert await after.believe_time(NOW, 5) == NOW

    async def test_a_forgotten_key_can_be_claimed_again_and_nothing_is_answered_to_it(
        self, bench: Bench, make: Maker
    ) -> None:
        ledger = await bench.open()
        ref = KeyRef(MERCHANT, True, "k")
        answer = Answer(201, BODY, final=True, code="")
        await ledger.commit(make.batch(Entry(claim=claim("k", answer=answer))))
        assert await ledger.prune_keys(NOW + 1, 9) == 1
        await ledger.commit(make.batch(Entry(answers=(KeyAnswer(ref, answer),))))
        assert await ledger.claim(ref) is None
        await ledger.commit(make.batch(Entry(claim=claim("k"))))
        assert await ledger.claim(ref) == claim("k")

    # --- accounts and transfers -----------------------------------------------------------

    async def test_totals_follow_the_phases(self, bench: Bench, make: Maker) -> None:
        ledger = await bench.open()
        hold = make.transfer(amount=1000, phase="pending")
        await ledger.commit(make.batch(Entry(transfers=(hold,)), at_ms=NOW))
        posted = make.transfer(amount=700, phase="post_pending", resolves=hold.id)
        rest = make.transfer(amount=300, phase="void_pending", resolves=hold.id)
        fee = make.transfer("fee", amount=39, link=posted.id)
        await ledger.commit(make.batch(Entry(transfers=(posted, rest, fee)), at_ms=NOW + 10))
        accounts = await ledger.accounts(owner=None, livemode=True, after=0, limit=10)
        totals = {
            a.kind: (a.debits_pending, a.debits_posted, a.credits_pending, a.credits_posted)
            for a in accounts
        }
        assert totals == {
            "gateway_receivable": (0, 700, 0, 0),
            "merchant_pending": (0, 39, 0, 700),
            "platform_fees": (0, 0, 0, 39),
        }
        assert [a.version for a in accounts] == [3, 4, 1]
        merchant = next(a for a in accounts if a.kind == "merchant_pending")
        assert merchant.owner == MERCHANT
        assert await ledger.account(merchant.id) == merchant

        then = await ledger.account(merchant.id, at_ms=NOW + 9)
        assert then is not None
        assert (then.credits_pending, then.credits_posted, then.version) == (1000, 0, 1)
        assert await ledger.account(merchant.id, at_ms=NOW + 10) == merchant
        assert await ledger.account(merchant.id, at_ms=NOW - 1) is None
        assert await ledger.account(999) is None

    async def test_accounts_are_listed_by_owner_and_page(self, bench: Bench, make: Maker) -> None:
        ledger = await bench.open()
        transfers = tuple(make.transfer(merchant=f"mer_{n}") for n in range(4))
        await ledger.commit(make.batch(Entry(transfers=transfers)))
        first = await ledger.accounts(owner=None, livemode=True, after=0, limit=2)
        assert len(first) == 3
        rest = await ledger.accounts(owner=None, livemode=True, after=first[1].id, limit=9)
        assert len(rest) == 3
        assert rest[0] == first[2]
        of_one = await ledger.accounts(owner="mer_2", livemode=True, after=0, limit=9)
        assert [a.owner for a in of_one] == ["mer_2"]
        assert await ledger.accounts(owner=None, livemode=False, after=0, limit=9) == []

    async def test_a_transfer_is_read_as_it_was_recorded(self, bench: Bench, make: Maker) -> None:
        ledger = await bench.open()
        sent = make.transfer(phase="pending", payment_id="pay_7", op=3, event_ms=NOW - 5)
        await ledger.commit(make.batch(Entry(transfers=(sent,)), at_ms=NOW + 2))
        row = await ledger.transfer(sent.id)
        assert row is not None
        accounts = await ledger.accounts(owner=None, livemode=True, after=0, limit=2)
        kinds = {a.id: a.kind for a in accounts}
        assert kinds[row.debit_account] == "gateway_receivable"
        assert kinds[row.credit_account] == "merchant_pending"
        assert (row.id, row.batch, row.amount, row.currency, row.kind, row.phase) == (
            sent.id, 1, 1000, "EUR", "hold", "pending",
        )  # fmt: skip
        assert (row.resolves, row.link, row.payment_id, row.op, row.event_ms, row.recorded_ms) == (
            0, 0, "pay_7", 3, NOW - 5, NOW + 2,
        )  # fmt: skip
        assert row.livemode is True
        assert await ledger.payment_transfers("pay_7", [sent.id, 999]) == [row]
        assert await ledger.payment_transfers("pay_8", [sent.id]) == []
        assert await ledger.transfer(999) is None

    async def test_an_accounts_transfers_come_newest_first_in_pages(
        self, bench: Bench, make: Maker
    ) -> None:
        ledger = await bench.open()
        # Ids of one batch may lie among those of another.
        mine = [make.transfer(merchant=f"mer_{n % 2}") for n in range(12)]
        await ledger.commit(make.batch(*(Entry(transfers=(t,)) for t in mine[0:12:3])))
        await ledger.commit(make.batch(*(Entry(transfers=(t,)) for t in mine[1:12:3])))
        await ledger.commit(make.batch(*(Entry(transfers=(t,)) for t in mine[2:12:3])))
        order = [mine[n].id for n in (11, 8, 5, 2, 10, 7, 4, 1, 9, 6, 3, 0)]
        accounts = await ledger.accounts(owner=None, livemode=True, after=0, limit=9)
        by_owner = {a.owner: a.id for a in accounts}
        everything = await ledger.account_transfers(by_owner["simulator"], before=None, limit=99)
        assert [t.id for t in everything] == order
        page = await ledger.account_transfers(by_owner["simulator"], before=order[4], limit=3)
        assert [t.id for t in page] == order[5:9]
        odd = await ledger.account_transfers(by_owner["mer_1"], before=None, limit=99)
        assert [t.id for t in odd] == [id_ for id_ in order if mine[0].id % 2 != id_ % 2]

    async def test_a_second_phase_must_fit_what_it_resolves(
        self, bench: Bench, make: Maker
    ) -> None:
        ledger = await bench.open()
        hold = make.transfer(amount=1000, phase="pending")
        await ledger.commit(make.batch(Entry(transfers=(hold, make.transfer(phase="pending")))))
        misfits = [
            make.transfer(amount=1001, phase="post_pending", resolves=hold.id),
            make.transfer(amount=10, phase="post_pending", resolves=10**9),
            make.transfer(amount=10, phase="void_pending", resolves=hold.id, merchant="mer_two"),
            make.transfer("fee", amount=10, phase="post_pending", resolves=hold.id),
        ]
        for misfit in misfits:
            with pytest.raises(EntryInvalid):
                await ledger.commit(make.batch(Entry(transfers=(misfit,))))
        together = make.transfer(amount=400, phase="pending")
        half = make.transfer(amount=200, phase="expire_pending", resolves=together.id)
        await ledger.commit(make.batch(Entry(transfers=(together,)), Entry(transfers=(half,))))

    async def test_no_more_is_resolved_than_is_pending(self, bench: Bench, make: Maker) -> None:
        ledger = await bench.open()
        hold = make.transfer(amount=1000, phase="pending")
        await ledger.commit(make.batch(Entry(transfers=(hold,))))
        for amount in (600, 400):
            part = make.transfer(amount=amount, phase="post_pending", resolves=hold.id)
            await ledger.commit(make.batch(Entry(transfers=(part,))))
        more = make.transfer(amount=1, phase="post_pending", resolves=hold.id)
        with pytest.raises(EntryInvalid, match="invalid: pending_not_negative"):
            await ledger.commit(make.batch(Entry(transfers=(more,))))

    async def test_a_total_has_room_for_all_but_what_it_holds_itself(
        self, bench: Bench, make: Maker
    ) -> None:
        ledger = await bench.open()
        quarter = 2**61
        for _ in range(3):
            hold = make.transfer(amount=quarter, phase="pending")
            void = make.transfer(amount=quarter, phase="void_pending", resolves=hold.id)
            for transfer in (hold, void):
                await ledger.commit(make.batch(Entry(transfers=(transfer,))))
        for _ in range(3):
            await ledger.commit(make.batch(Entry(transfers=(make.transfer(amount=quarter),))))
        with pytest.raises(EntryInvalid, match="invalid: NumericValueOutOfRangeError"):
            await ledger.commit(make.batch(Entry(transfers=(make.transfer(amount=quarter),))))
        await ledger.commit(make.batch(Entry(transfers=(make.transfer(amount=quarter - 1),))))

    async def test_a_taken_key_is_told_before_what_its_entry_would_do(
        self, bench: Bench, make: Maker
    ) -> None:
        ledger = await bench.open()
        hold = make.transfer(amount=1000, phase="pending")
        await ledger.commit(make.batch(Entry(transfers=(hold,))))

        def capture() -> Entry:
            part = make.transfer(amount=1000, phase="post_pending", resolves=hold.id)
            return Entry(transfers=(part,), claim=claim("capture"))

        await ledger.commit(make.batch(capture()))
        with pytest.raises(KeysTaken):
            await ledger.commit(make.batch(capture()))

    async def test_who_was_fenced_learns_it_whatever_the_new_engine_has_done(
        self, bench: Bench, make: Maker
    ) -> None:
        old = await bench.open()
        hold = make.transfer(amount=1000, phase="pending")
        await old.commit(make.batch(Entry(transfers=(hold,))))

        def capture() -> Batch:
            part = make.transfer(amount=1000, phase="post_pending", resolves=hold.id)
            return make.batch(Entry(transfers=(part,)))

        lost = capture()
        bench.lose_batch(old)
        with pytest.raises(LedgerUnavailable):
            await old.commit(lost)
        new = await bench.open()
        await new.commit(capture())
        with pytest.raises(Fenced):
            await old.commit(lost)

    async def test_a_transfer_id_is_used_once(self, bench: Bench, make: Maker) -> None:
        ledger = await bench.open()
        sent = make.transfer()
        await ledger.commit(make.batch(Entry(transfers=(sent,))))
        with pytest.raises(EntryInvalid, match="invalid: transfers_pkey"):
            await ledger.commit(make.batch(Entry(transfers=(sent,))))

    async def test_both_sides_have_one_currency(self, bench: Bench, make: Maker) -> None:
        ledger = await bench.open()
        sent = make.transfer()
        mixed = msgspec.structs.replace(
            sent, credit=msgspec.structs.replace(sent.credit, currency="USD")
        )
        with pytest.raises(EntryInvalid, match="two currencies"):
            await ledger.commit(make.batch(Entry(transfers=(mixed,))))

    async def test_accounts_of_a_refused_batch_are_not_remembered(
        self, bench: Bench, make: Maker
    ) -> None:
        ledger = await bench.open()
        bad = Entry(transfers=(make.transfer(merchant="mer_a"),), events=(_event("evt_1"),) * 2)
        with pytest.raises(EntryInvalid):
            await ledger.commit(make.batch(bad))
        good = Entry(transfers=(make.transfer(merchant="mer_b"),))
        await ledger.commit(make.batch(good))
        accounts = await ledger.accounts(owner=None, livemode=True, after=0, limit=9)
        assert {a.owner for a in accounts} == {"simulator", "mer_b"}

    # --- work that waits ------------------------------------------------------------------

    async def test_timers_are_set_cleared_and_due(self, bench: Bench, make: Maker) -> None:
        ledger = await bench.open()
        late, soon, other = (
            TimerRow(NOW + 9, "pay_1", "retry"),
            TimerRow(NOW + 3, "pay_2", "retry"),
            TimerRow(NOW + 3, "pay_2", "expire"),
        )
        await ledger.commit(make.batch(Entry(timers_set=(late, soon, other, soon))))
        assert await ledger.timers_due("retry", NOW + 9, 10) == [soon, late]
        assert await ledger.timers_due("retry", NOW + 9, 1) == [soon]
        assert await ledger.timers_due("retry", NOW + 9, 1, after=soon) == [late]
        assert await ledger.timers_due("retry", NOW + 9, 1, after=late) == []
        assert await ledger.timers_due("retry", NOW + 3, 10) == [soon]
        cleared = Entry(timers_cleared=(soon, TimerRow(NOW, "pay_9", "retry")))
        await ledger.commit(make.batch(cleared))
        assert await ledger.timers_due("retry", NOW + 9, 10) == [late]
        assert await ledger.timers_due("expire", NOW + 9, 10) == [other]

    async def test_the_last_word_on_a_timer_in_a_batch_holds(
        self, bench: Bench, make: Maker
    ) -> None:
        ledger = await bench.open()
        kept, dropped = TimerRow(NOW, "pay_1", "retry"), TimerRow(NOW, "pay_2", "retry")
        await ledger.commit(
            make.batch(
                Entry(timers_set=(dropped,), timers_cleared=(kept,)),
                Entry(timers_set=(kept,), timers_cleared=(dropped,)),
            )
        )
        assert await ledger.timers_due("retry", NOW, 10) == [kept]

    async def test_a_webhook_is_stored_once_and_dealt_with_once(
        self, bench: Bench, make: Maker
    ) -> None:
        ledger = await bench.open()
        first = InboxRow("stripe", "e1", NOW + 1, {"a": "b"}, b"\x00raw")
        again = InboxRow("stripe", "e1", NOW + 2, {}, b"again")
        second = InboxRow("paypal", "e1", NOW, {}, b"")
        await ledger.commit(make.batch(Entry(inbox=first), Entry(inbox=second)))
        await ledger.commit(make.batch(Entry(inbox=again)))
        assert await ledger.inbox_open(10) == [second, first]
        assert await ledger.inbox_open(1) == [second]
        assert await ledger.inbox_open(1, after=second) == [first]
        assert await ledger.inbox_open(1, after=first) == []
        done = Entry(inbox_done=InboxRef("stripe", "e1", "applied"))
        await ledger.commit(make.batch(done))
        await ledger.commit(make.batch(Entry(inbox=again)))
        assert await ledger.inbox_open(10) == [second]

    async def test_dead_letters_wait_until_somebody_has_dealt_with_them(
        self, bench: Bench, make: Maker
    ) -> None:
        ledger = await bench.open()
        letters = [DeadLetter(f"dl_{n}", "kind", "pay_1", "why", b"{}", NOW) for n in range(4)]
        await ledger.commit(make.batch(*(Entry(dead_letter=letter) for letter in letters)))
        await ledger.commit(make.batch(Entry(dead_letter_done="dl_2")))
        assert await ledger.dead_letters(before=None, limit=1) == [letters[3], letters[1]]
        assert await ledger.dead_letters(before="dl_1", limit=9) == [letters[0]]
        assert await ledger.dead_letter("dl_1") == letters[1]
        assert await ledger.dead_letter("dl_2") is None
        assert await ledger.dead_letter("dl_9") is None

    async def test_a_webhook_is_open_again_in_the_commit_that_closes_its_letter(
        self, bench: Bench, make: Maker
    ) -> None:
        ledger = await bench.open()
        row = InboxRow("stripe", "e1", NOW, {"a": "b"}, b"raw")
        letter = DeadLetter("dl_1", "webhook", "stripe:e1", "why", b"{}", NOW)
        given_up = Entry(inbox_done=InboxRef("stripe", "e1", "unmatched"), dead_letter=letter)
        await ledger.commit(make.batch(Entry(inbox=row), given_up))
        assert await ledger.inbox_open(9) == []
        tried_again = Entry(inbox=row, dead_letter_done="dl_1")
        await ledger.commit(make.batch(tried_again))
        assert await ledger.inbox_open(9) == [row]
        assert await ledger.dead_letter("dl_1") is None
        applied = Entry(inbox_done=InboxRef("stripe", "e1", "applied"))
        await ledger.commit(make.batch(applied))
        await ledger.commit(make.batch(tried_again, Entry(inbox=row, dead_letter_done="dl_9")))
        assert await ledger.inbox_open(9) == [], "it is a letter that reopens it, once"

    async def test_a_webhook_can_be_opened_again_and_dealt_with_in_one_batch(
        self, bench: Bench, make: Maker
    ) -> None:
        ledger = await bench.open()
        row = InboxRow("stripe", "e1", NOW, {}, b"raw")
        done = InboxRef("stripe", "e1", "applied")
        letter = DeadLetter("dl_1", "webhook", "stripe:e1", "why", b"{}", NOW)
        await ledger.commit(make.batch(Entry(inbox=row), Entry(dead_letter=letter)))
        tried_again = Entry(inbox=row, dead_letter_done="dl_1")
        await ledger.commit(make.batch(tried_again, Entry(inbox_done=done)))
        assert await ledger.inbox_open(9) == []

    # --- what can't be stored -------------------------------------------------------------

    @pytest.mark.parametrize("text", ["nul \0", "surrogate \ud800"])
    async def test_text_that_has_no_form_is_refused(
        self, bench: Bench, make: Maker, text: str
    ) -> None:
        ledger = await bench.open()
        bad = [
            Entry(payment=make.payment(description=text)),
            Entry(payment=make.payment(customer=text)),
            Entry(payment=make.payment(), timeline=(TimelineStep(NOW, text),)),
            Entry(claim=claim(text)),
            Entry(transfers=(make.transfer(payment_id=text),)),
            Entry(timers_set=(TimerRow(NOW, text, "retry"),)),
        ]
        for entry in bad:
            with pytest.raises(EntryInvalid):
                await ledger.commit(make.batch(entry))
        backslash = make.payment(description="\\u0000")
        assert (await ledger.commit(make.batch(Entry(payment=backslash)))).number == 1

    async def test_numbers_beyond_63_bits_are_refused(self, bench: Bench, make: Maker) -> None:
        ledger = await bench.open()
        most = 2**63 - 1
        bad = [
            Entry(transfers=(make.transfer(amount=most + 1),)),
            Entry(payment=make.payment(amount=most + 1)),
            Entry(transfers=(make.transfer(amount=most), make.transfer(amount=1))),
        ]
        for entry in bad:
            with pytest.raises(EntryInvalid):
                await ledger.commit(make.batch(entry))
        await ledger.commit(make.batch(Entry(transfers=(make.transfer(amount=most),))))
        with pytest.raises(EntryInvalid):
            await ledger.commit(make.batch(Entry(transfers=(make.transfer(amount=1),))))

    # --- the chain, and who may write -----------------------------------------------------

    async def test_batches_are_numbered_and_the_chain_goes_on_after_reopening(
        self, bench: Bench, make: Maker
    ) -> None:
        receipts = await chain(await bench.open(), make, 2)
        receipts += await chain(await bench.open(), make, 2)
        assert [receipt.number for receipt in receipts] == [1, 2, 3, 4]
        assert len({receipt.hash for receipt in receipts} | {GENESIS}) == 5

    async def test_a_refused_batch_takes_no_number(self, bench: Bench, make: Maker) -> None:
        ledger = await bench.open()
        with pytest.raises(EntryInvalid):
            await ledger.commit(make.batch(Entry(transfers=(make.transfer(amount=2**63),))))
        assert (await chain(ledger, make, 1))[0].number == 1

    async def test_an_empty_batch_is_a_batch(self, bench: Bench, make: Maker) -> None:
        ledger = await bench.open()
        assert (await ledger.commit(make.batch())).number == 1

    async def test_a_cancelled_commit_is_finished_first(self, bench: Bench, make: Maker) -> None:
        ledger = await bench.open()
        bench.take_a_while(ledger)
        with anyio.CancelScope() as scope:
            scope.cancel()
            receipt = await ledger.commit(make.batch(at_ms=NOW))
        assert (receipt.number, receipt.resolved) == (1, False)
        assert (await ledger.commit(make.batch(at_ms=NOW))).number == 2

    async def test_a_lost_reply_is_resolved_by_the_same_key(
        self, bench: Bench, make: Maker
    ) -> None:
        ledger = await bench.open()
        await chain(ledger, make, 1)
        sent = make.transfer(merchant="mer_new")
        batch = make.batch(Entry(transfers=(sent,), claim=claim("k")))
        bench.lose_reply(ledger)
        with pytest.raises(LedgerUnavailable):
            await ledger.commit(batch)
        receipt = await ledger.commit(batch)
        assert (receipt.number, receipt.resolved) == (2, True)
        row = await ledger.transfer(sent.id)
        assert row is not None
        account = await ledger.account(row.credit_account)
        assert account is not None
        assert account.credits_posted == sent.amount
        assert [r.number for r in await chain(ledger, make, 2)] == [3, 4]

    async def test_a_lost_batch_is_applied_by_the_next_try(self, bench: Bench, make: Maker) -> None:
        ledger = await bench.open()
        batch = make.batch(Entry(transfers=(make.transfer(),)))
        bench.lose_batch(ledger)
        with pytest.raises(LedgerUnavailable):
            await ledger.commit(batch)
        receipt = await ledger.commit(batch)
        assert (receipt.number, receipt.resolved) == (1, False)

    async def test_a_lost_reply_is_resolved_by_the_next_engine_too(
        self, bench: Bench, make: Maker
    ) -> None:
        first = await bench.open()
        batch = make.batch(Entry(claim=claim("k")))
        bench.lose_reply(first)
        with pytest.raises(LedgerUnavailable):
            await first.commit(batch)
        second = await bench.open()
        assert (await second.commit(batch)).resolved
        assert (await chain(second, make, 1))[0].number == 2

    async def test_what_follows_may_be_told_and_may_come_or_not(
        self, bench: Bench, make: Maker
    ) -> None:
        """Whatever becomes of a batch, what was said to follow it is judged in its own turn."""
        ledger = await bench.open()

        def opening(n: int) -> Batch:
            return make.batch(
                *(Entry(transfers=(make.transfer(merchant=f"mer_{n}"),)) for _ in "ab")
            )

        def posting(hold: Transfer) -> Batch:
            post = make.transfer(phase="post_pending", resolves=hold.id)
            return make.batch(Entry(transfers=(post,)))

        hold = make.transfer(phase="pending")
        held = make.batch(Entry(transfers=(hold,), claim=claim("k")))
        first, last = opening(1), posting(hold)
        bench.lose_reply(ledger)
        with pytest.raises(LedgerUnavailable):
            await ledger.commit(held, first)
        assert (await ledger.commit(held, first)).resolved
        await ledger.commit(first, last)
        other = make.batch(Entry(claim=claim("other")))
        assert (await ledger.commit(other, last)).number == 3
        with pytest.raises(KeysTaken):
            await ledger.commit(make.batch(Entry(claim=claim("k"))), last)
        again = posting(hold)
        await ledger.commit(last, again)
        for _ in range(2):
            with pytest.raises(EntryInvalid):
                await ledger.commit(again, again)
        second = opening(2)
        bench.lose_batch(ledger)
        with pytest.raises(LedgerUnavailable):
            await ledger.commit(second, make.batch())
        assert (await ledger.commit(second, second)).number == 5
        assert (await ledger.commit(second, second)).resolved
        assert (await chain(ledger, make, 1))[0].number == 6
        accounts = await ledger.accounts(owner=None, livemode=True, after=0, limit=9)
        assert {a.owner for a in accounts} == {"simulator", MERCHANT, "mer_1", "mer_2"}
        assert sum(a.debits_pending + a.credits_pending for a in accounts) == 0

    async def test_an_engine_is_fenced_by_its_successor(self, bench: Bench, make: Maker) -> None:
        first = await bench.open()
        await chain(first, make, 1)
        second = await bench.open()
        payment = make.payment()
        for _ in range(2):
            with pytest.raises(Fenced):
                await first.commit(make.batch(Entry(payment=payment)))
        assert await second.payments([payment.id]) == {}
        assert (await chain(second, make, 1))[0].number == 2


def _event(id_: str) -> EventRow:
    return EventRow(id_, "type", MERCHANT, True, "pay_1", 1, NOW, b"{}")
