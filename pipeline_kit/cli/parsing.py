"""Flags and overrides may stand in any order; a flag's value may be any text, even one that looks like a flag."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from pipeline_kit.cli.streams import write_out
from pipeline_kit.errors import UsageError, closest, shorten

__all__ = ["Parser", "parse"]

_DASHES = "\0--"  # argparse drops a value that is just "--"; no argument of a process can hold a NUL


class Parser(argparse.ArgumentParser):
    """An argparse parser without abbreviations whose errors are ours."""

    def __init__(self, prog: str, description: str | None = None, epilog: str | None = None) -> None:
        """Take the texts of the help."""
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def print_help(self, file: Any = None) -> None:
        """Print the help as what was asked for."""
        write_out(self.format_help())

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise UsageError(f"{message}; see: {self.prog} --help")

    @property
    def flags(self) -> dict[str, bool]:
        """Every flag and whether a value follows it."""
        return {flag: action.nargs != 0 for flag, action in self._option_string_actions.items()}


def parse(parser: Parser, argv: Sequence[str], words: str | None = None) -> argparse.Namespace:
    """Parse `argv`; words that belong to no flag become ``args.words``.

    :param words: what such words are, for messages; None if the command takes none.
    :raises UsageError: for an unknown flag, with the closest one, or a word the command does not take.
    """
    flags = parser.flags
    known, rest = _joined(argv, flags)
    args, extra = parser.parse_known_args(known)
    extra += rest
    for name, value in vars(args).items():
        setattr(args, name, _plain(value))
    for word in extra:
        if word.startswith("-") and word not in rest:
            raise _unknown_flag(word.partition("=")[0], parser, flags)
    if extra and words is None:
        raise UsageError(f"{parser.prog} takes no '{shorten(extra[0], 80)}'; see: {parser.prog} --help")
    args.words = extra
    return args


def _joined(argv: Sequence[str], flags: dict[str, bool]) -> tuple[list[str], list[str]]:
    """Tie each long flag to its value with ``=``, and split off what follows ``--``."""
    joined: list[str] = []
    items = iter(argv)
    for item in items:
        if item == "--":
            return joined, list(items)
        if item.startswith("--") and flags.get(item):
            value = next(items, None)
            joined.append(item if value is None else f"{item}={_DASHES if value == '--' else value}")
        elif item.startswith("--") and item.endswith("=--"):
            joined.append(item.removesuffix("--") + _DASHES)
        else:
            joined.append(item)
    return joined, []


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return "--" if value == _DASHES else value


def _unknown_flag(flag: str, parser: Parser, flags: dict[str, bool]) -> UsageError:
    near = closest(flag, list(flags))
    hint = f" Did you mean '{near}'?" if near else f" See: {parser.prog} --help"
    return UsageError(f"unknown flag '{shorten(flag, 80)}'.{hint}")
