"""The texts that are measured: data/README.md says where they come from."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["ROWS", "labelled", "read"]

DATA = Path(__file__).parent.parent / "data"
ROWS = {"short": 256, "mixed": 128, "long": 32}
"""How many are measured, so that a comparison takes minutes; of the shipped checkpoint more."""
QUICK_ROWS = {"short": 12, "mixed": 8, "long": 2}


def read(name: str, rows: int | None = None, quick: bool = False) -> list[str]:
    """Return the first texts of a file, ``short``, ``mixed`` or ``long``.

    :param rows: how many, None for `ROWS`.
    """
    count = QUICK_ROWS[name] if quick else rows or ROWS[name]
    return [text for text, _ in labelled(name)][:count]


def labelled(*names: str) -> list[tuple[str, str]]:
    """Return the texts of whole files with their labels, each text once."""
    found: dict[str, str] = {}
    for name in names:
        for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found.setdefault(row["text"], row["label"])
    return list(found.items())
