"""What overrides choose: options of groups, values of options, and what people type for them by habit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline_kit.compose import aliases, hydra, plugins
from pipeline_kit.compose.aliases import Setting
from pipeline_kit.compose.faults import grammar_faults, text_faults
from pipeline_kit.compose.schema import GROUPS
from pipeline_kit.compose.yaml_scan import conf_trees, is_config_name, yaml_files
from pipeline_kit.contract.registry import Registry
from pipeline_kit.errors import ConfigError, Fault, closest_match, for_message

_GROUP = re.compile(r"(?!hydra$)[A-Za-z_][\w-]*")


class OverrideSorter:
    """Sorts overrides into what Hydra composes and what is set behind it; the rest of a faulty config is still checked.

    :param accepted: overrides for Hydra.
    :param settings: values for options, to be set in what it composed.
    """

    def __init__(self, registry: Registry, folders: Sequence[Path], faults: list[Fault]) -> None:
        self._registry, self._folders, self._faults = registry, folders, faults
        self._known = options(registry, folders)
        self.accepted: list[str] = []
        self.settings: list[Setting] = []

    def add(self, override: str | Mapping[str, Any]) -> None:
        """Sort one override, or a mapping of options as plain data."""
        parts = [(override,)] if isinstance(override, str) else override.items()
        for part in parts:
            try:
                if len(part) == 1:
                    self._add_text(*part)
                else:
                    self._add_value(*part)
            except ConfigError as error:
                self._faults.extend(error.faults)

    def _add_text(self, text: str) -> None:
        problems = text_faults(text)
        key, _, value = text.partition("=")
        bare = key.lstrip("+")
        groups = GROUPS if problems or not own_options(bare, self._folders) else (*GROUPS, bare)
        if problems := problems or grammar_faults(text, self._known, groups):
            raise ConfigError(problems)
        given = hydra.parse_override(text).value() if bare in aliases.ALIASES and bare not in groups else value
        if not self._add_named(bare, given, literal=False):
            # Added by force, so that Hydra does not stop at the first unknown key; the check finds them all.
            self.accepted.append("++" + text.lstrip("+"))

    def _add_value(self, key: str, value: Any) -> None:
        """Sort an option of Python: a group's choice or options, an alias, or the dotted name of an option."""
        if key in GROUPS and isinstance(value, Mapping):
            name = value.get("name")
            if isinstance(name, str) and (key != "task" or name in self._known[key]):
                self._choose(key, name, literal=True)
                value = {option: inner for option, inner in value.items() if option != "name"}
            self.settings += [Setting(f"{key}.{option}", inner, literal=True) for option, inner in value.items()]
        elif key in GROUPS and value is None:
            pass  # what the config has
        elif not self._add_named(key, value, literal=True):
            self.settings.append(Setting(key, value, literal=True))

    def _add_named(self, key: str, value: Any, *, literal: bool) -> bool:
        """Sort what a group or an alias is set to; return False for the name of an option."""
        if own := own_options(key, self._folders):
            self.accepted.append(f"+{key}={_own_choice(key, value, own)}")
        elif key in GROUPS:
            self._choose(key, value, literal=literal)
        elif key not in aliases.ALIASES:
            # Nearly an alias or a group is refused here; that an option is there is seen in the whole config.
            near = None if "." in key else closest_match(key, (*GROUPS, *aliases.ALIASES, *self._known))
            if near is not None and near not in GROUPS:
                raise ConfigError([Fault(for_message(key, 80), "unknown option.", suggestion=near)])
            return False
        elif (setting := aliases.meaning(key, value)) is not None:
            group = setting.alias.options[0] if setting.alias is not None else ""
            if group in GROUPS:
                self._choose(group, setting.value, literal=literal)
            else:
                self.settings.append(replace(setting, literal=literal))
        return True

    def _choose(self, group: str, value: Any, *, literal: bool) -> None:
        """Choose an option of a group, or what `value` means in its place."""
        name = str(value)
        known = self._is_known(group, name)
        meant = [(group, name)] if known else aliases.choice(group, name, tuple(self._known[group]))
        if meant is None:
            fault = self._registry.unknown(group, name, tuple(sorted(self._known[group])))
            others = [f"{other}={name}" for other, names in self._known.items() if name in names]
            near = fault.suggestion or "' or '".join(others) or None
            raise ConfigError([replace(fault, suggestion=near)])
        for option, inner in meant:
            if option in GROUPS:
                self.accepted.append(f"{option}={inner}")
            else:
                self.settings.append(Setting(option, inner, literal=literal))

    def _is_known(self, group: str, value: str) -> bool:
        # The plugin called like the option is loaded first, and the others only if it does not have it.
        if value not in self._known[group] and plugins.load_plugins_named(self._registry, [value]):
            self._known = options(self._registry, self._folders)
        if value not in self._known[group] and re.fullmatch(r"[\w-]{1,64}", value):
            plugins.load_all_plugins(self._registry)
            self._known = options(self._registry, self._folders)
        return value in self._known[group]


def options(registry: Registry, config_dir: Sequence[str | Path] = ()) -> dict[str, dict[str, str]]:
    """List the options of every group and where each comes from; of `config_dir` also groups of the user's own."""
    found: dict[str, dict[str, str]] = {group: {} for group in GROUPS}
    for spec in registry.specs():
        if spec.kind in found:
            found[spec.kind][spec.name] = spec.source
    for tree, who in conf_trees(registry, config_dir):
        own = [item.name for item in tree.iterdir() if _GROUP.fullmatch(item.name)] if isinstance(tree, Path) else []
        for group in dict.fromkeys((*GROUPS, *own)):
            for item in yaml_files(tree, group):
                found.setdefault(group, {}).setdefault(item.name.removesuffix(".yaml"), who)
    return found


def own_options(group: str, folders: Sequence[Path]) -> list[str]:
    """List the options of a group that only the user's folders have, such as ``experiment``; none for another."""
    parts = group.split("/")
    if parts[0] in (*GROUPS, "hydra") or not is_config_name(group) or not all(map(_GROUP.fullmatch, parts)):
        return []
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml") if path.is_file()})


def _own_choice(group: str, value: Any, names: Sequence[str]) -> str:
    """Return what is chosen of a group of the user's own: one of its files, or several in brackets.

    :raises ConfigError: naming those of `value` that are none.
    """
    text = f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
    chosen = [name.strip() for name in text[1:-1].split(",")] if re.fullmatch(r"\[.*\]", text) else [text]
    where = f"{group}={for_message(text, 80)}"
    if unknown := [name for name in chosen if name not in names]:
        faults = [Fault(where, "no such option.", tuple(names), closest_match(name, names)) for name in unknown]
        raise ConfigError(faults)
    return text
