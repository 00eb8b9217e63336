"""Plain text in columns, for output that should also be easy to grep."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline_kit.errors import shorten

__all__ = ["columns"]


def columns(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Lay `rows` out in columns, two spaces apart; the last one is not padded."""
    shown = [[shorten(cell) for cell in row] for row in rows]
    if not shown:
        return ""
    widths = [max(len(row[i]) for row in shown) for i in range(len(shown[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in shown]
    return "\n".join(f"{indent}{line}".rstrip() for line in lines)
