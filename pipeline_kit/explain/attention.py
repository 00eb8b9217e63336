"""Attention of one sequence, small enough for a page: rounded, the least weights dropped, packed layer by layer."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline_kit.explain.blocks import Attention
from pipeline_kit.explain.formats import number

WEIGHTS = 900_000
"""So many weights a page keeps in all, about three megabytes; one of 16 bits counts twice."""

_FINE = 150_000
_LEAST = 4


@dataclass(slots=True)
class TokenBudget:
    """How many weights the page may still take, and how many sequences ask for some."""

    sequences: int
    weights: int = WEIGHTS

    def take(self, lines: int, width: int, fine: bool) -> int:
        """Return how many weights each of `lines` lines may keep, 0 if that would be too few to be of use."""
        cost = 2 if fine else 1
        kept = min(width, self.weights // max(1, self.sequences) // max(1, lines) // cost)
        self.sequences -= 1
        if kept < min(_LEAST, width):
            return 0
        self.weights -= kept * lines * cost
        return kept


class AttentionView(NamedTuple):
    """What the page's script draws; `data` is JSON text without ``<``, ``>`` and ``&``.

    :param layers: their names with the number of heads of each.
    """

    layers: tuple[tuple[str, int], ...]
    data: str
    note: str


def attention_view(block: Attention, room: TokenBudget) -> AttentionView:
    """Pack the attention of one sequence.

    A weight ``w`` is kept as ``round(m * sqrt(w))`` with ``m`` 255, or 65535 where there are few: small weights
    keep their first digit. A layer is its heads' maps, one line a query, packed by zlib.
    """
    cut = {name: _cut(values, block.columns) for name, values in block.maps.items()}
    lines = sum(values.shape[0] * values.shape[1] for values in cut.values())
    width = max((values.shape[2] for values in cut.values()), default=0)
    weights = sum(values.size for values in cut.values())
    fine = weights <= _FINE
    kept = room.take(lines, width, fine)
    if not kept:
        return AttentionView((), "", f"Left out: {number(weights)} weights are more than this page has room for.")
    share, packed = 0.0, []
    for name, values in cut.items():
        thin = _largest(values, kept)
        share += float(thin.sum()) / max(1e-9, float(values.sum())) / len(cut)
        packed.append({"name": name, "shape": values.shape, "data": _pack(thin, fine)})
    data = json.dumps({"bits": 16 if fine else 8, "tokens": block.tokens, "layers": packed})
    # So that nothing in a token ends the script that it stands in.
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    note = f"Weights are rounded by up to {'0.00002' if fine else '0.004'}."
    if kept < width:
        note += f" Of each token's {width} weights the largest {kept} are here, {100 * share:.1f} % of the sum."
    return AttentionView(tuple((name, values.shape[0]) for name, values in cut.items()), data, note)


def _cut(values: NDArray[Any], columns: NDArray[Any] | None) -> NDArray[Any]:
    values = np.nan_to_num(np.asarray(values, dtype=np.float32))
    if columns is None:
        return values
    if values.shape[1] > columns.max():
        values = values[:, columns]
    return values[:, :, columns] if values.shape[2] > columns.max() else values


def _largest(values: NDArray[Any], kept: int) -> NDArray[Any]:
    if kept >= values.shape[-1]:
        return values
    places = np.argpartition(values, -kept, axis=-1)[..., -kept:]
    thin = np.zeros_like(values)
    np.put_along_axis(thin, places, np.take_along_axis(values, places, axis=-1), axis=-1)
    return thin


def _pack(values: NDArray[Any], fine: bool) -> str:
    most, kind = (65535, "<u2") if fine else (255, "u1")
    whole = np.rint(most * np.sqrt(values.clip(0, 1))).astype(kind)
    return base64.b64encode(zlib.compress(whole.tobytes(), 9 if fine else 6)).decode("ascii")
