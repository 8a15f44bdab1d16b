"""The simulator's books: an append-only file of JSON lines, one per effect.

They are a witness that owes the ledger nothing: what was done, for which operation of ours, and
what came of it later. Times that lie ahead (settlement, expiry, a refund that will come back) are
part of the line, so they survive a restart, and what a line means follows from the time alone.

A line is in the kernel's hands before the reply is given, so it survives the death of the
process (not of the machine: nothing is synced). A last line without its end is what a kill in
the middle of a write leaves; it was never answered and is cut off at the next start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from engine.domain.news import Action

if sys.platform != "win32":
    import fcntl

Outcome = Literal["done", "declined", "failed", "pending", "open", "canceled"]


class BooksInUse(Exception):
    """Another process writes these books."""


class BooksCorrupt(Exception):
    """A line before the last one can't be read: the file was changed by somebody else."""


class Effect(
    msgspec.Struct, frozen=True, tag="effect", tag_field="line", omit_defaults=True, gc=False
):
    """What the simulator did, or refused, for one operation. Amounts in minor units.

    `at_ms` and all other times are Unix milliseconds. `charge` is the reference of the charge a
    capture, void or refund acted on. An effect with `revises` replaces the effect of that number
    (a customer completed it, or it was canceled while it waited).
    """

    at_ms: int
    seq: int
    key: str
    op_id: str
    action: Action
    amount: int
    currency: str
    method: str
    livemode: bool
    reference: str
    outcome: Outcome
    code: str = ""
    final: bool = True
    charge: str = ""
    visible_ms: int = 0
    """Before it, look-ups do not find the operation."""
    settles_ms: int = 0
    """When something pending is done."""
    expires_ms: int = 0
    """When something open lapses; for a done authorisation, when its hold does."""
    fails_ms: int = 0
    """When a refund that was done comes back."""
    revises: int = 0

    def is_done(self, now_ms: int) -> bool:
        """Whether money has moved (or is held) for it, as of `now_ms`."""
        if self.outcome == "done":
            return not self.fails_ms or now_ms < self.fails_ms
        return self.outcome == "pending" and now_ms >= self.settles_ms

    def is_waiting(self, now_ms: int) -> bool:
        """Whether it may still be done later, as of `now_ms`."""
        if self.outcome == "pending":
            return now_ms < self.settles_ms
        return self.outcome == "open" and now_ms < self.expires_ms


class Notice(
    msgspec.Struct, frozen=True, tag="notice", tag_field="line", omit_defaults=True, gc=False
):
    """A webhook that is to be sent at `due_ms`. A dispute carries its amount.

    `seq` is the number of the effect it tells of: once that is revised, it is out of date.
    """

    event_id: str
    kind: Literal["outcome", "dispute"]
    seq: int
    key: str
    op_id: str
    livemode: bool
    due_ms: int
    copies: int = 1
    amount: int = 0


class Delivered(msgspec.Struct, frozen=True, tag="delivered", tag_field="line", gc=False):
    """A webhook that needs no further attempt."""

    event_id: str
    at_ms: int


Line = Effect | Notice | Delivered

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


class Books:
    """The file, opened by its one writer. `path` None: in memory, gone with the process."""

    def __init__(self, path: Path | None) -> None:
        """Open or create the file. Raises BooksInUse or OSError."""
        self._unwritten = bytearray()
        self._written_bytes = 0
        self._fd: int | None = None
        self._path = path
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        if sys.platform != "win32":
            try:
                # The kernel lets go of it when the process dies, however it dies.
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.close()
                raise BooksInUse(f"{path} is in use by another process") from None

    @property
    def written_bytes(self) -> int:
        """The length of the file."""
        return self._written_bytes

    def load(self) -> Iterator[Line]:
        """Every line, oldest first, once, before the first write; a torn last line is cut off.

        Raises BooksCorrupt.
        """
        if self._path is None or self._fd is None:
            return
        for line, end in _lines(self._path):
            self._written_bytes = end
            yield line
        os.ftruncate(self._fd, self._written_bytes)

    def add(self, line: Line) -> None:
        """Take a line into the next `flush`."""
        buffer = self._unwritten
        _encoder.encode_into(line, buffer, -1)
        buffer += b"\n"

    def flush(self) -> None:
        """Hand everything added to the kernel, in one write.

        Raises OSError (no space, for instance). What was not written stays for the next call, so
        a line that was cut short is completed before anything else is written.
        """
        unwritten = self._unwritten
        if not unwritten:
            return
        if self._fd is None:
            if self._path is not None:
                raise OSError(f"{self._path} is closed")
            unwritten.clear()
            return
        while unwritten:
            count = os.write(self._fd, unwritten)
            self._written_bytes += count
            if count == len(unwritten):
                unwritten.clear()
            else:
                del unwritten[:count]

    def close(self) -> None:
        """Close the file. What could not be written is lost, as it was never answered."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class MemoryBooks(Books):
    """Books that outlive the simulator that writes them, and nothing else: for simulations."""

    def __init__(self) -> None:
        super().__init__(None)
        self.lines: list[Line] = []

    def load(self) -> Iterator[Line]:
        """Every line, oldest first."""
        return iter(tuple(self.lines))

    def add(self, line: Line) -> None:
        """Take a line."""
        self.lines.append(line)


def read_books(path: Path) -> Iterator[Effect]:
    """Stream the effects of a file, also while its simulator goes on writing.

    Raises BooksCorrupt, and OSError where there is no such file.
    """
    for line, _ in _lines(path):
        if isinstance(line, Effect):
            yield line


def _lines(path: Path) -> Iterator[tuple[Line, int]]:
    """Each whole line and the offset of its end."""
    end = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):
                return
            try:
                line = _decoder.decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise BooksCorrupt(f"{path}, line {number}: {error}") from error
            end += len(raw)
            yield line, end
