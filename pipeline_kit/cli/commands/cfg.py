"""Print the composed config as YAML, without running it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from pipeline_kit.cli.selection import OVERRIDES, Selection, add_selection_flags, subtree
from pipeline_kit.cli.stdio import prepare_stdout, print_out
from pipeline_kit.errors import redacted, without_secrets

TAKES_WORDS = OVERRIDES
EPILOG = """\
examples:
  pipeline-kit cfg task=sentence-embedding checkpoint.path=./my-model
  pipeline-kit cfg --package tokenizer
  pipeline-kit cfg --resolve device=auto      what auto and null became; loads the model
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``cfg``."""
    parser.usage = "pipeline-kit cfg [--resolve] [--package KEY] [OVERRIDE ...]"
    add_selection_flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Print the config."""
    return print_configs(Selection.of(args), args.package, args.resolve)


def print_configs(selection: Selection, package: str | None, resolve: bool) -> int:
    """Print the config, or with ``-m`` all of them as YAML documents that open with their overrides."""
    from pipeline_kit.compose.hydra import to_yaml

    registry = selection.registry()
    prepare_stdout()
    for overrides, config in selection.compositions(registry):
        data: Mapping[str, Any] = config.data
        if resolve:
            from pipeline_kit.compose.build import build

            found = dict(build(config, registry).description)
            found.pop("options", None)  # they stand above
            data = {**data, "resolved": found}
        part = subtree(redacted(data), package)
        if selection.multirun:
            print_out(f"---\n# {' '.join(without_secrets(overrides))}")
        print_out(to_yaml(part) if isinstance(part, Mapping | list) else str(part))
    return 0
