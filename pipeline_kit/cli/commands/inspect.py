"""The commands that run nothing: ``cfg`` and ``validate`` for a config, ``ls`` and ``show`` for what it may choose."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from pipeline_kit.cli.presets import Preset, presets
from pipeline_kit.cli.selection import OVERRIDES, Selection, add_selection_flags, add_source_flags, subtree
from pipeline_kit.cli.stdio import prepare_stdout, print_out, say
from pipeline_kit.cli.tables import columns
from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.compose.schema import GROUPS, POLICIES
from pipeline_kit.contract.options import OptionInfo, defaults, list_options
from pipeline_kit.contract.registry import BUILTIN, KINDS, Registry, Spec, Task
from pipeline_kit.errors import HIDDEN, ConfigError, UsageError, closest_match, for_message, redacted, without_secrets
from pipeline_kit.files.json_text import json_line

TASK = ("task",)
UNGROUPED = {
    "view": 'explain --view {} --text "I love this."',
    "input_format": "run --input FILE.{}",
    "scheme": "run --input {}://FOLDER/FILE.jsonl",
    "output_format": "run --input texts.txt --output FILE.{}",
}
"""What is registered by name and is not a group of options, with how to use it."""
LISTED = (*GROUPS, *UNGROUPED)


class Cfg:
    """Print the composed config as YAML, without running it."""

    TAKES_WORDS = OVERRIDES
    EPILOG = """\
examples:
  pipeline-kit cfg task=sentence-embedding checkpoint.path=./my-model
  pipeline-kit cfg --package tokenizer
  pipeline-kit cfg --resolve device=auto      what auto and null became; loads the model
"""

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        """Add the flags of ``cfg``."""
        parser.usage = "pipeline-kit cfg [--resolve] [--package KEY] [OVERRIDE ...]"
        add_selection_flags(parser)

    @staticmethod
    def execute(args: argparse.Namespace) -> int:
        """Print the config, or with ``-m`` all of them as YAML documents that open with their overrides."""
        from pipeline_kit.compose.hydra import to_yaml

        selection = Selection.of(args)
        registry = selection.registry()
        prepare_stdout()
        for overrides, config in selection.compositions(registry):
            data: Mapping[str, Any] = config.data
            if args.resolve:
                from pipeline_kit.compose.build import build

                found = dict(build(config).description)
                found.pop("options", None)  # they stand above
                data = {**data, "resolved": found}
            part = subtree(redacted(data), args.package)
            if selection.multirun:
                print_out(f"---\n# {' '.join(without_secrets(overrides))}")
            print_out(to_yaml(part) if isinstance(part, Mapping | list) else str(part))
        return 0


class Validate:
    """Check a config without running it: says ok, or all that is wrong with it."""

    TAKES_WORDS = OVERRIDES
    EPILOG = """\
examples:
  pipeline-kit validate task=sentence-embedding padding=none
  pipeline-kit validate my-config.yaml
  pipeline-kit validate --build checkpoint.path=./my-model
"""

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        """Add the flags of ``validate``."""
        parser.usage = "pipeline-kit validate [--build] [FILE.yaml] [OVERRIDE ...]"
        parser.add_argument("--build", action="store_true", help="load the model too, from the hub if it is there")
        add_selection_flags(parser)

    @staticmethod
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
            from pipeline_kit.compose.build import build, check

            for part in config.parts.values():
                check(part)
            if args.build:
                build(config)
            print_out(" ".join(["ok", *without_secrets(overrides)]) if selection.multirun else "ok")
        return 0


class Ls:
    """List the stages and presets there are, and where each comes from."""

    EPILOG = """\
examples:
  pipeline-kit ls
  pipeline-kit ls tokenizer
  pipeline-kit ls task        with the fields each takes and the keys it gives
"""

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        """Add the flags of ``ls``."""
        parser.add_argument("group", metavar="KIND", nargs="?", choices=LISTED, help=f"one of {', '.join(LISTED)}")
        parser.add_argument("--json", action="store_true", help="as JSON")
        add_source_flags(parser)

    @staticmethod
    def execute(args: argparse.Namespace) -> int:
        """Print the list."""
        registry = load_registry(args.plugin, everything=True)
        groups = LISTED if args.group is None else (args.group,)
        print_groups(registry, args.config_dir, groups, args.json)
        return 0


def print_groups(
    registry: Registry, config_dirs: list[str], groups: tuple[str, ...], as_json: bool, name: str | None = None
) -> None:
    """Print the stages and presets of `groups`, or those among them that are called `name`."""
    stages = [
        {
            "kind": spec.kind,
            "name": spec.name,
            **(_fields_and_keys(spec, registry) if groups == TASK else {}),
            "from": spec.source,
            "summary": spec.summary,
        }
        for spec in registry.specs()
        if spec.kind in groups and name in (None, spec.name)
    ]
    found = [
        {"group": preset.group, "name": preset.name, "from": preset.source, "summary": preset.summary}
        for preset in presets(registry, config_dirs, groups)
        if name in (None, preset.name)
    ]
    prepare_stdout()
    if as_json:
        failed = {name: f"{type(error).__name__}: {error}" for name, error in registry.failed.items()}
        print_out(json_line({"stages": stages, "presets": found, "failed": failed}))
        return
    parts = [
        _section(("KIND", "NAME", *(("TAKES", "GIVES") if groups == TASK else ()), "SUMMARY"), stages),
        _section(("GROUP", "PRESET", "SUMMARY"), found),
    ]
    print_out("\n\n".join(part for part in parts if part))
    warn_of_failed(registry)


def _fields_and_keys(spec: Spec, registry: Registry) -> dict[str, str]:
    """Return the fields that a task takes and the keys of its results."""
    gives = registry.get("postprocessor", spec.detail.postprocessor).detail
    return {"takes": ", ".join(spec.detail.takes), "gives": ", ".join(gives or ())}


def warn_of_failed(registry: Registry) -> None:
    """Print plugins that could not be loaded."""
    for name, error in registry.failed.items():
        say(f"warning: plugin {name} failed to load: {type(error).__name__}: {error}; see: pipeline-kit doctor")


def _section(head: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    """Lay out rows; behind the summary of one that is not built in stands in brackets where it is from."""
    shown = []
    for row in rows:
        *cells, source, summary = row.values()
        shown.append((*cells, summary if source == BUILTIN else f"{summary} [{source}]".lstrip()))
    return columns([head, *shown], whole=2) if rows else ""


class Show:
    """Show a stage, preset or group: its options with types and defaults, where it comes from, how to use it."""

    EPILOG = """\
examples:
  pipeline-kit show tokenizer/hf
  pipeline-kit show padding
  pipeline-kit show checkpoint/tiny_sentiment
"""

    @staticmethod
    def configure(parser: argparse.ArgumentParser) -> None:
        """Add the flags of ``show``."""
        parser.add_argument("what", metavar="KIND/NAME", help="such as tokenizer/hf; a KIND alone for its options")
        parser.add_argument("--json", action="store_true", help="as JSON")
        add_source_flags(parser)

    @staticmethod
    def execute(args: argparse.Namespace) -> int:
        """Print what there is to know."""
        group, _, name = args.what.replace("=", "/", 1).partition("/")
        registry = load_registry(args.plugin, everything=True)
        if group not in LISTED:
            there = {(spec.kind, spec.name) for spec in registry.specs() if spec.kind in LISTED}
            there |= {(preset.group, preset.name) for preset in presets(registry, args.config_dir)}
            called = [kind for kind, other in there if other == group and not name]
            if len(called) > 1:
                print_groups(registry, args.config_dir, LISTED, args.json, name=group)
                return 0
            if not called:
                raise _no_kind(group, name, {other: f"{kind}/{other}" for kind, other in sorted(there)})
            group, name = called[0], group
        if not name and group in (*KINDS, *UNGROUPED):
            print_groups(registry, args.config_dir, (group,), args.json)
            return 0
        found = list(presets(registry, args.config_dir, (group,)))
        spec = next((spec for spec in registry.specs(group) if spec.name == name), None)
        preset = next((preset for preset in found if preset.name == name), None)
        if name and spec is None and preset is None:
            known = sorted({*(spec.name for spec in registry.specs(group)), *(preset.name for preset in found)})
            raise ConfigError([registry.unknown(group, name, tuple(known))])
        if spec is not None and group == "task":
            shown = _task(spec, registry)
        elif spec is not None:
            shown = _stage(spec, _extending(spec, found, registry, args.config_dir), registry)
        elif preset is not None:
            shown = _preset(preset)
        else:
            shown = {"kind": group, "presets": [*(one.name for one in registry.specs(group)), *(p.name for p in found)]}
        if spec is None and group in POLICIES:
            shown["options"] = _options(group, list_options(POLICIES[group]))
        prepare_stdout()
        print_out(json_line(shown) if args.json else _text(shown))
        warn_of_failed(registry)
        return 0


def _no_kind(group: str, name: str, there: Mapping[str, str]) -> UsageError:
    """Name the kind, or the stage or preset among `there`, that was most likely meant."""
    near = closest_match(group, (*LISTED, *(() if name else there)))
    meant = f"{near}/{name or '...'}" if near in LISTED else there.get(near or "")
    hint = f" Did you mean '{meant}'?" if meant else ""
    return UsageError(f"'{for_message(group, 80)}' is not a kind.{hint}\n  kinds: {', '.join(LISTED)}")


def _task(spec: Spec, registry: Registry) -> dict[str, Any]:
    from pipeline_kit.compose.hydra import to_yaml
    from pipeline_kit.compose.schema import task_preset

    task: Task = spec.detail
    evaluators = {found.name: found.target for found in registry.specs("evaluator")}
    use = "# @package _global_\n# DIR/task/mine.yaml, used with: --config-dir DIR task=mine\n"
    return {
        "kind": "task",
        "name": spec.name,
        "summary": spec.summary,
        "from": spec.source,
        **_fields_and_keys(spec, registry),
        "head": task.head,
        "evaluator": evaluators.get(task.name),
        "parameters": ", ".join(task.parameters),
        "yaml": use + to_yaml(task_preset(spec)),
        "run": f"pipeline-kit run task={spec.name} {task.run}",
        "override": task.tip,
    }


def _stage(spec: Spec, extending: list[str], registry: Registry) -> dict[str, Any]:
    options = [option for option in list_options(spec.config) if option.name != "name"]
    # A stage that a task brings with it is tried with that task: another one's head would not fit.
    tasks: list[Task] = [found.detail for found in registry.specs("task")]
    task = next((task for task in tasks if getattr(task, spec.kind, None) == spec.name), None)
    no_value: tuple[Any, ...] = ("???", None, {}, [], HIDDEN)
    settable = [o for o in options if redacted(o.default, f"{spec.kind}.{o.name}") not in no_value]
    first = "".join(f" {spec.kind}.{o.name}={_value(o.default)}" for o in settable[:1])
    shown = {
        "kind": spec.kind,
        "name": spec.name,
        "summary": spec.summary,
        "class": spec.target,
        "from": spec.source,
        "presets": extending,
        "options": _options(spec.kind, options),
    }
    if spec.kind in UNGROUPED:
        return shown | {"run": f"pipeline-kit {UNGROUPED[spec.kind].format(spec.name)}"}
    run = f'{spec.kind}={spec.name}{first} --text "I love this."' if task is None else f"task={task.name} {task.run}"
    return shown | {"yaml": _yaml(spec), "run": f"pipeline-kit run {run}"}


def _preset(preset: Preset) -> dict[str, Any]:
    return {
        "kind": preset.group,
        "name": preset.name,
        "summary": preset.summary,
        "from": preset.source,
        "yaml": preset.text,
        "run": preset.run_line or f'pipeline-kit run {preset.group}={preset.name} --text "I love this."',
    }


def _extending(spec: Spec, found: list[Preset], registry: Registry, config_dirs: list[str]) -> list[str]:
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


def _yaml(spec: Spec) -> str:
    from pipeline_kit.compose.hydra import to_yaml

    use = f"# DIR/{spec.kind}/mine.yaml, used with: --config-dir DIR {spec.kind}=mine\n"
    head = f"{use}defaults:\n  - {spec.name}\n  - _self_\n"
    options = redacted({key: value for key, value in defaults(spec.config).items() if key != "name"}, spec.kind)
    return head + (to_yaml(options) if options else "")


def _text(shown: Mapping[str, Any]) -> str:
    title = shown["kind"] + (f"/{shown['name']}" if "name" in shown else "")
    parts = [columns([(title + (f": {shown['summary']}" if shown.get("summary") else ""),)], whole=0)]
    listed = {**shown, "presets": ", ".join(shown.get("presets", ()))}
    named = ("class", "from", "presets", "takes", "gives", "head", "evaluator", "parameters")
    facts = [(f"{key}:", listed[key]) for key in named if listed.get(key) not in (None, "", BUILTIN)]
    if facts:
        parts[0] += "\n" + columns(facts, indent="  ")
    if "options" in shown:
        rows = [(o["name"], o["type"], _value(o["default"]), o["help"]) for o in shown["options"]]
        table = columns([("OPTION", "TYPE", "DEFAULT", "HELP"), *rows], indent="  ") if rows else "  none"
        key = f"--view {shown['name']}" if shown["kind"] == "view" else shown["kind"]
        parts.append(f"options, set with {key}.OPTION=VALUE\n{table}")
    if "yaml" in shown:
        parts.append("yaml\n" + "\n".join(f"  {line}".rstrip() for line in shown["yaml"].strip().splitlines()))
    if "run" in shown:
        parts.append(f"run\n  {shown['run']}")
    if shown.get("override"):
        parts.append(f"override\n  {shown['override']}")
    return "\n\n".join(parts)


def _value(value: Any) -> str:
    if value == "???":
        return "required"
    return value if isinstance(value, str) else json_line(value)
