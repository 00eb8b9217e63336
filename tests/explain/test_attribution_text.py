"""Attributions in a terminal: signs beside colours, 80 columns, hostile tokens."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rich")

from rich.console import Console

from pipeline_kit.explain.terminal_batches import draw_attribution
from pipeline_kit.explain.trace import Attribution, RowTrace, SequenceTrace, Token, Trace


def trace_of(tokens: Sequence[str], scores: Sequence[float], error: float | None = 0.25, rows: int = 1) -> Trace:
    sequence = SequenceTrace(0, 0, ("text",), tuple(Token(i, text) for i, text in enumerate(tokens)))
    found = Attribution("occlusion", "logit of 'A'", 0, np.array(scores), error, "the network itself")
    row = RowTrace("text", (sequence,), ((0, 0),), {"label": "A"}, attributions=(found,))
    return Trace("text-classification", {}, ("A", "B"), (), (row,) * rows, (), 0.0)


def printed(trace: Trace, *, colour: bool = False, width: int = 80) -> str:
    file = StringIO()
    Console(file=file, width=width, force_terminal=colour, color_system="standard" if colour else None).print(
        draw_attribution(trace)
    )
    return file.getvalue()


def test_signs_say_what_colours_say() -> None:
    trace = trace_of(["good", "bad", "so", "the"], [1.0, -0.5, 0.2, 0.0])
    plain = printed(trace)
    assert "good⁺⁺⁺ bad⁻⁻ so⁺ the\n" in "\n".join(line.rstrip() for line in plain.split("\n")).replace("  good", "good")
    assert "\x1b" not in plain
    lines = {line.split()[0]: line for line in plain.splitlines() if "|" in line}
    assert lines["good"].endswith("|" + "█" * 12)
    assert "██████|" in lines["bad"]
    assert "█" not in lines["the"]
    assert [line.split()[1] for line in lines.values()] == ["+1.0000", "-0.5000", "+0.2000", "+0.0000"]
    coloured = printed(trace, colour=True)
    assert "\x1b[1;32mgood⁺⁺⁺" in coloured
    assert "\x1b[31mbad⁻⁻" in coloured


def test_method_target_and_completeness_error_are_shown() -> None:
    found = printed(trace_of(["a"], [1.0]))
    assert "occlusion: logit of 'A'" in found
    assert "completeness error 0.2500; the network itself" in found
    assert "completeness error not defined" in printed(trace_of(["a"], [1.0], None))
    assert "example 2: occlusion" in printed(trace_of(["a"], [1.0], rows=2))
    assert printed(trace_of([], [], rows=0)).strip() == ""


def test_a_long_text_has_bars_for_its_largest_scores_in_their_order() -> None:
    scores = [0.01 * (-1) ** i for i in range(512)]
    scores[400], scores[7] = 3.0, -2.0
    lines = printed(trace_of([f"t{i}" for i in range(512)], scores)).splitlines()
    shown = [line.split()[0] for line in lines if "|" in line]
    assert len(shown) == 24
    assert shown.index("t7") < shown.index("t400")
    assert any("24 of 512 tokens" in line for line in lines)


def test_markup_and_control_characters_of_a_text_do_nothing() -> None:
    found = printed(trace_of(["[bold]x[/bold]", "\x1b[31mred", "a\nb", "\u202eabc", "w" * 5000], [1, 2, 3, 4, 5]))
    assert "[bold]x[/bold]" in found
    assert "\x1b" not in found
    assert "\u202e" not in found
    assert "a\\nb" in found
    assert max(map(len, found.splitlines())) <= 80


@given(
    st.lists(
        st.tuples(st.text(max_size=30), st.floats(allow_nan=True, allow_infinity=True, width=32)),
        min_size=1,
        max_size=30,
    )
)
def test_any_tokens_and_scores_can_be_drawn(pairs: list[tuple[str, float]]) -> None:
    found = printed(trace_of([text for text, _ in pairs], [score for _, score in pairs]))
    assert all(character.isprintable() or character == "\n" for character in found)
