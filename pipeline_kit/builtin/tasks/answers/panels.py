"""What ``postprocessor=answers`` shows: start and end probabilities, spans, windows and the answers they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline_kit.builtin.tasks.answers.spans import (
    Answer,
    Context,
    Ints,
    ScoredSpans,
    UnitPlace,
    UnitScores,
    best_texts,
    edges,
    merged,
    place_of,
    probabilities,
    score_spans,
    word_index,
)
from pipeline_kit.builtin.tasks.common.panels import (
    cell,
    counted,
    drop_window_column,
    exponentials,
    first_rows,
    named,
    notes,
    panel_number,
    softmax_lines,
    wrap_terms,
)
from pipeline_kit.builtin.tasks.options import AnswersConfig
from pipeline_kit.contract.stages import Cell, Panel
from pipeline_kit.contract.types import Encoding

Array = np.ndarray[Any, Any]

_LISTED = 10  # answers that are shown where the result lists fewer
_NONE = "(no answer)"


@dataclass(frozen=True)
class _Window:
    """One window with all that led to its answers.

    :param logits: for start and end, ``[T, 2]``.
    :param unit: the unit of each token of the context, ``[C]``; `begins` and `ends` are those of units.
    """

    encoding: Encoding
    place: UnitPlace
    logits: Array
    scores: UnitScores
    unit: Ints
    begins: Ints
    ends: Ints
    spans: ScoredSpans
    answers: Mapping[str, Answer]


def answer_panels(
    config: AnswersConfig, text: str, encodings: Sequence[Encoding], logits: Sequence[Array]
) -> list[Panel]:
    """Show the way from logits to answers.

    :param text: the context.
    :param logits: of each window, for start and end, ``[T, 2]``.
    """
    context = Context(text)
    windows = _windows(config, context, encodings, logits)
    answers = merged([window.answers for window in windows])
    empty = min(window.scores.null for window in windows)
    if config.handle_impossible_answer:
        answers[""] = Answer(empty, 0, 0)
    ranked = sorted(answers.items(), key=lambda item: (-item[1].score, item[1].start, item[1].end))
    if not ranked:
        return []
    best, found = ranked[0]
    # Where the empty answer wins, the arithmetic of the best text is told all the same: it is what lost.
    texts = [item for item in ranked if item[0]]
    panels = []
    if texts:
        shown, answer = texts[0]
        at = _home(windows, shown, answer)
        panels += [_tokens(text, windows, at, answer), _spans(config, context, windows[at], shown, answer)]
    else:
        panels.append(_tokens(text, windows, 0, found))
    if len(windows) > 1:
        panels.append(_by_window(windows))
    return [*panels, _answers(config, windows, ranked[: max(config.top_k, _LISTED)], empty, best)]


def _windows(
    config: AnswersConfig, context: Context, encodings: Sequence[Encoding], logits: Sequence[Array]
) -> list[_Window]:
    places = [place_of(encoding) for encoding in encodings]
    scores = [probabilities(rows, place) for rows, place in zip(logits, places, strict=True)]
    found = []
    for at, encoding in enumerate(encodings):
        unit = word_index(encoding, places[at], config.align_to_words)
        begins, ends = edges(encodings, places, at, unit, config.align_to_words)
        spans = score_spans(scores[at], unit, config.max_answer_len)
        texts = best_texts(context, begins, ends, spans, max(config.top_k, _LISTED))
        found.append(_Window(encoding, places[at], logits[at], scores[at], unit, begins, ends, spans, texts))
    return found


def _home(windows: Sequence[_Window], text: str, answer: Answer) -> int:
    """Find the window that an answer has its score from."""
    return next(i for i, window in enumerate(windows) if window.answers.get(text) == answer)


def _piece(text: str, window: _Window, token: int) -> tuple[str, int, int]:
    """Return a token of the context, counted from the context's first, with its place in characters."""
    offsets = window.encoding.offsets
    assert offsets is not None, "`requires` names it"
    begin, end = offsets[window.place.begin + token]
    return cell(text[begin:end]), begin, end


def _tokens(text: str, windows: Sequence[_Window], at: int, answer: Answer) -> Panel:
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
            start, end = _null_scores(window)
            null = (i, _NONE, None, None, first, start, last, end)
            rows.append((max(start, end), null))
    rows.sort(key=lambda row: -row[0])
    shown, left = first_rows([row for _, row in rows], "token")
    window = windows[at]
    place = window.place
    columns = ("window", "token", "from", "to", "start logit", "p(start)", "end logit", "p(end)")
    table = drop_window_column(columns, shown, len(windows))
    masked = len(window.encoding.input_ids) - (place.end - place.begin) - (place.null is not None)
    note = notes(
        f"the question's tokens and other special ones ({masked}) are masked",
        f"{_NONE} is the special token that stands for it" if place.null is not None else "",
        left,
    )
    return Panel("start and end: logits to probabilities", *table, "p(start)", _edges(text, window, answer), note)


def _null_scores(window: _Window) -> tuple[float, float]:
    """Return the probabilities of the token that stands for no answer, for start and end."""
    found = []
    for side in (0, 1):
        allowed = _allowed(window, side)
        power, _, total = exponentials(allowed[-1:], allowed)
        found.append(float(power[0]) / total)
    return found[0], found[1]


def _allowed(window: _Window, side: int) -> Array:
    """Return the logits that share a softmax: those of the context, then that of no answer."""
    place = window.place
    inside = window.logits[place.begin : place.end, side]
    return inside if place.null is None else np.append(inside, window.logits[place.null, side])


def _edges(text: str, window: _Window, answer: Answer) -> str:
    """Write the softmax at the likeliest first and last token of an answer."""
    if not len(window.unit):
        return ""
    first, last = _corner(window, answer)
    lines = []
    for side, token, name in ((0, first, "start"), (1, last, "end")):
        label = f"{name} {named(_piece(text, window, token)[0].strip(), 14)}"
        allowed = _allowed(window, side)
        lines.append(softmax_lines(label, float(allowed[token]), allowed, "tokens"))
    return "\n".join([lines[0], *lines[1].split("\n")[1:]])


def _corner(window: _Window, answer: Answer) -> tuple[int, int]:
    """Find the likeliest start and end among the tokens of an answer's first and last unit."""
    first = int(np.searchsorted(window.begins, answer.start, side="right")) - 1
    last = int(np.searchsorted(window.ends, answer.end, side="left"))
    units_of = (np.clip(first, 0, len(window.begins) - 1), np.clip(last, 0, len(window.ends) - 1))
    starts, ends = (np.flatnonzero(window.unit == unit) for unit in units_of)
    return int(starts[window.scores.start[starts].argmax()]), int(ends[window.scores.end[ends].argmax()])


def _spans(config: AnswersConfig, context: Context, window: _Window, text: str, answer: Answer) -> Panel:
    """Show every span of tokens that has the best text; their products add up to its score."""
    longest = min(config.max_answer_len, len(window.unit))
    found: list[tuple[float, int, int]] = []
    for first, last in _members(context, window, text):
        for start in np.flatnonzero(window.unit == first).tolist():
            for end in np.flatnonzero(window.unit == last).tolist():
                if start <= end < start + longest:
                    product = float(window.scores.start[start] * window.scores.end[end])
                    found.append((product, start, end))
    found.sort(key=lambda item: (-item[0], item[1], item[2]))
    rows: list[Sequence[Cell]] = []
    for product, start, end in found:
        (left, begin, _), (right, _, stop) = (_piece(context.text, window, token) for token in (start, end))
        chances = float(window.scores.start[start]), float(window.scores.end[end])
        rows.append((left, right, begin, stop, *chances, product))
    shown, left_out = first_rows(rows, "span")
    products = [f"{panel_number(row[4])} * {panel_number(row[5])}" for row in rows]  # type: ignore[arg-type]
    ends = [f"= {panel_number(sum(item[0] for item in found))}"]
    formula = wrap_terms(f"score({named(text, 24)}) = ", products, " +", ends)
    columns = ("first token", "last token", "from", "to", "p(start)", "p(end)", "product")
    note = notes(
        f"spans of at most {counted(config.max_answer_len, 'token')} that give this text",
        "widened to whole words" if config.align_to_words else "",
        left_out,
    )
    return Panel(f"spans of '{named(text, 40)}'", columns, shown, "product", formula, note)


def _members(context: Context, window: _Window, text: str) -> list[tuple[int, int]]:
    """Return the pairs of units whose slice of the context is `text`."""
    starts, ends = context.trimmed(window.begins[window.spans.first], window.ends[window.spans.last])
    near = np.flatnonzero(ends - starts == len(text)).tolist()
    alike = [i for i in near if context.text[starts[i] : ends[i]] == text]
    return [(int(window.spans.first[i]), int(window.spans.last[i])) for i in alike]


def _by_window(windows: Sequence[_Window]) -> Panel:
    """Show the best answer of each window."""
    rows: list[Sequence[Cell]] = []
    for i, window in enumerate(windows):
        best = max(window.answers.items(), key=lambda item: item[1].score, default=("", Answer(0.0, 0, 0)))
        begin, end = window.encoding.span or (None, None)
        rows.append((i, begin, end, cell(best[0]), best[1].score, window.scores.null))
    shown, left = first_rows(rows, "window")
    columns = ("window", "from token", "to token", "best answer", "score", "p(no answer)")
    note = notes("each window is scored by itself; an answer has the score of its best window", left)
    return Panel("windows put together", columns, shown, "score", note=note)


def _answers(
    config: AnswersConfig, windows: Sequence[_Window], ranked: Sequence[tuple[str, Answer]], empty: float, best: str
) -> Panel:
    """Show the answers that compete, best first."""
    rows: list[Sequence[Cell]] = [
        (cell(text) or _NONE, answer.start, answer.end, min(answer.score, 1.0), rank < config.top_k)
        for rank, (text, answer) in enumerate(ranked)
    ]
    shown, left = first_rows(rows, "answer")
    at = int(np.argmin([window.scores.null for window in windows]))
    formula = ""
    if windows[at].place.null is not None:
        start, end = _null_scores(windows[at])
        formula = f"p(no answer) = {panel_number(start)} * {panel_number(end)} = {panel_number(empty)}"
    note = notes(
        "the empty answer competes" if config.handle_impossible_answer else "the empty answer does not compete",
        f"its probability is the least of {len(windows)} windows" if len(windows) > 1 else "",
        "the text has no answer" if not best else "",
        left,
    )
    columns = ("answer", "start", "end", "score", "in the result")
    return Panel("answers, best first", columns, shown, "score", formula, note)
