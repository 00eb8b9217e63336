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
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from hydra.core.override_parser.types import Glob, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.errors import ConfigCompositionException, HydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf

from pipeline_kit.compose.schema import task_preset
from pipeline_kit.compose.yaml_scan import (
    CONF_MODULE,
    MAX_BYTES,
    MAX_DEPTH,
    is_config_name,
    read_regular_file,
    scalars_in,
    scan_bytes,
)
from pipeline_kit.contract.registry import Registry
from pipeline_kit.errors import ConfigError, Fault, for_message

MAX_INCLUDED, MAX_COMBINATIONS = 200, 1000


@dataclass
class _Composition:
    """The config that is being composed; there is one at a time.

    :param included: how often each file was included.
    :param words: every scalar of the user's files.
    """

    folders: tuple[Path, ...] = ()
    builtin: frozenset[str] = frozenset()
    included: Counter[str] = field(default_factory=Counter)
    words: set[str] = field(default_factory=set)


_composing = _Composition()
# A word that is not true, false, null, nan or inf, which are no strings in an override.
_PLAIN = re.compile(r"(?!(?i:true|false|null|nan|inf)$)[A-Za-z_][\w./-]*")
_LOCK = threading.RLock()
_VERSION_BASE = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}


def compose_container(
    registry: Registry,
    overrides: Sequence[str],
    config_name: str,
    config_dirs: Sequence[Path],
    builtin: Collection[str] = (),
    words: set[str] | None = None,
) -> dict[str, Any]:
    """Compose a config into plain data, references not yet resolved.

    :param overrides: ``+group=name`` for a group of the user's own, whether a 'defaults' has it already or not.
    :param config_dirs: folders of the user, looked through after the package's own ``conf``.
    :param builtin: options that no file of the user may have the name of, such as ``padding/longest``.
    :param words: gets every word in the files of the user that are read: the names it may ask plugins for.
    """
    homes = (path for path in config_dirs if os.path.isfile(path / f"{config_name}.yaml"))
    home = None if config_name == "config" else next(homes, None)  # "config" is always the package's
    with _isolated_hydra(registry, home):
        _composing.folders, _composing.builtin = tuple(config_dirs), frozenset(builtin)
        paths = [] if home is None else [f"pkg://{CONF_MODULE}"]
        paths += [*registry.conf_packages, *(f"file://{folder.resolve()}" for folder in config_dirs if folder != home)]
        search = [f"hydra.searchpath=[{','.join(map(_quoted, paths))}]"] if paths else []
        try:
            cfg = hydra.compose(config_name=config_name, overrides=[*search, *overrides])
        except ConfigCompositionException as error:
            chosen = re.match(r"Multiple values for ([\w/-]+)\.", str(error))
            if chosen is None or not any(text.startswith(f"+{chosen[1]}=") for text in overrides):
                raise
            plain = [text[1:] if text.startswith(f"+{chosen[1]}=") else text for text in overrides]
            return compose_container(registry, plain, config_name, config_dirs, builtin, words)
        finally:
            if words is not None:
                words |= _composing.words
        found = OmegaConf.to_container(cfg, resolve=False)
        assert isinstance(found, dict)
        return {str(key): value for key, value in found.items()}


def written(value: Any) -> str:
    """Write a value in Hydra's grammar of overrides."""
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else _quoted(value)
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}: {written(item)}' for key, item in value.items())}}}"
    return json.dumps(value)


def _quoted(text: str) -> str:
    """Quote a text: Hydra unescapes quotes, and the backslashes in front of one."""
    return "'" + re.sub(r"(\\+)(?='|\Z)", r"\1\1", text).replace("'", "\\'") + "'"


def parse_override(text: str) -> Override:
    """Parse one override by Hydra's grammar.

    :raises hydra.errors.OverrideParseException: if it is none.
    """
    return OverridesParser.create().parse_override(text)


def expand_sweep(overrides: Sequence[str], options: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Expand Hydra's sweep syntax (``a=1,2``, ``range``, ``choice``, ``glob``) into one list of overrides each.

    :param options: what ``glob`` chooses from, by group.
    """
    lists = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element()
        value: Any = override.value()
        swept = override.is_sweep_override()
        if swept and not override.is_discrete_sweep():
            raise HydraException(f"{override.input_line}: an interval has no list of values; use range or choice")
        if isinstance(value, RangeSweep):  # counted first: to shuffle it Hydra makes a list of it
            _check_combinations(sum(1 for _ in islice(value.range(), MAX_COMBINATIONS + 1)), override.input_line)
        values: Iterable[str] = [override.get_value_element_as_str()] if not swept else ()
        if isinstance(value, Glob):
            values = value.filter(sorted(options.get(override.key_or_group, ())))
        elif swept:
            values = override.sweep_string_iterator()
        lists.append([f"{key}={value}" for value in values])
        if not lists[-1]:
            raise ConfigError([Fault(for_message(override.input_line, 80), "matches no option.")])
        _check_combinations(prod(map(len, lists)), override.input_line)
    return [list(combination) for combination in product(*lists)]


def _check_combinations(count: int, text: str | None) -> None:
    if count > MAX_COMBINATIONS:
        problem = f"makes {count} or more combinations of options."
        raise ConfigError([Fault(for_message(text, 80), problem, allowed=(f"{MAX_COMBINATIONS} at the most",))])


def plain(value: Any, where: str = "", depth: int = 0) -> Any:
    """Return what Python passed as plain data: an OmegaConf config resolved in the whole that it is a part of.

    Paths, dtypes and devices of torch become their names.

    :raises ConfigError: for any other object.
    """
    value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        name = str(value)
        return name if set(name) & set("/\\~") else f"./{name}"  # Path("./x") loses the dot
    if type(value).__module__ == "torch":
        return str(value)
    if depth < MAX_DEPTH and isinstance(value, list | tuple):
        return [plain(item, f"{where}[{place}]", depth + 1) for place, item in enumerate(value)]
    if depth < MAX_DEPTH and isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}".lstrip("."), depth + 1) for key, item in value.items()}
    problem = f"is nested more than {MAX_DEPTH} deep." if isinstance(value, list | tuple | Mapping) else ""
    raise ConfigError([Fault(where, problem or f"{type(value).__name__} is not the type of an option.")])


def escaped(value: Any) -> Any:
    """Return data whose texts come back as they are from :func:`resolve`, ``${`` among them."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", value)
    if isinstance(value, Mapping):
        return {key: escaped(item) for key, item in value.items()}
    return list(map(escaped, value)) if isinstance(value, list) else value


def to_yaml(data: Any) -> str:
    """Write plain data as YAML, keys in their order."""
    return OmegaConf.to_yaml(OmegaConf.create(data))


def resolve(data: dict[str, Any]) -> dict[str, Any]:
    """Resolve plain references such as ``${task.name}``; `data` must have been scanned before."""
    found = OmegaConf.to_container(OmegaConf.create(data), resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


class _Header(dict[str, str | None]):
    """A file's header. Hydra reads it each time the file is included, so a bomb of includes is stopped here."""

    where = ""

    def __getitem__(self, key: str) -> str | None:
        _composing.included[self.where] += 1
        if _composing.included.total() > MAX_INCLUDED:
            [(where, count)] = _composing.included.most_common(1)
            problem = f"is included {count} times or more; does its 'defaults' lead back to itself?"
            raise ConfigError([Fault(where, problem, allowed=(f"{MAX_INCLUDED} included files at the most",))])
        return super().__getitem__(key)


class _ScannedSource(ConfigSource):
    """A folder of YAML. What Hydra composes is scanned here, and the same bytes are parsed."""

    def is_group(self, config_path: str) -> bool:
        return (config_path == "" or is_config_name(config_path)) and super().is_group(config_path)  # type: ignore[safe-super]

    def is_config(self, config_path: str) -> bool:
        if self.scheme() == "file" and config_path.removesuffix(".yaml") == "config":
            return False  # of another program, perhaps; here it is the package's
        return is_config_name(config_path) and super().is_config(config_path)  # type: ignore[safe-super]

    def load_config(self, config_path: str) -> ConfigResult:
        if self.path == "hydra.conf":  # Hydra's own
            return super().load_config(config_path)  # type: ignore[safe-super]
        root: Traversable = Path(self.path) if self.scheme() == "file" else resources.files(self.path)
        item = root.joinpath(self._normalize_file_name(config_path))
        where = str(item)
        name = config_path.removesuffix(".yaml")
        hiding = [path for folder in _composing.folders if os.path.lexists(path := folder / f"{name}.yaml")]
        if hiding and name in _composing.builtin:
            problem = f"has the name of the built-in '{name.replace('/', '=')}'; rename it."
            raise ConfigError([Fault(for_message(str(hiding[0])), problem)])
        try:
            data = read_regular_file(item, MAX_BYTES + 1) if isinstance(item, Path) else item.read_bytes()
        except OSError as error:
            raise ConfigError([Fault(for_message(where), f"cannot be read: {error.strerror}.")]) from error
        faults = scan_bytes(data, where)
        if faults:
            raise ConfigError(faults)
        if self.scheme() == "file":
            _composing.words |= scalars_in(data)
        text = data.decode("utf-8-sig")
        header = _Header(self._get_header_dict(text))
        header.where = where
        return ConfigResult(self.provider, f"{self.scheme()}://{self.path}", OmegaConf.load(StringIO(text)), header)


class _ScannedFolder(_ScannedSource, FileConfigSource):
    pass


class _ScannedPackage(_ScannedSource, ImportlibResourcesConfigSource):
    pass


@contextmanager
def _isolated_hydra(registry: Registry, home: Path | None = None) -> Iterator[None]:
    """Set Hydra up for this package's config, and put back whatever was there before.

    :param home: the folder that holds the config to start from, if it is not the package's own.
    """
    global _composing
    with _LOCK:
        _load_plugins_of_hydra_alone()
        store, runtime, holder = ConfigStore.instance(), JobRuntime.instance(), GlobalHydra.instance()
        sources = SourcesRegistry.instance()
        saved = (holder.hydra, store.repo, runtime.conf.copy(), version.VersionBase.instance().getbase(), sources.types)
        holder.hydra = None
        sources.types = {**sources.types, "file": _ScannedFolder, "pkg": _ScannedPackage}
        _composing = _Composition()
        # Only Hydra's own entries are kept: a surrounding app may have groups called model or task too.
        store.repo = {key: store.repo[key] for key in ("hydra", "_dummy_empty_config_.yaml") if key in store.repo}
        for spec in registry.specs():
            node, package = (task_preset(spec), "_global_") if spec.kind == "task" else (spec.node(), None)
            store.store(name=spec.name, group=spec.kind, node=node, package=package, provider=spec.source)
        where = CONF_MODULE if home is None else str(home.resolve())
        try:
            with (initialize_config_module if home is None else initialize_config_dir)(where, **_VERSION_BASE):
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
    saved = {name: sys.modules[name]} if name in sys.modules else {}
    sys.modules[name] = empty = ModuleType(name)
    empty.__path__ = []
    try:
        Plugins.instance()
    finally:
        del sys.modules[name]
        sys.modules.update(saved)
