"""Print what the last word of a command line may become; the completion scripts call this."""

from __future__ import annotations

import argparse

from pipeline_kit.cli.app import Parser, parse
from pipeline_kit.cli.stdio import print_out
from pipeline_kit.errors import PipelineKitError

_OFTEN = {"--vs": ("transformers", "transformers:8")}  # values of a flag that takes others too
_COMPOSING = ("run", "explain", "bench", "evaluate", "tune", "cfg", "validate")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the argument: the line up to the cursor."""
    parser.add_argument("line")


def execute(args: argparse.Namespace) -> int:
    """Print the candidates, one a line; none for a line that makes no sense."""
    try:
        found = completions(args.line)
    except (PipelineKitError, OSError, ValueError):
        return 0
    if found:
        print_out("\n".join(found))
    return 0


def completions(line: str) -> list[str]:
    """Return what the last word of `line` may become, whole words."""
    from pipeline_kit.cli.app import COMMANDS, load_command

    *before, word = line.split(" ")
    before = [item for item in before if item][1:]
    if not before:
        return [name for name in (*COMMANDS, "--help", "--version") if name.startswith(word)]
    command, rest = before[0], before[1:]
    if command not in COMMANDS:
        return []
    parser = Parser(prog=command)
    load_command(command).configure(parser)
    parser.add_argument("--debug", action="store_true")
    if rest and parser.flags.get(rest[-1]):
        choices = parser._option_string_actions[rest[-1]].choices
        known = _OFTEN.get(rest[-1], ()) if choices is None else choices
        return [value for value in known if value.startswith(word)]
    if word.startswith("-"):
        return sorted(flag for flag in parser.flags if flag.startswith(word) and flag.startswith("--"))
    return _overrides(parser, rest, word) if command in _COMPOSING else _names(command, word)


def _overrides(parser: Parser, rest: list[str], word: str) -> list[str]:
    from pipeline_kit.compose.compose import complete
    from pipeline_kit.compose.plugins import load_registry

    args = parse(parser, rest, words="override")
    registry = load_registry(args.plugin, everything=True)
    line = " ".join([*(item for item in args.words if "=" in item), word])
    return complete(line, registry, args.config_dir)


def _names(command: str, word: str) -> list[str]:
    from pipeline_kit.cli.commands.completion import SCRIPTS
    from pipeline_kit.compose.compose import options
    from pipeline_kit.compose.plugins import load_registry

    if command == "completion":
        return [name for name in SCRIPTS if name.startswith(word)]
    if command not in ("ls", "show"):
        return []
    groups = options(load_registry(everything=True))
    names = [*groups] if command == "ls" else [f"{group}/{name}" for group in groups for name in sorted(groups[group])]
    return [name for name in names if name.startswith(word)]
