"""The ledger reader: fetches payments that are not in memory, many with one query."""

from __future__ import annotations

import anyio
from anyio.abc import TaskStatus

from engine.actors.directory import Directory
from engine.domain.document import DOCUMENT_ERRORS
from engine.domain.payment import Payment
from engine.messages import PaymentLoaded, ToReader
from engine.ports import LedgerReader, LedgerUnavailable, Telemetry
from engine.supervisor.mailbox import Mailbox

RETRY_S = 0.2


class LedgerReaderActor:
    """Answers `LoadPayment` with `PaymentLoaded`."""

    def __init__(
        self,
        mailbox: Mailbox[ToReader],
        directory: Directory,
        ledger: LedgerReader,
        telemetry: Telemetry,
    ) -> None:
        self._mailbox = mailbox
        self._directory = directory
        self._ledger = ledger
        self._telemetry = telemetry

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Fetch until cancelled; a ledger that cannot be reached is asked again."""
        reader = self._mailbox.attach()
        task_status.started()
        while True:
            wanted = await reader.receive_all()
            ids = list({message.payment_id for message in wanted})
            while True:
                try:
                    found, damaged = await self._fetch(ids)
                    break
                except LedgerUnavailable as trouble:
                    self._telemetry.warn("ledger_read_failed", reason=str(trouble))
                    await anyio.sleep(RETRY_S)
            for message in wanted:
                mailbox = self._directory.mailboxes[message.reply_to]
                mailbox.put_reserved_nowait(
                    PaymentLoaded(
                        message.incarnation,
                        message.payment_id,
                        found.get(message.payment_id),
                        damaged.get(message.payment_id),
                    )
                )
            reader.acknowledge()

    async def _fetch(self, ids: list[str]) -> tuple[dict[str, Payment], dict[str, str]]:
        """Payments by id, and why some can't be read. Raises LedgerUnavailable."""
        try:
            return await self._ledger.payments(ids), {}
        except DOCUMENT_ERRORS as error:
            if len(ids) == 1:
                return {}, {ids[0]: str(error)}
        found: dict[str, Payment] = {}
        damaged: dict[str, str] = {}
        for payment_id in ids:
            some, others = await self._fetch([payment_id])
            found |= some
            damaged |= others
        return found, damaged
