"""Show a stage, preset or group: its options with types and defaults, where it comes from, how to use it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any

from pipeline_kit.cli.commands.ls import print_groups, warn_of_failed
from pipeline_kit.cli.presets import GROUPS, Preset, presets
from pipeline_kit.cli.selection import add_source_flags
from pipeline_kit.cli.stdio import prepare_stdout, print_out
from pipeline_kit.cli.tables import columns
from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.compose.schema import POLICIES
from pipeline_kit.contract.options import OptionInfo, defaults, list_options
from pipeline_kit.contract.registry import KINDS, Registry, StageSpec
from pipeline_kit.errors import HIDDEN, ConfigError, UsageError, closest_match, for_message, redacted
from pipeline_kit.files.json_text import json_line

EPILOG = """\
examples:
  pipeline-kit show tokenizer/hf
  pipeline-kit show padding
  pipeline-kit show checkpoint/tiny_sentiment
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``show``."""
    parser.add_argument("what", metavar="KIND/NAME", help="such as tokenizer/hf; a KIND alone for its options")
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_source_flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Print what there is to know."""
    group, _, name = args.what.replace("=", "/", 1).partition("/")
    if group not in GROUPS:
        near = closest_match(group, GROUPS)
        hint = f" Did you mean '{near}/{name or '...'}'?" if near else ""
        raise UsageError(f"'{for_message(group, 80)}' is not a kind.{hint}\n  kinds: {', '.join(GROUPS)}")
    registry = load_registry(args.plugin, everything=True)
    if not name and group in KINDS:
        print_groups(registry, args.config_dir, (group,), args.json)
        return 0
    found = list(presets(registry, args.config_dir, (group,)))
    spec = next((spec for spec in registry.specs(group) if spec.name == name), None)
    preset = next((preset for preset in found if preset.name == name), None)
    if name and spec is None and preset is None:
        known = sorted({*(spec.name for spec in registry.specs(group)), *(preset.name for preset in found)})
        raise ConfigError([registry.unknown(group, name, tuple(known))])
    if spec is not None:
        tasks = list(presets(registry, args.config_dir, ("task",)))
        shown = _stage(spec, _extending(spec, found, registry, args.config_dir), tasks)
    elif preset is not None:
        shown = _preset(preset)
    else:
        shown = {
            "kind": group,
            "options": _options(group, list_options(POLICIES[group])),
            "presets": [p.name for p in found],
        }
    prepare_stdout()
    print_out(json_line(shown) if args.json else _text(shown))
    warn_of_failed(registry)
    return 0


def _stage(spec: StageSpec, extending: list[str], tasks: list[Preset]) -> dict[str, Any]:
    options = list_options(spec.config)
    # A stage that a task brings with it is tried with that task: another one's head would not fit.
    task = next((t for t in tasks if re.search(rf"/{spec.kind}: {spec.name}$", t.text, flags=re.MULTILINE)), None)
    first = next(
        (
            f" {spec.kind}.{o.name}={_value(o.default)}"
            for o in options
            if o.default not in ("???", None, {}, []) and redacted(o.default, f"{spec.kind}.{o.name}") != HIDDEN
        ),
        "",
    )
    return {
        "kind": spec.kind,
        "name": spec.name,
        "summary": spec.summary,
        "class": spec.target,
        "from": spec.source,
        "presets": extending,
        "options": _options(spec.kind, options),
        "yaml": _yaml(spec),
        "run": (task and task.run_line) or f'pipeline-kit run {spec.kind}={spec.name}{first} --text "I love this."',
    }


def _preset(preset: Preset) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "kind": preset.group,
        "name": preset.name,
        "summary": preset.summary,
        "from": preset.source,
        "yaml": preset.text,
        "run": preset.run_line or f'pipeline-kit run {preset.group}={preset.name} --text "I love this."',
    }
    if preset.group in POLICIES and preset.group != "task":
        shown["options"] = _options(preset.group, list_options(POLICIES[preset.group]))
    return shown


def _extending(spec: StageSpec, found: list[Preset], registry: Registry, config_dirs: list[str]) -> list[str]:
    """Name the presets whose composed config is one of this stage."""
    from pipeline_kit.compose.compose import compose

    names: list[str] = []
    for preset in found:
        try:
            config = compose([f"{spec.kind}={preset.name}"], registry=registry, config_dir=config_dirs)
        except ConfigError:
            continue
        if config.data[spec.kind]["name"] == spec.name:
            names.append(preset.name)
    return names


def _options(group: str, options: list[OptionInfo]) -> list[dict[str, Any]]:
    return [
        {"name": o.name, "type": o.type, "default": redacted(o.default, f"{group}.{o.name}"), "help": o.help}
        for o in options
    ]


def _yaml(spec: StageSpec) -> str:
    from pipeline_kit.compose.hydra import to_yaml

    use = f"# DIR/{spec.kind}/mine.yaml, used with: --config-dir DIR {spec.kind}=mine\n"
    head = f"{use}defaults:\n  - {spec.name}\n  - _self_\n"
    options = redacted(defaults(spec.config), spec.kind)
    return head + (to_yaml(options) if options else "")


def _text(shown: Mapping[str, Any]) -> str:
    title = shown["kind"] + (f"/{shown['name']}" if "name" in shown else "")
    parts = [title + (f": {shown['summary']}" if shown.get("summary") else "")]
    listed = {**shown, "presets": ", ".join(shown.get("presets", ()))}
    facts = [(f"{key}:", listed[key]) for key in ("class", "from", "presets") if listed.get(key)]
    if facts:
        parts[0] += "\n" + columns(facts, indent="  ")
    if "options" in shown:
        rows = [(o["name"], o["type"], _value(o["default"]), o["help"]) for o in shown["options"]]
        table = columns([("OPTION", "TYPE", "DEFAULT", "HELP"), *rows], indent="  ") if rows else "  none"
        parts.append(f"options, set with {shown['kind']}.OPTION=VALUE\n{table}")
    if "yaml" in shown:
        parts.append("yaml\n" + "\n".join(f"  {line}".rstrip() for line in shown["yaml"].strip().splitlines()))
    if "run" in shown:
        parts.append(f"run\n  {shown['run']}")
    return "\n\n".join(parts)


def _value(value: Any) -> str:
    if value == "???":
        return "required"
    return value if isinstance(value, str) else json_line(value)
