"""Logits of a masked language model to weights on its vocabulary, and how well they compare texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline_kit import (
    Encoding,
    Example,
    ModelOutput,
    Postprocessor,
    Result,
    RowOutput,
    StageContext,
    TokenBatch,
)
from pipeline_kit.kit import (
    Checkpoint,
    CheckpointError,
    PairEvaluator,
    Panel,
    Seen,
    floats,
    for_message,
    merge_windows,
    read_json,
    read_modules,
    value_of,
)

from . import SparseConfig

SHOWN = 50  # rows of a panel
CELLS = 12  # terms in a cell of a table


@final
class SparseEmbedding(Postprocessor):
    """Returns ``terms``: a list of ``token``, ``id`` and ``weight``, heaviest first; equal ones by id.

    A term's weight is the maximum (or the sum) over all tokens of the text, special ones too, of
    ``log(1 + relu(logit))``. Terms of weight 0 are left out. A long text in windows has the maximum of all its
    tokens, or the mean of the windows' sums, weighted by their tokens.

    https://arxiv.org/abs/2109.10086; equal to sentence-transformers' ``SparseEncoder``.
    """

    best_first: ClassVar[frozenset[str]] = frozenset({"terms"})

    def __init__(self, config: SparseConfig, context: StageContext) -> None:
        """Settle what ``auto`` stands for.

        :raises CheckpointError: if the folder names a pooling or an activation that is not known.
        """
        assert context.tokenizer is not None, "a postprocessor is built after the tokenizer"
        self._tokenizer = context.tokenizer
        self._top_k = config.top_k
        named = pooling_of(context.checkpoint)
        self._sums = (named["pooling_strategy"] if config.pooling == "auto" else config.pooling) == "sum"
        activation = named["activation_function"] if config.activation == "auto" else config.activation
        self._twice = activation == "log1p_relu"
        self._tokens: dict[int, str] = {}

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Return ``weights [B, V]``, float32."""
        logits = floats(output, "logits", 3, "[B, T, V]")
        padding = batch.attention_mask[:, :, None] == 0
        if self._sums:
            return ModelOutput({"weights": self._activated(logits).masked_fill(padding, 0.0).sum(dim=1)})
        # The activation never falls, so the largest weight is that of the largest logit.
        return ModelOutput({"weights": self._activated(logits.masked_fill(padding, -torch.inf).amax(dim=1))})

    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
        """List the terms of each example.

        :raises ExampleError: if a weight is not finite.
        """
        if not examples:
            return []
        rows = merge_windows(encodings, outputs, "weights", "mean" if self._sums else "max")
        return [{"terms": self._terms(row)} for row in rows]

    def cells(self, example: Example, result: Result) -> Mapping[str, Any]:
        """Show the heaviest terms with their weights."""
        del example
        listed = [f"{term['token']} {term['weight']:.2f}" for term in result["terms"]]
        more = f", … ({len(listed)})" if len(listed) > CELLS else ""
        return {**result, "terms": ", ".join(listed[:CELLS]) + more}

    def panels(self, seen: Seen) -> Sequence[Panel]:
        """Show each term's weight and, of a maximum, the token it comes from."""
        terms = seen.result["terms"]
        rows = [(term["token"], term["id"], *self._origin(seen, term["id"]), term["weight"]) for term in terms[:SHOWN]]
        columns = ("term", "id", *(() if self._sums else ("window", "token", "logit")), "weight")
        left = f"; {len(terms) - SHOWN} more terms are left out" if len(terms) > SHOWN else ""
        rule = f"weight = {'sum' if self._sums else 'max'} over tokens of "
        rule += "log(1 + log(1 + relu(logit)))" if self._twice else "log(1 + relu(logit))"
        note = f"{len(terms)} terms have a weight above 0{left}"
        return [Panel("logits to terms", columns, rows, "weight", rule, note)]

    def _activated(self, logits: torch.Tensor) -> torch.Tensor:
        weights = torch.log1p(torch.relu(logits))
        return torch.log1p(weights) if self._twice else weights

    def _terms(self, weights: NDArray[np.float32]) -> list[dict[str, Any]]:
        ids = np.flatnonzero(weights)
        ids = ids[np.argsort(-weights[ids], kind="stable")][: self._top_k]
        return [
            {"token": self._token(id), "id": id, "weight": weight}
            for id, weight in zip(ids.tolist(), weights[ids].tolist(), strict=True)
        ]

    def _token(self, id: int) -> str:
        if id not in self._tokens:
            self._tokens[id] = self._tokenizer.decode([id]).strip()
        return self._tokens[id]

    def _origin(self, seen: Seen, id: int) -> tuple[int | str | float, ...]:
        """Return the window, the token and the logit that a maximum comes from."""
        if self._sums:
            return ()
        columns = [row["logits"][:, id] for row in seen.raw]
        window = int(np.argmax([column.max() for column in columns]))
        place = int(columns[window].argmax())
        token = seen.encodings[window].input_ids[place]
        return window, self._token(token) or f"special {token}", float(columns[window][place])


def pooling_of(checkpoint: Checkpoint) -> Mapping[str, str]:
    """Return ``pooling_strategy`` and ``activation_function`` as the folder of sentence-transformers names them.

    :raises CheckpointError: if it names others than the known ones.
    """
    found = {"pooling_strategy": "max", "activation_function": "relu"}
    known = {"pooling_strategy": ("max", "sum"), "activation_function": ("relu", "log1p_relu")}
    root = checkpoint.root or checkpoint.path
    for entry in read_modules(root) or ():
        if entry.kind == "SpladePooling":
            settings = read_json(root / entry.path / "config.json")
            found |= {name: str(settings[name]) for name in found if name in settings}
    for name, value in found.items():
        if value not in known[name]:
            raise CheckpointError(
                f"'{for_message(checkpoint.name)}' has the {name} '{for_message(value, 80)}', which is not one of "
                f"{', '.join(known[name])}; set postprocessor.{name.partition('_')[0]}"
            )
    return found


@final
class SparseEvaluator(PairEvaluator):
    """Correlations of the dot product of two embeddings with the label, how alike ``text`` and ``text_pair`` are."""

    @property
    def options(self) -> Mapping[str, Any]:
        """All terms count."""
        return {"top_k": None}

    def score(self, results: Sequence[Result]) -> float:
        """Return the dot product."""
        one, other = ({term["id"]: term["weight"] for term in value_of(result, "terms")} for result in results)
        return float(sum(weight * other[id] for id, weight in one.items() if id in other))
