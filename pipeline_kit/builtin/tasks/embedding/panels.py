"""What ``postprocessor=pooling`` shows: sums and counts, the layers behind the pooling, length before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline_kit.builtin.tasks.common.merge import merge_windows
from pipeline_kit.builtin.tasks.common.panels import (
    Item,
    counted,
    drop_window_column,
    first_rows,
    merge_panels,
    notes,
    panel_number,
    wrap_terms,
)
from pipeline_kit.builtin.tasks.embedding.modules import Dense, Mode, SentenceLayer, pool
from pipeline_kit.contract.stages import Cell, Panel
from pipeline_kit.contract.types import Encoding, Result, RowOutput

_NUMBERS = 8  # of a vector that are shown

_SAYS: dict[Mode, str] = {
    "mean": "the sum of the tokens' vectors by their number",
    "mean_sqrt_len": "the sum of the tokens' vectors by the root of their number",
    "weighted_mean": "each token's vector counts by its place in the row, from 1",
    "cls": "the vector of the first token",
    "last": "the vector of the last token",
    "max": "the largest value of each column",
}


def pooling_panels(
    modes: Sequence[Mode],
    layers: Sequence[SentenceLayer],
    dimensions: int | None,
    normalize: bool,
    skip: int,
    encodings: Sequence[Encoding],
    raw: Sequence[RowOutput],
    chosen: Sequence[RowOutput],
    result: Result,
) -> list[Panel]:
    """Show the way from token vectors to the one of the text.

    :param skip: tokens of the prompt that the first window leaves out.
    :param chosen: for each window the ``embedding [D]`` that counts.
    """
    hidden = [np.asarray(row["last_hidden_state"], dtype=np.float32) for row in raw]
    skips = [0 if encoding.window else skip for encoding in encodings]
    panels = [_pooled(mode, hidden, skips, len(modes) > 1) for mode in modes]
    panels.append(_steps(modes, layers, dimensions, hidden[0], skips[0], len(encodings)))
    vectors = [row["embedding"] for row in chosen]
    merged = merge_windows([encodings], [chosen], "embedding")[0]
    items = [Item(f"number {i}", encodings, [float(v[i]) for v in vectors]) for i in range(min(_NUMBERS, len(merged)))]
    return [*panels, *merge_panels(items, "mean", "value", heading="of the vector"), _length(merged, normalize, result)]


def _pooled(mode: Mode, hidden: Sequence[NDArray[Any]], skips: Sequence[int], several: bool) -> Panel:
    """Show the first numbers of each window's pooled vector, and what they were made of."""
    rows: list[Sequence[Cell]] = []
    for window, (values, skip) in enumerate(zip(hidden, skips, strict=True)):
        parts, divisor = _parts(mode, values, skip)
        pooled = _pool(values, mode, skip)
        for i in range(min(_NUMBERS, values.shape[1])):
            rows.append((window, i, _made_of(mode, parts[:, i], len(values), skip), divisor, float(pooled[i])))
    shown, left = first_rows(rows, "row")
    made = {"max": "token", "cls": "token", "last": "token"}.get(mode, "sum")
    columns = ("window", "number", made, "divided by", "pooled")
    parts, divisor = _parts(mode, hidden[0], skips[0])
    note = notes(
        _SAYS[mode],
        f"{counted(len(parts), 'token')} of window 0" if len(hidden) > 1 else counted(len(parts), "token"),
        f"the {counted(skips[0], 'token')} of the prompt left out" if skips[0] else "",
        "one of several vectors, which stand one behind the other" if several else "",
        f"the first {min(_NUMBERS, hidden[0].shape[1])} of {hidden[0].shape[1]} numbers are shown",
        left,
    )
    return Panel(
        f"pooling ({mode})",
        *drop_window_column(columns, shown, len(hidden)),
        formula=_pool_line(mode, parts, divisor, hidden[0], skips[0]),
        note=note,
    )


def _pool(values: NDArray[Any], mode: Mode, skip: int) -> NDArray[Any]:
    mask = torch.ones(1, len(values), dtype=torch.int64)
    return np.asarray(pool(torch.from_numpy(values)[None], mask, mode, skip)[0])


def _parts(mode: Mode, values: NDArray[Any], skip: int) -> tuple[NDArray[Any], float | None]:
    """Return the vectors that are added up, float64 ``[n, H]``, and what the sum is divided by, None if it is not."""
    kept = values[skip:].astype(np.float64)
    if mode == "mean":
        return kept, float(len(kept))
    if mode == "mean_sqrt_len":
        return kept, float(np.sqrt(len(kept)))
    if mode == "weighted_mean":
        weights = np.arange(skip + 1, len(values) + 1, dtype=np.float64)
        return kept * weights[:, None], float(weights.sum())
    return kept, None


def _made_of(mode: Mode, column: NDArray[Any], count: int, skip: int) -> Cell:
    """Return the sum of a column, or which token its number is from."""
    if mode == "max":
        return skip + int(column.argmax())
    return {"cls": skip, "last": count - 1}[mode] if mode in ("cls", "last") else float(column.sum())


def _pool_line(mode: Mode, parts: NDArray[Any], divisor: float | None, values: NDArray[Any], skip: int) -> str:
    column = parts[:, 0]
    pooled = f"= {panel_number(float(_pool(values, mode, skip)[0]))}"
    if divisor is not None:
        ends = (
            f"/ {panel_number(divisor)}",
            f"= {panel_number(float(column.sum()))} / {panel_number(divisor)}",
            pooled,
        )
        return wrap_terms("pooled[0] = ", [panel_number(value) for value in column], " +", ends)
    if mode == "max":
        return wrap_terms("pooled[0] = max", [panel_number(value) for value in column], ",", (pooled,))
    return f"pooled = the vector of token {_made_of(mode, column, len(values), skip)}"


def _steps(
    modes: Sequence[Mode],
    layers: Sequence[SentenceLayer],
    dimensions: int | None,
    values: NDArray[Any],
    skip: int,
    windows: int,
) -> Panel:
    """Show a vector's width, length and first number after each step."""
    mask = torch.ones(1, len(values), dtype=torch.int64)
    vector = torch.cat([pool(torch.from_numpy(values)[None], mask, mode, skip) for mode in modes], dim=-1)
    rows = [_step(f"pooling {' + '.join(modes)}", vector)]
    for layer in layers:
        vector = layer.to("cpu")(vector)
        rows.append(_step(_layer_name(layer), vector))
    if dimensions is not None:
        vector = vector[:, :dimensions]
        rows.append(_step(f"the first {dimensions} numbers", vector))
    note = f"of window 0; {windows} windows go through these steps, each by itself" if windows > 1 else ""
    return Panel("vector, step by step", ("step", "numbers", "norm", "first number"), rows, note=note)


def _step(name: str, vector: torch.Tensor) -> Sequence[Cell]:
    return (name, vector.shape[-1], float(vector.double().norm()), float(vector[0, 0]))


def _layer_name(layer: SentenceLayer) -> str:
    if not isinstance(layer, Dense):
        return type(layer).__name__
    name = getattr(layer.activation, "__name__", "")
    return f"Dense {layer.takes} to {layer.gives}, {'no activation' if name == '<lambda>' else name}"


def _length(vector: NDArray[Any], normalize: bool, result: Result) -> Panel:
    """Show the length before and after it is made 1."""
    embedding = np.array(result["embedding"])
    before, after = (float(np.linalg.norm(v.astype(np.float64))) for v in (vector, embedding))
    squares = [f"{panel_number(abs(value))}^2" for value in vector]
    lines = [wrap_terms("norm = sqrt", squares, " +", (f"= {panel_number(before)}",))]
    if normalize:
        first = f"{panel_number(vector[0])} / {panel_number(max(before, 1e-12))} = {panel_number(embedding[0])}"
        lines.append(f"embedding[0] = {first}")
        lines.append(f"norm of the embedding = {panel_number(after)}")
    rows = [(i, float(vector[i]), float(embedding[i])) for i in range(min(_NUMBERS, len(embedding)))]
    title = "normalising: each number by the norm" if normalize else "no normalising"
    note = f"the first {len(rows)} of {counted(len(embedding), 'number')} are shown"
    return Panel(title, ("number", "before", "embedding"), rows, formula="\n".join(lines), note=note)
