"""docs/inside-the-pipeline.md holds what the command prints today; running this file writes it anew.

The page has the command in its first bash block. A block ```` ```text title=NAME.txt ```` gets the part of the
output under the heading NAME, dashes standing for blanks.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

from pipeline_kit.cli.app import main

PAGE = Path(__file__).parents[2] / "docs" / "inside-the-pipeline.md"

_BLOCK = re.compile(r"(```text title=([\w-]+)\.txt\n)(.*?)(```)", re.DOTALL)
_HEADING = re.compile(r"^(\S.*?) ─+$", re.MULTILINE)
_NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
_TOLERANCE = 2e-4  # another processor may round the last digit that is shown the other way


def parts_of(output: str) -> dict[str, str]:
    """Cut what was printed at its headings."""
    found = _HEADING.split(output)
    return {
        name.replace(" ", "-"): body.strip("\n") + "\n" for name, body in zip(found[1::2], found[2::2], strict=True)
    }


def filled(page: str) -> str:
    """Run the page's command and put its output into the page's blocks.

    :raises KeyError: if a block names a part that was not printed.
    """
    found = re.search(r"```bash[^\n]*\n(.*?)```", page, re.DOTALL)
    assert found is not None, "the page has its command in a bash block"
    program, *words = shlex.split(found[1].replace("\\\n", " "))
    assert program == "pipeline-kit"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main(words)
    assert code == 0, printed.getvalue()
    parts = parts_of(printed.getvalue())
    return _BLOCK.sub(lambda block: block[1] + parts[block[2]] + block[4], page)


def test_the_page_is_what_the_command_prints() -> None:
    page = PAGE.read_text(encoding="utf-8")
    today = filled(page)
    # Columns may be a digit wider where a number is rounded to another length, so blanks do not count.
    found, expected = (re.sub(r"[ ─█]+", " ", _NUMBER.sub("N", text)) for text in (page, today))
    assert found == expected, "run: python tests/explain/test_explain_page.py"
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


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
