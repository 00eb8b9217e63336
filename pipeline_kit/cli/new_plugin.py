"""Write a plugin to start from: a distribution with one small working stage, whose tests pass at once."""

from __future__ import annotations

import argparse
import keyword
import os
import re
import shlex
from pathlib import Path

from pipeline_kit.cli import scaffold
from pipeline_kit.cli.streams import print_out
from pipeline_kit.errors import UsageError, closest, shorten
from pipeline_kit.registry import KINDS, Kind

__all__ = ["configure", "execute"]

EPILOG = """\
examples:
  pipeline-kit new-plugin postprocessor keyword
  pipeline-kit new-plugin tokenizer bytes --output plugins
"""

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_LONGEST = 32  # so that no line of the files gets too long


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("kind", metavar="KIND", help=f"which stage: {', '.join(KINDS)}")
    parser.add_argument("name", metavar="NAME", help="what it is called in a config: a-z, 0-9 and _")
    parser.add_argument("--output", metavar="DIR", default=".", help="the folder to write pipeline-kit-NAME into")


def execute(args: argparse.Namespace) -> int:
    """Write the plugin and say what to do next.

    :raises UsageError: for a kind or name that cannot be, or a folder that holds something.
    :raises OutputError: if a file cannot be written.
    """
    kind = _kind(args.kind)
    name = _name(args.name, kind)
    folder = Path(os.path.expanduser(args.output)) / scaffold.distribution(name)
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already; choose another NAME or --output, or remove it")
    contents = scaffold.files(kind, name)
    scaffold.write(folder, contents)
    shown = str(folder) if folder.is_absolute() else f"./{folder}"
    print_out(
        f"wrote {folder}: {len(contents)} files; the stage is in src/pk_{name}/stage.py\n"
        "next:\n"
        f"  pip install -e {shlex.quote(shown)}'[test]'\n"
        f"  pytest {shlex.quote(shown)}\n"
        f'  pipeline-kit run --text "I love this." {kind}={name}'
    )
    return 0


def _kind(text: str) -> Kind:
    for kind in KINDS:
        if text == kind:
            return kind
    near = closest(text, KINDS)
    hint = f" Did you mean '{near}'?" if near else ""
    raise UsageError(f"'{shorten(text, 80)}' is no kind of stage: {', '.join(KINDS)}.{hint}")


def _name(text: str, kind: Kind) -> str:
    from pipeline_kit.compose import options
    from pipeline_kit.discovery import load_registry

    if not _NAME.fullmatch(text) or len(text) > _LONGEST:
        made = re.sub(r"[^a-z0-9]+", "_", text[:_LONGEST].lower()).strip("_0123456789")
        hint = f" Try '{made}'." if _NAME.fullmatch(made) else ""
        raise UsageError(
            f"'{shorten(text, 80)}' cannot be a stage's name: a-z, 0-9 and single _ between them, a letter first, "
            f"at most {_LONGEST} characters.{hint}"
        )
    if keyword.iskeyword(text):
        raise UsageError(f"'{text}' is a keyword of Python, which a stage's name cannot be. Try '{text}_{kind}'.")
    if text in options(load_registry())[kind]:
        raise UsageError(f"{kind}={text} is built in already. Try 'my_{text}'.")
    return text
