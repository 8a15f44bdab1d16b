"""Open payments out of the database by COPY: a stream instead of page after page.

While one piece of the stream is looked at, Postgres is at the next one, and no row becomes a record
of the driver. For open payments that took 0.6 to 0.7 of the time of pages.
"""

from __future__ import annotations

import struct
from typing import Final

from engine.ledger.packing import COPY_HEADER, COPY_TRAILER

# The number of columns; the length and value of the first, and the length of the second.
_row_head = struct.Struct(">hi?i")
_row = _row_head.unpack_from
_ROW_HEAD: Final = _row_head.size
_length = struct.Struct(">i").unpack_from
_LENGTH: Final = 4

Piece = tuple[dict[str, bytes], list[bytes]]
"""Documents of payments without work, by id; and of those with work."""


class CopiedPayments:
    """Takes rows of `has_work`, `id` and `doc` apart, in whatever pieces they come.

    https://www.postgresql.org/docs/18/sql-copy.html#SQL-COPY-FILE-FORMATS
    """

    __slots__ = ("_begun", "_rest")

    def __init__(self) -> None:
        self._begun = False
        self._rest = b""

    def feed(self, piece: bytes) -> Piece:
        """The payments that this piece completes."""
        data = self._rest + piece if self._rest else piece
        at, size = 0, len(data)
        quiet: dict[str, bytes] = {}
        working: list[bytes] = []
        if not self._begun:
            if size < len(COPY_HEADER):
                self._rest = data
                return quiet, working
            assert data.startswith(COPY_HEADER), "what COPY sends begins with its signature"
            at = len(COPY_HEADER)
            self._begun = True
        while size - at >= _ROW_HEAD:
            columns, width, has_work, id_length = _row(data, at)
            assert columns == 3, f"rows of three columns are asked for, not of {columns}"
            assert width == 1, f"has_work comes first and takes one byte, not {width}"
            assert id_length >= 0, "an id is never NULL"
            id_start = at + _ROW_HEAD
            id_end = id_start + id_length
            start = id_end + _LENGTH
            if start > size:
                break
            (length,) = _length(data, id_end)
            assert length >= 0, "a document is never NULL"
            end = start + length
            if end > size:
                break
            if has_work:
                working.append(data[start:end])
            else:
                quiet[data[id_start:id_end].decode()] = data[start:end]
            at = end
        self._rest = data[at:]
        return quiet, working

    @property
    def is_whole(self) -> bool:
        """Whether all of it has come."""
        return self._begun and self._rest == COPY_TRAILER
