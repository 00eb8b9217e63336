"""From overrides to a checked config: every fault in one go, nothing executed."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from pipeline_kit.compose import hydra, plugins
from pipeline_kit.compose.schema import POLICIES, PipelineConfig, StageChoice, parse_config
from pipeline_kit.compose.yaml_scan import resolved_size, scalars_in, scan_data, scan_text, scan_yaml
from pipeline_kit.contract.registry import KINDS, Registry
from pipeline_kit.errors import ConfigError, Fault, closest_match, for_message, learn, learn_environment

MAX_OVERRIDE = 64 * 1024
MAX_RESOLVED = 1024 * 1024
GROUPS = (*POLICIES, *KINDS)
_KEY = re.compile(r"\+{0,2}[A-Za-z_][\w-]*(\.[\w $-]+|\[\d+\])*")


def compose(
    overrides: Sequence[str] = (),
    *,
    registry: Registry | None = None,
    config_dir: Sequence[str | Path] = (),
    config_name: str = "config",
) -> PipelineConfig:
    """Compose the packaged config, the user's folders and `overrides`, and check the result.

    :param overrides: as Hydra takes them: ``padding=longest``, ``tokenizer.max_length=128``.
    :param config_dir: folders with YAML of the user's own: groups, presets, whole configs.
    :param config_name: the config to start from; one of a user's folder extends ``config``.
    :raises ConfigError: with every fault that was found.
    """
    registry = plugins.load_registry() if registry is None else registry
    _learn(overrides)
    faults: list[Fault] = []
    try:
        folders = _user_folders(config_dir, registry, config_name)
        accepted = _accepted(overrides, registry, folders, faults)
        try:
            data = hydra.compose_container(registry, accepted, config_name, folders)
        except MissingConfigException:
            # A preset of the user's may extend a stage whose plugin is called otherwise than the stage.
            plugins.load_all_plugins(registry)
            data = hydra.compose_container(registry, accepted, config_name, folders)
        unsafe = list(scan_data(data))
        if unsafe:
            raise ConfigError(unsafe)
        resolved = _resolved(data)
    except ConfigError as error:
        raise ConfigError([*faults, *error.faults]) from error
    except Exception as error:  # Hydra, OmegaConf and YAML raise many kinds, RecursionError among them
        raise ConfigError([*faults, _hydra_fault(error, config_name, config_dir)]) from error
    return parse_config(resolved, registry, faults)


def sweep(
    overrides: Sequence[str], *, registry: Registry | None = None, config_dir: Sequence[str | Path] = ()
) -> list[list[str]]:
    """Expand overrides in Hydra's sweep syntax into the combinations they stand for.

    :raises ConfigError: if one cannot be parsed.
    """
    registry = plugins.load_registry() if registry is None else registry
    _learn(overrides)
    faults = [fault for text in overrides for fault in _text_faults(text)]
    if faults:
        raise ConfigError(faults)
    try:
        return hydra.expand_sweep(registry, overrides, _user_folders(config_dir, registry))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError([_hydra_fault(error, "config", [])]) from error


def options(registry: Registry, config_dir: Sequence[str | Path] = ()) -> dict[str, dict[str, str]]:
    """List the options of every group and where each comes from."""
    found: dict[str, dict[str, str]] = {group: {} for group in GROUPS}
    for spec in registry.specs():
        found[spec.kind][spec.name] = spec.source
    sources = [("pipeline_kit.conf", "pipeline-kit")]
    sources += [(package.removeprefix("pkg://"), who) for package, who in registry.conf_packages.items()]
    trees: list[tuple[Any, str]] = [(resources.files(package), who) for package, who in sources]
    trees += [(Path(folder), str(folder)) for folder in config_dir]
    for tree, who in trees:
        for group in GROUPS:
            folder = tree / group
            if folder.is_dir():
                names = sorted(item.name for item in folder.iterdir() if item.name.endswith(".yaml"))
                for name in names:
                    found[group].setdefault(name.removesuffix(".yaml"), who)
    return found


def complete(line: str, registry: Registry, config_dir: Sequence[str | Path] = ()) -> list[str]:
    """Return what the last word of a line of overrides may become."""
    *before, word = line.split(" ") if line else [""]
    groups = options(registry, config_dir)
    key, equals, _ = word.partition("=")
    group, dot, name = key.partition(".")
    if equals and not dot:
        found = [f"{key}={value}" for value in groups.get(key, ())]
    elif not dot:
        found = [f"{group}{end}" for group in GROUPS for end in "=."]
    else:
        schema = _schema(group, before, registry, config_dir)
        hints = {} if schema is None else get_type_hints(schema)
        if equals:
            found = [f"{key}={value}" for value in _choices(hints.get(name))]
        else:
            found = [f"{group}.{option}=" for option in hints if option != "name"]
    return sorted(candidate for candidate in found if candidate.startswith(word))


def _learn(overrides: Sequence[str]) -> None:
    """Have the secrets that a message may quote known before the first message."""
    learn_environment()
    for text in overrides:
        learn(text)


def _schema(
    group: str, before: Sequence[str], registry: Registry, config_dir: Sequence[str | Path]
) -> type[Any] | None:
    if group not in KINDS:
        return POLICIES.get(group)
    try:
        overrides = [word for word in before if "=" in word]
        config = compose(overrides, registry=registry, config_dir=config_dir)
    except ConfigError:  # half a line need not be a whole config
        config = compose(registry=registry)
    stage: StageChoice = getattr(config, group)
    return stage.spec.config


def _choices(kind: Any) -> list[str]:
    kinds = (kind, *get_args(kind))
    found = [str(value) for k in kinds if get_origin(k) is Literal for value in get_args(k)]
    found += ["true", "false"] if bool in kinds else []
    return found + (["null"] if type(None) in kinds else [])


def _user_folders(config_dir: Sequence[str | Path], registry: Registry, config_name: str = "") -> list[Path]:
    """Check the user's folders: they exist, their YAML is safe, and none of it hides a built-in option.

    What else is in them is scanned when it is composed.
    """
    faults: list[Fault] = []
    folders = [Path(os.path.expanduser(folder)) for folder in config_dir]
    builtin = options(registry)
    named: set[str] = set()
    for folder in folders:
        if not os.path.isdir(folder):
            faults.append(Fault(f"--config-dir {for_message(str(folder))}", "there is no such folder."))
            continue
        for group in ("", *GROUPS):
            for path in sorted((folder / group).glob("*.yaml")):
                found = scan_yaml(path)
                if path.stem in builtin.get(group, {}) or (not group and path.stem == "config"):
                    where = f"{group}={path.stem}" if group else path.stem
                    faults.append(Fault(str(path), f"has the name of the built-in '{where}'; rename it."))
                if not found:
                    named |= scalars_in(path)
                elif group or path.stem == config_name:  # other files beside --config FILE may be anything
                    faults += found
    if faults:
        raise ConfigError(faults)
    plugins.load_plugins_named(registry, named)
    return folders


def _resolved(data: dict[str, Any]) -> dict[str, Any]:
    size = resolved_size(data)
    if size > MAX_RESOLVED:
        limit = f"{MAX_RESOLVED} characters at the most"
        raise ConfigError([Fault("", "its references make too much text of it.", allowed=(limit,))])
    try:
        return hydra.resolve(data)
    except Exception as error:
        where = str(getattr(error, "full_key", None) or "")
        raise ConfigError([Fault(where, f"a reference cannot be resolved: {_said(error)}.")]) from error


def _accepted(overrides: Sequence[str], registry: Registry, folders: Sequence[Path], faults: list[Fault]) -> list[str]:
    """Sort out what cannot be composed, so that the rest of the config is still checked."""
    known = options(registry, folders)
    accepted: list[str] = []
    for text in overrides:
        problems = _text_faults(text) or _grammar_faults(text)
        group, _, value = text.partition("=")
        if not problems and group in GROUPS:
            # The plugin called like the option is loaded first, and the others only if it does not have it.
            if value not in known[group] and plugins.load_plugins_named(registry, [value]):
                known = options(registry, folders)
            if value not in known[group] and re.fullmatch(r"[\w-]{1,64}", value):
                plugins.load_all_plugins(registry)
                known = options(registry, folders)
            if value not in known[group]:
                problems = [registry.unknown(group, value, tuple(sorted(known[group])))]
            else:
                accepted.append(text)
        elif not problems:
            # Added by force, so that Hydra does not stop at the first unknown key; the check finds them all.
            accepted.append("++" + text.lstrip("+"))
        faults.extend(problems)
    return accepted


def _text_faults(text: str) -> list[Fault]:
    where = for_message(text, 80)
    if len(text) > MAX_OVERRIDE:
        return [Fault(where, f"has {len(text)} characters.", allowed=(f"{MAX_OVERRIDE} at the most",))]
    if re.match(r"[+~]*hydra([./@=]|$)", text):
        return [Fault(where, "sets Hydra's own options, which pipeline-kit keeps to itself.", hint="see: --help")]
    return [Fault(where, problem) for problem in scan_text(text)]


def _grammar_faults(text: str) -> list[Fault]:
    where = for_message(text, 80)
    if text.startswith("~"):
        return [Fault(where, "an option cannot be removed; set another value.")]
    key, equals, value = text.partition("=")
    if not equals:
        hint = f'a text goes behind --text: --text "{where}"; an option is written key=value'
        return [Fault(where, "is not an override.", suggestion=closest_match(key, GROUPS), hint=hint)]
    if "@" in key or "/" in key or not _KEY.fullmatch(key):
        return [
            Fault(where, f"'{for_message(key, 80)}' is not the name of an option.", GROUPS, closest_match(key, GROUPS))
        ]
    if key in GROUPS and "," not in value:
        return []
    try:
        override = hydra.parse_override(text)
    except Exception:  # antlr stops at deep brackets with a RecursionError
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        hint = f"quote a value that holds , = : ( ) [ ] {{ }} or spaces: {key}=\"'{for_message(quoted, 60)}'\""
        return [Fault(where, "its value cannot be parsed.", hint=hint)]
    if override.is_sweep_override():
        hint = "to run each value add -m"
        if key not in GROUPS:
            hint += f"; to give a list write {key}=[{for_message(value, 60)}]"
        return [Fault(where, "has several values.", hint=hint)]
    return []


def _hydra_fault(error: Exception, config_name: str, folders: Sequence[str | Path]) -> Fault:
    if isinstance(error, MissingConfigException) and error.missing_cfg_file == config_name.removeprefix("/"):
        names = tuple(sorted(path.stem for folder in folders for path in Path(folder).glob("*.yaml")))
        where = f"--config-name {for_message(config_name, 80)}"
        return Fault(where, "there is no such config.", names, closest_match(config_name, names))
    if isinstance(error, MissingConfigException):
        return Fault(str(error.missing_cfg_file), "no such option.", tuple(error.options or ()), hint=_said(error))
    return Fault(f"config '{for_message(config_name, 80)}'", f"cannot be composed: {_said(error)}")


def _said(error: Exception) -> str:
    said = for_message(" ".join(str(error).split()), 400)
    return said if isinstance(error, HydraException | OmegaConfBaseException) else f"{type(error).__name__}: {said}"
