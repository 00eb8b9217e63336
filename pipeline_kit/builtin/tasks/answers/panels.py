"""What ``postprocessor=answers`` shows: start and end probabilities, spans, windows and the answers they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline_kit.builtin.tasks.answers.spans import Answer, Context, WindowSteps, ranked_answers
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

LISTED = 10
"""Answers that are shown where the result lists fewer."""

_NONE = "(no answer)"


def answer_panels(config: AnswersConfig, text: str, windows: Sequence[WindowSteps]) -> list[Panel]:
    """Show the way from logits to answers.

    :param text: the context.
    :param windows: with `LISTED` answers each, or as many as the result has.
    """
    ranked = ranked_answers(windows, config.handle_impossible_answer)
    if not ranked:
        return []
    # Where the empty answer wins, the arithmetic of the best text is told all the same: it is what lost.
    texts = [item for item in ranked if item[0]]
    panels = []
    if texts:
        shown, answer = texts[0]
        at = next(i for i, window in enumerate(windows) if window.answers.get(shown) == answer)
        panels += [_tokens(text, windows, at, answer), _spans(config, Context(text), windows[at], shown)]
    else:
        panels.append(_tokens(text, windows, 0, ranked[0][1]))
    if len(windows) > 1:
        panels.append(_by_window(windows))
    return [*panels, _answers(config, windows, ranked[: max(config.top_k, LISTED)])]


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


def _null_scores(window: WindowSteps) -> tuple[float, float]:
    """Return the probabilities of the token that stands for no answer, for start and end."""
    found = []
    for side in (0, 1):
        allowed = _allowed(window, side)
        power, _, total = exponentials(allowed[-1:], allowed)
        found.append(float(power[0]) / total)
    return found[0], found[1]


def _allowed(window: WindowSteps, side: int) -> NDArray[Any]:
    """Return the logits that share a softmax: those of the context, then that of no answer."""
    place = window.place
    inside = window.logits[place.begin : place.end, side]
    return inside if place.null is None else np.append(inside, window.logits[place.null, side])


def _edges(text: str, window: WindowSteps, answer: Answer) -> str:
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


def _corner(window: WindowSteps, answer: Answer) -> tuple[int, int]:
    """Find the likeliest start and end among the tokens of an answer's first and last unit."""
    first = int(np.searchsorted(window.begins, answer.start, side="right")) - 1
    last = int(np.searchsorted(window.ends, answer.end, side="left"))
    units_of = (np.clip(first, 0, len(window.begins) - 1), np.clip(last, 0, len(window.ends) - 1))
    starts, ends = (np.flatnonzero(window.unit == unit) for unit in units_of)
    return int(starts[window.scores.start[starts].argmax()]), int(ends[window.scores.end[ends].argmax()])


def _spans(config: AnswersConfig, context: Context, window: WindowSteps, text: str) -> Panel:
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


def _members(context: Context, window: WindowSteps, text: str) -> list[tuple[int, int]]:
    """Return the pairs of units whose slice of the context is `text`."""
    starts, ends = context.trimmed(window.begins[window.spans.first], window.ends[window.spans.last])
    near = np.flatnonzero(ends - starts == len(text)).tolist()
    alike = [i for i in near if context.text[starts[i] : ends[i]] == text]
    return [(int(window.spans.first[i]), int(window.spans.last[i])) for i in alike]


def _by_window(windows: Sequence[WindowSteps]) -> Panel:
    """Show the best answer of each window."""
    rows: list[Sequence[Cell]] = []
    for i, window in enumerate(windows):
        best = max(window.answers.items(), key=lambda item: item[1].score, default=("", Answer(0.0, 0, 0)))
        begin, end = window.encoding.token_span or (None, None)
        rows.append((i, begin, end, cell(best[0]), best[1].score, window.scores.null))
    shown, left = first_rows(rows, "window")
    columns = ("window", "from token", "to token", "best answer", "score", "p(no answer)")
    note = notes("each window is scored by itself; an answer has the score of its best window", left)
    return Panel("windows put together", columns, shown, "score", note=note)


def _answers(config: AnswersConfig, windows: Sequence[WindowSteps], ranked: Sequence[tuple[str, Answer]]) -> Panel:
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
        formula = (
            f"p(no answer) = {panel_number(start)} * {panel_number(end)} = {panel_number(windows[at].scores.null)}"
        )
    note = notes(
        "the empty answer competes" if config.handle_impossible_answer else "the empty answer does not compete",
        f"its probability is the least of {len(windows)} windows" if len(windows) > 1 else "",
        "the text has no answer" if not ranked[0][0] else "",
        left,
    )
    columns = ("answer", "start", "end", "score", "in the result")
    return Panel("answers, best first", columns, shown, "score", formula, note)
