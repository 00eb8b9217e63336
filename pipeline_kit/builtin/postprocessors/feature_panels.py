"""What ``postprocessor=features`` tells: which tokens' vectors are in the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline_kit.builtin.postprocessors.panel_lines import bounded, cell, counted, folded, notes, number, slimmed
from pipeline_kit.panels import Cell, Panel
from pipeline_kit.types import Encoding

__all__ = ["feature_panels"]

Array = np.ndarray[Any, Any]


def feature_panels(
    encodings: Sequence[Encoding], vectors: Sequence[Array], first_seen: Sequence[Array], special_tokens: bool
) -> list[Panel]:
    """Show each token with the length of its vector and whether it is kept.

    :param vectors: of each encoding, ``[T, H]``.
    :param first_seen: for each token whether no window before holds it, ``[T]``.
    """
    rows: list[Sequence[Cell]] = []
    kept = 0
    for encoding, values, seen in zip(encodings, vectors, first_seen, strict=True):
        special = encoding.special_tokens_mask or [0] * len(values)
        names = encoding.tokens or [str(id) for id in encoding.input_ids]
        norms = np.linalg.norm(values.astype(np.float64), axis=1).tolist()
        for place, (name, norm) in enumerate(zip(names, norms, strict=True)):
            wanted = bool(seen[place]) and (special_tokens or not special[place])
            kept += wanted
            rows.append((encoding.window, place, cell(name), float(values[place][0]), norm, wanted))
    shown, left = bounded(rows, "token")
    width = vectors[0].shape[-1]
    squares = [f"{number(abs(value))}^2" for value in vectors[0][0]]
    formula = folded("norm = sqrt", squares, " +", (f"= {number(float(str(rows[0][4])))}",))
    note = notes(
        f"{kept} of {counted(len(rows), 'vector')} of {width} numbers are in the result, as the model gave them",
        "a token that windows share counts in the first of them" if len(encodings) > 1 else "",
        "" if special_tokens else "special tokens are left out",
        left,
    )
    columns = ("window", "place", "token", "first number", "norm", "in the result")
    return [Panel("token vectors", *slimmed(columns, shown, len(encodings)), "norm", f"of token 0:\n{formula}", note)]
