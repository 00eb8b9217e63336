"""Answers to questions, by SQuAD's exact match and F1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, final

from pipeline_kit.contract.evaluator import EvaluationContext, Evaluator, Metrics, Verdict, value_of
from pipeline_kit.contract.types import Result
from pipeline_kit.errors import InputError, for_message
from pipeline_kit.evaluate.numbers import share
from pipeline_kit.files.json_text import parse_json

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@final
class AnswerEvaluator(Evaluator):
    """``exact_match`` and ``f1`` as SQuAD 2.0 defines them: the best over the answers of a question, after
    normalization. A question without an answer has both 1 if the pipeline returns the empty answer, else 0.

    Where there are questions of both kinds, each kind has its own figures too.
    https://rajpurkar.github.io/SQuAD-explorer/
    """

    def __init__(self, setting: EvaluationContext) -> None:
        self._may_be_empty = bool(getattr(setting.options, "handle_impossible_answer", True))
        self._rows = {True: 0, False: 0}
        self._exact = {True: 0, False: 0}
        self._f1 = {True: 0.0, False: 0.0}

    def read(self, gold: Any, example: Mapping[str, Any]) -> list[str]:
        """Return the answers, those that are empty when normalized left out; none: the question has no answer."""
        del example
        return [text for text in _texts(gold) if normalized(text)]

    def add(self, gold: list[str], results: Sequence[Result]) -> Verdict:
        """Compare ``answer``."""
        answer = value_of(results[0], "answer")
        wanted = gold or [""]
        exact = any(normalized(answer) == normalized(text) for text in wanted)
        kind = bool(gold)
        self._rows[kind] += 1
        self._exact[kind] += exact
        self._f1[kind] += max(overlap(answer, text) for text in wanted)
        return Verdict(exact, gold, answer, results[0].get("score"))

    def metrics(self) -> Metrics:
        """See :class:`AnswerEvaluator`."""
        rows = sum(self._rows.values())
        values = share("exact_match", sum(self._exact.values()), rows) | {"f1": sum(self._f1.values()) / rows}
        notes = []
        if self._rows[False]:
            for kind, name in ((True, "answerable"), (False, "impossible")):
                count = self._rows[kind]
                values[f"{name}_exact_match"] = self._exact[kind] / count if count else None
                values[f"{name}_f1"] = self._f1[kind] / count if count else None
                values[f"{name}_rows"] = count
            if not self._may_be_empty:
                notes.append(
                    f"{self._rows[False]:,} questions have no answer, and the pipeline always gives one; for a model "
                    "that was trained on such: postprocessor.handle_impossible_answer=true"
                )
        return Metrics(values, tuple(notes))


def normalized(text: str) -> str:
    """Return a text as SQuAD compares it: lower case, no ASCII punctuation, no articles, single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def overlap(predicted: str, gold: str) -> float:
    """Return SQuAD's F1 of two answers: the harmonic mean of precision and recall of their words.

    Where one has no words it is 1 if both have none, else 0.
    """
    found, wanted = normalized(predicted).split(), normalized(gold).split()
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))


def _texts(gold: Any) -> list[str]:
    """Read answers: a text, a list of texts or of {text}, or SQuAD's {text: [...]}."""
    if isinstance(gold, str) and gold.lstrip().startswith(("[", "{")):
        try:
            gold = parse_json(gold)
        except InputError:
            return [gold]  # an answer may begin with a bracket
    if isinstance(gold, Mapping):
        gold = gold.get("text")
    if isinstance(gold, str):
        return [gold]
    items = gold if isinstance(gold, list) else [gold]
    items = [item.get("text") if isinstance(item, Mapping) else item for item in items]
    texts = [item for item in items if isinstance(item, str)]
    if len(texts) < len(items):
        raise InputError(
            f"the label {for_message(repr(gold), 80)} holds no answers; pass a text, a list of texts, or SQuAD's "
            '{"text": [...]}; [] for a question without an answer'
        )
    return texts
