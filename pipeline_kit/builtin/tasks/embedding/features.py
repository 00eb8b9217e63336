"""The token vectors themselves, without padding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray

from pipeline_kit.builtin.tasks.common.merge import Outputs, Windows, floats
from pipeline_kit.builtin.tasks.common.panels import cell, counted, digits, table_panel, wrapped
from pipeline_kit.builtin.tasks.options import FeaturesConfig
from pipeline_kit.contract.stages import Cell, Panel, Postprocessor, Seen, StageContext
from pipeline_kit.contract.types import Encoding, Example, ModelOutput, Result, RowOutput, TokenBatch
from pipeline_kit.errors import ExampleError, StageError

NAME = "last_hidden_state"


@final
class Features(Postprocessor):
    """Returns ``tokens [T]`` and ``vectors [T][H]``, one vector per token.

    The windows of a long text follow each other in order. A token that neighbouring windows share
    appears once, with the vector of the first of them; each window keeps its own special tokens, unless
    ``special_tokens`` is false.
    """

    required_fields: ClassVar[frozenset[str]] = frozenset({"tokens", "special_tokens_mask", "offsets", "sequence_ids"})

    def __init__(self, config: FeaturesConfig, context: StageContext) -> None:
        self._special_tokens = config.special_tokens

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Return ``last_hidden_state [B, T, H]``, float32, and drop the rest."""
        return ModelOutput({NAME: floats(output, NAME, 3, "[B, T, H]")}, frozenset({NAME}))

    def __call__(self, examples: Sequence[Example], encodings: Windows, outputs: Outputs) -> list[Result]:
        """List tokens and vectors.

        :raises StageError: if the model returned more or fewer vectors than there are tokens.
        :raises ExampleError: if a value is not finite.
        """
        return [self._one(windows, rows) for _, windows, rows in zip(examples, encodings, outputs, strict=True)]

    def panels(self, seen: Seen) -> Sequence[Panel]:
        vectors, kept = [row[NAME] for row in seen.outputs], self._kept(seen.encodings)
        return [_feature_panel(seen.encodings, vectors, kept, self._special_tokens)]

    def _one(self, windows: Sequence[Encoding], rows: Sequence[RowOutput]) -> Result:
        tokens: list[str] = []
        vectors: list[Any] = []
        for encoding, row, keep in zip(windows, rows, self._kept(windows), strict=True):
            names = encoding.tokens
            assert names is not None, "`required_fields` names it"
            if len(row[NAME]) != len(names):
                raise StageError(f"the model returned {len(row[NAME])} vectors for {len(names)} tokens")
            if not np.isfinite(row[NAME]).all():
                raise ExampleError(f"the model's '{NAME}' for this example are not all finite numbers")
            tokens += [name for name, wanted in zip(names, keep.tolist(), strict=True) if wanted]
            vectors += row[NAME][keep].tolist()
        return {"tokens": tokens, "vectors": vectors}

    def _kept(self, windows: Sequence[Encoding]) -> list[NDArray[np.bool_]]:
        """Return for each token of each window whether it is listed: no earlier window holds it, or it is special.

        A token is known by its id and its place in the text. Several may have both in common (the bytes of
        one character), so it is counted how many of them the windows before hold.
        """
        seen: Counter[tuple[Any, ...]] = Counter()
        kept = []
        for window in windows:
            columns = (window.sequence_ids, window.offsets, window.input_ids, window.special_tokens_mask)
            assert all(column is not None for column in columns), "`required_fields` names them"
            here: Counter[tuple[Any, ...]] = Counter()
            keep = np.full(len(window.input_ids), self._special_tokens)
            for i, (*key, special) in enumerate(zip(*columns, strict=True)):  # type: ignore[arg-type]
                if not special:
                    here[tuple(key)] += 1
                    keep[i] = here[tuple(key)] > seen[tuple(key)]
            seen |= here
            kept.append(keep)
        return kept


def _feature_panel(
    encodings: Sequence[Encoding], vectors: Sequence[NDArray[Any]], kept: Sequence[NDArray[Any]], special_tokens: bool
) -> Panel:
    """Show each token with the length of its vector, one of ``[T, H]``, and whether it is `kept`."""
    rows: list[Sequence[Cell]] = []
    for encoding, values, wanted in zip(encodings, vectors, kept, strict=True):
        names = encoding.tokens or [str(id) for id in encoding.input_ids]
        norms = np.linalg.norm(values.astype(np.float64), axis=1).tolist()
        for place, (name, norm, listed) in enumerate(zip(names, norms, wanted.tolist(), strict=True)):
            rows.append((encoding.window, place, cell(name), float(values[place][0]), norm, listed))
    width = vectors[0].shape[-1]
    squares = [f"{digits(abs(value))}^2" for value in vectors[0][0]]
    formula = wrapped("norm = sqrt", squares, " +", (f"= {digits(float(str(rows[0][4])))}",))
    count = sum(int(wanted.sum()) for wanted in kept)
    return table_panel(
        "token vectors",
        ("window", "place", "token", "first number", "norm", "in the result"),
        rows,
        "token",
        f"{count} of {counted(len(rows), 'vector')} of {width} numbers are in the result, as the model returned them",
        "a token that windows share counts in the first of them" if len(encodings) > 1 else "",
        "" if special_tokens else "special tokens are left out",
        bar="norm",
        formula=f"of token 0:\n{formula}",
        windows=len(encodings),
    )
