"""Runs every command and snippet of README.md and docs/, each page in this process, and follows every link.

In these files a fenced block means:

- ```` ```python title=NAME ```` (or yaml, toml, json, csv, text): the file NAME, written to the document's folder;
- ```` ```python ````: executed, in one namespace for the document;
- ```` ```bash ````: each line is run in that folder and must succeed;
- ```` ```bash no-run ````: only shown; the two set-up commands behind ``<!-- install -->`` and ``<!-- test -->``
  are run by .ci/run;
- ```` ```text ```` right behind a bash or python block: each of its lines is in what that block printed, where
  ``…`` stands for anything.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from harness import cli

from pipeline_kit.testing.__main__ import main as write_checkpoint

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKING = [*PAGES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "plugins").glob("*/README.md"))]
RUN_BY_CI = ("<!-- install -->", "<!-- test -->")


@dataclass
class Block:
    """A fenced block: its first line's words, its text, where it stands."""

    words: list[str]
    text: str
    line: int

    @property
    def language(self) -> str:
        return self.words[0] if self.words else ""

    @property
    def title(self) -> str | None:
        return next((word.removeprefix("title=") for word in self.words if word.startswith("title=")), None)


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    inside: Block | None = None
    before = ""
    for number, line in enumerate(lines, start=1):
        if line.startswith("```"):
            if inside is None:
                words = line[3:].split()
                inside = Block([*words, "no-run"] if before in RUN_BY_CI else words, "", number)
            else:
                yield inside
                inside = None
        elif inside is not None:
            inside.text += line + "\n"
        if line.strip():
            before = line.strip()


def run_line(line: str) -> str:
    """Run one line of a shell block: commands of this project in this process, what needs a shell in a shell."""
    may_fail, words = line.endswith(" || true"), shlex.split(line.removesuffix(" || true"))
    if words[0] == "pipeline-kit" and not {"|", ">"} & set(words):
        command = cli(*words[1:])
        assert command.code == 0 or may_fail, f"{line}\n{command.out}\n{command.err}"
        return command.out + command.err
    if words[:3] == ["python", "-m", "pipeline_kit.testing"]:
        with mock.patch.object(sys, "argv", words[2:]):
            write_checkpoint()
        return ""
    done = subprocess.run(["bash", "-ec", line], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def expect(text: str, printed: str, where: str) -> None:
    squeezed = " ".join(printed.split())
    for line in text.splitlines():
        parts = [re.escape(" ".join(part.split())) for part in re.split(r"…|\.\.\.", line)]
        assert re.search(".*?".join(parts), squeezed), f"{where}: not printed: {line}\n{printed}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_snippet_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    # Wide enough that a table in the expected output is not folded; no colour codes in it either.
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NO_COLOR", "1")
    space: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.title is not None:
            target = tmp_path / block.title
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, encoding="utf-8")
        elif "no-run" in block.words:
            continue
        elif block.language == "bash":
            command = re.sub(r"\\\n\s*", "", block.text)
            printed = "".join(run_line(line) for line in command.splitlines() if line)
        elif block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block.text, where, "exec", dont_inherit=True), space)
            printed = out.getvalue()
        elif block.language == "text":
            expect(block.text, printed, where)
        else:
            raise AssertionError(f"{where}: a block of '{block.language}' without a title is never run")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    headings = re.findall(r"^#+ (.*)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            path = page.parent / target if target else page
            assert path.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(path), f"{page.name} links to {target}#{anchor}"


def test_tables_are_up_to_date() -> None:
    filled = runpy.run_path(str(ROOT / "tools" / "doc_tables.py"))["filled"]
    old = [page.name for page in PAGES if filled(page.read_text(encoding="utf-8")) != page.read_text(encoding="utf-8")]
    assert old == [], "run python tools/doc_tables.py"


def test_the_files_of_tests_that_the_docs_name_are_there() -> None:
    named = {name for page in LINKING for name in re.findall(r"`(test_\w+\.py)`", page.read_text(encoding="utf-8"))}
    ours = {path.name for path in (ROOT / "tests").rglob("test_*.py")} | {"test_keyword.py", "test_shout.py"}
    assert named <= ours


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent.name == "tasks"], ids=lambda page: page.stem)
def test_pages_of_tasks_name_its_fields_and_keys(page: Path) -> None:
    named: dict[str, set[str]] = {"takes": set(), "gives": set()}
    part = ""
    for head, keys in re.findall(r"^\| (takes|gives|) ?\| (`.*?`) \|", page.read_text(encoding="utf-8"), re.M):
        part = head or part
        named[part] |= set(re.findall(r"`(\w+)`", keys))
    if part:
        task = yaml.safe_load((ROOT / "conf" / "task" / f"{page.stem}.yaml").read_text(encoding="utf-8"))["task"]
        assert named["takes"] == {key.rstrip("?") for key in task["takes"]}
        assert named["gives"] - {"truncated", "windows"} == {key.rstrip("?") for key in task["gives"]}
