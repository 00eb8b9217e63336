"""The terminal's view: readable at 80 columns and without colour, long ones shortened, nothing of a text gets out."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import explain_traces as made
import pytest
from explain_helpers import task_pipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import pipeline_kit
from pipeline_kit import Pipeline
from pipeline_kit.contract.stages import Panel
from pipeline_kit.explain.terminal import print_document, to_text
from pipeline_kit.explain.trace import Trace
from pipeline_kit.explain.view import marked_tokens

GOLDEN = Path(__file__).parents[1] / "golden" / "explain.txt"


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return pipeline_kit.load()


def widest(text: str) -> int:
    return max(map(len, text.split("\n")))


def test_it_looks_as_it_did() -> None:
    """To change the file: PYTHONPATH=tests python tests/explain/test_terminal.py, then read what `git diff` shows."""
    assert golden() == GOLDEN.read_text(encoding="utf-8")


def golden() -> str:
    return "\n".join(to_text(*traces) for traces in [*made.golden_cases(), (made.failure(),)])


@pytest.mark.parametrize(("count", "shown"), [(24, 24), (34, 34), (35, 30)])
def test_a_table_of_a_few_rows_more_is_whole(count: int, shown: int) -> None:
    row = replace(
        made.failure().rows[0], panels={"postprocessor": (Panel("p", ("n",), [(f"r{i}",) for i in range(count)]),)}
    )
    text = to_text(made.trace("", [row], []))
    assert sum(f"r{i}\n" in text for i in range(count)) == shown
    assert ("more rows" in text) == (shown < count)


def test_long_texts_lose_their_middle_unless_asked(pipe: Pipeline) -> None:
    trace = pipe.explain("good " * 200 + "bad")
    short, full = to_text(trace), to_text(trace, full=True)
    assert "… 173 more tokens" in short
    assert "more …" in short
    assert "more …" not in full
    assert len(short) < len(full) / 2
    assert short.count(" bad ") >= 1


def test_a_comparison_marks_what_differs_and_nothing_else(pipe: Pipeline) -> None:
    texts = ["I hate this so much!", "Good."]
    first = pipe.explain(texts)
    assert "≠" not in to_text(first, pipe.explain(texts), names=("one", "two"))
    padded = pipeline_kit.load("padding=max_length", "padding.max_length=16", "postprocessor.top_k=2")
    text = to_text(first, padded.explain(texts), names=("one", "two"))
    marked = [line for line in text.split("\n") if "≠" in line]
    assert len(marked) == 4, "the batch and the key 'labels', for each of two rows"
    assert all("batch" in line or "labels" in line for line in marked)
    assert "2 x 16" in text
    assert widest(text) <= 80
    other, _ = task_pipeline("text-classification", "roberta")
    text = to_text(first, other.explain(texts), names=("one", "two"))
    assert "lines differ" in text
    assert any("≠" in line and "<s>" in line for line in text.split("\n"))
    assert any("≠" in line and "NEGATIVE" in line for line in text.split("\n"))


def attributed(tokens: list[str], scores: list[float]) -> Trace:
    trace = made.classification("x")
    found = trace.rows[0].sequences[0]
    found = replace(found, tokens=tuple(replace(found.tokens[1], text=text, start=None) for text in tokens))
    bars = Panel("", ("token", "score"), list(zip(tokens, scores, strict=True)), "score")
    views = {"attribution": (marked_tokens("logit of 'A'", found, scores), bars)}
    return made.trace("", [replace(trace.rows[0], sequences=(found,), views=views, panels={}, places=())], [])


def test_signs_say_what_colours_say() -> None:
    trace = attributed(["good", "bad", "so", "the"], [1.0, -0.5, 0.2, 0.0])
    plain = to_text(trace)
    assert "  good⁺⁺⁺ bad⁻⁻ so⁺ the\n" in plain
    lines = {line.split()[0]: line for line in plain.split("attribution ─")[1].splitlines() if "█" in line}
    assert [line.split()[1] for line in lines.values()] == ["1.0000", "-0.5000", "0.2000"]
    stream = io.StringIO()
    print_document(Console(file=stream, force_terminal=True, color_system="standard", width=80), trace)
    assert "\x1b[1;32mgood⁺⁺⁺" in stream.getvalue()
    assert "\x1b[31mbad⁻⁻" in stream.getvalue()


def test_markup_and_control_characters_of_a_text_do_nothing() -> None:
    hostile = ["[bold]x[/bold]", "\x1b[31mred", "a\nb", "\u202eabc", "w" * 5000]
    text = to_text(attributed(hostile, [1, 2, 3, 4, 5]))
    assert "[bold]x[/bold]" in text
    assert "aU+000Ab" in text
    for trace in made.all_traces().values():
        for text in (to_text(trace), to_text(trace, full=True), to_text(trace, trace)):
            assert not set(text) & set("\x00\x1b\u202e")
            assert widest(text) <= 80


@settings(max_examples=40)
@given(st.lists(st.tuples(st.text(max_size=30), st.floats(width=32)), min_size=1, max_size=30))
def test_any_tokens_and_scores_can_be_drawn(pairs: list[tuple[str, float]]) -> None:
    text = to_text(attributed([text for text, _ in pairs], [score for _, score in pairs]))
    assert all(character.isprintable() or character == "\n" for character in text)


if __name__ == "__main__":
    GOLDEN.write_text(golden(), encoding="utf-8")
