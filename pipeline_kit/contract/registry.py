"""Names to stages. Targets are strings, loaded on first use, so listing them imports nothing heavy."""

from __future__ import annotations

import dis
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, get_args

from pipeline_kit.errors import Fault, RegistryError, closest_match, declare, for_message

Kind = Literal["tokenizer", "model", "postprocessor"]
KINDS: tuple[Kind, ...] = get_args(Kind)
BUILTIN = "pipeline-kit"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class StageSpec:
    """One registered stage.

    :param target: ``package.module:Class``, imported when a pipeline that uses it is built.
    :param config: the dataclass of its options.
    :param source: the distribution and version, or the file, that registered it.
    """

    kind: Kind
    name: str
    target: str
    config: type[Any]
    summary: str
    source: str

    def load(self) -> type[Any]:
        """Import the stage's class.

        :raises RegistryError: if the module cannot be imported or lacks the class; names the source.
        """
        module, _, attribute = self.target.partition(":")
        try:
            found = getattr(import_module(module), attribute)
        except BaseException as error:
            raise_if_stopped(error)
            said = str(error) if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: {error}"
            fault = Fault(
                f"{self.kind}={self.name}",
                f"{self.source} registered it as '{self.target}', which fails to load: {for_message(said)}.",
                hint="is a dependency missing? see: pipeline-kit doctor",
            )
            raise RegistryError([fault]) from error
        if not isinstance(found, type):
            raise RegistryError([Fault(f"{self.kind}={self.name}", f"'{self.target}' is not a class.")])
        return found


class Registry:
    """The stages by kind and name, and the packages that ship presets.

    A plugin's ``register`` function gets one and calls :meth:`tokenizer`, :meth:`model`,
    :meth:`postprocessor` and :meth:`conf`.
    """

    def __init__(self) -> None:
        self._specs: dict[tuple[str, str], StageSpec] = {}
        self._conf: dict[str, str] = {}
        self.source = BUILTIN
        """Who registers at the moment, kept in each spec."""
        self.failed: dict[str, Exception] = {}
        """Plugins that could not be loaded, by what they call themselves."""
        self.contested: dict[tuple[str, str], Fault] = {}
        """Stages that two plugins registered; nobody gets to choose between them by order of installation."""

    def add(self, kind: Kind, name: str, target: str, config: type[Any], summary: str = "") -> StageSpec:
        """Register a stage.

        :raises RegistryError: if the name is taken by another target (both owners are named), or if
            name, target or config are not of their form.
        """
        where = f"{kind}={for_message(name)}"
        if kind not in KINDS:
            raise RegistryError([Fault(where, f"'{for_message(kind)}' is not a kind of stage.", allowed=KINDS)])
        if not _NAME.fullmatch(name):
            raise RegistryError([Fault(where, "a stage's name is a-z, 0-9 and _, at most 64 characters.")])
        if not _TARGET.fullmatch(target):
            raise RegistryError([Fault(where, f"the target '{for_message(target)}' is not 'package.module:Class'.")])
        if not hasattr(config, "__dataclass_fields__"):
            raise RegistryError([Fault(where, "its config is not a dataclass.")])
        spec = StageSpec(kind, name, target, config, summary, self.source)
        other = self._specs.get((kind, name))
        if other is not None and (other.target, other.config) == (target, config):
            return other  # the same plugin again, such as one that is installed and given with --plugin too
        if other is not None:
            problem = f"registered twice: by {other.source} ({other.target}) and by {spec.source} ({spec.target})."
            fault = Fault(where, problem, hint="rename one, or leave one plugin out")
            if other.source != BUILTIN:
                self.contested[kind, name] = fault
            raise RegistryError([fault])
        self._specs[kind, name] = spec
        declare(config, kind)
        return spec

    def tokenizer(self, name: str, target: str, config: type[Any], *, summary: str = "") -> None:
        """Register a :class:`~pipeline_kit.contract.stages.Tokenizer`."""
        self.add("tokenizer", name, target, config, summary)

    def model(self, name: str, target: str, config: type[Any], *, summary: str = "") -> None:
        """Register a :class:`~pipeline_kit.contract.stages.Model`."""
        self.add("model", name, target, config, summary)

    def postprocessor(self, name: str, target: str, config: type[Any], *, summary: str = "") -> None:
        """Register a :class:`~pipeline_kit.contract.stages.Postprocessor`."""
        self.add("postprocessor", name, target, config, summary)

    def conf(self, package: str) -> None:
        """Add the presets of a package, written ``pkg://package.conf``, to the config search path."""
        if not re.fullmatch(r"pkg://[A-Za-z_][\w.]*", package):
            raise RegistryError([Fault("conf", f"'{for_message(package)}' is not of the form 'pkg://package.conf'.")])
        self._conf[package] = self.source

    def get(self, kind: str, name: str) -> StageSpec:
        """Return the stage `name`.

        :raises RegistryError: listing the known names, the closest one, and plugins that failed; or naming
            both owners of a name that two plugins claim.
        """
        if (kind, name) in self.contested:
            raise RegistryError([self.contested[kind, name]])
        spec = self._specs.get((kind, name))
        if spec is None:
            raise RegistryError([self.unknown(kind, name, tuple(s.name for s in self.specs(kind)))])
        return spec

    def unknown(self, kind: str, name: object, known: tuple[str, ...]) -> Fault:
        """Describe an unknown option `name` of the group `kind` whose options are `known`."""
        hint = f"see: pipeline-kit ls {kind}"
        if self.failed:
            broken = ", ".join(f"'{who}' ({type(why).__name__}: {why})" for who, why in self.failed.items())
            hint = f"note: these plugins failed to load and may provide it: {for_message(broken, 500)}; " + hint
        return Fault(f"{kind}={for_message(name, 80)}", "no such option.", known, closest_match(name, known), hint)

    def specs(self, kind: str | None = None) -> Iterator[StageSpec]:
        """Go through the stages, by kind and then by name."""
        for key in sorted(self._specs):
            if kind is None or key[0] == kind:
                yield self._specs[key]

    @property
    def conf_packages(self) -> dict[str, str]:
        """The packages with presets and who registered each."""
        return dict(self._conf)

    def copy(self) -> Registry:
        """Return an independent registry with the same content, to try a registration on."""
        twin = Registry()
        twin._specs, twin._conf = dict(self._specs), dict(self._conf)
        twin.failed, twin.contested, twin.source = dict(self.failed), dict(self.contested), self.source
        return twin

    def adopt(self, other: Registry) -> None:
        """Take what is new in `other`, a copy of this one that a registration succeeded on."""
        self._specs, self._conf = {**other._specs, **self._specs}, {**other._conf, **self._conf}


def raise_if_stopped(error: BaseException) -> None:
    """Raise an exception that a signal brought into a plugin; what the plugin raised itself is its failure."""
    frame, last = None, error.__traceback__
    while last is not None:
        frame, last = last, last.tb_next
    if frame is None or frame.tb_frame.f_globals.get("__name__", "").startswith("pipeline_kit.cli."):
        raise error  # from our handler of SIGTERM
    code = frame.tb_frame.f_code.co_code
    if isinstance(error, KeyboardInterrupt) and dis.opname[code[frame.tb_lasti]] != "RAISE_VARARGS":
        raise error  # ctrl-c comes at any instruction but one that raises
