"""Runs every command and snippet of README.md and docs/.

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

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
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


def run(command: list[str], folder: Path, where: str) -> str:
    bin_folder = Path(sys.executable).parent
    # Wide enough that a table in the expected output is not folded; no colour codes in it either.
    env = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "160", "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{where}: {command[-1]}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


INTERPRETER = """
import sys, traceback
space = {"__name__": "__main__"}
while True:
    size = sys.stdin.readline()
    if not size:
        break
    try:
        exec(compile(sys.stdin.read(int(size)), "<snippet>", "exec"), space)
        print(DONE, flush=True)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        print(FAILED, flush=True)
"""
DONE, FAILED = "=== block done ===", "=== block failed ==="


class Interpreter:
    """One process that runs the python blocks of a page, one after the other, in one namespace."""

    def __init__(self, folder: Path) -> None:
        source = INTERPRETER.replace("DONE", repr(DONE)).replace("FAILED", repr(FAILED))
        self.process = subprocess.Popen(
            [sys.executable, "-c", source],
            cwd=folder,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, block: str, where: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{len(block)}\n{block}")
        self.process.stdin.flush()
        printed = ""
        for line in self.process.stdout:
            if line.strip() in (DONE, FAILED):
                assert line.strip() == DONE, f"{where}\n{printed}"
                return printed
            printed += line
        raise AssertionError(f"{where}: the interpreter ended\n{printed}")

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture
def interpreter(tmp_path: Path) -> Iterator[Interpreter]:
    found = Interpreter(tmp_path)
    yield found
    found.close()


def expect(text: str, printed: str, where: str) -> None:
    squeezed = " ".join(printed.split())
    for line in text.splitlines():
        parts = [re.escape(" ".join(part.split())) for part in re.split(r"…|\.\.\.", line)]
        assert re.search(".*?".join(parts), squeezed), f"{where}: not printed: {line}\n{printed}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_snippet_runs(page: Path, tmp_path: Path, interpreter: Interpreter) -> None:
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
            printed = "".join(run(["bash", "-ec", line], tmp_path, where) for line in command.splitlines() if line)
        elif block.language == "python":
            printed = interpreter.run(block.text, where)
        elif block.language == "text":
            expect(block.text, printed, where)
        else:
            raise AssertionError(f"{where}: a block of '{block.language}' without a title is never run")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
