"""Refusals: what the engine will not do, as values from a closed list."""

from __future__ import annotations

import msgspec


class Refusal(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Why a request was not done. `code` is a key of `problems.PROBLEMS`; nothing was changed."""

    code: str
    detail: str
    param: str | None = None
    retry_after_s: int | None = None
