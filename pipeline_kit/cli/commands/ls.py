"""List the stages and presets there are, and where each comes from."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from pipeline_kit.cli.presets import GROUPS, Preset, presets
from pipeline_kit.cli.selection import add_source_flags
from pipeline_kit.cli.stdio import prepare_stdout, print_out, say
from pipeline_kit.cli.tables import columns
from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.contract.registry import Registry

TASK = ("task",)


EPILOG = """\
examples:
  pipeline-kit ls
  pipeline-kit ls tokenizer
  pipeline-kit ls task        with the fields each takes and the keys it gives
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``ls``."""
    parser.add_argument("group", metavar="KIND", nargs="?", choices=GROUPS, help=f"one of {', '.join(GROUPS)}")
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_source_flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Print the list."""
    registry = load_registry(args.plugin, everything=True)
    groups = GROUPS if args.group is None else (args.group,)
    print_groups(registry, args.config_dir, groups, args.json)
    return 0


def print_groups(registry: Registry, config_dirs: list[str], groups: tuple[str, ...], as_json: bool) -> None:
    """Print the stages and presets of `groups`."""
    stages = [
        {"kind": spec.kind, "name": spec.name, "from": spec.source, "summary": spec.summary}
        for spec in registry.specs()
        if spec.kind in groups
    ]
    known = {(preset.group, preset.name): preset for preset in presets(registry, config_dirs, groups)}
    found = [_row(preset, known, groups) for preset in presets(registry, config_dirs, groups)]
    prepare_stdout()
    if as_json:
        from pipeline_kit.files.json_text import json_line

        failed = {name: f"{type(error).__name__}: {error}" for name, error in registry.failed.items()}
        print_out(json_line({"stages": stages, "presets": found, "failed": failed}))
        return
    parts = [
        _section(("KIND", "NAME", "FROM", "SUMMARY"), stages),
        _section(("GROUP", "PRESET", *(("TAKES", "GIVES") if groups == TASK else ()), "FROM", "SUMMARY"), found),
    ]
    print_out("\n\n".join(part for part in parts if part))
    warn_of_failed(registry)


def _row(preset: Preset, known: Mapping[tuple[str, str], Preset], groups: tuple[str, ...]) -> dict[str, Any]:
    """Return the columns of a preset; of tasks, listed by themselves, also fields and result keys."""
    row = {"group": preset.group, "name": preset.name}
    if groups == TASK:
        own = known.get((preset.group, preset.extends or ""), preset)  # an alias has nothing but another's name
        row |= {key: ", ".join(preset.listed(key) or own.listed(key)) for key in ("takes", "gives")}
    return row | {"from": preset.source, "summary": preset.summary}


def warn_of_failed(registry: Registry) -> None:
    """Print plugins that could not be loaded."""
    for name, error in registry.failed.items():
        say(f"warning: plugin {name} failed to load: {type(error).__name__}: {error}; see: pipeline-kit doctor")


def _section(head: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    return columns([head, *(tuple(row.values()) for row in rows)]) if rows else ""
