"""Finding plugins: installed ones through their entry points, others by file or module name.

An installed plugin is imported only when something is asked for that is not built in, or when
everything is to be listed. Each load is guarded: a broken plugin is reported, and fails a run only
if the run needs it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pipeline_kit.builtin import register as register_builtin
from pipeline_kit.contract.options import check_schema, list_options
from pipeline_kit.contract.registry import RULES, Registry, Spec, Task, raise_if_stopped
from pipeline_kit.contract.spelling import flag
from pipeline_kit.errors import Fault, RegistryError, closest_match, for_message
from pipeline_kit.files.read import formats as read_formats
from pipeline_kit.files.storage import base as storage_base
from pipeline_kit.files.write import base as write_base

GROUP = "pipeline_kit.plugins"
ALLOW = "PIPELINE_KIT_PLUGINS"
STRICT = "PIPELINE_KIT_STRICT_PLUGINS"


def load_registry(plugins: Sequence[str] = (), *, everything: bool = False) -> Registry:
    """Return a registry with the built-in stages and the given plugins.

    :param plugins: files or importable modules with a ``register(registry)`` function.
    :param everything: import every installed plugin too.
    :raises RegistryError: if one of `plugins` cannot be loaded.
    """
    registry = Registry()
    register_builtin(registry)
    for unknown in (read_formats.UNKNOWN, storage_base.UNKNOWN):
        unknown[:] = [lambda name: load_plugins_named(registry, [name])]
    for plugin in plugins:
        _load_given(registry, plugin)
    if everything:
        load_all_plugins(registry)
    return registry


def installed() -> tuple[EntryPoint, ...]:
    """List the installed plugins that ``PIPELINE_KIT_PLUGINS`` (names, comma-separated) lets through."""
    allowed = os.environ.get(ALLOW)
    found = _entry_points()
    if allowed is None:
        return found
    names = {name.strip() for name in allowed.split(",")}
    return tuple(ep for ep in found if ep.name in names)


@cache
def _entry_points() -> tuple[EntryPoint, ...]:
    return tuple(sorted(entry_points(group=GROUP), key=lambda ep: ep.name))


def load_needed(registry: Registry, data: Mapping[str, Any]) -> Registry:
    """Load the installed plugins that composed `data` names something of; return `registry`."""
    named = [(kind, node.get("name")) for kind, node in data.items() if kind in RULES and isinstance(node, Mapping)]
    files = [(group, data.get(group)) for group in ("input", "output")]
    named += [(f"{group}_format", node.get("format")) for group, node in files if isinstance(node, Mapping)]
    wanted = {(kind, name) for kind, name in named if isinstance(name, str)}
    missing = wanted - {(spec.kind, spec.name) for spec in registry.specs()}
    if missing:
        load_plugins_named(registry, [name for _, name in missing])
    if missing - {(spec.kind, spec.name) for spec in registry.specs()}:
        load_all_plugins(registry)  # a stage may be called otherwise than its plugin
    return registry


def load_plugins_named(registry: Registry, names: Iterable[str]) -> bool:
    """Load the installed plugins called like one of `names`; return whether there were any."""
    folded = {name.replace("-", "_") for name in names}
    chosen = [ep for ep in _entry_points() if ep.name.replace("-", "_") in folded]
    allowed = installed()
    for ep in chosen:
        if ep in allowed:
            _load_installed(registry, ep)
        else:
            registry.failed[f"{ep.name} ({_distribution(ep)})"] = RegistryError([Fault(ALLOW, "does not name it")])
    return bool(chosen)


def load_all_plugins(registry: Registry) -> None:
    """Load every installed plugin that is allowed."""
    for ep in installed():
        _load_installed(registry, ep)


def _load_installed(registry: Registry, ep: EntryPoint) -> None:
    dist = _distribution(ep)
    try:
        _register(registry, ep.load(), dist)
    except BaseException as error:
        raise_if_stopped(error)
        if os.environ.get(STRICT) == "1":
            raise RegistryError([Fault(f"plugin {ep.name}", f"of {dist} failed to load: {_why(error)}.")]) from error
        registry.failed[f"{ep.name} ({dist})"] = error if isinstance(error, Exception) else RuntimeError(_why(error))


def _distribution(ep: EntryPoint) -> str:
    return f"{ep.dist.name} {ep.dist.version}" if ep.dist is not None else ep.value


def _register(registry: Registry, function: Any, source: str) -> None:
    """Let a plugin register on a copy, so that one that fails half-way leaves nothing behind."""
    if not callable(function):
        raise RegistryError([Fault(source, "its entry point is not a function register(registry).")])
    trial = registry.copy()
    trial.source = source
    try:
        function(trial)
    finally:
        registry.contested.update(trial.contested)
    known = {(spec.kind, spec.name) for spec in registry.specs()}
    new = [spec for spec in trial.specs() if (spec.kind, spec.name) not in known]
    faults = [fault for spec in new for fault in check_schema(spec.config, f"{spec.kind}={spec.name}")]
    faults += [fault for spec in new if spec.kind == "task" for fault in _task_faults(spec, trial)]
    if faults:
        raise RegistryError(faults)
    for package in trial.conf_packages.keys() - registry.conf_packages.keys():
        # Hydra's own answer to a folder that it cannot read is a warning on every run.
        found = importlib.util.find_spec(package.removeprefix("pkg://"))
        if found is None or found.origin is None:
            problem = f"its presets '{package}' are no package; the folder needs an __init__.py."
            raise RegistryError([Fault(source, problem)])
    registry.adopt(trial)
    for spec in new:
        tables: dict[str, dict[str, Any]] = {"input_format": read_formats.PLUGGED, "output_format": write_base.PLUGGED}
        if spec.kind in tables:
            tables[spec.kind][spec.name] = spec.load
        if spec.kind == "scheme":
            storage_base.SCHEMES[spec.name] = partial(_storage, spec)


@cache
def _storage(spec: Spec) -> storage_base.Storage:
    found = spec.load()()
    if not isinstance(found, storage_base.Storage):
        raise RegistryError([Fault(f"scheme={spec.name}", f"'{spec.target}' makes no Storage; see docs/plugins.md.")])
    return found


def _task_faults(spec: Spec, registry: Registry) -> list[Fault]:
    """Return what is wrong with a task: stages that nobody registered, parameters that are not options of them."""
    task: Task = spec.detail
    faults: list[Fault] = []
    options: list[str] = []
    for kind, name in (("postprocessor", task.postprocessor), ("model", task.model)):
        known = {stage.name: stage for stage in registry.specs(kind)}
        if name in known:
            options += [f"{kind}.{option.name}" for option in list_options(known[name].config)]
        elif name is not None:
            problem = f"its {kind} '{for_message(name, 80)}' is not registered."
            faults.append(Fault(f"task={spec.name}", problem, tuple(known), closest_match(name, tuple(known))))
    for name in () if faults else task.parameters:
        if name not in options:
            problem = f"its parameter '{for_message(name, 80)}' is not an option of its stages."
            faults.append(Fault(f"task={spec.name}", problem, tuple(options), closest_match(name, options)))
    return faults


def _load_given(registry: Registry, plugin: str) -> None:
    where = flag("plugin", for_message(plugin), python="plugins")
    path = Path(os.path.expanduser(plugin))
    try:
        is_file = plugin.endswith(".py") or os.path.isfile(path)
        module = _import_file(path) if is_file else importlib.import_module(plugin)
    except BaseException as error:
        raise_if_stopped(error)
        fault = Fault(where, f"failed to load: {_why(error)}.")
        if not isinstance(error, FileNotFoundError):
            fault = replace(fault, hint="pass a .py file, or a module that can be imported")
        elif not path.exists():  # else it is another file that the plugin wants
            beside = [str(other) for other in path.parent.glob("*.py")]
            fault = Fault(where, "there is no such file.", suggestion=closest_match(plugin, beside))
        raise RegistryError([fault]) from error
    function = getattr(module, "register", None)
    if function is None:
        raise RegistryError([Fault(where, "has no function register(registry).", hint="see docs/plugins.md")])
    try:
        _register(registry, function, plugin)
    except RegistryError as error:
        raise RegistryError([replace(fault, key=f"{where}: {fault.key}") for fault in error.faults]) from error
    except BaseException as error:
        raise_if_stopped(error)
        raise RegistryError([Fault(where, f"its register() failed: {_why(error)}.")]) from error


def _import_file(path: Path) -> Any:
    resolved = path.resolve(strict=True)
    if resolved.exists() and not resolved.is_file():
        raise ImportError(f"'{resolved.name}' is not a regular file")  # a pipe would be waited for
    digest = hashlib.sha256(str(resolved).encode()).hexdigest()[:8]
    name = f"pipeline_kit_plugin_{resolved.stem.replace('-', '_')}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise ImportError(f"'{resolved.name}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses resolve their annotations through it while the file runs
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _why(error: BaseException) -> str:
    return f"{type(error).__name__}: {for_message(str(error))}"
