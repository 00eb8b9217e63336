"""The front door: finds the subcommand, runs it, turns every error into a line and an exit code."""

from __future__ import annotations

import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from pipeline_kit.cli.parsing import Parser, parse
from pipeline_kit.cli.signals import handled, received
from pipeline_kit.cli.startup import use_utf8
from pipeline_kit.cli.streams import discard_stdout, flush_out, hold_closed, print_out, results_apart, say, write_out
from pipeline_kit.errors import PipelineKitError, UsageError, closest, shorten
from pipeline_kit.isolate import no_exit
from pipeline_kit.redaction import learn_environment

__all__ = ["COMMANDS", "load_command", "main"]

PROG = "pipeline-kit"

COMMANDS = {
    "run": "run a pipeline over texts or a file",
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
        with handled(), _plain_warnings():
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
            say(f"internal error: {type(error).__name__}: {shorten(str(error), 500)}")
            say("(run again with --debug for the traceback, and please report it)")
        return 1


def load_command(name: str) -> Any:
    """Import the module of a subcommand: it has ``configure(parser)`` and ``execute(args) -> int``."""
    return import_module("pipeline_kit.cli." + name.strip("_").replace("-", "_"))


def _dispatch(words: list[str]) -> int:
    place = next((i for i, word in enumerate(words) if word != "--debug"), None)
    if place is None:
        say(_help())
        return 2
    name, rest = words[place], words[:place] + words[place + 1 :]
    if name in ("-h", "--help", "help") and not [word for word in rest if word in COMMANDS]:
        write_out(_help())
        return 0
    if name == "help":
        name, rest = next(word for word in rest if word in COMMANDS), ["--help"]
    if name in ("-V", "--version"):
        from pipeline_kit.cli.versions import version_line

        print_out(version_line())
        return 0
    if name not in COMMANDS and name not in _HIDDEN:
        raise _no_command(name)
    command = load_command(name)
    parser = Parser(prog=f"{PROG} {name}", description=command.__doc__, epilog=getattr(command, "EPILOG", None))
    command.configure(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parse(parser, rest, words=getattr(command, "TAKES_WORDS", None))
    with no_exit(name):
        return int(command.execute(args))


def _no_command(name: str) -> UsageError:
    names = ", ".join(COMMANDS)
    if name.startswith("-") or "=" in name:
        return UsageError(
            f"'{shorten(name, 80)}': name a subcommand first, such as: {PROG} run {shorten(name, 80)} ..."
        )
    near = closest(name, list(COMMANDS))
    hint = f" Did you mean '{near}'?" if near else f' To run on a text: {PROG} run --text "{shorten(name, 80)}"'
    return UsageError(f"'{shorten(name, 80)}' is no subcommand.{hint}\n  subcommands: {names}")


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
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {shorten(str(message), 500)}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before
