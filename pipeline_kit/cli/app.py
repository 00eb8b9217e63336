"""The front door: finds the subcommand, runs it, turns every error into a line and an exit code."""

from __future__ import annotations

import argparse
import errno
import glob
import os
import platform
import re
import signal
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from pipeline_kit.cli.signals import handled, received
from pipeline_kit.cli.stdio import (
    discard_stdout,
    flush_out,
    hold_closed,
    print_out,
    results_apart,
    say,
    use_utf8,
    write_out,
)
from pipeline_kit.contract.spelling import command_line
from pipeline_kit.contract.version import __version__
from pipeline_kit.errors import PipelineKitError, UsageError, did_you_mean, for_message, learn_environment

PROG = "pipeline-kit"

COMMANDS = {
    "run": "run a pipeline over texts or a file",
    "serve": "answer HTTP requests with a pipeline",
    "explain": "show what happens inside a pipeline, stage by stage",
    "bench": "measure a pipeline, alone or against others",
    "evaluate": "measure how good a pipeline is, on a file with labels",
    "tune": "find the fastest config whose answers stay those of float32",
    "ls": "list the stages and presets there are",
    "show": "show the options of one of them",
    "cfg": "print the composed config",
    "validate": "check a config without running it",
    "doctor": "check this installation",
    "new-plugin": "write a plugin to start from",
    "completion": "print the completion script of a shell",
}
_HIDDEN = ("__complete",)
_HOMES = {**dict.fromkeys(("ls", "show", "cfg", "validate"), "inspect"), "__complete": "completion"}
"""The modules that hold several commands, each as a class."""

EPILOG = """\
examples:
  pipeline-kit run --text "I love this." --text "I hate it."
  pipeline-kit run --input reviews.csv --output labels.jsonl padding=none device.threads=4
  pipeline-kit run -m padding=longest,max_length --text "I love this."
  pipeline-kit show tokenizer/hf

exit codes: 0 done, 1 something failed, 2 wrong usage or config, 129, 130 and 143 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    :param argv: the words behind the program's name; None: those of this process.
    :returns: the exit code.
    """
    if argv is None:
        use_utf8()
    hold_closed()
    words = sys.argv[1:] if argv is None else list(argv)
    with results_apart():
        code = _guarded(words, "--debug" in words)
    if not received:
        return code
    say("the terminal was closed" if received[0] != signal.SIGTERM else "terminated")
    return 128 + received[0]


def _guarded(words: list[str], debug: bool) -> int:
    """Turn whatever is raised into an exit code; print nothing of errors that follow from a signal."""
    try:
        with command_line(), handled(), _plain_warnings():
            learn_environment()
            code = _dispatch(words)
            flush_out()
            return code
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except BrokenPipeError:
        discard_stdout()
        return 141
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        if received:
            return 1
        if isinstance(error, PipelineKitError):
            return _report(error, debug)
        if debug:
            say(traceback.format_exc())
        else:
            say(f"internal error: {type(error).__name__}: {for_message(str(error), 500)}")
            say("(run again with --debug for the traceback, and please report it)")
        return 1


def load_command(name: str) -> Any:
    """Import a subcommand: a module, or a class of one, with ``configure(parser)`` and ``execute(args) -> int``."""
    module = import_module("pipeline_kit.cli.commands." + _HOMES.get(name, name.replace("-", "_")))
    return getattr(module, name.strip("_").capitalize(), module)


def command_and_parser(name: str) -> tuple[Any, Parser]:
    """Return a subcommand and the parser of all its flags."""
    command = load_command(name)
    parser = Parser(prog=f"{PROG} {name}", description=command.__doc__, epilog=getattr(command, "EPILOG", None))
    command.configure(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return command, parser


def _dispatch(words: list[str]) -> int:
    place = next((i for i, word in enumerate(words) if word != "--debug"), None)
    if place is None:
        say(_help())
        return 2
    name, rest = words[place], words[:place] + words[place + 1 :]
    if name in ("-h", "--help", "help") and not [word for word in rest if word in COMMANDS]:
        write_out(_help())
        return 0
    if name in ("-V", "--version"):
        print_out(version_line())
        return 0
    if name == "help":
        name, rest = next(word for word in rest if word in COMMANDS), ["--help"]
    if name not in COMMANDS and name not in _HIDDEN:
        name = _other_name(name)
    command, parser = command_and_parser(name)
    args = parse(parser, rest, words=getattr(command, "TAKES_WORDS", None))
    if hasattr(args, "cfg") and (name == "cfg" or _prints_config(args, name)):
        command = load_command("cfg")
    from pipeline_kit.runtime.calls import no_exit  # here, since a third of the time of --help is imports

    with no_exit(name):
        return int(command.execute(args))


def _prints_config(args: argparse.Namespace, name: str) -> bool:
    """Return whether ``--cfg job`` asks for the config in place of what the command does.

    :raises UsageError: for flags that say how to print where nothing is printed.
    """
    if args.cfg is not None and name == "validate":
        raise UsageError(f"--cfg prints a config; use: {PROG} cfg")
    for flag, passed in (("--package", args.package), ("--resolve", args.resolve)):
        if args.cfg is None and passed:
            raise UsageError(f"{flag} says how to print a config; use it with --cfg job, or with: {PROG} cfg")
    return args.cfg is not None


def _other_name(name: str) -> str:
    """Return the subcommand that `name` is another name of.

    :raises UsageError: with the words to use, if it is none.
    """
    from pipeline_kit.compose import aliases  # here, since few words need it

    found = aliases.COMMANDS.get(name, name)
    if found in COMMANDS:
        return found
    raise UsageError(f"'{name}': {found}") if found != name else _no_command(name)


def _no_command(name: str) -> UsageError:
    names = ", ".join(COMMANDS)
    if name.startswith("-") or "=" in name:
        return UsageError(
            f"'{for_message(name, 80)}': name a subcommand first, such as: {PROG} run {for_message(name, 80)} ..."
        )
    from pipeline_kit.compose import aliases, overrides, plugins  # here, since they take a while

    meant = aliases.alone(name, overrides.options(plugins.load_registry())) or f'--text "{for_message(name, 80)}"'
    hint = did_you_mean(name, COMMANDS) or f" Try: {PROG} run {meant}"
    return UsageError(f"'{for_message(name, 80)}' is not a subcommand.{hint}\n  subcommands: {names}")


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        f"usage: {PROG} [--version] [--help] SUBCOMMAND ...\n\n"
        "Text pipelines as three pluggable stages: tokenizer, model, postprocessor.\n\n"
        f"subcommands ({PROG} SUBCOMMAND --help says more):\n{lines}\n\n{EPILOG.rstrip()}"
    )


def _report(error: PipelineKitError, debug: bool) -> int:
    if debug:
        say("".join(traceback.format_exception(error)))
    faults = getattr(error, "faults", None)
    for text in [str(fault) for fault in faults] if faults else [str(error)]:
        say(f"error: {text}")
    return error.exit_code


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show a library's warning as one line, not with the line of code it came from."""

    def one_line(message: Warning | str, *_: Any, **__: Any) -> str:
        text = str(message)
        if (hydra := re.match(r"In '(.+)': Defaults list is missing `_self_`", text)) is not None:
            text = f"{hydra[1]}.yaml: end its list of defaults with _self_, so that its own values win"
        return f"warning: {for_message(text, 500)}\n"

    before = warnings.formatwarning
    warnings.formatwarning = one_line
    try:
        yield
    finally:
        warnings.formatwarning = before


RARE = "config, less often"
"""The title of the flags that ``--help`` leaves out and ``--help-config`` shows."""
_DASHES = "\0--"  # argparse drops a value that is just "--"; no argument of a process can hold a NUL
_PATHS = ("config", "config_dir", "html", "input", "output", "plot", "plugin", "save")


class Parser(argparse.ArgumentParser):
    """An argparse parser without abbreviations whose errors are ours."""

    rare = False

    def __init__(self, prog: str, description: str | None = None, epilog: str | None = None) -> None:
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

    def _check_value(self, action: argparse.Action, value: object) -> None:
        """Refuse what is not among the choices; name the closest."""
        if action.choices is not None and value not in action.choices:
            name = action.option_strings[0] if action.option_strings else action.metavar
            hint = did_you_mean(str(value), action.choices)
            raise UsageError(f"{name} {for_message(value, 40)}: the choices are {', '.join(action.choices)}.{hint}")

    def print_help(self, file: object = None) -> None:
        """Print the help as all output is printed; the rare flags only if ``--help-config`` asks for them."""
        groups = self._action_groups
        self._action_groups = [group for group in groups if (group.title == RARE) == self.rare]
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
    known, rest = _joined(argv, flags, habits=words == "override")
    parser.rare = "--help-config" in known
    args, extra = parser.parse_known_args(known)
    extra += rest
    for name, value in vars(args).items():
        setattr(args, name, plain := _plain(value))
        if name in _PATHS and plain is not None:
            _check_path(f"--{name.replace('_', '-')}", plain)
    for word in extra:
        if word.startswith("-") and word not in rest:
            flag = word.partition("=")[0]
            hint = did_you_mean(flag, flags) or f" See: {parser.prog} --help"
            raise UsageError(f"unknown flag '{for_message(flag, 80)}'.{hint}")
    if extra and words is None:
        raise UsageError(f"{parser.prog} takes no '{for_message(extra[0], 80)}'; see: {parser.prog} --help")
    args.words = extra
    return args


def _joined(argv: Sequence[str], flags: dict[str, bool], habits: bool) -> tuple[list[str], list[str]]:
    """Tie each long flag to its value with ``=``, and split off what follows ``--``.

    :param habits: write ``--task ner`` and the like, which are no flags, as the overrides that they mean.
    """
    joined: list[str] = []
    items = deque(argv)
    while items:
        item = items.popleft()
        if item == "--":
            return joined, list(items)
        if habits and item.startswith("--") and item.partition("=")[0] not in flags:
            from pipeline_kit.compose.aliases import override_of_flag  # here, since few words need it

            item = override_of_flag(item, items) or item
        if item.startswith("--") and flags.get(item):
            value = items.popleft() if items else None
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
    """See that `value` may be the name of a file, or several such names; whether there is one is checked later."""
    for name in [value] if isinstance(value, str) else value:
        if "://" in name:
            from pipeline_kit.files.storage.base import refuse_secrets

            refuse_secrets(name)
            if flag in ("--html", "--plot", "--save"):
                raise UsageError(f"{flag} {for_message(name)}: this file is written on this machine only; name a path")
        try:
            os.lstat(Path(name).expanduser())
        except (RuntimeError, ValueError, OSError) as error:  # the home of nobody; NUL, or half of a character
            if isinstance(error, OSError) and (error.errno != errno.ENAMETOOLONG or glob.has_magic(name)):
                continue
            why = "it is too long" if isinstance(error, OSError) else error
            raise UsageError(f"{flag} {for_message(name, 80)}: no file can have this name: {why}") from error


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, None if there is none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def requirements(*, extras: bool = False) -> list[str]:
    """Return what the package needs, or its extras need, as its metadata has it; nothing if it is not installed."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        return [line for line in requires(PROG) or [] if ("extra ==" in line) is extras]
    except PackageNotFoundError:
        return []


def version_line() -> str:
    """Return the line that ``--version`` prints."""
    parts = [f"python {platform.python_version()}"]
    parts += [f"{name} {installed_version(name) or 'missing'}" for name in ("torch", "transformers", "hydra-core")]
    return f"{PROG} {__version__} ({', '.join(parts)})"
