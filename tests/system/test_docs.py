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
import gc
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import warm
from harness import builtins, cli, layout_of, task_of
from parity_tasks import CASES

from pipeline_kit import builtin
from pipeline_kit.cli.app import COMMANDS, command_and_parser
from pipeline_kit.cli.selection import _UNSUPPORTED
from pipeline_kit.compose.schema import POLICIES
from pipeline_kit.contract.options import list_options
from pipeline_kit.contract.registry import KINDS, Registry
from pipeline_kit.testing.__main__ import main as write_checkpoint
from pipeline_kit.testing.checkpoints import ARCHITECTURES, STYLES

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKING = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "plugins").glob("*/README.md"))]
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
    if words[:3] == ["python", "-m", "pytest"]:
        tested = warm.run("-m", "pytest", *warm.IMPORTED, *words[3:])
        assert tested.returncode == 0, f"{line}\n{tested.out}\n{tested.err}"
        return tested.out
    done = subprocess.run(["bash", "-ec", line], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def expect(text: str, printed: str, where: str) -> None:
    squeezed = " ".join(printed.split())
    for line in text.splitlines():
        parts = [re.escape(" ".join(part.split())) for part in re.split(r"…|\.\.\.", line)]
        assert re.search(".*?".join(parts), squeezed), f"{where}: not printed: {line}\n{printed}"


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # clients leave their sockets open
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
    space.clear()
    gc.collect()  # here, where clients may leave their sockets open; else it happens in whatever test comes next


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


def test_the_site_has_every_page_option_and_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    made: dict[str, str] = import_module("doc_site").pages()
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    written = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.name != "README.md"]
    assert [page for page in (*made, *written) if f": {page}\n" not in listed] == []

    registry = Registry()
    builtin.register(registry)
    schemas = [*POLICIES.items(), *((spec.kind, spec.config) for kind in KINDS for spec in registry.specs(kind))]
    options = [(group, f"`{group}.{option.name}`") for group, schema in schemas for option in list_options(schema)]
    assert len(options) > 100
    assert [option for group, option in options if option not in made[f"reference/config/{group}.md"]] == []

    flags = [flag for name in COMMANDS for flag in command_and_parser(name)[1].flags]
    assert {flag for flag in flags if f"`{flag}`" not in made["reference/cli.md"]} <= set(_UNSUPPORTED)


def test_the_files_of_tests_that_the_docs_name_are_there() -> None:
    named = {name for page in LINKING for name in re.findall(r"`(test_\w+\.py)`", page.read_text(encoding="utf-8"))}
    ours = {path.name for path in (ROOT / "tests").rglob("test_*.py")} | {"test_keyword.py", "test_shout.py"}
    assert named <= ours


def architectures_tested() -> dict[str, set[str]]:
    """Return the architectures that the tests of parity have, by task, from the lists that they run."""
    tests = ROOT / "tests"
    found: dict[str, set[str]] = {spec.detail.name: set() for spec in builtins().specs("task")}
    for case in CASES:
        found[case.parity.task].add(case.architecture)
    for case in runpy.run_path(str(tests / "builtin/tasks/embedding/test_sentence_modules.py"))["CASES"]:
        found["sentence-embedding"].add(case.architecture)
    states = runpy.run_path(str(tests / "builtin/models/test_models.py"))["BASES"]
    found["feature-extraction"] |= {architecture for architecture, _ in states}
    answers, texts = (
        json.loads((tests / "golden" / f"{name}.json").read_text(encoding="utf-8"))["cases"].values()
        for name in ("question_answering", "text2text")
    )
    found["question-answering"] |= {case["checkpoint"]["architecture"] for case in answers}
    for case in texts:
        architecture = "m2m_100" if case["architecture"] == "translator" else case["architecture"]
        found[case["task"].partition("_")[0]].add(architecture)
    return found


def styles_tested() -> dict[str, set[str]]:
    """Return the architectures of tiny checkpoints by the model of their tokenizer."""
    names = {"wordpiece": "WordPiece", "bytes": "byte-level BPE", "unigram": "Unigram"}
    found: dict[str, set[str]] = {name: set() for name in names.values()}
    for architecture, made in ARCHITECTURES.items():
        found[names[STYLES[made.tokenizer].model]].add(architecture)
    return found


def test_the_page_of_checkpoints_lists_what_is_tested() -> None:
    page = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[`([\w-]+)`\]\([^)]*\) \| `([\w-]+)` \| ([^|]*) \|", page, re.M)
    assert {task: head for task, head, _ in rows} == {task: task_of(task).head for task in architectures_tested()}
    assert {task: set(re.findall(r"`(.*?)`", names)) for task, _, names in rows} == architectures_tested()
    styles = {
        name: set(re.findall(r"`(.*?)`", names)) for name, names in re.findall(r"^\| ([\w -]+) \| (.*) \|$", page, re.M)
    }
    assert {name: styles.get(name) for name in styles_tested()} == styles_tested()


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent.name == "tasks"], ids=lambda page: page.stem)
def test_pages_of_tasks_name_its_fields_and_keys(page: Path) -> None:
    named: dict[str, set[str]] = {"takes": set(), "gives": set()}
    part = ""
    for head, keys in re.findall(r"^\| (takes|gives|) ?\| (`.*?`) \|", page.read_text(encoding="utf-8"), re.M):
        part = head or part
        named[part] |= set(re.findall(r"`(\w+)`", keys))
    if part:
        task = task_of(page.stem)
        assert named["takes"] == {key.rstrip("?") for key in task.takes}
        assert named["gives"] - {"truncated", "windows"} == set(layout_of(task.postprocessor).results)
