"""A score for each document of a query, best first."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any, ClassVar, final

import numpy as np
import torch

from pipeline_kit.builtin.tasks.classification.stage import score_function
from pipeline_kit.builtin.tasks.common.merge import Outputs, RankedParts, Windows, check_labels, floats, rank_parts
from pipeline_kit.builtin.tasks.common.panels import (
    Function,
    cell,
    digits,
    merge_panels,
    named,
    ranked_items,
    sigmoid_lines,
    softmax_lines,
    table_panel,
)
from pipeline_kit.builtin.tasks.options import RankingConfig
from pipeline_kit.checkpoint.json import read_optional
from pipeline_kit.checkpoint.weights import MODULES_NAME
from pipeline_kit.contract.evaluator import EvaluationContext, Evaluator, Metrics, Verdict, value_of
from pipeline_kit.contract.fields import read_fields, text_of, texts_of
from pipeline_kit.contract.gradients import Target
from pipeline_kit.contract.stages import Cell, Panel, Postprocessor, Seen, StageContext
from pipeline_kit.contract.types import Checkpoint, Example, ModelOutput, Result, RowOutput, TokenBatch
from pipeline_kit.errors import CheckpointError, ConfigError, Fault, InputError, closest_match, for_message
from pipeline_kit.evaluate.labels import as_list, texts_of_row
from pipeline_kit.evaluate.numbers import number_of


@final
class Ranking(Postprocessor):
    """Returns ``ranking``, for each document its ``index`` in the example and its ``score``, best first.

    Documents are sorted by what their score is made of, a logit or log-probability: scores near 1 are equal
    in float32 long before those are. Of equal ones the first given comes first.

    The longer of query and document is cut where both do not fit, as sentence-transformers does, so a
    query loses tokens only if it takes more than half of the room.

    A long document in windows is as good as its best one (``max``, https://arxiv.org/abs/1905.09217), or as
    their mean by tokens; they are merged before the score is made.
    """

    pair_names: ClassVar[tuple[str, str]] = ("the field 'query'", "a document")
    best_first: ClassVar[frozenset[str]] = frozenset({"ranking"})

    def __init__(self, config: RankingConfig, context: StageContext) -> None:
        """Settle which logit ranks and what ``auto`` stands for.

        :raises CheckpointError: if `label` names none of several, or the checkpoint an unknown activation.
        :raises ConfigError: if it has no such label, or softmax would make every score 1.
        """
        self._labels = context.checkpoint.labels
        self._checkpoint = context.checkpoint.name
        self._place = self._find_label(config.label)
        self._function: Function = (
            ranking_function(context.checkpoint) if config.function == "auto" else config.function
        )
        if self._function == "softmax" and len(self._labels) == 1:
            problem = "'softmax' over the one label of this checkpoint makes every score 1."
            raise ConfigError([Fault("postprocessor.function", problem, ("auto", "sigmoid", "none"))])
        self._top_k = config.top_k
        self._merge = config.merge

    def prepare(self, example: Example) -> Sequence[Example]:
        """Return a pair for each document, which may be empty; raise ExampleError for a wrong field."""
        fields = read_fields(example, ("query", "documents"))
        query = text_of(fields["query"], "query", empty=False)
        return [{"text": query, "text_pair": document} for document in texts_of(fields["documents"], "documents")]

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Return ``value [B, 1]``, float32: the label's logit, or its log-probability for softmax.

        :raises StageError: if the model's width is not the number of the checkpoint's labels.
        """
        logits = floats(output, "logits", 2, "[B, L]")
        check_labels(logits.shape[1], self._labels, self._checkpoint)
        if self._function == "softmax":
            logits = torch.log_softmax(logits, dim=-1)
        return ModelOutput({"value": logits[:, self._place : self._place + 1]})

    def __call__(self, examples: Sequence[Example], encodings: Windows, outputs: Outputs) -> list[Result]:
        """Sort the documents of each example; raise ExampleError if a logit is not finite."""
        found = []
        for ranked in self._steps(encodings, outputs):
            order = ranked.order[: self._top_k]
            shown = ranked.scores.astype(np.float32)[order].tolist()
            found.append({"ranking": [{"index": i, "score": score} for i, score in zip(order, shown, strict=True)]})
        return found

    def panels(self, seen: Seen) -> Sequence[Panel]:
        documents = texts_of(read_fields(seen.example, ("query", "documents"))["documents"], "documents")
        [ranked] = self._steps([seen.encodings], [seen.outputs])
        values, order, function = ranked.values, ranked.order, self._function
        what = "log p" if function == "softmax" else "logit"
        names = [f"{i}: {named(document, 60)}" for i, document in enumerate(documents)]
        listed = {item["index"] for item in seen.result["ranking"]}
        rows: list[Sequence[Cell]] = [
            (rank, i, cell(documents[i]), float(values[i]), float(ranked.scores[i]), i in listed)
            for rank, i in enumerate(order, 1)
        ]
        best = order[0]
        given = [float(row["value"][0]) for row in seen.outputs]
        if function == "softmax":
            label = self._place, self._labels[self._place]
            formula = _log_lines(best, seen.places(best), label, given, seen.raw, float(values[best]))
        elif function == "sigmoid":
            formula = sigmoid_lines(f"document {best}", float(values[best]))
        else:
            formula = f"score(document {best}) = logit = {digits(values[best])}"
        title = f"documents, best first ({function})"
        columns = ("rank", "index", "document", what, "score", "in the result")
        note = f"documents are sorted by their {what}"
        items = ranked_items(names, seen, given, ranked)
        return [
            *merge_panels(items, self._merge, what, heading="document"),
            table_panel(title, columns, rows, "document", note, bar="score", formula=formula),
        ]

    def attribution_targets(self, seen: Seen) -> Sequence[Target]:
        """Return what the best document is ranked by."""
        best = seen.result["ranking"][0]["index"]
        name = f"value that ranks document {best}"
        places = seen.places(best)
        return [Target(place, name, lambda out, batch: self.reduce(out, batch)["value"][:, 0]) for place in places]

    def _steps(self, encodings: Windows, outputs: Outputs) -> list[RankedParts]:
        """Score the documents of each example; for softmax the values are log-probabilities."""
        function = "exp" if self._function == "softmax" else self._function
        return rank_parts(encodings, outputs, "value", repeat(function), self._merge)

    def _find_label(self, label: str | None) -> int:
        if label is None:
            if len(self._labels) == 1:
                return 0
            shown = ", ".join(f"'{for_message(name, 80)}'" for name in self._labels[:12])
            raise CheckpointError(
                f"'{self._checkpoint}' gives {len(self._labels)} labels, {shown}{', …' * (len(self._labels) > 12)}, "
                "and ranking needs one score; a cross-encoder trained to rank has one (checkpoint=ms_marco_minilm). "
                f"To rank by one of these: postprocessor.label={for_message(self._labels[-1], 80)}, say"
            )
        if label not in self._labels:
            problem = f"the checkpoint has no label '{for_message(label)}'."
            raise ConfigError(
                [Fault("postprocessor.label", problem, self._labels[:12], closest_match(label, self._labels))]
            )
        return self._labels.index(label)


_CLASSES: Mapping[str, Function] = {"Identity": "none", "Sigmoid": "sigmoid"}


def ranking_function(checkpoint: Checkpoint) -> Function:
    """Decide how the logits of `checkpoint` become scores.

    Of one label: by the torch class that its sentence-transformers configuration names, as ``CrossEncoder``
    does; else as task=text-classification. Of several that name says nothing, since ``CrossEncoder`` returns
    their logits as they are and ranks by none of them.

    :raises CheckpointError: if it names another class than the ones known here.
    """
    name = _named(checkpoint) if len(checkpoint.labels) == 1 else None
    if name is None:
        return score_function(checkpoint.config, len(checkpoint.labels))
    package, _, last = name.rpartition(".")
    if last not in _CLASSES or package.partition(".")[0] != "torch":
        raise CheckpointError(
            f"'{checkpoint.name}' names the activation '{for_message(name)}', which is none that ranking knows "
            "(torch's Identity and Sigmoid); nothing that a checkpoint names is imported. "
            "Set postprocessor.function to sigmoid or none"
        )
    return _CLASSES[last]


def _named(checkpoint: Checkpoint) -> str | None:
    """Find the dotted name of the activation, in the order in which sentence-transformers 6 looks for it.

    https://github.com/huggingface/sentence-transformers/blob/main/sentence_transformers/cross_encoder/model.py

    :raises CheckpointError: if a place for it holds anything but a name.
    """
    inner, folder = checkpoint.config.get("sentence_transformers"), checkpoint.root or checkpoint.path
    # What CrossEncoder writes beside its modules; that of another kind of model says nothing of scores.
    file = folder / "config_sentence_transformers.json"
    own = read_optional(file) if os.path.lexists(folder / MODULES_NAME) else {}
    places = (
        own.get("activation_fn") if own.get("model_type") == "CrossEncoder" else None,
        inner.get("activation_fn") if isinstance(inner, Mapping) else None,
        checkpoint.config.get("sbert_ce_default_activation_function"),  # before version 4
    )
    name = next((place for place in places if place is not None), None)
    if name is not None and not isinstance(name, str):
        raise CheckpointError(f"'{checkpoint.name}' names its activation as {type(name).__name__}, not as a text")
    return name


DEPTH = 10


@final
class RankingEvaluator(Evaluator):
    """``ndcg_at_10`` and ``mrr``, means over queries; a label is how relevant each document is, 0 or more.

    The reciprocal rank is that of the first document with a relevance over 0. A query without one counts as 0 in
    both.
    """

    def __init__(self, setting: EvaluationContext) -> None:
        self._cuts = getattr(setting.options, "top_k", None) is not None
        self._rows, self._hopeless = 0, 0
        self._ndcg, self._reciprocal = 0.0, 0.0

    @property
    def options(self) -> Mapping[str, Any]:
        """All documents must be listed."""
        return {"top_k": None} if self._cuts else {}

    def read(self, gold: Any, example: Mapping[str, Any]) -> list[float]:
        values = as_list(gold)
        documents = texts_of_row(example, "documents")
        if values is None or len(values) != len(documents):
            raise InputError(
                f"the label {for_message(repr(gold), 60)} is not a list of {len(documents)} numbers, one a document"
            )
        found = [number_of(value, f"relevance {place}") for place, value in enumerate(values)]
        if min(found) < 0:
            raise InputError(f"a relevance is 0 or more, not {min(found):g}")
        return found

    def add(self, gold: list[float], results: Sequence[Result]) -> Verdict:
        ranking = value_of(results[0], "ranking")
        order = [item["index"] for item in ranking]
        ranked = [gold[index] for index in order]
        self._rows += 1
        self._hopeless += not any(gold)
        self._ndcg += ndcg(ranked, gold)
        self._reciprocal += next((1 / rank for rank, value in enumerate(ranked, 1) if value), 0.0)
        return Verdict(ranked[0] == max(gold) > 0, gold, order, ranking[0]["score"])

    def metrics(self) -> Metrics:
        values = {f"ndcg_at_{DEPTH}": self._ndcg / self._rows, "mrr": self._reciprocal / self._rows}
        hopeless = f"{self._hopeless:,} queries have no relevant document and count as 0"
        return Metrics(values, (hopeless,) if self._hopeless else ())


def ndcg(ranked: Sequence[float], gold: Sequence[float]) -> float:
    """Return the discounted gain of the first `DEPTH` documents as a part of the best possible one.

    The gain is the relevance itself, the discount ``log2(rank + 1)``, as in scikit-learn's ``ndcg_score``, which
    takes no query with a single document and no order other than by scores.
    """
    best = _gain(sorted(gold, reverse=True))
    return _gain(ranked) / best if best else 0.0


def _gain(values: Sequence[float]) -> float:
    return sum(value / math.log2(rank + 1) for rank, value in enumerate(values[:DEPTH], 1))


def _log_lines(
    document: int,
    windows: Sequence[int],
    label: tuple[int, str],
    given: Sequence[float],
    raw: Sequence[RowOutput],
    value: float,
) -> str:
    """Write the softmax of a document, or of its window that is most in favour, and the score of the whole."""
    at = max(windows, key=lambda i: given[i])
    logits = raw[at]["logits"]
    lines = [softmax_lines(label[1], float(logits[label[0]]), logits, "labels")]
    if len(windows) > 1:
        lines.insert(0, f"of window {at - windows[0]}:")
        lines.append("of the document, whose log p was put together of its windows':")
    lines.append(f"score(document {document}) = exp({digits(value)}) = {digits(float(np.exp(value)))}")
    return "\n".join(lines)
