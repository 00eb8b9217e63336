"""docs/inside-the-pipeline.md holds what the command prints today."""

from __future__ import annotations

import re

from explain_page import PAGE, filled, parts_of

_NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
_TOLERANCE = 2e-4  # another processor may round the last digit that is shown the other way


def test_the_page_is_what_the_command_prints() -> None:
    page = PAGE.read_text(encoding="utf-8")
    today = filled(page)
    # Columns may be a digit wider where a number is rounded to another length, so blanks do not count.
    found, expected = (re.sub(r"[ ─█]+", " ", _NUMBER.sub("N", text)) for text in (page, today))
    assert found == expected, "run: python tests/explain_page.py"
    for shown, now in zip(_NUMBER.findall(page), _NUMBER.findall(today), strict=True):
        assert abs(float(shown) - float(now)) <= _TOLERANCE * max(1, abs(float(now))), (shown, now)


def test_every_part_of_the_walk_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    titles = re.findall(r"```text title=([\w-]+)\.txt", page)
    assert titles == [
        "pipeline",
        "text-and-tokens-of-row-0",
        "batch",
        "model",
        "postprocessor",
        "result",
    ]
    assert " ms" not in page
    assert "/home" not in page


def test_parts_are_cut_at_headings() -> None:
    assert parts_of("a b ────\nx\n\ny\nc ──\n  z ──\n") == {"a-b": "x\n\ny\n", "c": "  z ──\n"}
