"""Entailment logits to scores of any labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import numpy as np
from numpy.typing import NDArray

from pipeline_kit.builtin.tasks.common.choices import zero_shot_panels
from pipeline_kit.builtin.tasks.common.merge import RankedParts, check_labels, floats, rank_parts
from pipeline_kit.builtin.tasks.options import ZeroShotConfig
from pipeline_kit.builtin.tasks.zero_shot.hypotheses import candidates, check_candidates, hypotheses, read_template
from pipeline_kit.contract.fields import read_fields, text_of
from pipeline_kit.contract.stages import Panel, Postprocessor, Seen, StageContext, Truncation
from pipeline_kit.contract.types import Encoding, Example, ModelOutput, Result, RowOutput, TokenBatch
from pipeline_kit.errors import CheckpointError, ConfigError, ExampleError, Fault, closest_match, for_message


@final
class ZeroShot(Postprocessor):
    """Returns ``label``, ``score`` and ``labels``, the candidates by score, best first; ties in their order.

    Each candidate becomes a hypothesis, and a checkpoint trained on natural language inference says how
    far the text entails it (https://arxiv.org/abs/1909.00161). The scores are a softmax of the entailment
    logits over all candidates; with `multi_label`, or a single candidate, for which that would always
    be 1, each is the softmax of its entailment logit against its contradiction logit.

    The windows of a long text are merged for each candidate before the softmax, so that one which entails
    no candidate weighs less than one which clearly does: the softmax of either adds up to 1. ``mean``
    weights the logits of a window by its tokens, ``max`` takes the window that is most in favour.
    """

    truncation: ClassVar[Truncation] = "only_first"  # a cut hypothesis would no longer name its label
    pair_names: ClassVar[tuple[str, str]] = ("the field 'text'", "the hypothesis of a label")

    def __init__(self, config: ZeroShotConfig, context: StageContext) -> None:
        """Find the labels that mean entailment and contradiction; check the candidates and the template.

        :raises ConfigError: for empty or doubled candidates, a template without a placeholder, a label that
            the checkpoint lacks, or `multi_label` without a label for contradiction.
        :raises CheckpointError: if no label of the checkpoint means entailment.
        """
        try:
            check_candidates(config.labels, "labels")
        except ExampleError as error:
            raise ConfigError([Fault("postprocessor.labels", f"{error}.")]) from error
        self._names = context.checkpoint.labels
        self._checkpoint = context.checkpoint.name
        named = config.entailment_label, config.contradiction_label
        self._found = find_entailment(self._names, self._checkpoint, *named)
        self._multi_label = config.multi_label
        if config.multi_label and self._found.opposite is None:
            raise ConfigError([Fault("postprocessor.contradiction_label", *self._no_opposite("multi_label"))])
        self._template = read_template(config.hypothesis_template)
        self._labels = tuple(config.labels)
        self._hypotheses = hypotheses(self._template, self._labels)
        self._top_k = config.top_k
        self._merge = config.merge

    def prepare(self, example: Example) -> Sequence[Example]:
        """Return a pair for each candidate: the text, and what the template makes of the label.

        :raises ExampleError: if the text or the labels are missing, empty, or not of their type.
        """
        fields = read_fields(example, ("text",), ("labels",))
        text = text_of(fields["text"], "text", empty=False)
        labels = self._candidates(example)
        if len(labels) == 1 and self._found.opposite is None:
            problem, allowed = self._no_opposite("a single candidate")
            raise ExampleError(
                f"{problem} Name it: postprocessor.contradiction_label=… (one of {', '.join(allowed)}), "
                "or pass a second label"
            )
        sentences = self._hypotheses if labels is self._labels else hypotheses(self._template, labels)
        return [{"text": text, "text_pair": sentence} for sentence in sentences]

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Return ``logits [B, L]``, float32, and drop the rest."""
        del batch
        return ModelOutput({"logits": floats(output, "logits", 2, "[B, L]")})

    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
        """Score the candidates of each example.

        :raises StageError: if the model's width is not the number of the checkpoint's labels.
        :raises ExampleError: if a logit is not finite.
        """
        if not examples:
            return []
        labels = [self._candidates(example) for example in examples]
        found = []
        for names, ranked in zip(labels, self._steps(labels, encodings, outputs), strict=True):
            shown = ranked.scores.astype(np.float32).tolist()
            listed = [{"label": names[i], "score": shown[i]} for i in ranked.order[: self._top_k]]
            found.append({**listed[0], "labels": listed})
        return found

    def panels(self, seen: Seen) -> Sequence[Panel]:
        """Show the entailment logits, and how they became scores."""
        labels = self._candidates(seen.example)
        [ranked] = self._steps([labels], [seen.encodings], [seen.outputs])
        places = self.decisive(len(labels))
        return zero_shot_panels(
            labels, hypotheses(self._template, labels), places, self._names, self._merge, seen, ranked
        )

    def _steps(
        self,
        labels: Sequence[Sequence[str]],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[RankedParts]:
        """Score the candidates; the softmax of two logits is the sigmoid of their difference."""
        separate = [self.decisive(len(names))[1] is not None for names in labels]
        values = [
            [{"value": self._value(row["logits"], len(names))} for row in rows]
            for rows, names in zip(outputs, labels, strict=True)
        ]
        functions: list[Literal["sigmoid", "softmax"]] = ["sigmoid" if apart else "softmax" for apart in separate]
        return rank_parts(encodings, values, "value", functions, self._merge)

    def decisive(self, candidates: int) -> tuple[int, int | None]:
        """Return the label whose logit scores a candidate, among so many, and the one whose logit is taken off it."""
        apart = self._multi_label or candidates == 1
        return self._found.entailed, self._found.opposite if apart else None

    def _candidates(self, example: Example) -> Sequence[str]:
        """Return the example's own labels, else those of the config; no value or an empty cell means none."""
        own = None if isinstance(example, str) else example.get("labels")
        if own is not None and not (isinstance(own, str) and not own.strip()):
            return candidates(own, "labels")
        if not self._labels:
            raise ExampleError(
                "there are no candidate labels: set postprocessor.labels=[sport,politics], say, or give the "
                "example a field 'labels'"
            )
        return self._labels

    def _value(self, logits: NDArray[np.float32], candidates: int) -> NDArray[np.float32]:
        """Return what is merged over windows, ``[1]``: the entailment logit, or how far it is above contradiction's."""
        check_labels(len(logits), self._names, self._checkpoint)
        entailed, opposite = self.decisive(candidates)
        if opposite is None:
            return logits[entailed : entailed + 1]
        return np.asarray(logits[entailed : entailed + 1] - logits[opposite], dtype=np.float32)

    def _no_opposite(self, who: str) -> tuple[str, tuple[str, ...]]:
        others = tuple([name for i, name in enumerate(self._names) if i != self._found.entailed])
        return f"{who} needs a label for contradiction, and no label of '{self._checkpoint}' says it is one.", others


_ENTAILED = re.compile(r"entail", re.IGNORECASE)
_OPPOSITE = re.compile(r"contradict|(not|non|no)[\s_-]*entail", re.IGNORECASE)


@dataclass(frozen=True)
class Entailment:
    """Places in a checkpoint's labels.

    :param entailed: the label for "the hypothesis follows from the text".
    :param opposite: the label for its contradiction, None if no label says so.
    """

    entailed: int
    opposite: int | None


def find_entailment(
    labels: Sequence[str], checkpoint: str, entailment: str | None = None, contradiction: str | None = None
) -> Entailment:
    """Find the two labels by the beginning of their names in any case, or by the user's word.

    Of two labels the one that is not entailment is its opposite, whatever its name.

    :param checkpoint: its name, for the messages.
    :param entailment: what the user names, None to look for it; likewise `contradiction`.
    :raises ConfigError: if the user names a label that is not there, or the same one twice.
    :raises CheckpointError: if no label, or more than one, is found to mean entailment.
    """
    _check_named(labels, entailment, contradiction)
    named = None if entailment is None else labels.index(entailment)
    entailed = _find_entailed(labels, checkpoint, contradiction) if named is None else named
    if contradiction is not None:
        return Entailment(entailed, labels.index(contradiction))
    found = [i for i, label in enumerate(labels) if i != entailed and _OPPOSITE.match(label.strip())]
    if not found and len(labels) == 2:
        found = [1 - entailed]
    return Entailment(entailed, found[0] if len(found) == 1 else None)


def _check_named(labels: Sequence[str], entailment: str | None, contradiction: str | None) -> None:
    faults = [
        Fault(f"postprocessor.{option}", f"the checkpoint has no label '{for_message(name)}'.", _few(labels), near)
        for option, name in (("entailment_label", entailment), ("contradiction_label", contradiction))
        if name is not None and name not in labels
        for near in [closest_match(name, labels)]
    ]
    if not faults and entailment is not None and entailment == contradiction:
        problem = f"'{for_message(entailment)}' is postprocessor.entailment_label already."
        others = [label for label in labels if label != entailment]
        faults.append(Fault("postprocessor.contradiction_label", problem, _few(others)))
    if faults:
        raise ConfigError(faults)


def _find_entailed(labels: Sequence[str], checkpoint: str, contradiction: str | None) -> int:
    found = [i for i, label in enumerate(labels) if _ENTAILED.match(label.strip()) and label != contradiction]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"'{label}'" for label in _few(labels))
    if found:
        problem = f"has more than one label for entailment among {listed}"
    else:
        problem = f"has no label for entailment among {listed}"
    raise CheckpointError(
        f"'{checkpoint}' {problem}; this task needs a checkpoint trained on natural language inference (NLI). "
        "If this one is, name its labels: postprocessor.entailment_label=… postprocessor.contradiction_label=…"
    )


def _few(labels: Sequence[str], limit: int = 12) -> tuple[str, ...]:
    shown = tuple([for_message(label, 80) for label in labels[:limit]])
    return shown if len(labels) <= limit else (*shown, f"and {len(labels) - limit} more")
