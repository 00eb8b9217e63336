"""The words of a command line: flags anywhere, free text that is never mistaken, messages that help."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from harness import cli

from pipeline_kit.cli.app import Parser, parse
from pipeline_kit.cli.selection import Selection, add_selection_flags, subtree
from pipeline_kit.errors import UsageError


def parser() -> Parser:
    made = Parser(prog="pipeline-kit run")
    made.add_argument("--text", action="append", default=[])
    made.add_argument("--quiet", "-q", action="store_true")
    add_selection_flags(made)
    return made


def parsed(*argv: str) -> argparse.Namespace:
    return parse(parser(), argv, words="override")


def test_flags_stand_anywhere_between_overrides() -> None:
    args = parsed("a=1", "--text", "x", "b.c=2", "-q", "+d=3", "--text=y", "~e", "-m", "f=1,2")
    assert args.words == ["a=1", "b.c=2", "+d=3", "~e", "f=1,2"]
    assert (args.text, args.quiet, args.multirun) == (["x", "y"], True, True)


@pytest.mark.parametrize(
    "text", ["-5 degrees", "--", "-m", "--text", "--quiet", "a=b", "${oc.env:HOME}", "Hello (world), 日本", "", "@file"]
)
def test_any_text_can_follow_a_flag(text: str) -> None:
    args = parsed("--text", text, "a=1", "-q")
    assert args.text == [text]
    assert args.words == ["a=1"]
    assert args.quiet


def test_words_behind_two_dashes_are_no_flags() -> None:
    assert parsed("a=1", "--", "b=-1", "c=2").words == ["a=1", "b=-1", "c=2"]


def test_hydra_flags() -> None:
    args = parsed("-cd", "x", "--config-dir", "y", "-cn", "mine", "-p", "model", "--cfg", "job", "--resolve")
    chosen = Selection.of(args)
    assert (chosen.config_dirs, chosen.config_name, args.package, args.resolve) == (("x", "y"), "mine", "model", True)


def test_a_config_file_is_its_folder_and_name(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("")
    chosen = Selection.of(parsed("--config", str(tmp_path / "mine.yaml"), "-cd", "other"))
    assert (chosen.config_dirs, chosen.config_name) == ((str(tmp_path), "other"), "mine")
    (tmp_path / "mine.yml").write_text("")
    with pytest.raises(UsageError, match=r"name it mine\.yaml"):
        Selection.of(parsed("--config", str(tmp_path / "mine.yml")))


def test_part_of_a_config() -> None:
    data = {"model": {"name": "hf"}, "task": 1}
    assert subtree(data, None) == subtree(data, "_global_") == data
    assert subtree(data, "model.name") == "hf"
    with pytest.raises(UsageError, match=r"has no 'modle'\. Did you mean 'model'\?"):
        subtree(data, "modle")
    with pytest.raises(UsageError, match=r"has no 'x'\. There are: none"):
        subtree(data, "task.x")


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["help"], ["run", "--help"], ["help", "run"], ["ls", "-h"]])
def test_help_goes_to_stdout_and_is_no_error(argv: list[str]) -> None:
    done = cli(*argv)
    assert (done.code, done.err) == (0, "")
    assert "usage: pipeline-kit" in done.out
    assert "examples:" in done.out


def test_debug_shows_the_traceback() -> None:
    done = cli("ls", "--debug", "nothing")
    assert (done.code, "Traceback" in done.err) == (2, True)


def test_an_unexpected_error_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: argparse.Namespace) -> int:
        raise LookupError("secret\x1b[2J of the stars")

    monkeypatch.setattr("pipeline_kit.cli.commands.inspect.Ls.execute", broken)
    done = cli("ls")
    assert (done.code, "Traceback" in done.err) == (1, False)
    assert done.err.startswith("internal error: LookupError: secret\\x1b[2J of the stars\n")
    assert "Traceback" in cli("ls", "--debug").err
