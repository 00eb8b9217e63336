"""Check a config without running it: says ok, or all that is wrong with it."""

from __future__ import annotations

import argparse

from pipeline_kit.cli.selection import OVERRIDES, Selection, add_selection_flags
from pipeline_kit.cli.stdio import print_out
from pipeline_kit.errors import UsageError, for_message, without_secrets

TAKES_WORDS = OVERRIDES
EPILOG = """\
examples:
  pipeline-kit validate task=sentence-embedding padding=none
  pipeline-kit validate my-config.yaml
  pipeline-kit validate --build checkpoint.path=./my-model
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``validate``."""
    parser.usage = "pipeline-kit validate [--build] [FILE.yaml] [OVERRIDE ...]"
    parser.add_argument("--build", action="store_true", help="find the checkpoint and load the model too")
    add_selection_flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Check; the errors are raised."""
    files = [word for word in args.words if word.endswith((".yaml", ".yml")) and "=" not in word]
    if files:
        if len(files) > 1 or args.config is not None:
            raise UsageError(f"validate takes one file; '{for_message(files[-1])}' is one too many")
        args.config = files[0]
        args.words = [word for word in args.words if word not in files]
    selection = Selection.of(args)
    registry = selection.registry()
    for overrides, config in selection.compositions(registry):
        if args.build:
            from pipeline_kit.compose.build import build

            build(config, registry)
        print_out(" ".join(["ok", *without_secrets(overrides)]) if selection.multirun else "ok")
    return 0
