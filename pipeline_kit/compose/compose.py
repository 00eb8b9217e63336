"""From overrides to a checked config: every fault in one go, nothing executed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hydra.errors import MissingConfigException

from pipeline_kit.compose import hydra, plugins
from pipeline_kit.compose.aliases import FIXED, Setting, set_options
from pipeline_kit.compose.faults import grammar_faults, hydra_fault, sentence_of, sweep_fault, text_faults
from pipeline_kit.compose.overrides import OverrideSorter, options
from pipeline_kit.compose.schema import (
    GROUPS,
    MOST_STEPS,
    NAMED_POLICIES,
    POLICIES,
    WHOLE,
    WIRES,
    PipelineConfig,
    of_steps,
    parse_config,
)
from pipeline_kit.compose.yaml_scan import is_config_name, resolved_size, scan_data, scan_yaml
from pipeline_kit.contract.registry import KINDS, Registry
from pipeline_kit.contract.spelling import either, flag
from pipeline_kit.errors import ConfigError, Fault, UsageError, closest_match, for_message, learn, learn_environment

Override = str | Mapping[str, Any]
"""An override as text, or options by their names."""

MAX_RESOLVED = 1024 * 1024
AT_CALL = ("tokenizer", "model", "postprocessor", "padding", "batching")
"""The groups whose options may change from one call of a pipeline to the next, if the weights stay."""
_INSIDE = re.compile(rf"\+*steps\.([^.=]+)\.((?!(?:{'|'.join(WIRES)})(?:[.=]|$))[^=]+(?:=.*)?)", re.DOTALL)
_GROUP = re.compile(r"\+*([\w-]+)=")
_TRUST = re.compile(r"\+*checkpoint\.trust=(pickle|data)")


def compose(
    overrides: Sequence[Override] = (),
    *,
    registry: Registry | None = None,
    config_dir: Sequence[str | Path] = (),
    config_name: str = "config",
) -> PipelineConfig:
    """Compose the packaged config, the user's folders and `overrides`, and check the result.

    :param overrides: as Hydra takes them: ``padding=longest``, ``tokenizer.max_length=128``; or mappings of options,
        whose values are taken as they are and win over those of texts.
    :param config_dir: folders with YAML of the user's own: groups, presets, whole configs.
    :param config_name: the config to start from; one of a user's folder extends ``config``.
    :raises ConfigError: with every fault that was found.
    """
    registry = plugins.load_registry() if registry is None else registry
    overrides = [text if isinstance(text, str) else hydra.plain(text) for text in overrides]
    _learn(overrides)
    faults: list[Fault] = []
    where: _Where = (registry, config_dir, config_name, {})
    inside = [(text, _INSIDE.fullmatch(text) if isinstance(text, str) else None) for text in overrides]
    whole, own = [text for text, found in inside if not found], [(found[1], found[2]) for _, found in inside if found]
    resolved, good = _whole(whole, whole, where, faults)
    known = options(registry, _user_folders(config_dir)) if own else {}

    def compose_step(name: str, node: Mapping[str, Any], faults: list[Fault]) -> dict[str, Any]:
        typed = [override for step, override in own if step == name]
        last = [_typed_options(override, known, faults) for override in typed if not _trust(override)]
        return _whole([*good, node, *last], [*whole, *typed], where, faults, step=True)[0]

    return parse_config(_with_steps(resolved, own, compose_step, faults), registry, faults)


_Where = tuple[Registry, Sequence[str | Path], str, dict[tuple[str, ...], dict[str, Any]]]
"""The registry, the folders of the user, the name of the config to start from; and what was composed of it already, by
the choices: a step that makes none of its own begins as the whole does."""


def _whole(
    overrides: Sequence[Override],
    typed: Sequence[Override],
    where: _Where,
    faults: list[Fault],
    *,
    step: bool = False,
) -> tuple[dict[str, Any], list[Override]]:
    """Compose one config to plain data; return it with the overrides that have no fault of their own.

    :param typed: the overrides that do not come from a config, which alone may trust a checkpoint.
    """
    registry, config_dir, config_name, made = where
    trusts = [found for text in typed if (found := _trust(text))]
    overrides = [text for text in overrides if not _trust(text)]
    good: list[Override] = []
    try:
        folders = _user_folders(config_dir, config_name)
        chosen = OverrideSorter(registry, folders, faults)
        for override in overrides:
            before = len(faults)
            chosen.add(override)
            good += [override] if len(faults) == before else []
        choices = tuple(_chosen_last(chosen.accepted))
        if choices not in made:
            made[choices] = _composed(registry, choices, config_name, folders)
        data = deepcopy(made[choices])
        known = len(faults)
        faults += set_options(data, [setting for setting in chosen.settings if not setting.literal], registry)
        unsafe = list(scan_data(data))
        if unsafe:
            raise ConfigError(unsafe)
        literal = [replace(item, value=hydra.escaped(item.value)) for item in chosen.settings if item.literal]
        faults += set_options(data, literal, registry)
        resolved = _resolved(data)
        if resolved.get("steps") and not step:  # what an option means depends on the step
            del faults[known:]
    except ConfigError as error:
        raise ConfigError([*faults, *error.faults]) from error
    except Exception as error:  # Hydra, OmegaConf and YAML raise many kinds, RecursionError among them
        raise ConfigError([*faults, hydra_fault(error, config_name, config_dir)]) from error
    _set_trust(resolved, trusts, faults)
    own = {text[1:].partition("=")[0].partition("/")[0] for text in chosen.accepted if re.match(r"\+\w", text)}
    for group in own & resolved.keys():
        del resolved[group]
        first = f"write '# @package _global_' as the first line of the file that {group}=NAME chooses"
        faults.append(Fault(group, "its options are not those of a pipeline.", hint=first))
    plugins.load_needed(registry, {group: resolved.get(group) for group in ("input", "output")})
    return resolved, good


def _trust(override: Override) -> re.Match[str] | None:
    return _TRUST.fullmatch(override) if isinstance(override, str) else None


def _set_trust(data: dict[str, Any], trusts: Sequence[re.Match[str]], faults: list[Fault]) -> None:
    """Set ``checkpoint.trust`` as the user's overrides have it, which alone may: they were kept from Hydra.

    What is in the composed data came from a file, a preset, a reference to one, or another way to write an override.
    """
    steps = data.get("steps")
    owners = {"": data, **({f"steps.{name}.": step for name, step in steps.items()} if isinstance(steps, dict) else {})}
    for prefix, owner in owners.items():
        node = owner.get("checkpoint") if isinstance(owner, dict) else None
        if isinstance(node, dict) and node.get("trust") == "pickle":
            problem, path = "no config can set it to 'pickle', since a pickle runs code.", f"{prefix}checkpoint.trust"
            word = f"{path}=pickle"
            hint = either(f"write {word} on the command line, as it is here", f"pass it as the text '{word}'")
            faults.append(Fault(path, problem, hint=hint))
    if trusts and isinstance(data.get("checkpoint"), dict):
        data["checkpoint"]["trust"] = trusts[-1][1]


def _typed_options(override: str, known: Mapping[str, Mapping[str, str]], faults: list[Fault]) -> Mapping[str, Any]:
    """Return an override of a step as options, which win over what the step says in the config.

    :param known: the options of each group.
    """
    problems = text_faults(override) or grammar_faults(override, known, GROUPS)
    key, _, value = override.lstrip("+").partition("=")
    if key.partition(".")[0] in WHOLE:
        problems = [Fault(key, f"is set once for all steps: write {key} without the step.")]
    faults += problems
    return {} if problems else {key: value if key in GROUPS else hydra.parse_override(override).value()}


def _with_steps(
    data: Mapping[str, Any],
    own: Sequence[tuple[str, str]],
    compose_step: Callable[[str, Mapping[str, Any], list[Fault]], dict[str, Any]],
    faults: list[Fault],
) -> dict[str, Any]:
    """Compose the config of each step in `data`; its own options win over those beside the steps.

    :param own: what is typed for single steps.
    """
    found = data.get("steps")
    steps = {str(name): node for name, node in found.items()} if isinstance(found, Mapping) else {}
    known = tuple(steps)
    for name, text in own:
        if name not in known:
            problem = f"there is no step '{for_message(name, 40)}'." if known else "the config has no steps."
            where = for_message(f"steps.{name}.{text}", 80)
            faults.append(Fault(where, problem, known, closest_match(name, known)))
    if not steps or len(steps) > MOST_STEPS:
        return dict(data)
    composed: dict[str, Any] = {}
    wrong: dict[str, list[Fault]] = {name: [] for name in steps}
    broken = False
    for name, node in steps.items():
        if not isinstance(node, Mapping) or "split" in node:
            composed[name] = node
            continue
        try:
            config = compose_step(name, _options(node, wrong[name]), wrong[name])
            wires = {key: node[key] for key in WIRES if key in node}
            composed[name] = {**wires, **{key: value for key, value in config.items() if key not in ("steps", *WHOLE)}}
        except ConfigError as error:
            broken, wrong[name] = True, [*error.faults]
    faults += of_steps(wrong)
    if broken:
        raise ConfigError(faults)
    return {**{group: data[group] for group in WHOLE if group in data}, "steps": composed}


def _options(node: Mapping[str, Any], faults: list[Fault]) -> dict[str, Any]:
    """Return the options of a step, without how it is wired."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        group = str(key).partition(".")[0]
        if group == "steps":
            faults.append(Fault("steps", "a step has no steps of its own."))
        elif group in WHOLE:
            faults.append(Fault(str(key), f"is set once for all steps: write {key} beside 'steps'."))
        elif group not in WIRES:
            found[str(key)] = value
    return found


def _chosen_last(overrides: Sequence[str]) -> list[str]:
    """Drop what another choice for the same group replaces, which Hydra would refuse."""
    last = {match[1]: place for place, text in enumerate(overrides) if (match := _GROUP.match(text))}
    return [
        text for place, text in enumerate(overrides) if not (match := _GROUP.match(text)) or last[match[1]] == place
    ]


def sweep(
    overrides: Sequence[str], *, registry: Registry | None = None, config_dir: Sequence[str | Path] = ()
) -> list[list[str]]:
    """Expand overrides in Hydra's sweep syntax into the combinations they stand for.

    :raises ConfigError: if one cannot be parsed.
    """
    registry = plugins.load_registry() if registry is None else registry
    _learn(overrides)
    faults: list[Fault] = []
    known = options(registry, _user_folders(config_dir))
    for text in overrides:
        faults += (unsafe := text_faults(text))
        try:
            hydra.expand_sweep([] if unsafe else [text], known)
        except ConfigError as error:
            faults += error.faults
        except Exception as error:
            faults.append(sweep_fault(error, text))
    if faults:
        raise ConfigError(faults)
    return hydra.expand_sweep(overrides, known)


def complete(line: str, registry: Registry, config_dir: Sequence[str | Path] = ()) -> list[str]:
    """Return what the last word of a line of overrides may become."""
    *before, word = line.split(" ") if line else [""]
    groups = options(registry, config_dir)
    key, equals, _ = word.partition("=")
    group, dot, name = key.partition(".")
    schema = _schema(group, before, registry, config_dir) if dot else None
    hints = {} if schema is None else get_type_hints(schema)
    if equals:
        found = [f"{key}={value}" for value in (_choices(hints.get(name)) if dot else groups.get(key, ()))]
    elif dot:
        found = [f"{group}.{option}=" for option in hints if option != "name"]
    else:
        found = [f"{group}{end}" for group in GROUPS for end in "=."]
    return sorted(candidate for candidate in found if candidate.startswith(word))


def _learn(overrides: Sequence[Override]) -> None:
    """Have the secrets that a message may quote known before the first message."""
    learn_environment()
    for text in overrides:
        learn(text)


def _schema(
    group: str, before: Sequence[str], registry: Registry, config_dir: Sequence[str | Path]
) -> type[Any] | None:
    if group not in (*KINDS, *NAMED_POLICIES):
        return POLICIES.get(group)
    try:
        overrides = [word for word in before if "=" in word]
        config = compose(overrides, registry=registry, config_dir=config_dir)
    except ConfigError:  # half a line need not be a whole config
        config = compose(registry=registry)
    return config.policies[group].config if group in NAMED_POLICIES else getattr(config, group).spec.config


def _choices(kind: Any) -> list[str]:
    kinds = (kind, *get_args(kind))
    found = [str(value) for k in kinds if get_origin(k) is Literal for value in get_args(k)]
    found += ["true", "false"] if bool in kinds else []
    return found + (["null"] if type(None) in kinds else [])


def _user_folders(config_dir: Sequence[str | Path], config_name: str = "config") -> list[Path]:
    """Check that the user's folders are there, and that the config to start from is safe YAML.

    What else is in them is checked when, and if, it is composed.
    """
    faults: list[Fault] = []
    folders = [Path(os.path.expanduser(folder)) for folder in config_dir]
    for folder in folders:
        first = folder / f"{config_name}.yaml"
        if not os.path.isdir(folder):
            faults.append(Fault(flag("config-dir", for_message(str(folder))), "this folder does not exist."))
        elif config_name != "config" and is_config_name(config_name) and os.path.lexists(first):
            faults += scan_yaml(first)
    if faults:
        raise ConfigError(faults)
    return folders


def _composed(
    registry: Registry, overrides: Sequence[str], config_name: str, folders: Sequence[Path]
) -> dict[str, Any]:
    """Compose, and again with the plugins that the YAML of the user names, or with all where a name stays unknown."""
    words: set[str] = set()
    builtin = {f"{group}/{name}" for group, names in options(registry).items() for name in names} if folders else set()

    def compose_once() -> dict[str, Any]:
        return hydra.compose_container(registry, overrides, config_name, folders, builtin, words)

    try:
        data = compose_once()
    except MissingConfigException:
        if words and plugins.load_plugins_named(registry, words):
            try:
                return compose_once()
            except MissingConfigException:
                pass
        # A preset of the user's may extend a stage whose plugin is called otherwise than the stage.
        plugins.load_all_plugins(registry)
        return compose_once()
    return compose_once() if words and plugins.load_plugins_named(registry, words) else data


def _resolved(data: dict[str, Any]) -> dict[str, Any]:
    size = resolved_size(data)
    if size > MAX_RESOLVED:
        limit = f"{MAX_RESOLVED} characters at the most"
        raise ConfigError([Fault("", "its references make too much text of it.", allowed=(limit,))])
    try:
        return hydra.resolve(data)
    except Exception as error:
        where = str(getattr(error, "full_key", None) or "")
        raise ConfigError([Fault(where, f"a reference cannot be resolved: it {sentence_of(error)[0]}")]) from error


def at_call(config: PipelineConfig, changes: Mapping[str, Any]) -> PipelineConfig:
    """Return `config` with other options of the stages that are light to build anew.

    :raises ConfigError: for other options.
    """
    registry, faults = Registry(), list[Fault]()
    for spec in (config.task.spec, *(getattr(config, kind).spec for kind in KINDS), *config.policies.values()):
        registry.add(spec.kind, spec.name, spec.target, spec.config, detail=spec.detail)
    data = deepcopy(dict(config.data))
    chosen = OverrideSorter(registry, [], faults)
    for key, value in changes.items():
        if key in GROUPS and (key not in AT_CALL or (key in KINDS and not isinstance(value, Mapping))):
            faults.append(Fault(key, FIXED))
        else:
            chosen.add({key: hydra.plain(value, key)})
    for text in chosen.accepted:
        group, _, name = text.partition("=")
        chosen.settings.append(Setting(f"{group}.name", name))
    faults += set_options(data, chosen.settings, registry, AT_CALL)
    return parse_config(data, registry, faults)


def config_file(name: str | os.PathLike[str]) -> Path:
    """Return the YAML file to start from.

    :raises UsageError: if it is none.
    """
    path = Path(os.path.expanduser(name))
    where = flag("config", for_message(str(name)))
    if path.suffix not in (".yaml", ".yml") or not os.path.isfile(path):
        raise UsageError(f"{where}: pass a YAML file that is there, a regular one")
    if path.suffix == ".yml" or path.stem == "config":
        why = "Hydra reads no .yml" if path.suffix == ".yml" else "config.yaml is the name of the packaged config"
        raise UsageError(f"{where}: name it {'mine' if path.stem == 'config' else path.stem}.yaml; {why}")
    return path
