"""The terminal's view and the comparison: readable at 80 columns, long ones shortened, differences marked."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from explain_helpers import TASKS, task_pipeline
from rich.console import Console

import pipeline_kit
from pipeline_kit import Pipeline
from pipeline_kit.contract.stages import Panel
from pipeline_kit.explain.differences import apart, token_pairs
from pipeline_kit.explain.terminal import draw_comparison, sections, to_text
from pipeline_kit.explain.terminal_parts import as_text, draw_panel, print_sections
from pipeline_kit.explain.trace import SequenceTrace, Token

ARCHITECTURES = {"causal-lm": "gpt2", "seq2seq-lm": "t5"}


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return pipeline_kit.load()


@pytest.mark.parametrize("task", list(TASKS))
def test_every_task_fits_80_columns_and_shows_its_result(task: str, tmp_path: Path) -> None:
    pipe, examples = task_pipeline(task, ARCHITECTURES.get(TASKS[task][0], "bert"), tmp_path)
    trace = pipe.explain(examples, attentions=True)
    for text in (to_text(trace, full=False), to_text(trace, full=True)):
        assert max(len(line) for line in text.split("\n")) <= 80
    text = to_text(trace, full=True)
    headings = [section.heading for section in sections(trace)]
    assert headings[:2] == ["pipeline", "text and tokens of row 0"]
    assert headings.index("batch") < headings.index("model") < headings.index("result")
    assert "[CLS]" in text or TASKS[task][0] in ("causal-lm", "seq2seq-lm")
    for row in trace.rows:
        assert row.result is not None
        assert all(key in text for key in row.result)


def test_numbers_are_those_of_the_run(pipe: Pipeline) -> None:
    trace = pipe.explain("I hate this so much!")
    text = to_text(trace)
    negative, positive = trace.batches[0].outputs["logits"][0]
    assert f"{negative:.4f}" in text
    assert f"{positive:.4f}" in text
    assert f"{trace.batches[0].layers[0].norms.mean():.4f}" in text


def test_long_texts_lose_their_middle_unless_asked(pipe: Pipeline) -> None:
    trace = pipe.explain("good " * 200 + "bad")
    short, full = to_text(trace), to_text(trace, full=True)
    assert "… 173 more tokens" in short
    assert "186 more …" not in full
    assert len(short) < len(full) / 2
    assert short.count(" bad ") >= 1


def test_times_can_be_left_out(pipe: Pipeline) -> None:
    first, second = (to_text(pipe.explain("Good."), times=False) for _ in range(2))
    assert first == second
    assert " ms" not in first


def test_colour_only_where_it_is_wanted(pipe: Pipeline) -> None:
    trace = pipe.explain("Good.")
    stream = io.StringIO()
    print_sections(sections(trace), Console(file=stream, force_terminal=True, color_system="standard", width=80))
    assert "\x1b[" in stream.getvalue()
    assert "\x1b" not in to_text(trace)


def test_panels_have_bars_for_numbers_that_can_be_drawn() -> None:
    panel = Panel(
        "t[red]", ("n", "v"), (("a", 2.0), ("b", -1.0), ("c", float("nan")), ("d", None), ("e", True)), bar="v"
    )
    stream = io.StringIO()
    console = Console(file=stream, width=80, color_system=None)
    for part in draw_panel(panel, full=False):
        console.print(part)
    shown = stream.getvalue()
    assert "t[red]" in shown
    lengths = {
        line.split()[0]: line.count("█") for line in shown.split("\n") if line.strip() and line.strip()[0] in "abcde"
    }
    assert lengths == {"a": 20, "b": 10, "c": 0, "d": 0, "e": 0}


def test_a_comparison_marks_what_differs_and_nothing_else(pipe: Pipeline) -> None:
    texts = ["I hate this so much!", "Good."]
    same = as_text(draw_comparison(pipe.explain(texts), pipe.explain(texts), ("one", "two")))
    assert "≠" not in same
    padded = pipeline_kit.load("padding=max_length", "padding.max_length=16", "postprocessor.top_k=2")
    shown = as_text(draw_comparison(pipe.explain(texts), padded.explain(texts), ("one", "two")))
    marked = [line for line in shown.split("\n") if "≠" in line]
    assert len(marked) == 4, "the batch and the key 'labels', for each of two rows"
    assert all("batch" in line or "labels" in line for line in marked)
    assert "2 x 16" in shown
    assert max(len(line) for line in shown.split("\n")) <= 80


def test_a_comparison_of_two_tokenizers(pipe: Pipeline, tmp_path: Path) -> None:
    other, _ = task_pipeline("text-classification", "roberta", tmp_path)
    shown = as_text(draw_comparison(pipe.explain("Huge film"), other.explain("Huge film"), ("one", "two")))
    assert "lines differ" in shown
    assert any("≠" in line and "<s>" in line for line in shown.split("\n"))
    assert any("≠" in line and "NEGATIVE" in line for line in shown.split("\n"))


def test_tokens_stand_beside_their_like() -> None:
    def sequence(*texts: str) -> SequenceTrace:
        return SequenceTrace(0, 0, ("",), tuple(Token(len(text), text) for text in texts))

    pairs = token_pairs(sequence("a", "b", "c"), sequence("a", "x", "y", "c"))
    shown = [(pair.first and pair.first.text, pair.second and pair.second.text, pair.same) for pair in pairs]
    assert shown == [("a", "a", True), ("b", "x", False), (None, "y", False), ("c", "c", True)]
    assert token_pairs(None, sequence("a"))[0].first is None


@pytest.mark.parametrize(
    ("first", "second", "differ"),
    [
        (1.0, 1.000001, False),
        (1.0, 1.001, True),
        (float("nan"), float("nan"), False),
        (1, True, True),
        ({"a": [1.0]}, {"a": [1.0000001]}, False),
        ({"a": 1}, {"b": 1}, True),
        ([1], [1, 2], True),
        (None, "x", True),
        (np.inf, np.inf, False),
    ],
)
def test_what_counts_as_a_difference(first: object, second: object, differ: bool) -> None:
    assert apart(first, second) is differ


def test_numbers_of_a_wide_panel_are_never_broken() -> None:
    names = ("window", "token", "from", "to", "start logit", "p(start)", "end logit", "p(end)")
    panel = Panel("wide", names, ((3, "a long token " * 3, 189, 191, -0.2182, 0.0344, 3.9124, 0.1861),), bar="p(end)")
    stream = io.StringIO()
    for part in draw_panel(panel, full=False):
        Console(file=stream, width=80, color_system=None).print(part)
    shown = stream.getvalue()
    assert all(number in shown for number in ("189", "191", "-0.2182", "0.0344", "3.9124", "0.1861"))
    assert "█" in shown
    assert max(len(line) for line in shown.split("\n")) <= 80
