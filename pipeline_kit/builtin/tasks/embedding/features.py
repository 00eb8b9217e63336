"""The token vectors themselves, without padding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray

from pipeline_kit.builtin.tasks.common.merge import floats
from pipeline_kit.builtin.tasks.common.panels import (
    cell,
    counted,
    drop_window_column,
    first_rows,
    notes,
    panel_number,
    wrap_terms,
)
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
        """Take the options; nothing of the context is needed."""
        del context
        self._special_tokens = config.special_tokens

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Return ``last_hidden_state [B, T, H]``, float32, and drop the rest."""
        del batch
        return ModelOutput({NAME: floats(output, NAME, 3, "[B, T, H]")}, frozenset({NAME}))

    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
        """List tokens and vectors.

        :raises StageError: if the model returned more or fewer vectors than there are tokens.
        :raises ExampleError: if a value is not finite.
        """
        return [self._one(windows, rows) for _, windows, rows in zip(examples, encodings, outputs, strict=True)]

    def panels(self, seen: Seen) -> Sequence[Panel]:
        """Show each token's vector and whether it is kept."""
        vectors = [row[NAME] for row in seen.outputs]
        return feature_panels(seen.encodings, vectors, _first_seen(seen.encodings), self._special_tokens)

    def _one(self, windows: Sequence[Encoding], rows: Sequence[RowOutput]) -> Result:
        tokens: list[str] = []
        vectors: list[Any] = []
        kept = _first_seen(windows) if len(windows) > 1 else [np.ones(len(windows[0].input_ids), dtype=bool)]
        for encoding, row, keep in zip(windows, rows, kept, strict=True):
            names, special = encoding.tokens, encoding.special_tokens_mask
            assert names is not None, "`required_fields` names it"
            assert special is not None, "`required_fields` names it"
            if len(row[NAME]) != len(names):
                raise StageError(f"the model returned {len(row[NAME])} vectors for {len(names)} tokens")
            if not np.isfinite(row[NAME]).all():
                raise ExampleError(f"the model's '{NAME}' for this example are not all finite numbers")
            if not self._special_tokens:
                keep &= np.asarray(special) == 0
            tokens += [name for name, wanted in zip(names, keep.tolist(), strict=True) if wanted]
            vectors += row[NAME][keep].tolist()
        return {"tokens": tokens, "vectors": vectors}


def _first_seen(windows: Sequence[Encoding]) -> list[NDArray[np.bool_]]:
    """Return for each token of each window whether no earlier window holds it; special tokens always count.

    A token is known by its id and its place in the text. Several may have both in common (the bytes of
    one character), so it is counted how many of them the windows before hold.
    """
    seen: Counter[tuple[Any, ...]] = Counter()
    kept = []
    for window in windows:
        assert window.offsets is not None, "`required_fields` names it"
        assert window.sequence_ids is not None, "`required_fields` names it"
        assert window.special_tokens_mask is not None, "`required_fields` names it"
        here: Counter[tuple[Any, ...]] = Counter()
        keep = np.ones(len(window.input_ids), dtype=bool)
        columns = zip(window.sequence_ids, window.offsets, window.input_ids, window.special_tokens_mask, strict=True)
        for i, (sequence, (begin, end), token, special) in enumerate(columns):
            if not special:
                key = (sequence, begin, end, token)
                here[key] += 1
                keep[i] = here[key] > seen[key]
        seen |= here
        kept.append(keep)
    return kept


def feature_panels(
    encodings: Sequence[Encoding],
    vectors: Sequence[NDArray[Any]],
    first_seen: Sequence[NDArray[Any]],
    special_tokens: bool,
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
    shown, left = first_rows(rows, "token")
    width = vectors[0].shape[-1]
    squares = [f"{panel_number(abs(value))}^2" for value in vectors[0][0]]
    formula = wrap_terms("norm = sqrt", squares, " +", (f"= {panel_number(float(str(rows[0][4])))}",))
    note = notes(
        f"{kept} of {counted(len(rows), 'vector')} of {width} numbers are in the result, as the model returned them",
        "a token that windows share counts in the first of them" if len(encodings) > 1 else "",
        "" if special_tokens else "special tokens are left out",
        left,
    )
    columns = ("window", "place", "token", "first number", "norm", "in the result")
    return [
        Panel(
            "token vectors",
            *drop_window_column(columns, shown, len(encodings)),
            "norm",
            f"of token 0:\n{formula}",
            note,
        )
    ]
