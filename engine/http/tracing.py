"""The `traceparent` header of W3C Trace Context (https://www.w3.org/TR/trace-context/, 3.2)."""

from __future__ import annotations

import re
from typing import Final

# Version 00 ends with the flags; a later version may go on after another dash.
_TRACEPARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
_LENGTH_MAX: Final = 512


def trace_id_of(traceparent: str | None) -> str | None:
    """The trace id, 32 hex digits, or None where the header is absent or not valid.

    An invalid header is ignored and not an error, as the standard asks (4.3).
    """
    if traceparent is None or len(traceparent) > _LENGTH_MAX:
        return None
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None or (found[1] == "00" and found[3] is not None):
        return None
    return found[2]
