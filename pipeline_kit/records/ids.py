"""Ids of rows: read from a column, and seen only once."""

from __future__ import annotations

import math
from array import array
from hashlib import blake2b
from typing import Any, final

from pipeline_kit.errors import InputError, shorten
from pipeline_kit.records.json import has_lone_surrogate

__all__ = ["MAX_ID", "SeenIds", "id_text"]

MAX_ID = 1024
"""The most characters of an id: it stands in every output row and message."""


def id_text(value: Any) -> str:
    """Give the id that a cell holds; a number becomes its text, so 7 and "7" are the same id.

    :raises InputError: if it is missing, empty, too long, or no text or number.
    """
    if isinstance(value, str):
        if not value:
            raise InputError("the id is empty")
        if len(value) > MAX_ID:
            raise InputError(f"the id is longer than {MAX_ID} characters: {shorten(value, 40)}")
        if has_lone_surrogate(value):
            raise InputError("the id has a lone surrogate, which UTF-8 cannot represent")
        return value
    if value is None:
        raise InputError("the id is null")
    if hasattr(value, "item") and hasattr(value, "dtype"):
        value = value.item()
    if isinstance(value, int) and not isinstance(value, bool):
        return _written(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(value)
    raise InputError(f"the id is {type(value).__name__}, not a text or a number: {shorten(value, 40)}")


def _written(value: int) -> str:
    if value.bit_length() > 256:
        raise InputError("the id is a number of more than 77 digits")
    return str(value)


@final
class SeenIds:
    """The ids so far, as hashes of 8 bytes in a table with open addressing.

    A million ids take 16 MiB, where a ``set`` of them takes over 100. Two different ids share a hash, and the second
    is then taken for a duplicate, with a chance of 3 in 100 million for a million ids. Which ids do so is the same in
    every run.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 << 10))
        self._count = 0

    def add(self, id: str) -> bool:
        """Remember `id`; False if it was there before."""
        digest = blake2b(id.encode("utf-8"), digest_size=8).digest()
        if not self._put(int.from_bytes(digest, "little") or 1):
            return False
        self._count += 1
        if 2 * self._count > len(self._slots):
            self._grow()
        return True

    def _put(self, value: int) -> bool:
        slots = self._slots
        mask = len(slots) - 1
        place = value & mask
        while held := slots[place]:  # 0 is an empty slot
            if held == value:
                return False
            place = (place + 1) & mask
        slots[place] = value
        return True

    def _grow(self) -> None:
        old = self._slots
        self._slots = array("Q", bytes(16 * len(old)))
        for value in old:
            if value:
                self._put(value)
