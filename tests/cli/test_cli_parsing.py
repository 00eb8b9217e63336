"""The words of a command line: flags anywhere, free text that is never mistaken, messages that help."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from pipeline_kit.cli.app import Parser, main, parse
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


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--txt", "a"], r"unknown flag '--txt'\. Did you mean '--text'\?"),
        (["--tex=a"], r"unknown flag '--tex'\. Did you mean '--text'\?"),
        (["-z"], "unknown flag '-z'"),
        (["--text"], "--text.* expected one argument"),
        (["--info", "searchpath"], "--info does not work here; use: pipeline-kit ls"),
        (["-cp", "x"], "-cp does not work here; use --config-dir"),
        (["--shell-completion"], "use: pipeline-kit completion"),
    ],
)
def test_wrong_flags_are_named(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parsed(*argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["I love it"], r'Did you forget --text "I love it"\?'),
        (["mine.yaml"], r"Did you forget --config mine.yaml\?"),
        (["rows.csv"], r"Did you forget --input rows.csv\?"),
        (["--cfg", "hydra"], "--cfg hydra: the choices are job"),
        (["--config", "none.yaml"], "--config none.yaml: pass a YAML file that is there"),
        (["--config", "a.yaml", "-cn", "b"], "both name the config"),
    ],
)
def test_words_that_select_nothing_are_named(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Selection.of(parsed(*argv))


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


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["rnu"], 2, "'rnu' is not a subcommand. Did you mean 'run'?"),
        (["I love it"], 2, 'To run on a text: pipeline-kit run --text "I love it"'),
        (["padding=none"], 2, "name a subcommand first, such as: pipeline-kit run padding=none"),
        (["--text", "x"], 2, "name a subcommand first, such as: pipeline-kit run --text"),
        ([], 2, "usage: pipeline-kit"),
        (["ls", "a", "b"], 2, "pipeline-kit ls takes no 'b'"),
        (["\x1b[31m"], 2, "'\\x1b[31m' is not a subcommand"),
    ],
)
def test_the_front_door(argv: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["help"], ["run", "--help"], ["help", "run"], ["ls", "-h"]])
def test_help_goes_to_stdout_and_is_no_error(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    printed = capsys.readouterr()
    assert "usage: pipeline-kit" in printed.out
    assert "examples:" in printed.out
    assert printed.err == ""


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--debug", "nothing"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_unexpected_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(args: argparse.Namespace) -> int:
        raise LookupError("secret\x1b[2J of the stars")

    monkeypatch.setattr("pipeline_kit.cli.commands.ls.execute", broken)
    assert main(["ls"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("internal error: LookupError: secret\\x1b[2J of the stars\n")
    assert "Traceback" not in printed
    assert main(["ls", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
