"""Start and end logits to the best spans of the context."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline_kit.builtin.tasks.answers.spans import (
    Answer,
    Context,
    WindowSteps,
    null_token,
    ranked_answers,
    window_steps,
)
from pipeline_kit.builtin.tasks.common.merge import Outputs, Windows, floats
from pipeline_kit.builtin.tasks.common.panels import cell, counted, digits, named, softmax_lines, table_panel, wrapped
from pipeline_kit.builtin.tasks.options import AnswersConfig
from pipeline_kit.contract.evaluator import EvaluationContext, Evaluator, Metrics, Verdict, value_of
from pipeline_kit.contract.fields import read_fields, text_of
from pipeline_kit.contract.stages import Cell, Overflow, Panel, Postprocessor, Seen, StageContext, Tokenizer, Truncation
from pipeline_kit.contract.types import Encoding, Example, ModelOutput, Result, RowOutput, TokenBatch
from pipeline_kit.errors import ConfigError, ExampleError, Fault, InputError, StageError, for_message
from pipeline_kit.evaluate.numbers import share
from pipeline_kit.files.json_text import parse_json

NAME = "span_logits"


@final
class Answers(Postprocessor):
    """Returns ``answer``, ``score``, ``start`` and ``end``; with ``top_k`` over 1 also ``answers``, best first.

    ``answer`` is the context's slice from ``start`` to ``end``, in characters, without white space at its ends.
    ``score`` is the probability that the answer has this text: a softmax over the context's tokens and the first
    special token, for start and for end, their product for a span, and the sum over all spans with the text, such
    as those that start in the middle of its first word. ``start`` and ``end`` are its likeliest place.

    Each window of a long context is scored by itself; an answer has the score of its best window.

    With ``handle_impossible_answer`` the empty answer, at 0, is one of those listed. Its score is the probability
    of the first special token, the least of all windows.
    """

    required_fields: ClassVar[frozenset[str]] = frozenset({"offsets", "sequence_ids", "word_ids"})
    truncation: ClassVar[Truncation] = "only_second"
    overflow: ClassVar[Overflow] = "window"
    pair_names: ClassVar[tuple[str, str]] = ("the field 'question'", "the field 'context'")
    best_first: ClassVar[frozenset[str]] = frozenset({"answers"})

    def __init__(self, config: AnswersConfig, context: StageContext) -> None:
        """Take the options; raise ConfigError for ``handle_impossible_answer`` without a token for it."""
        self._config = config
        if config.handle_impossible_answer and context.tokenizer is not None:
            _check_null(context.tokenizer, context.checkpoint.name)

    def prepare(self, example: Example) -> Sequence[Example]:
        """Return the pair of question and context; raise ExampleError for a wrong field."""
        fields = read_fields(example, ("question", "context"))
        question, context = (text_of(fields[name], name, empty=False) for name in ("question", "context"))
        return ({"text": question, "text_pair": context},)

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Return ``span_logits [B, T, 2]``, float32: start and end side by side, for one copy instead of two."""
        both = [floats(output, name, 2, "[B, T]") for name in ("start_logits", "end_logits")]
        return ModelOutput({NAME: torch.stack(both, dim=-1)}, frozenset({NAME}))

    def __call__(self, examples: Sequence[Example], encodings: Windows, outputs: Outputs) -> list[Result]:
        """Find the best spans of each context.

        :raises StageError: if the model returned more or fewer logits than there are tokens.
        :raises ExampleError: if a logit is not finite, or a context has no token that could be an answer.
        """
        return [
            self._result(self._steps(example, windows, rows)[1])
            for example, windows, rows in zip(examples, encodings, outputs, strict=True)
        ]

    def panels(self, seen: Seen) -> Sequence[Panel]:
        context, windows = self._steps(seen.example, seen.encodings, seen.outputs, _LISTED)
        ranked = ranked_answers(windows, self._config.handle_impossible_answer)
        if not ranked:
            return []
        # Where the empty answer wins, the arithmetic of the best text is told all the same: it is what lost.
        shown, answer = next((item for item in ranked if item[0]), ranked[0])
        at = next((i for i, window in enumerate(windows) if shown and window.answers.get(shown) == answer), 0)
        panels = [_tokens(context.text, windows, at, answer)]
        if shown:
            panels.append(_spans(self._config, context, windows[at], shown))
        if len(windows) > 1:
            panels.append(_by_window(windows))
        return [*panels, _answers(self._config, windows, ranked[: max(self._config.top_k, _LISTED)])]

    def _steps(
        self, example: Example, windows: Sequence[Encoding], rows: Sequence[RowOutput], least: int = 1
    ) -> tuple[Context, list[WindowSteps]]:
        """Score the windows of one context, with ``top_k`` answers each, at the least `least`."""
        logits = [_checked(row[NAME], window) for row, window in zip(rows, windows, strict=True)]
        top_k = max(self._config.top_k, least)
        assert not isinstance(example, str), "prepare refuses a bare string"
        context = Context(example["context"])
        return context, window_steps(self._config, context, windows, logits, top_k)

    def _result(self, windows: Sequence[WindowSteps]) -> Result:
        answers = ranked_answers(windows, self._config.handle_impossible_answer)
        if not answers:
            raise ExampleError("the field 'context' has no token that could be an answer")
        listed = [
            # Rounding may take a sum just over 1.
            {"answer": text, "score": min(answer.score, 1.0), "start": answer.start, "end": answer.end}
            for text, answer in answers[: self._config.top_k]
        ]
        return listed[0] if self._config.top_k == 1 else {**listed[0], "answers": listed}


def _checked(logits: NDArray[Any], window: Encoding) -> NDArray[Any]:
    if len(logits) != len(window.input_ids):
        raise StageError(f"the model returned {len(logits)} start and end logits for {len(window.input_ids)} tokens")
    if not np.isfinite(logits).all():
        raise ExampleError("the model's start and end logits for this example are not all finite numbers")
    return logits


def _check_null(tokenizer: Tokenizer, checkpoint: str) -> None:
    """Refuse a tokenizer whose pairs have no token that could stand for no answer."""
    try:
        [pair, *_] = tokenizer.encode([{"text": "a", "text_pair": "a"}])
    except ExampleError:  # as few tokens as that are a matter for the texts to come
        return
    if pair.sequence_ids is not None and null_token(pair.input_ids, pair.sequence_ids) is None:
        problem = (
            f"the tokenizer of '{checkpoint}' begins no pair with a special token, which would stand for no answer."
        )
        raise ConfigError([Fault("postprocessor.handle_impossible_answer", problem, ("false",))])


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
        return [text for text in _texts(gold) if normalized(text)]

    def add(self, gold: list[str], results: Sequence[Result]) -> Verdict:
        answer = value_of(results[0], "answer")
        wanted = gold or [""]
        exact = any(normalized(answer) == normalized(text) for text in wanted)
        kind = bool(gold)
        self._rows[kind] += 1
        self._exact[kind] += exact
        self._f1[kind] += max(overlap(answer, text) for text in wanted)
        return Verdict(exact, gold, answer, results[0].get("score"))

    def metrics(self) -> Metrics:
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
    """Return SQuAD's F1 of two answers, of their words; where one has none it is 1 if both have none, else 0."""
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


_LISTED = 10  # answers that are shown where the result lists fewer

_NONE = "(no answer)"


def _piece(text: str, window: WindowSteps, token: int) -> tuple[str, int, int]:
    """Return a token of the context, counted from the context's first, with its place in characters."""
    offsets = window.encoding.offsets
    assert offsets is not None, "`required_fields` names it"
    begin, end = offsets[window.place.begin + token]
    return cell(text[begin:end]), begin, end


def _tokens(text: str, windows: Sequence[WindowSteps], at: int, answer: Answer) -> Panel:
    """Show the tokens at which an answer may start or end, the likeliest first."""
    rows: list[tuple[float, Sequence[Cell]]] = []
    for i, window in enumerate(windows):
        place, scores = window.place, window.scores
        starts, ends = (window.logits[place.begin : place.end, side].tolist() for side in (0, 1))
        for token in range(place.end - place.begin):
            start, end = float(scores.start[token]), float(scores.end[token])
            name = _piece(text, window, token)
            rows.append((max(start, end), (i, *name, starts[token], start, ends[token], end)))
        if place.null is not None:
            first, last = window.logits[place.null].tolist()
            start, end = scores.none
            rows.append((max(start, end), (i, _NONE, None, None, first, start, last, end)))
    rows.sort(key=lambda row: -row[0])
    window = windows[at]
    place = window.place
    masked = len(window.encoding.input_ids) - (place.end - place.begin) - (place.null is not None)
    return table_panel(
        "start and end: logits to probabilities",
        ("window", "token", "from", "to", "start logit", "p(start)", "end logit", "p(end)"),
        [row for _, row in rows],
        "token",
        f"the question's tokens and other special ones ({masked}) are masked",
        f"{_NONE} is the special token that stands for it" if place.null is not None else "",
        bar="p(start)",
        formula=_edges(text, window, answer),
        windows=len(windows),
    )


def _allowed(window: WindowSteps, side: int) -> NDArray[Any]:
    """Return the logits that share a softmax: those of the context, then that of no answer."""
    place = window.place
    inside = window.logits[place.begin : place.end, side]
    return inside if place.null is None else np.append(inside, window.logits[place.null, side])


def _edges(text: str, window: WindowSteps, answer: Answer) -> str:
    """Write the softmax at the likeliest first and last token of an answer."""
    if not len(window.unit):
        return ""
    # The likeliest start and end among the tokens of the first and of the last unit.
    begin = int(np.searchsorted(window.begins, answer.start, side="right")) - 1
    end = int(np.searchsorted(window.ends, answer.end, side="left"))
    units = (np.clip(begin, 0, len(window.begins) - 1), np.clip(end, 0, len(window.ends) - 1))
    starts, ends = (np.flatnonzero(window.unit == unit) for unit in units)
    first, last = int(starts[window.scores.start[starts].argmax()]), int(ends[window.scores.end[ends].argmax()])
    lines = []
    for side, token, name in ((0, first, "start"), (1, last, "end")):
        label = f"{name} {named(_piece(text, window, token)[0].strip(), 14)}"
        allowed = _allowed(window, side)
        lines.append(softmax_lines(label, float(allowed[token]), allowed, "tokens"))
    return "\n".join([lines[0], *lines[1].split("\n")[1:]])


def _spans(config: AnswersConfig, context: Context, window: WindowSteps, text: str) -> Panel:
    """Show every span of tokens that has the best text; their products add up to its score."""
    longest = min(config.max_answer_len, len(window.unit))
    found: list[tuple[float, int, int]] = []
    spans = window.spans
    begins, stops = context.trimmed(window.begins[spans.first], window.ends[spans.last])
    for i in np.flatnonzero(stops - begins == len(text)).tolist():
        if context.text[begins[i] : stops[i]] != text:
            continue
        for start in np.flatnonzero(window.unit == spans.first[i]).tolist():
            for end in np.flatnonzero(window.unit == spans.last[i]).tolist():
                if start <= end < start + longest:
                    product = float(window.scores.start[start] * window.scores.end[end])
                    found.append((product, start, end))
    found.sort(key=lambda item: (-item[0], item[1], item[2]))
    rows: list[Sequence[Cell]] = []
    for product, start, end in found:
        (left, begin, _), (right, _, stop) = (_piece(context.text, window, token) for token in (start, end))
        chances = float(window.scores.start[start]), float(window.scores.end[end])
        rows.append((left, right, begin, stop, *chances, product))
    products = [f"{digits(row[4])} * {digits(row[5])}" for row in rows]  # type: ignore[arg-type]
    ends = [f"= {digits(sum(item[0] for item in found))}"]
    formula = wrapped(f"score({named(text, 24)}) = ", products, " +", ends)
    columns = ("first token", "last token", "from", "to", "p(start)", "p(end)", "product")
    length = f"spans of at most {counted(config.max_answer_len, 'token')} that give this text"
    widened = "widened to whole words" if config.align_to_words else ""
    title = f"spans of '{named(text, 40)}'"
    return table_panel(title, columns, rows, "span", length, widened, bar="product", formula=formula)


def _by_window(windows: Sequence[WindowSteps]) -> Panel:
    """Show the best answer of each window."""
    rows: list[Sequence[Cell]] = []
    for i, window in enumerate(windows):
        best = max(window.answers.items(), key=lambda item: item[1].score, default=("", Answer(0.0, 0, 0)))
        begin, end = window.encoding.token_span or (None, None)
        rows.append((i, begin, end, cell(best[0]), best[1].score, window.scores.null))
    columns = ("window", "from token", "to token", "best answer", "score", "p(no answer)")
    note = "each window is scored by itself; an answer has the score of its best window"
    return table_panel("windows put together", columns, rows, "window", note, bar="score")


def _answers(config: AnswersConfig, windows: Sequence[WindowSteps], ranked: Sequence[tuple[str, Answer]]) -> Panel:
    """Show the answers that compete, best first."""
    rows: list[Sequence[Cell]] = [
        (cell(text) or _NONE, answer.start, answer.end, min(answer.score, 1.0), rank < config.top_k)
        for rank, (text, answer) in enumerate(ranked)
    ]
    least = min(windows, key=lambda window: window.scores.null)
    formula = ""
    if least.place.null is not None:
        start, end = map(digits, least.scores.none)
        formula = f"p(no answer) = {start} * {end} = {digits(least.scores.null)}"
    return table_panel(
        "answers, best first",
        ("answer", "start", "end", "score", "in the result"),
        rows,
        "answer",
        "the empty answer competes" if config.handle_impossible_answer else "the empty answer does not compete",
        f"its probability is the least of {len(windows)} windows" if len(windows) > 1 else "",
        "the text has no answer" if not ranked[0][0] else "",
        bar="score",
        formula=formula,
    )
