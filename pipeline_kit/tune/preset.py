"""A config as a YAML file: what differs from the packaged one, below a comment on where it is from."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline_kit.compose.compose import compose, options
from pipeline_kit.compose.hydra import to_yaml, written
from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.compose.schema import POLICIES, PipelineConfig
from pipeline_kit.contract.registry import KINDS
from pipeline_kit.errors import HIDDEN, ConfigError, OutputError, UsageError, for_message, redacted
from pipeline_kit.files.atomic import atomic_writer

_PROBE = {"defaults": ["config", "_self_"]}
# A task chooses stages, so it comes first.
_GROUPS = ("task", *KINDS, *(group for group in POLICIES if group not in ("task", "checkpoint")))


def preset_text(config: PipelineConfig, comment: Sequence[str], plugins: Sequence[str] = ()) -> str:
    """Write `config` so that ``run --config FILE`` composes just that, but for its secrets, see `secrets_of`.

    :param comment: lines for its top, without the #.
    :param plugins: those of ``--plugin``, which a run of the file needs too.
    :raises OutputError: if the config holds something that YAML cannot say; names it.
    """
    wanted: dict[str, Any] = {group: node for group, node in config.data.items() if isinstance(node, Mapping)}
    known = options(load_registry(plugins, everything=True))
    usual = _composed(_PROBE, plugins)
    others = [group for group in _GROUPS if group in wanted and wanted[group].get("name") != usual[group].get("name")]
    chosen = [{f"override {group}": wanted[group]["name"]} for group in others if wanted[group]["name"] in known[group]]
    defaults = ["config", *chosen, "_self_"]
    start = _composed({"defaults": defaults}, plugins) if chosen else usual
    data = {"defaults": defaults, **_split(_difference(start, wanted))[0]}
    again = _composed(data, plugins, overrides=secrets_of(config))
    for group, node in wanted.items():
        if again.get(group) != node:
            raise OutputError(f"this config cannot be written as a preset: '{group}' comes out as another one")
    lines = "".join(f"# {for_message(line, 400)}\n" for line in comment)
    return lines + to_yaml(data)


def secrets_of(config: PipelineConfig) -> list[str]:
    """Return the overrides of `config` that no preset holds since they are secret."""
    return [f"{path}={written(value)}" for path, value in _split(config.data)[1]]


def check_target(path: Path, force: bool, plugins: Sequence[str] = ()) -> None:
    """Find out before anything is measured whether a preset can be written to `path` and used from there.

    :raises UsageError: if no config can have this name, or the file is there and `force` is not given.
    :raises OutputError: if the folder is not there.
    :raises ConfigError: if other YAML in the folder would be in the way.
    """
    if path.suffix != ".yaml" or path.stem == "config":
        why = "config.yaml is the packaged config's name" if path.stem == "config" else "a config is a .yaml file"
        raise UsageError(f"--save {for_message(str(path))}: {why}; name it tuned.yaml, say")
    if not path.parent.is_dir():
        raise OutputError(f"--save {for_message(str(path))}: there is no folder '{for_message(str(path.parent))}'")
    if path.is_dir() or (path.exists() and not force):
        raise UsageError(
            f"--save {for_message(str(path))}: is there already; pass --force to overwrite it, or another name"
        )
    _composed(_PROBE, plugins, path.stem)
    try:
        compose(registry=load_registry(plugins), config_dir=[path.parent])
    except ConfigError as error:
        hint = UsageError(f"--save {for_message(str(path))}: no config of this folder can be used: {error}")
        raise hint from error


def write_preset(path: Path, text: str, force: bool) -> None:
    """Write the file, whole or not at all.

    :raises UsageError: if it is there by now and `force` is not given.
    :raises OutputError: if it cannot be written.
    """
    with atomic_writer(path) as file:
        file.write(text)
        if path.exists() and not force:
            raise UsageError(f"--save {for_message(str(path))}: is there by now; pass --force to overwrite it")


def _composed(
    data: Mapping[str, Any], plugins: Sequence[str], name: str = "tuned", overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Compose a file with `data` as ``run --config`` would, in a registry of its own."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{name}.yaml").write_text(to_yaml(dict(data)), encoding="utf-8")
        config = compose(overrides, registry=load_registry(plugins), config_dir=[folder], config_name=name)
    return dict(config.data)


def _split(node: Mapping[str, Any], path: str = "") -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Return `node` without its secrets, and these with their keys."""
    kept: dict[str, Any] = {}
    secrets: list[tuple[str, Any]] = []
    for key, value in node.items():
        where = f"{path}.{key}".lstrip(".")
        if isinstance(value, Mapping) and redacted(value, where) != HIDDEN:
            kept[key], inner = _split(value, where)
            secrets += inner
        elif redacted(value, where) == value:
            kept[key] = value
        else:
            secrets.append((where, value))
    return kept, secrets


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `after` has otherwise than `before`, mappings inside one another."""
    found: dict[str, Any] = {}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            inner = _difference(old, value)
            if inner:
                found[key] = inner
        elif key not in before or old != value:
            found[key] = value
    return found
