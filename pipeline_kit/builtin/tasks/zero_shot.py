"""Entailment logits to scores of any labels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any, ClassVar, Literal, final

import numpy as np
from numpy.typing import NDArray

from pipeline_kit.builtin.tasks.classification.metrics import MultiLabel, SingleLabel, is_list
from pipeline_kit.builtin.tasks.common.merge import Outputs, RankedParts, Windows, check_labels, floats, rank_parts
from pipeline_kit.builtin.tasks.common.panels import (
    activation_panel,
    cell,
    digits,
    merge_panels,
    minus,
    named,
    ranked_items,
    sigmoid_lines,
    table_panel,
)
from pipeline_kit.builtin.tasks.options import ZeroShotConfig
from pipeline_kit.contract.evaluator import EvaluationContext, Evaluator
from pipeline_kit.contract.fields import read_fields, text_of, texts_of
from pipeline_kit.contract.gradients import Target
from pipeline_kit.contract.stages import Cell, Panel, Postprocessor, Seen, StageContext, Truncation
from pipeline_kit.contract.types import Example, ModelOutput, Result, TokenBatch
from pipeline_kit.errors import (
    CheckpointError,
    ConfigError,
    ExampleError,
    Fault,
    InputError,
    UsageError,
    closest_match,
    for_message,
)
from pipeline_kit.evaluate.labels import Labels


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
    best_first: ClassVar[frozenset[str]] = frozenset({"labels"})

    def __init__(self, config: ZeroShotConfig, context: StageContext) -> None:
        """Find the labels that mean entailment and contradiction; check the candidates and the template.

        :raises ConfigError: for empty or doubled candidates, a template without a placeholder, a label that
            the checkpoint lacks, or `multi_label` without a label for contradiction.
        :raises CheckpointError: if no label of the checkpoint means entailment.
        """
        try:
            check_candidates(config.labels)
        except ExampleError as error:
            raise ConfigError([Fault("postprocessor.labels", f"{error}.")]) from error
        self._names = context.checkpoint.labels
        self._checkpoint = context.checkpoint.name
        named = config.entailment_label, config.contradiction_label
        self._entailed, self._opposite = find_entailment(self._names, self._checkpoint, *named)
        self._multi_label = config.multi_label
        if config.multi_label and self._opposite is None:
            raise ConfigError([Fault("postprocessor.contradiction_label", *self._no_opposite("multi_label"))])
        self._template = read_template(config.hypothesis_template)
        self._labels = tuple(config.labels)
        self._hypotheses = hypotheses(self._template, self._labels)
        self._top_k = config.top_k
        self._merge = config.merge

    def prepare(self, example: Example) -> Sequence[Example]:
        """Return a pair for each candidate: the text and its hypothesis; raise ExampleError for a wrong field."""
        fields = read_fields(example, ("text",), ("labels",))
        text = text_of(fields["text"], "text", empty=False)
        labels = self._candidates(example)
        if len(labels) == 1 and self._opposite is None:
            problem, allowed = self._no_opposite("a single candidate")
            raise ExampleError(
                f"{problem} Name it: postprocessor.contradiction_label=… (one of {', '.join(allowed)}), "
                "or pass a second label"
            )
        sentences = self._hypotheses if labels is self._labels else hypotheses(self._template, labels)
        return [{"text": text, "text_pair": sentence} for sentence in sentences]

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Return ``logits [B, L]``, float32, and drop the rest."""
        return ModelOutput({"logits": floats(output, "logits", 2, "[B, L]")})

    def __call__(self, examples: Sequence[Example], encodings: Windows, outputs: Outputs) -> list[Result]:
        """Score the candidates of each example.

        :raises StageError: if the model's width is not the number of the checkpoint's labels.
        :raises ExampleError: if a logit is not finite.
        """
        labels = [self._candidates(example) for example in examples]
        found = []
        for names, ranked in zip(labels, self._steps(labels, encodings, outputs), strict=True):
            shown = ranked.scores.astype(np.float32).tolist()
            listed = [{"label": names[i], "score": shown[i]} for i in ranked.order[: self._top_k]]
            found.append({**listed[0], "labels": listed})
        return found

    def panels(self, seen: Seen) -> Sequence[Panel]:
        labels = self._candidates(seen.example)
        [ranked] = self._steps([labels], [seen.encodings], [seen.outputs])
        places = _, opposite = self._decisive(len(labels))
        names = [cell(label) for label in labels]
        sentences = [cell(sentence) for sentence in hypotheses(self._template, labels)]
        values = [float(self._value(row["logits"], len(labels))[0]) for row in seen.raw]
        items = ranked_items(names, seen, values, ranked)
        title = "entailment logits to scores (softmax over the candidates)"
        return [
            _hypotheses(names, sentences, places, self._names, seen, ranked.order),
            *merge_panels(items, self._merge, "logit" if opposite is None else "lead"),
            activation_panel(title, names, ranked.values, ranked.scores, "softmax", noun="candidates")
            if opposite is None
            else _lead_panel(names, ranked),
        ]

    def attribution_targets(self, seen: Seen) -> Sequence[Target]:
        """Return the entailment logit of the best label, less what it is compared with."""
        labels = self._candidates(seen.example)
        best = list(labels).index(seen.result["label"])
        entailed, opposite = self._decisive(len(labels))
        less = "" if opposite is None else f" less that of '{self._names[opposite]}'"
        name = for_message(f"logit of '{self._names[entailed]}'{less} for '{labels[best]}'")
        return [Target.logit(place, name, entailed, less=opposite) for place in seen.places(best)]

    def _steps(self, labels: Sequence[Sequence[str]], encodings: Windows, outputs: Outputs) -> list[RankedParts]:
        """Score the candidates; the softmax of two logits is the sigmoid of their difference."""
        values = [
            [{"value": self._value(row["logits"], len(names))} for row in rows]
            for rows, names in zip(outputs, labels, strict=True)
        ]
        opposites = (self._decisive(len(names))[1] for names in labels)
        functions: list[Literal["sigmoid", "softmax"]] = ["softmax" if o is None else "sigmoid" for o in opposites]
        return rank_parts(encodings, values, "value", functions, self._merge)

    def _decisive(self, candidates: int) -> tuple[int, int | None]:
        """Return the label whose logit scores a candidate, among so many, and the one whose logit is taken off it."""
        apart = self._multi_label or candidates == 1
        return self._entailed, self._opposite if apart else None

    def _candidates(self, example: Example) -> Sequence[str]:
        """Return the example's own labels, else those of the config; no value or an empty cell means none."""
        own = None if isinstance(example, str) else example.get("labels")
        if own is not None and not (isinstance(own, str) and not own.strip()):
            return candidates(own)
        if not self._labels:
            raise ExampleError(
                "there are no candidate labels: set postprocessor.labels=[sport,politics], say, or add the "
                "field 'labels' to the example"
            )
        return self._labels

    def _value(self, logits: NDArray[np.float32], candidates: int) -> NDArray[np.float32]:
        """Return what is merged over windows, ``[1]``: the entailment logit, or how far it is above contradiction's."""
        check_labels(len(logits), self._names, self._checkpoint)
        entailed, opposite = self._decisive(candidates)
        if opposite is None:
            return logits[entailed : entailed + 1]
        return np.asarray(logits[entailed : entailed + 1] - logits[opposite], dtype=np.float32)

    def _no_opposite(self, who: str) -> tuple[str, tuple[str, ...]]:
        others = tuple([name for i, name in enumerate(self._names) if i != self._entailed])
        return f"{who} needs a label for contradiction, and no label of '{self._checkpoint}' says it is one.", others


_ENTAILED = re.compile(r"entail", re.IGNORECASE)
_OPPOSITE = re.compile(r"contradict|(not|non|no)[\s_-]*entail", re.IGNORECASE)


def find_entailment(
    labels: Sequence[str], checkpoint: str, entailment: str | None = None, contradiction: str | None = None
) -> tuple[int, int | None]:
    """Return the places of the label for entailment and of that for its contradiction, None if no label says so.

    They are found by the beginning of their names in any case, or by the user's word, `entailment` and `contradiction`.
    Of two labels the one that is not entailment is its opposite, whatever its name.

    :raises ConfigError: if the user names a label that is not there, or the same one twice.
    :raises CheckpointError: if no label, or more than one, is found to mean entailment.
    """
    _check_named(labels, entailment, contradiction)
    named = None if entailment is None else labels.index(entailment)
    entailed = _find_entailed(labels, checkpoint, contradiction) if named is None else named
    if contradiction is not None:
        return entailed, labels.index(contradiction)
    found = [i for i, label in enumerate(labels) if i != entailed and _OPPOSITE.match(label.strip())]
    if not found and len(labels) == 2:
        found = [1 - entailed]
    return entailed, found[0] if len(found) == 1 else None


def _check_named(labels: Sequence[str], entailment: str | None, contradiction: str | None) -> None:
    faults = [
        Fault(f"postprocessor.{option}", f"the checkpoint has no label '{for_message(name)}'.", _few(labels), near)
        for option, name in (("entailment_label", entailment), ("contradiction_label", contradiction))
        if name is not None and name not in labels
        for near in [closest_match(name, labels)]
    ]
    if not faults and entailment is not None and entailment == contradiction:
        problem = f"'{for_message(entailment)}' is postprocessor.entailment_label already."
        others = _few([label for label in labels if label != entailment])
        faults.append(Fault("postprocessor.contradiction_label", problem, others))
    if faults:
        raise ConfigError(faults)


def _find_entailed(labels: Sequence[str], checkpoint: str, contradiction: str | None) -> int:
    found = [i for i, label in enumerate(labels) if _ENTAILED.match(label.strip()) and label != contradiction]
    if len(found) == 1:
        return found[0]
    listed, count = ", ".join(f"'{label}'" for label in _few(labels)), "more than one" if found else "no"
    raise CheckpointError(
        f"'{checkpoint}' has {count} label for entailment among {listed}; this task needs a checkpoint trained on "
        "natural language inference (NLI), such as checkpoint=bart_mnli. If this one is, name its labels: "
        "postprocessor.entailment_label=… postprocessor.contradiction_label=…"
    )


def _few(labels: Sequence[str], limit: int = 12) -> tuple[str, ...]:
    shown = tuple([for_message(label, 80) for label in labels[:limit]])
    return shown if len(labels) <= limit else (*shown, f"and {len(labels) - limit} more")


_KEY = "postprocessor.hypothesis_template"


def read_template(template: str) -> tuple[str, ...]:
    """Cut `template` at its placeholders, ``{}`` or ``{0}``; ``{{`` and ``}}`` stand for braces.

    That is the grammar of ``str.format`` without what could read attributes of a label.

    :raises ConfigError: if it has no placeholder, another one, or a brace alone.
    """
    hint = f"for example: '{_KEY}=\"This text is about {{}}.\"'"
    pieces, current = [], ""
    try:
        for literal, name, spec, conversion in Formatter().parse(template):
            current += literal
            if name is None:
                continue
            if name not in ("", "0") or spec or conversion:
                problem = (
                    f"'{for_message(template)}' has the placeholder '{for_message(name)}'; a label stands at {{}}."
                )
                raise ConfigError([Fault(_KEY, problem, hint=hint)])
            pieces.append(current)
            current = ""
    except ValueError as error:
        problem = f"'{for_message(template)}' cannot be read: {error}; write a brace as {{{{ or }}}}."
        raise ConfigError([Fault(_KEY, problem, hint=hint)]) from error
    if not pieces:
        problem = f"'{for_message(template)}' has no {{}}, so it says the same of every label."
        raise ConfigError([Fault(_KEY, problem, hint=hint)])
    return (*pieces, current)


def hypotheses(template: Sequence[str], labels: Sequence[str]) -> tuple[str, ...]:
    """Put each of `labels` into the gaps of `template`, as :func:`read_template` returned it."""
    return tuple([label.join(template) for label in labels])


def candidates(value: object) -> list[str]:
    """Read candidate labels: a list of texts, such a list as JSON, or texts separated by commas.

    :raises ExampleError: if it is none of these, or a label is empty or doubled.
    """
    if isinstance(value, str) and not value.lstrip().startswith("["):
        value = [label.strip() for label in value.split(",") if label.strip()]
    labels = texts_of(value, "labels")
    check_candidates(labels)
    return labels


def check_candidates(labels: Sequence[str]) -> None:
    """Raise ExampleError, naming the place, if one of `labels` is empty or doubled."""
    first: dict[str, int] = {}
    for place, label in enumerate(labels):
        text_of(label, f"labels[{place}]", empty=False)
        if first.setdefault(label, place) != place:
            raise ExampleError(
                f"the field 'labels' has '{for_message(label)}' twice, as [{first[label]}] and [{place}]; "
                "two equal labels would share one score between them"
            )


@final
class CandidateLabels:
    """The candidate labels of a row where it has its own, else those of the config."""

    def __init__(self, setting: EvaluationContext) -> None:
        self._mapping = setting.labels_map
        self._own = Labels(getattr(setting.options, "labels", ()), self._mapping, "candidates")
        if self._own.names:
            self._own.check_map()
        self._numbers = {name: number for number, name in enumerate(self._own.names)}
        self._last = self._own
        self._by_number: Labels | None = None

    @property
    def names(self) -> Sequence[str]:
        """The labels that occur, by their number."""
        return tuple(self._numbers)

    @property
    def note(self) -> str | None:
        return None if self._by_number is None else self._by_number.note

    def gold(self, value: Any, example: Mapping[str, Any]) -> int:
        labels = self._labels(example.get("labels"))
        name = labels.names[labels.find(value)]
        if labels.by_number:
            self._by_number = labels
        return self.predicted(name)

    def predicted(self, name: Any) -> int:
        return self._numbers.setdefault(name, len(self._numbers))

    def _labels(self, own: Any) -> Labels:
        if own is None or (isinstance(own, str) and not own.strip()):
            if not self._own.names:
                raise UsageError(
                    "there are no candidate labels: set postprocessor.labels=[sport,politics], say, or add the "
                    "field 'labels' to every row"
                )
            return self._own
        try:
            names = tuple(candidates(own))
        except ExampleError as error:
            raise InputError(str(error)) from error
        if names != self._last.names:
            self._last = Labels(names, self._mapping, "candidates")
        return self._last


def _hypotheses(
    labels: Sequence[str],
    sentences: Sequence[str],
    places: tuple[int, int | None],
    names: Sequence[str],
    seen: Seen,
    order: Sequence[int],
) -> Panel:
    """Show each pair's logits for entailment and, where it counts, contradiction."""
    entailed, opposite = places
    columns = ["label", "hypothesis", "window", names[entailed]]
    if opposite is not None:
        columns += [names[opposite], "lead"]
    rows: list[Sequence[Cell]] = []
    for i in order:
        for at in seen.places(i):
            logits = seen.raw[at]["logits"]
            row: list[Cell] = [labels[i], sentences[i], seen.encodings[at].window, float(logits[entailed])]
            if opposite is not None:
                row += [float(logits[opposite]), float(logits[entailed] - logits[opposite])]
            rows.append(row)
    note = f"the checkpoint's label for entailment is {named(names[entailed])}"
    formula = ""
    if opposite is not None:
        note += f", for contradiction {named(names[opposite])}"
        logits = seen.raw[seen.places(order[0])[0]]["logits"]
        lead = digits(float(logits[entailed] - logits[opposite]))
        formula = f"lead({named(labels[order[0]])}) = {minus(logits[entailed], logits[opposite])} = {lead}"
    title = "does the text entail the hypothesis?"
    return table_panel(title, columns, rows, "row", note, bar=columns[3], formula=formula)


def _lead_panel(names: Sequence[str], ranked: RankedParts) -> Panel:
    values, order = ranked.values, ranked.order
    rows = [(names[i], float(values[i]), float(ranked.scores[i])) for i in order]
    formula = "p = exp(entailment) / (exp(entailment) + exp(contradiction))\n  = 1 / (1 + exp(-lead))\n"
    formula += sigmoid_lines(names[order[0]], float(values[order[0]])).partition("\n")[2]
    note = "each candidate is scored by itself: entailment against contradiction"
    columns = ("label", "lead", "score")
    return table_panel("leads to scores (sigmoid)", columns, rows, "label", note, bar="score", formula=formula)


def zero_shot_evaluator(context: EvaluationContext) -> Evaluator:
    """Choose by the first row's label: a list, or one label."""
    space = CandidateLabels(context)
    if not is_list(context.first, space):
        return SingleLabel(space)
    if not getattr(context.options, "multi_label", True):
        raise UsageError("the labels are lists, and a text has one label; set postprocessor.multi_label=true")
    return MultiLabel(space, context)
