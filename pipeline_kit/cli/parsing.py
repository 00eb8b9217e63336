"""Flags and overrides may stand in any order; a flag's value may be any text, even one that looks like a flag."""

from __future__ import annotations

import argparse
import errno
import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from pipeline_kit.cli.streams import print_out
from pipeline_kit.errors import UsageError, closest, shorten

__all__ = ["Parser", "parse"]

_DASHES = "\0--"  # argparse drops a value that is just "--"; no argument of a process can hold a NUL
_PATHS = ("config", "config_dir", "html", "input", "output", "plot", "plugin", "save")


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

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise UsageError(f"{message}; see: {self.prog} --help")

    def print_help(self, file: object = None) -> None:
        """Print the help as all output is printed."""
        print_out(self.format_help(), flush=True)

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
        setattr(args, name, plain := _plain(value))
        if name in _PATHS and plain is not None:
            _check_path(f"--{name.replace('_', '-')}", plain)
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


def _check_path(flag: str, value: str | Sequence[str]) -> None:
    """See that `value` may be the name of a file, or several such names; whether there is one is found out later."""
    for name in [value] if isinstance(value, str) else value:
        try:
            os.lstat(Path(name).expanduser())
        except (RuntimeError, ValueError) as error:  # the home of nobody; NUL, or half of a character
            raise UsageError(f"{flag} {shorten(name, 80)}: no file can have this name: {error}") from error
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG and not glob.has_magic(name):
                raise UsageError(f"{flag} {shorten(name, 80)}: no file can have this name: it is too long") from error


def _unknown_flag(flag: str, parser: Parser, flags: dict[str, bool]) -> UsageError:
    near = closest(flag, list(flags))
    hint = f" Did you mean '{near}'?" if near else f" See: {parser.prog} --help"
    return UsageError(f"unknown flag '{shorten(flag, 80)}'.{hint}")
