"""The view: a row's texts, each token marked by how much it moved the result, and the strongest tokens as bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline_kit import Model, Pipeline, TokenBatch, Trace
from pipeline_kit.kit import (
    Block,
    Panel,
    RowTrace,
    Seen,
    StageError,
    Target,
    Text,
    UsageError,
    View,
    for_message,
    marked_tokens,
    visible,
)
from pk_attribution import AttributionConfig
from pk_attribution.embeddings import FromEmbeddings
from pk_attribution.methods import METHODS, Method

BARS = 24
"""Tokens that have a bar: those that moved the result most, in the order of the text."""


@dataclass(frozen=True)
class Scores:
    """Which tokens moved a number.

    :param target: the number in words, with its value.
    :param sequence: which of the row's sequences it was computed from.
    :param scores: one for each token of the sequence, ``[T]``, float64.
    :param completeness_error: how far their sum is from what it should be, None if the method promises none.
    """

    method: str
    target: str
    sequence: int
    scores: NDArray[np.float64]
    completeness_error: float | None
    note: str


@final
class Attribution(View):
    """Which tokens moved a result.

    What is explained are the numbers that the postprocessor names in ``attribution_targets``. They are computed again
    from the token embeddings, one sequence at a time in float32; the note says by which network, and how far its
    outputs are from those of the run.
    """

    def __init__(self, config: AttributionConfig | None = None) -> None:
        """Choose the methods."""
        self._methods = [METHODS[name] for name in (config or AttributionConfig()).methods]
        self.scores: list[list[Scores]] = []
        """Of the latest run, for each row one for each target and method."""

    def check(self, pipeline: Pipeline) -> None:
        """See :class:`View`; a model with gradients has a `differentiable` of its own."""
        if type(pipeline.model).differentiable is Model.differentiable:
            name = pipeline.description.get("model", {}).get("name") or type(pipeline.model).__name__
            raise UsageError(
                f"attribution needs the gradients of a network, and model={for_message(str(name), 60)} has none; "
                "use model=hf, with a task that classifies"
            )

    def __call__(self, pipeline: Pipeline, trace: Trace, seen: Sequence[Seen | None]) -> list[list[Block]]:
        """See :class:`View`; a result that holds nothing has a note.

        :raises UsageError: if the task's results are made of no such number.
        :raises StageError: if the outputs of the network with gradients are not those of the run.
        """
        self.scores = self._scores(pipeline, trace, seen)
        shown: list[list[Block]] = []
        for row, found in zip(trace.rows, self.scores, strict=True):
            blocks = [block for scores in found for block in _blocks(row, scores)]
            if row.result is not None and not found:
                blocks = [Text("the result holds nothing whose tokens could be attributed", kind="note")]
            shown.append(blocks)
        return shown

    def _scores(self, pipeline: Pipeline, trace: Trace, seen: Sequence[Seen | None]) -> list[list[Scores]]:
        targets = [() if row is None else pipeline.postprocessor.attribution_targets(row) for row in seen]
        if any(found is None for found in targets):
            raise UsageError(
                f"attribution explains a number of the model, and task={for_message(trace.task, 60)} names none that "
                "its result is made of. It is for tasks that classify, such as text-classification, "
                "zero-shot-classification, text-ranking, multiple-choice and token-classification"
            )
        if not any(targets):
            return [[] for _ in seen]
        found = pipeline.model.differentiable()
        if found is None:
            raise UsageError(f"attribution needs gradients, and this {type(pipeline.model).__name__} has none")
        run = _Run(pipeline, trace, FromEmbeddings(found), self._methods)
        return [
            [] if own is None else [item for target in named or () for item in run.of(row, own, target)]
            for row, own, named in zip(trace.rows, seen, targets, strict=True)
        ]


def _blocks(row: RowTrace, found: Scores) -> Iterator[Block]:
    sequence = row.sequences[found.sequence]
    scores = [float(score) for score in found.scores.tolist()]
    where = f", window {sequence.window}" if sequence.window else ""
    yield marked_tokens(f"{found.method}: {found.target}{where}", sequence, scores)
    sizes = [-abs(score) if np.isfinite(score) else 0.0 for score in scores]
    places = sorted(np.argsort(sizes, kind="stable")[:BARS].tolist())
    rows = [(visible(sequence.tokens[place].text), scores[place]) for place in places]
    left = f"those with the largest scores, {len(rows)} of {len(scores)} tokens; " if len(rows) < len(scores) else ""
    error = found.completeness_error
    note = f"{left}completeness error {'not defined' if error is None else f'{error:.4f}'}; {found.note}"
    yield Panel("", ("token", "score"), rows, "score", note=note)


@dataclass(frozen=True)
class _Run:
    pipeline: Pipeline
    trace: Trace
    network: FromEmbeddings
    methods: Sequence[Method]

    def of(self, row: RowTrace, seen: Seen, target: Target) -> Iterator[Scores]:
        """Attribute one number of one sequence."""
        with torch.inference_mode(mode=False):
            batch = self._alone(row, target.encoding)

            def forward(embeddings: torch.Tensor) -> torch.Tensor:
                return target.value(self.network.forward_embeddings(embeddings, batch), batch)

            with torch.no_grad():
                embeddings = self.network.embed(batch)
                difference = self._check(seen, target, self.network.forward_embeddings(embeddings, batch).tensors)
                value, zero = (float(forward(given)) for given in (embeddings, torch.zeros_like(embeddings)))
            with torch.enable_grad():
                found = {method: method.run(forward, embeddings).cpu().numpy() for method in self.methods}
        note = f"{self.network.note}; its outputs are within {difference:.1e} of the run's"
        for method, scores in found.items():
            yield _scores(method, target, scores, value, zero, note)

    def _alone(self, row: RowTrace, number: int) -> TokenBatch:
        """Return a row of the trace's batches as a batch of its own, without padding."""
        place, line = row.places[number]
        batch, device = self.trace.batches[place], self.pipeline.device.name
        kept = batch.attention_mask[line].astype(bool)

        def tensor(values: NDArray[Any]) -> torch.Tensor:
            return torch.tensor(values[line][kept][None], dtype=torch.int64, device=device)

        ids = tensor(batch.input_ids)
        types = None if batch.token_type_ids is None else tensor(batch.token_type_ids)
        return TokenBatch(ids, torch.ones_like(ids), types, np.array([ids.shape[1]]), batch.side, has_padding=False)

    def _check(self, seen: Seen, target: Target, outputs: Any) -> float:
        """Return how far `outputs` are from the run's, which is as far as the stage and batching may put them."""
        largest = 0.0
        for name, ran in seen.raw[target.encoding].items():
            here = outputs[name][0].float().cpu().numpy() if name in outputs else None
            if here is None or here.shape != ran.shape:
                shape = "none" if here is None else list(here.shape)
                raise StageError(f"the run's '{name}' has the shape {list(ran.shape)}, the network's {shape}")
            difference = float(np.abs(here - ran).max())
            size = max(1.0, float(np.abs(ran).max()) / 10)  # tolerances are meant for outputs of order 10
            allowed = 2 * self.pipeline.model.tolerance * size  # once for the stage's kernels, once for its batches
            if not difference <= allowed:
                raise StageError(
                    f"'{name}' of {self.network.note} is {difference:.1e} from the run's, and {allowed:.1e} "
                    "is allowed: it would explain another result"
                )
            largest = max(largest, difference)
        return largest


def _scores(
    method: Method, target: Target, scores: NDArray[np.float64], value: float, zero: float, used: str
) -> Scores:
    name = f"{target.name}, {value:.4f}"
    if not method.complete:
        return Scores(method.name, name, target.encoding, scores, None, f"{used}; its scores need not add up")
    total = float(scores.sum())
    wanted = f"{value - zero:.4f}, which is {value:.4f} less {zero:.4f} at zero embeddings"
    note = f"{used}; the scores add up to {total:.4f}, and would ideally to {wanted}"
    return Scores(method.name, name, target.encoding, scores, abs(total - (value - zero)), note)
