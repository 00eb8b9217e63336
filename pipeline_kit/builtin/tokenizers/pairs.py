"""Pairs that have a text in common: it is tokenized once for all of them.

A tokenizer treats the two texts of a pair each by itself, and frames them with special tokens that depend on
neither. So the tokens of a shared text are taken out of the first pair that has it and put into the others,
which are encoded with one letter in its place. That is exact for offsets and segment ids too, whatever the
post-processor does to them, and the fields of a shared text become Python lists only once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Encoding as Encoded

__all__ = ["WORTH", "Joined", "Row", "encode_rows"]

WORTH = 100
"""Characters of a text that are worth sharing; with fewer, putting pairs together costs about what tokenizing does."""

_FILLER = "a"

Texts = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """What a pair gives that was put together; the attributes are those of ``tokenizers.Encoding``.

    The ones that nobody asked for are empty.
    """

    ids: list[int]
    type_ids: list[int]
    sequence_ids: list[int | None]
    special_tokens_mask: Sequence[int] = ()
    offsets: Sequence[tuple[int, int]] = ()
    tokens: Sequence[str] = ()
    word_ids: Sequence[int | None] = ()

    def __len__(self) -> int:
        """Count the tokens."""
        return len(self.ids)


Row = Encoded | Joined


def encode_rows(
    call: Callable[[Sequence[Texts]], list[Encoded]], rows: Sequence[Texts], fields: Sequence[str]
) -> list[Row]:
    """Encode `rows`, each a text or a pair, so that a long text of several pairs is tokenized once.

    :param call: encodes texts and pairs plainly, in one batch.
    :param fields: the attributes that are read besides ids, segment ids and sequence ids.
    :returns: for each row what `call` gives for it.
    """
    shared = _shared(rows)
    if not shared:
        return [*call(rows)]
    light = [_light(texts, *shared[place]) if place in shared else texts for place, texts in enumerate(rows)]
    found: list[Row] = [*call(light)]
    names = ("ids", "type_ids", "sequence_ids", *(name for name in fields if name != "sequence_ids"))
    donors: dict[tuple[int, int], dict[str, Any]] = {}
    again: list[int] = []
    for place, (text, owner) in shared.items():
        frame = _lists(found[place], names)
        if text not in frame["sequence_ids"]:  # a vocabulary without the letter, or a word that swallows it
            again.append(place)
            continue
        if (text, owner) not in donors:
            donors[text, owner] = _part(_lists(found[owner], names), text)
        found[place] = _join(frame, donors[text, owner], text)
    for place, encoded in zip(again, call([rows[place] for place in again]) if again else [], strict=True):
        found[place] = encoded
    return found


def _shared(rows: Sequence[Texts]) -> dict[int, tuple[int, int]]:
    """Say which rows take over a text: by row which of its texts (0 or 1) and the row that has it first."""
    if len(rows) < 2:
        return {}
    counts = Counter([(i, text) for row in rows if len(row) == 2 for i, text in enumerate(row) if len(text) >= WORTH])
    if not counts or counts.most_common(1)[0][1] < 2:
        return {}
    owners: dict[tuple[int, str], int] = {}
    found: dict[int, tuple[int, int]] = {}
    for place, row in enumerate(rows):
        common = [(len(text), i) for i, text in enumerate(row) if len(row) == 2 and counts[i, text] > 1]
        if common:
            text = max(common)[1]
            owner = owners.setdefault((text, row[text]), place)
            if owner != place:
                found[place] = (text, owner)
    return found


def _light(texts: Texts, text: int, owner: int) -> Texts:
    del owner
    return (_FILLER, texts[1]) if text == 0 else (texts[0], _FILLER)


def _lists(encoded: Row, names: Sequence[str]) -> dict[str, list[Any]]:
    return {name: getattr(encoded, name) for name in names}


def _part(whole: dict[str, list[Any]], text: int) -> dict[str, list[Any]]:
    """Cut the tokens of one text out of a pair; none if it has none."""
    begin, end = _where(whole["sequence_ids"], text)
    return {name: values[begin:end] for name, values in whole.items()}


def _join(frame: dict[str, list[Any]], part: dict[str, list[Any]], text: int) -> Joined:
    begin, end = _where(frame["sequence_ids"], text)
    return Joined(**{name: [*values[:begin], *part[name], *values[end:]] for name, values in frame.items()})


def _where(sequence_ids: Sequence[int | None], text: int) -> tuple[int, int]:
    count = sequence_ids.count(text)
    begin = sequence_ids.index(text) if count else 0
    return begin, begin + count
