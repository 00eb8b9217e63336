"""What the three conformance suites share: finding the stage, building it, and the checks of its options."""

from __future__ import annotations

import functools
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, fields
from importlib.metadata import entry_points
from io import StringIO
from multiprocessing.reduction import ForkingPickler
from typing import Any, ClassVar, get_origin, get_type_hints

from pipeline_kit.compose.plugins import load_all_plugins, load_registry
from pipeline_kit.compose.schema import PipelineConfig
from pipeline_kit.contract.options import REQUIRED, default_of, defaults, list_options, parse_options
from pipeline_kit.contract.registry import Registry, Spec
from pipeline_kit.contract.stages import ENCODING_FIELDS, StageContext
from pipeline_kit.contract.types import Device, Example
from pipeline_kit.errors import ConfigError, Fault, closest_match, for_message
from pipeline_kit.testing.stages import tiny_stage_context

HEAVY = ("torch", "transformers")
"""What registering a stage must not import, so that listing stages stays fast."""

HARD_TEXTS: tuple[str, ...] = (
    "",
    " ",
    "\n\t\r\n",
    "\x00\x07",
    "Grüße, naïve café, Ελληνικά, עברית, हिन्दी, 漢字かな",
    "🙂🏽 👩‍👩‍👧 e\u0301\u200b\u202e\ufeff",
    "a" * 400,
    "." * 100,
)
"""Texts that stages tend to fall over."""

_LIST_HEAVY = (
    "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]];"
    f"print(*(name for name in {HEAVY!r} if name in sys.modules))"
)


class StageConformance:
    """Base of the suites; a stage's test derives from one of them, not from this.

    :cvar stage: the name it is registered under.
    :cvar options: what the suite builds it with; all that have no default.
    :cvar register: the plugin's ``register`` function; not needed once the plugin is installed.
    :cvar xfail: checks that are expected to fail, by name without ``test_``, and why. One that passes
        all the same is an error, so that the list stays true.
    :cvar tolerance: how far numbers may differ that should be equal.
    :cvar examples: ordinary inputs of the stage, three or more.
    """

    kind: ClassVar[str]
    interface: ClassVar[type[Any]]
    stage: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    register: ClassVar[Any] = None  # a function; typed as one, mypy would take it for a method
    xfail: ClassVar[Mapping[str, str]] = {}
    tolerance: ClassVar[float] = 1e-5
    examples: ClassVar[Sequence[Example]] = (
        "I love this.",
        "ok",
        {"text": "A longer text, so that the rows of a batch are not all of one length."},
        "I hate it, and I would not do it again!",
        "Good day",
    )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Mark the checks in `xfail`.

        :raises TypeError: if one of them does not exist.
        """
        super().__init_subclass__(**kwargs)
        for name, reason in cls.__dict__.get("xfail", {}).items():
            method = getattr(cls, f"test_{name}", None)
            if method is None:
                known = [other.removeprefix("test_") for other in dir(cls) if other.startswith("test_")]
                raise TypeError(str(Fault(f"xfail.{name}", "no such check.", tuple(known), closest_match(name, known))))
            setattr(cls, f"test_{name}", _expected_to_fail(method, reason))

    def context(self, device: Device | None = None) -> StageContext:
        """Return what the stage is built with; override it for one that needs a checkpoint's files."""
        return tiny_stage_context(device=device, requires=ENCODING_FIELDS)

    def spec(self) -> Spec:
        """Return the stage's registration: by `register`, built in, or of an installed plugin.

        :raises RegistryError: if there is none.
        """
        register = self._register()
        registry = load_registry()
        if register is not None:
            registry.source = "register"
            register(registry)
        elif self.stage not in {spec.name for spec in registry.specs(self.kind)}:
            load_all_plugins(registry)
        return registry.get(self.kind, self.stage)

    def build(self, context: StageContext | None = None) -> Any:
        """Build the stage from `options`, as a pipeline does.

        :raises ConfigError: if `options` have faults.
        """
        return self.spec().load()(self.config(), context or self.context())

    def config(self) -> Any:
        """Return the checked options.

        :raises ConfigError: if they have faults.
        """
        name = {"name": self.stage} if "name" in {item.name for item in fields(self.spec().config)} else {}
        config, faults = self._parsed({**name, **self.options})
        if faults:
            raise ConfigError(faults)
        return config

    @classmethod
    def _register(cls) -> Callable[[Registry], None] | None:
        found: Any = inspect.getattr_static(cls, "register")
        return found.__func__ if isinstance(found, staticmethod) else found

    def test_registered(self) -> None:
        """The stage is found by kind and name, and its target is a class of the kind, with a summary."""
        spec = self.spec()
        assert spec.summary, f"{spec.kind}={spec.name} has no summary, which `pipeline-kit ls` shows"
        found = spec.load()
        assert issubclass(found, self.interface), f"{spec.target} is not a {self.interface.__name__}"
        missing = sorted(getattr(found, "__abstractmethods__", ()))
        assert not missing, f"{spec.target} lacks {', '.join(missing)}"

    def test_import_is_light(self) -> None:
        """Importing what registers the stage imports neither torch nor transformers."""
        home, register = self.spec().config.__module__, self._register()
        plugins = [point.module for point in entry_points(group="pipeline_kit.plugins")]
        own = [name for name in plugins if name.partition(".")[0] == home.partition(".")[0]]
        found = dict.fromkeys([home, *own, *([register.__module__] if register else [])])
        modules = [name for name in found if name != type(self).__module__]
        done = _heavy_imports(os.pathsep.join(filter(None, sys.path)), *modules)
        assert done.returncode == 0, f"importing {', '.join(modules)} fails: {done.stderr.strip()[-500:]}"
        assert not done.stdout.split(), (
            f"importing {', '.join(modules)} imports {done.stdout.strip()}; import it in the stage's module alone"
        )

    def test_spec_can_be_sent_to_a_worker(self) -> None:
        """The registration can be pickled, as processes that share work need."""
        assert ForkingPickler.dumps(self.spec())

    def test_options_round_trip(self) -> None:
        """Options with their defaults survive the way to plain data (as in YAML) and back."""
        data, found = {**defaults(self.spec().config), **self.options}, []
        for _ in range(2):
            config, faults = self._parsed(data)
            assert not faults, f"options that should be fine are refused: {'; '.join(map(str, faults))}"
            data = json.loads(json.dumps(asdict(config)))
            found.append(config)
        assert found[0] == found[1], "the options change on their way through plain data"

    def test_options_are_documented(self) -> None:
        """Each option has a line of help, which ``pipeline-kit show`` prints."""
        silent = [item.name for item in list_options(self.spec().config) if not item.help]
        assert not silent, f"no help for: {', '.join(silent)}; declare them with pipeline_kit.option(default, help)"

    def test_unknown_option_is_refused(self) -> None:
        """A key that is not an option is a fault with its full key."""
        assert f"{self.kind}.no_such_option" in self._faults({**self.options, "no_such_option": 1})

    def test_mistyped_option_is_refused(self) -> None:
        """A value of the wrong type is a fault with its full key."""
        schema = self.spec().config
        hints = get_type_hints(schema)
        for item in fields(schema):
            if hints[item.name] is not Any:
                wrong: Any = "text" if get_origin(hints[item.name]) in (dict, Mapping) else {"a": {"mapping": 1}}
                found = self._faults({**self.options, item.name: wrong})
                key = f"{self.kind}.{item.name}"
                assert any(fault.startswith(key) for fault in found), f"{key}={wrong!r} is not refused"

    def test_missing_option_is_refused(self) -> None:
        """Leaving out an option that has no default is a fault with its full key."""
        for item in fields(self.spec().config):
            if default_of(item) is REQUIRED:
                found = self._faults({key: value for key, value in self.options.items() if key != item.name})
                assert f"{self.kind}.{item.name}" in found, f"leaving out {item.name} is not refused"

    def use(self, stage: Any) -> None:
        """Run `stage` once on what the suite has; for the checks that hold for any stage."""
        raise NotImplementedError

    def test_prints_nothing(self) -> None:
        """Neither building the stage nor using it writes to stdout, which is for results."""
        with redirect_stdout(StringIO()) as printed:
            self.use(self.build())
        assert not printed.getvalue(), f"the stage prints to stdout: {for_message(printed.getvalue())}"

    def test_builds_from_its_options(self) -> None:
        """The stage is built from its config and a context."""
        assert isinstance(self.build(), self.interface)

    def _parsed(self, options: Mapping[str, Any]) -> tuple[Any, list[Fault]]:
        faults: list[Fault] = []
        return parse_options(self.spec().config, options, self.kind, faults), faults

    def _faults(self, options: Mapping[str, Any]) -> list[str]:
        return [fault.key for fault in self._parsed(options)[1]]


def compose_config(*overrides: str, plugins: Sequence[str] = ()) -> PipelineConfig:
    """Compose and check a config as the command line does, and build nothing.

    :param plugins: modules or files with a ``register`` function.
    :raises ConfigError: with every fault.
    """
    from pipeline_kit.compose.compose import compose

    return compose(overrides, registry=load_registry(plugins))


def cuda_or_skip() -> Device:
    """Return the first GPU; skip the check where there is none."""
    import pytest
    import torch

    if not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device")
    return Device("cuda:0")


@functools.cache  # a process each takes long, and most built-in stages are registered by the same modules
def _heavy_imports(path: str, *modules: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", _LIST_HEAVY, *modules]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def _expected_to_fail(method: Callable[..., None], reason: str) -> Callable[..., None]:
    import pytest

    @functools.wraps(method)
    def expected(*args: Any, **kwargs: Any) -> None:
        method(*args, **kwargs)

    marked: Callable[..., None] = pytest.mark.xfail(reason=reason, strict=True)(expected)
    return marked
