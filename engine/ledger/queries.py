"""The named queries of `queries.sql`, read once when this module is imported."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_NAME: Final = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def parse(text: str) -> dict[str, str]:
    """Name -> statement. Raises ValueError when a name comes twice."""
    parts = _NAME.split(text)
    queries: dict[str, str] = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        if name in queries:
            raise ValueError(f"the query {name} is there twice")
        queries[name] = body.strip()
    return queries


QUERIES: Final = parse(Path(__file__).with_name("queries.sql").read_text(encoding="utf-8"))
