"""Which tasks can be evaluated, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline_kit.builtin.tasks.answers.metrics import AnswerEvaluator
from pipeline_kit.builtin.tasks.choice.metrics import ChoiceEvaluator
from pipeline_kit.builtin.tasks.classification.metrics import (
    MultiLabel,
    ScoreEvaluator,
    SingleLabel,
    as_list,
    cosine,
    score_of,
    two_texts,
)
from pipeline_kit.builtin.tasks.entities.metrics import SpanEvaluator
from pipeline_kit.builtin.tasks.fill_mask.metrics import MaskEvaluator
from pipeline_kit.builtin.tasks.generation.metrics import TextEvaluator
from pipeline_kit.builtin.tasks.ranking.metrics import RankingEvaluator
from pipeline_kit.builtin.tasks.zero_shot.hypotheses import CandidateLabels
from pipeline_kit.contract.evaluator import EvaluationContext, Evaluator
from pipeline_kit.errors import UsageError, did_you_mean, for_message
from pipeline_kit.evaluate.labels import Labels
from pipeline_kit.evaluate.run import GOLD


def _classification(setting: EvaluationContext, first: Any) -> Evaluator:
    """Choose by the first row's label: a number for a checkpoint of one label, a list, or one label."""
    from pipeline_kit.builtin.tasks.classification.stage import score_function

    if len(setting.labels) == 1 or setting.config.get("problem_type") == "regression":
        if len(setting.labels) > 1:
            raise UsageError(f"a regression with {len(setting.labels)} outputs cannot be evaluated, only with one")
        return ScoreEvaluator(score_of)
    space = Labels(setting.labels, setting.labels_map)
    space.check_map()
    if not _is_list(first, space.names):
        return SingleLabel(space)
    function = getattr(setting.options, "function", None)
    if function == "auto":
        function = score_function(setting.config, len(setting.labels))
    if function in ("softmax", "none"):
        raise UsageError(
            f"the labels are lists, and with postprocessor.function={function} a text has one label; for a "
            "checkpoint that was trained on several: postprocessor.function=sigmoid"
        )
    return MultiLabel(space, setting)


def _zero_shot(setting: EvaluationContext, first: Any) -> Evaluator:
    space = CandidateLabels(setting)
    if not _is_list(first, space.names):
        return SingleLabel(space)
    if not getattr(setting.options, "multi_label", True):
        raise UsageError("the labels are lists, and a text has one label; set postprocessor.multi_label=true")
    return MultiLabel(space, setting)


def _is_list(first: Any, names: Sequence[str]) -> bool:
    return first not in names and as_list(first) is not None


EVALUATORS: Mapping[str, Callable[[EvaluationContext, Any], Evaluator]] = {
    "text-classification": _classification,
    "zero-shot-classification": _zero_shot,
    "token-classification": lambda setting, first: SpanEvaluator(setting),
    "question-answering": lambda setting, first: AnswerEvaluator(setting),
    "fill-mask": lambda setting, first: MaskEvaluator(),
    "multiple-choice": lambda setting, first: ChoiceEvaluator(setting),
    "sentence-embedding": lambda setting, first: ScoreEvaluator(cosine, two_texts),
    "text-ranking": lambda setting, first: RankingEvaluator(setting),
    "text-generation": lambda setting, first: TextEvaluator(),
    "text2text-generation": lambda setting, first: TextEvaluator(),
    "summarization": lambda setting, first: TextEvaluator(),
    "translation": lambda setting, first: TextEvaluator(),
}
"""By task: what makes its evaluator, given the label of the first row, which may decide between several."""

_MORE_FIELDS = {"sentence-embedding": ("text_pair",)}


def evaluator_for(setting: EvaluationContext, first: Any) -> Evaluator:
    """Return a fresh evaluator.

    :param first: the label of the first row.
    :raises UsageError: if the task cannot be evaluated, or not with such labels.
    """
    check_task(setting.task)
    return EVALUATORS[setting.task](setting, first)


def fields_of(task: str, takes: Sequence[str]) -> list[str]:
    """Return the fields of a labelled row of `task`, whose examples have the fields `takes`.

    :raises UsageError: if the task cannot be evaluated.
    """
    check_task(task)
    return [*takes, *_MORE_FIELDS.get(task, ()), GOLD]


def check_task(task: str) -> None:
    """Raise UsageError, naming those that can be evaluated, if `task` is none of them."""
    if task not in EVALUATORS:
        raise UsageError(
            f"task '{for_message(task, 60)}' cannot be evaluated; these can: {', '.join(EVALUATORS)}."
            + did_you_mean(task, EVALUATORS)
        )
