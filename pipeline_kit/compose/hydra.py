"""The only place that talks to Hydra: composing, parsing overrides, sweeps, completion.

Hydra keeps its state in singletons. Everything here borrows them under one lock and puts them back,
so that composing works from several threads and inside a program that is itself a Hydra app.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from importlib.resources.abc import Traversable
from io import StringIO
from itertools import islice, product
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
from hydra import initialize_config_dir, initialize_config_module, version
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf

from pipeline_kit.compose.yaml_scan import MAX_BYTES, is_config_name, read_regular_file, scan_bytes
from pipeline_kit.contract.options import defaults
from pipeline_kit.contract.registry import Registry
from pipeline_kit.errors import ConfigError, Fault, for_message

CONF_MODULE = "pipeline_kit.conf"
MAX_INCLUDED, MAX_COMBINATIONS = 200, 1000
_INCLUDED: Counter[str] = Counter()
"""How often each file was included by the config that is being composed."""
# A word that is not true, false, null, nan or inf, which are no strings in an override.
_PLAIN = re.compile(r"(?!(?i:true|false|null|nan|inf)$)[A-Za-z_][\w./-]*")
_LOCK = threading.RLock()
_VERSION_BASE = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}


def compose_container(
    registry: Registry, overrides: Sequence[str], config_name: str, config_dirs: Sequence[Path]
) -> dict[str, Any]:
    """Compose a config into plain data, references not yet resolved.

    :param config_dirs: folders of the user, looked through after the package's own ``conf``.
    """
    home = next((path for path in config_dirs if os.path.isfile(path / f"{config_name}.yaml")), None)
    with _isolated_hydra(registry, home):
        path = _search_path(registry, [folder for folder in config_dirs if folder != home], home is not None)
        cfg = hydra.compose(config_name=config_name, overrides=[*path, *overrides])
        found = OmegaConf.to_container(cfg, resolve=False)
        assert isinstance(found, dict)
        return {str(key): value for key, value in found.items()}


def written(value: Any) -> str:
    """Write a value in Hydra's grammar of overrides."""
    if isinstance(value, str):
        # Of a quoted value Hydra unescapes quotes, and the backslashes in front of one.
        quoted = re.sub(r"(\\+)(?='|\Z)", r"\1\1", value).replace("'", "\\'")
        return value if _PLAIN.fullmatch(value) else f"'{quoted}'"
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}: {written(item)}' for key, item in value.items())}}}"
    return json.dumps(value)


def parse_override(text: str) -> Override:
    """Parse one override by Hydra's grammar.

    :raises hydra.errors.OverrideParseException: if it is none.
    """
    return OverridesParser.create().parse_override(text)


def expand_sweep(registry: Registry, overrides: Sequence[str], config_dirs: Sequence[Path]) -> list[list[str]]:
    """Expand Hydra's sweep syntax (``a=1,2``, ``range``, ``choice``, ``glob``) into one list of overrides each."""
    with _isolated_hydra(registry):
        # A glob such as task=* needs the options, which the loader knows once something was composed.
        hydra.compose(config_name="config", overrides=_search_path(registry, config_dirs))
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        lists = []
        for override in parser.parse_overrides(list(overrides)):
            key = override.get_key_element()
            swept = override.is_sweep_override()
            if swept and not override.is_discrete_sweep():
                raise HydraException(f"{override.input_line}: an interval has no list of values; use range or choice")
            value = override.value()
            if isinstance(value, RangeSweep):  # counted first: to shuffle it Hydra makes a list of it
                _check_combinations(sum(1 for _ in islice(value.range(), MAX_COMBINATIONS + 1)), override.input_line)
            values = override.sweep_string_iterator() if swept else [override.get_value_element_as_str()]
            lists.append([f"{key}={value}" for value in values])
            if not lists[-1]:
                raise ConfigError([Fault(for_message(override.input_line, 80), "matches no option.")])
            _check_combinations(prod(map(len, lists)), override.input_line)
        return [list(combination) for combination in product(*lists)]


def _check_combinations(count: int, text: str | None) -> None:
    if count > MAX_COMBINATIONS:
        problem = f"makes {count} or more combinations of options."
        raise ConfigError([Fault(for_message(text, 80), problem, allowed=(f"{MAX_COMBINATIONS} at the most",))])


def to_yaml(data: Any) -> str:
    """Write plain data as YAML, keys in their order."""
    return OmegaConf.to_yaml(OmegaConf.create(data))


def resolve(data: dict[str, Any]) -> dict[str, Any]:
    """Resolve plain references such as ``${task.name}``; `data` must have been scanned before."""
    found = OmegaConf.to_container(OmegaConf.create(data), resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def _search_path(registry: Registry, config_dirs: Sequence[Path], with_own: bool = False) -> list[str]:
    paths = [*registry.conf_packages, *(f"file://{path.resolve()}" for path in config_dirs)]
    if with_own:
        paths.insert(0, f"pkg://{CONF_MODULE}")
    if not paths:
        return []
    quoted = ",".join("'" + path.replace("\\", "\\\\").replace("'", "\\'") + "'" for path in paths)
    return [f"hydra.searchpath=[{quoted}]"]


class _Header(dict[str, str | None]):
    """A file's header. Hydra reads it each time the file is included, so a bomb of includes is stopped here."""

    where = ""

    def __getitem__(self, key: str) -> str | None:
        _INCLUDED[self.where] += 1
        if _INCLUDED.total() > MAX_INCLUDED:
            [(where, count)] = _INCLUDED.most_common(1)
            problem = f"is included {count} times or more; does its 'defaults' lead back to itself?"
            raise ConfigError([Fault(where, problem, allowed=(f"{MAX_INCLUDED} included files at the most",))])
        return super().__getitem__(key)


class _ScannedSource(ConfigSource):
    """A folder of YAML. What Hydra composes is scanned here, and the same bytes are parsed."""

    def _item(self, config_path: str) -> Traversable:
        root = Path(self.path) if self.scheme() == "file" else resources.files(self.path)
        return root.joinpath(self._normalize_file_name(config_path))

    def is_group(self, config_path: str) -> bool:
        return (config_path == "" or is_config_name(config_path)) and super().is_group(config_path)  # type: ignore[safe-super]

    def is_config(self, config_path: str) -> bool:
        return is_config_name(config_path) and super().is_config(config_path)  # type: ignore[safe-super]

    def load_config(self, config_path: str) -> ConfigResult:
        if self.path == "hydra.conf":  # Hydra's own
            return super().load_config(config_path)  # type: ignore[safe-super]
        item = self._item(config_path)
        where = str(item)
        data = read_regular_file(item, MAX_BYTES + 1) if isinstance(item, Path) else item.read_bytes()
        faults = scan_bytes(data, where)
        if faults:
            raise ConfigError(faults)
        text = data.decode("utf-8-sig")
        header = _Header(self._get_header_dict(text))
        header.where = where
        config = OmegaConf.load(StringIO(text))
        return ConfigResult(self.provider, f"{self.scheme()}://{self.path}", config, header)


class _ScannedFolder(_ScannedSource, FileConfigSource):
    pass


class _ScannedPackage(_ScannedSource, ImportlibResourcesConfigSource):
    pass


@contextmanager
def _isolated_hydra(registry: Registry, home: Path | None = None) -> Iterator[None]:
    """Set Hydra up for this package's config, and put back whatever was there before.

    :param home: the folder that holds the config to start from, if it is not the package's own.
    """
    with _LOCK:
        _load_plugins_of_hydra_alone()
        store, runtime, holder = ConfigStore.instance(), JobRuntime.instance(), GlobalHydra.instance()
        sources = SourcesRegistry.instance()
        saved = (holder.hydra, store.repo, runtime.conf.copy(), version.VersionBase.instance().getbase(), sources.types)
        holder.hydra = None
        sources.types = {**sources.types, "file": _ScannedFolder, "pkg": _ScannedPackage}
        _INCLUDED.clear()
        # Only Hydra's own entries are kept: a surrounding app may have groups called model or task too.
        store.repo = {
            key: node for key, node in store.repo.items() if key == "hydra" or key == "_dummy_empty_config_.yaml"
        }
        for spec in registry.specs():
            node = {"name": spec.name, **defaults(spec.config)}
            store.store(name=spec.name, group=spec.kind, node=node, provider=spec.source)
        try:
            start = (
                initialize_config_module(CONF_MODULE, **_VERSION_BASE)
                if home is None
                else initialize_config_dir(str(home.resolve()), **_VERSION_BASE)
            )
            with start:
                yield
        finally:
            GlobalHydra.instance().hydra = saved[0]
            store.repo = saved[1]
            runtime.conf = saved[2]
            version.VersionBase.instance().version_base = saved[3]
            sources.types = saved[4]


def _load_plugins_of_hydra_alone() -> None:
    """Keep Hydra from importing every package called ``hydra_plugins``, which it does on first use.

    Where a surrounding app has already loaded its plugins they stay as they are.
    """
    if Plugins in Singleton._instances:
        return
    name = "hydra_plugins"
    saved = sys.modules.get(name)
    empty = ModuleType(name)
    empty.__path__ = []
    sys.modules[name] = empty
    try:
        Plugins.instance()
    finally:
        if saved is None:
            del sys.modules[name]
        else:
            sys.modules[name] = saved
