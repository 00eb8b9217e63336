"""Plain data that the terminal's view and the page draw: a document is sections of blocks.

Rows, batches, parts and windows count from 0, as in JSON lines. Texts are as they came: each view escapes them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from pipeline_kit.contract.stages import Cell, Panel


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a trace is shown.

    :param tokens: of all examples; what is beyond them is left out, and counted.
    :param cells: of all grids.
    :param sequences: of an example; the same for the tokenizer's `panels`.
    :param rows: of a table, from its beginning and, if it has more, from its end.
    :param columns: tokens of a grid's row.
    :param characters: of a text; `json` of a result.
    :param reduced: whether what `Postprocessor.reduce` left is shown beside panels that explain it.
    """

    tokens: int = sys.maxsize
    cells: int = sys.maxsize
    sequences: int = sys.maxsize
    panels: int = sys.maxsize
    rows: tuple[int, int] = (sys.maxsize // 2, 0)
    columns: int = sys.maxsize
    characters: int = 1_000_000
    json: int = 1_000_000
    reduced: bool = False


SHORT = Limits(sequences=4, panels=8, rows=(24, 6), columns=16, characters=400, json=600)
FULL = Limits()
PAGE = Limits(tokens=6_000, cells=12_000, rows=(200, 0), json=4_000, reduced=True)


@dataclass(frozen=True, slots=True)
class Text:
    """A text; `label` says what it is.

    :param kind: empty for a user's text, else ``head``, ``note``, ``warn`` or ``fail``.
    """

    text: str
    label: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Value:
    """A value that passed between stages, described.

    :param type: such as ``str``, ``Encoding``, ``float32 tensor``.
    :param shape: of a tensor, or the length of a list; empty for one thing.
    :param shown: the value itself in a few words.
    """

    name: str
    type: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    shown: str = ""


@dataclass(frozen=True, slots=True)
class StageTrace:
    """One of the pipeline's steps: ``tokenizer``, ``padding``, ``model``, ``postprocessor``.

    :param name: as in the config (``hf``), with `source`, the package it comes from, and its options.
    :param seconds: spent in it.
    """

    kind: str
    name: str
    source: str
    options: Mapping[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Flow:
    """The way through the stages; `passes` is, for each, what it takes and returns in a few words."""

    words: str
    stages: tuple[StageTrace, ...]
    passes: tuple[tuple[str, str], ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class TokenTable:
    """The tokens of one sequence as a table.

    :param sequence: its short name, such as ``0``, ``0.2`` for part 2, ``0w1`` for window 1.
    :param source: its texts, where they are not the example's own.
    :param where: the batch and the row that held it.
    :param unseen: names the characters of its texts that cannot be seen.
    :param cut: how much was cut off, empty if nothing was; `lost` is its text, if it is known.
    :param joined: for each token whether it continues the word before it.
    """

    sequence: str
    title: str
    where: str
    source: tuple[str, ...]
    unseen: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    joined: tuple[bool, ...]
    cut: str
    lost: str | None
    differs: tuple[str, ...]

    def column(self, name: str) -> tuple[Cell, ...]:
        """Return the cells under a heading, Nones if there is none."""
        place = self.columns.index(name) if name in self.columns else None
        return tuple(None if place is None else row[place] for row in self.rows)


@dataclass(frozen=True, slots=True)
class Grid:
    """A batch as the model got it, ``[B, T]`` each; `left_out` rows have no room.

    :param sequences: for each row the short name of its sequence, the beginning of its text and its tokens.
    """

    title: str
    seconds: float
    sequences: tuple[tuple[str, str, tuple[str, ...]], ...]
    ids: NDArray[Any]
    mask: NDArray[Any]
    types: NDArray[Any] | None
    left_out: int

    def cells(self, row: int) -> Iterator[tuple[str, int, int, int | None]]:
        """Yield token, id, mask and type of each place; padding has no token."""
        names = iter(self.sequences[row][2])
        for place, (id, mask) in enumerate(zip(self.ids[row].tolist(), self.mask[row].tolist(), strict=True)):
            type = None if self.types is None else int(self.types[row, place])
            yield next(names, "") if mask else "", id, mask, type


@dataclass(frozen=True, slots=True)
class Values:
    """One tensor of one sequence, without padding.

    :param origin: where it comes from, ``model`` or ``reduced on the device``.
    :param labels: the names of its last axis; `tokens` those of its first. Empty where it has none.
    """

    sequence: str
    name: str
    origin: str
    values: NDArray[Any]
    labels: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    differs: bool = False


@dataclass(frozen=True, slots=True)
class Norms:
    """The length of each token's vector by layer, ``[layers, T]``."""

    sequence: str
    layers: tuple[str, ...]
    tokens: tuple[str, ...]
    values: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Attention:
    """The attention of one sequence: ``[heads, T, T]`` by layer, a query a line.

    :param columns: the places in ``T`` that hold `tokens`; None if a map has lines of its own.
    """

    sequence: str
    maps: Mapping[str, NDArray[Any]]
    columns: NDArray[Any] | None
    tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Marked:
    """A text with marked parts.

    :param pieces: the whole of it, each piece with its mark: a label, a score above or below nought, or None.
    """

    title: str
    pieces: tuple[tuple[str, str | float | None], ...]

    @property
    def scores(self) -> tuple[float, ...]:
        """The marks that are scores."""
        return tuple(mark for _, mark in self.pieces if isinstance(mark, float))


@dataclass(frozen=True, slots=True)
class Result:
    """What the pipeline returned for one example."""

    value: Mapping[str, Any]


Block = Panel | Text | Flow | TokenTable | Grid | Values | Norms | Attention | Marked | Result


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a view under its heading.

    :param row: the example that it is about, None for the whole run.
    """

    heading: str
    blocks: tuple[Block, ...]
    row: int | None = None
    differs: bool = False


@dataclass(frozen=True, slots=True)
class Side:
    """One trace; `mark` is A or B where there are two."""

    mark: str
    name: str
    task: str
    sections: tuple[Section, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """All that is shown.

    :param titles: of the examples, each in one line; `left_out` more have no room.
    :param differences: where two traces part.
    :param config: all values, of two traces side by side.
    """

    sides: tuple[Side, ...]
    differences: tuple[Section, ...]
    titles: tuple[str, ...]
    left_out: int
    config: Section
    limits: Limits
