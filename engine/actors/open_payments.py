"""The open payments of a shard: those with a hold or an operation whose outcome is to come.

Most of them are quiet: authorised, and waiting for days until they are captured. Such a one is
kept as its document: a fraction of the memory, nothing for the collector of cycles to look at,
taken from the ledger unread at a start, and read in a few microseconds when somebody asks.
"""

from __future__ import annotations

from engine.domain.document import from_document, to_document
from engine.domain.payment import Payment


class OpenPayments:
    """Committed states by payment id."""

    __slots__ = ("_active", "_quiet")

    def __init__(self) -> None:
        self._active: dict[str, Payment] = {}
        self._quiet: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self._active) + len(self._quiet)

    def __contains__(self, payment_id: str) -> bool:
        return payment_id in self._quiet or payment_id in self._active

    def get(self, payment_id: str) -> Payment | None:
        """The payment's state, or None where it is not open. Raises DOCUMENT_ERRORS."""
        payment = self._active.get(payment_id)
        if payment is None:
            document = self._quiet.get(payment_id)
            if document is not None:
                payment = from_document(document)
        return payment

    def keep(self, payment: Payment, document: bytes | None = None) -> None:
        """Replace what is known of a payment; one that is settled is forgotten.

        `document` is the payment's where it has been made already.
        """
        payment_id = payment.id
        if payment.has_work:
            self._active[payment_id] = payment
            self._quiet.pop(payment_id, None)
            return
        self._active.pop(payment_id, None)
        if payment.is_open:
            # Copied, since the encoder leaves up to half as much again allocated behind the end.
            self._quiet[payment_id] = bytes(memoryview(document or to_document(payment)))
        else:
            self._quiet.pop(payment_id, None)

    def keep_quiet(self, documents: dict[str, bytes]) -> None:
        """Begin with open payments without work, by id, as the ledger has them."""
        self._quiet.update(documents)

    def keep_document(self, document: bytes) -> Payment | None:
        """Begin with an open payment that may have work; returns it where it has."""
        payment = from_document(document)
        if payment.has_work:
            self._active[payment.id] = payment
            return payment
        self._quiet[payment.id] = document
        return None
