"""A score for each document of a query, best first."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch

from pipeline_kit.builtin.tasks.classification.stage import score_function
from pipeline_kit.builtin.tasks.common.choices import ranking_panels
from pipeline_kit.builtin.tasks.common.merge import RankedParts, check_labels, floats, rank_parts
from pipeline_kit.builtin.tasks.options import RankingConfig
from pipeline_kit.checkpoint.json import read_object
from pipeline_kit.contract.fields import read_fields, text_of, texts_of
from pipeline_kit.contract.stages import Panel, Postprocessor, Seen, StageContext
from pipeline_kit.contract.types import Checkpoint, Encoding, Example, ModelOutput, Result, RowOutput, TokenBatch
from pipeline_kit.errors import CheckpointError, ConfigError, Fault, closest_match, for_message


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

    def __init__(self, config: RankingConfig, context: StageContext) -> None:
        """Settle which logit ranks and what ``auto`` stands for.

        :raises CheckpointError: if the checkpoint has several labels and `label` names none, or names an
            activation that is not known.
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
        """Return a pair for each document: the query and the document, which may be empty.

        :raises ExampleError: if the query or the documents are missing, empty, or not of their type.
        """
        fields = read_fields(example, ("query", "documents"))
        query = text_of(fields["query"], "query", empty=False)
        return [{"text": query, "text_pair": document} for document in texts_of(fields["documents"], "documents")]

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Return ``value [B, 1]``, float32: the label's logit, or its log-probability for softmax.

        :raises StageError: if the model's width is not the number of the checkpoint's labels.
        """
        del batch
        logits = floats(output, "logits", 2, "[B, L]")
        check_labels(logits.shape[1], self._labels, self._checkpoint)
        if self._function == "softmax":
            logits = torch.log_softmax(logits, dim=-1)
        return ModelOutput({"value": logits[:, self._place : self._place + 1]})

    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
        """Sort the documents of each example.

        :raises ExampleError: if a logit is not finite.
        """
        if not examples:
            return []
        found = []
        for ranked in self._steps(encodings, outputs):
            order = ranked.order[: self._top_k]
            shown = ranked.scores.astype(np.float32)[order].tolist()
            found.append({"ranking": [{"index": i, "score": score} for i, score in zip(order, shown, strict=True)]})
        return found

    def panels(self, seen: Seen) -> Sequence[Panel]:
        """Show each document's logit and score."""
        label = self._place, self._labels[self._place]
        documents = texts_of(read_fields(seen.example, ("query", "documents"))["documents"], "documents")
        [ranked] = self._steps([seen.encodings], [seen.outputs])
        return ranking_panels(documents, self._function, label, self._merge, seen, ranked)

    def _steps(
        self, encodings: Sequence[Sequence[Encoding]], outputs: Sequence[Sequence[RowOutput]]
    ) -> list[RankedParts]:
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
                "and ranking needs one score; a cross-encoder trained to rank has one. To rank by one of these: "
                f"postprocessor.label={for_message(self._labels[-1], 80)}, say"
            )
        if label not in self._labels:
            problem = f"the checkpoint has no label '{for_message(label)}'."
            raise ConfigError(
                [Fault("postprocessor.label", problem, self._labels[:12], closest_match(label, self._labels))]
            )
        return self._labels.index(label)


Function = Literal["softmax", "sigmoid", "none"]

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
    inner = checkpoint.config.get("sentence_transformers")
    places = (
        _own_config(checkpoint.root or checkpoint.path).get("activation_fn"),
        inner.get("activation_fn") if isinstance(inner, Mapping) else None,
        checkpoint.config.get("sbert_ce_default_activation_function"),  # before version 4
    )
    name = next((place for place in places if place is not None), None)
    if name is not None and not isinstance(name, str):
        raise CheckpointError(f"'{checkpoint.name}' names its activation as {type(name).__name__}, not as a text")
    return name


def _own_config(folder: Path) -> Mapping[str, Any]:
    """Read what ``CrossEncoder`` writes beside its modules; that of another kind of model says nothing of scores."""
    file = folder / "config_sentence_transformers.json"
    if not os.path.lexists(file) or not os.path.lexists(folder / "modules.json"):
        return {}
    found = read_object(file)
    return found if found.get("model_type") == "CrossEncoder" else {}
