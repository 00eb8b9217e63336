"""Fills docs/inside-the-pipeline.md with what ``pipeline-kit explain`` prints; ``python tests/explain_page.py`` does.

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

__all__ = ["PAGE", "filled", "parts_of"]

PAGE = Path(__file__).parent.parent / "docs" / "inside-the-pipeline.md"

_BLOCK = re.compile(r"(```text title=([\w-]+)\.txt\n)(.*?)(```)", re.DOTALL)
_HEADING = re.compile(r"^(\S.*?) ─+$", re.MULTILINE)


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


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
