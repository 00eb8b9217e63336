"""Names to what plugins bring: stages, policies, formats, tasks. Targets are strings, loaded on first use."""

from __future__ import annotations

import dis
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, get_args

from pipeline_kit.contract.column_types import ColumnType
from pipeline_kit.contract.options import defaults
from pipeline_kit.errors import Fault, RegistryError, closest_match, declare, for_message

Kind = Literal["tokenizer", "model", "postprocessor"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""The three stages, each a class with a dataclass of options."""
BUILTIN = "pipeline-kit"
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


_WORD = (r"[a-z][a-z0-9_]{0,63}", "a-z, 0-9 and _, at most 64 characters")
_WORDS = (r"[a-z][a-z0-9_-]{0,63}", "a-z, 0-9, _ and -, at most 64 characters")
_SCHEME = (r"[a-z][a-z0-9+-]{1,31}", "what its URLs begin with: a-z, 0-9, + and -, at most 32 characters")
_ENDING = (r"[a-z0-9]{1,16}", "the ending of its files without the dot: a-z and 0-9, at most 16 characters")

RULES: dict[str, tuple[str, str]] = {
    **dict.fromkeys((*KINDS, "padding", "batching", "device", "runner", "view", "dialect"), _WORD),
    **dict.fromkeys(("task", "evaluator"), _WORDS),
    **dict.fromkeys(("input_format", "output_format"), _ENDING),
    "scheme": _SCHEME,
}
"""Every kind that can be registered, with the pattern of its names, and that pattern in words."""


@dataclass
class NoOptions:
    """The config of what has no options."""


@dataclass(frozen=True)
class Task:
    """What a task consists of: the `detail` of its spec. An alias has the same one.

    :param name: the task's own name.
    :param postprocessor: the stage that reads its examples and makes its results.
    :param head: what the model puts on the checkpoint's network.
    :param takes: the fields of an example; a ? stands behind one that may be left out.
    :param model: the model stage it needs; None if any will do.
    :param parameters: the options that a request to a server may set, such as ``postprocessor.top_k``.
    :param run: the words after ``pipeline-kit run task=NAME`` to try it with.
    :param tip: an override worth knowing, and what it does.
    """

    name: str
    postprocessor: str
    head: str
    takes: tuple[str, ...]
    model: str | None = None
    parameters: tuple[str, ...] = ()
    run: str = ""
    tip: str = ""


@dataclass(frozen=True)
class Spec:
    """One registered name: a stage, a policy, a format, a task.

    :param target: ``package.module:Name``, imported when it is first used; ``""`` if it is only data.
    :param config: the dataclass of its options; :class:`NoOptions` if it has none.
    :param source: the distribution and version, or the file, that registered it.
    :param detail: plain data of the kind's own: a :class:`Task`, or the columns of a postprocessor's results.
    """

    kind: str
    name: str
    target: str
    config: type[Any]
    summary: str
    source: str
    detail: Any = field(default=None, hash=False)

    def node(self) -> dict[str, Any]:
        """Return the name and the options with their defaults, as they stand in a config."""
        return {**defaults(self.config), "name": self.name}

    def load(self, interface: type[Any] | None = None) -> Any:
        """Import the target: a class for a stage, a class or function for anything else.

        :param interface: the class that it must derive from.
        :raises RegistryError: if the module cannot be imported or lacks the name, which names the source; or if
            it is not what it must be.
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
        wanted = None
        if interface is not None and not (isinstance(found, type) and issubclass(found, interface)):
            wanted = f"a {interface.__name__}; see docs/plugins.md"
        elif not (isinstance(found, type) if self.kind in KINDS else callable(found)):
            wanted = "a class" if self.kind in KINDS else "a class or function"
        elif missing := sorted(getattr(found, "__abstractmethods__", ())):
            wanted = f"whole: it lacks {', '.join(missing)}; see docs/plugins.md"
        if wanted is not None:
            raise RegistryError([Fault(f"{self.kind}={self.name}", f"'{self.target}' is not {wanted}.")])
        return found


class Registry:
    """What there is by kind and name, and the packages that ship presets.

    A plugin's ``register`` function gets one and calls :meth:`tokenizer`, :meth:`model`, :meth:`postprocessor`,
    :meth:`task`, :meth:`conf`, and :meth:`add` for any other kind.
    """

    def __init__(self) -> None:
        self._specs: dict[tuple[str, str], Spec] = {}
        self.conf_packages: dict[str, str] = {}
        """The packages with presets and who registered each."""
        self.source = BUILTIN
        """Who registers at the moment, kept in each spec."""
        self.failed: dict[str, Exception] = {}
        """Plugins that could not be loaded, by what they call themselves."""
        self.contested: dict[tuple[str, str], Fault] = {}
        """Names that two plugins registered; nobody gets to choose between them by order of installation."""

    def add(
        self,
        kind: str,
        name: str,
        target: str = "",
        config: type[Any] = NoOptions,
        summary: str = "",
        detail: Any = None,
    ) -> Spec:
        """Register `name` as one of `kind`, a key of :data:`RULES`; docs/plugins.md has the interface of each.

        :param target: ``package.module:Name`` of its class or function, imported on first use.
        :param config: the dataclass of its options.
        :param detail: plain data of the kind's own.
        :raises RegistryError: if the name is taken by something else (both owners are named), or if
            kind, name, target or config are not of their form.
        """
        where = f"{for_message(kind)}={for_message(name)}"
        if kind not in RULES:
            raise RegistryError(
                [Fault(where, "is of an unknown kind.", tuple(RULES), closest_match(kind, tuple(RULES)))]
            )
        pattern, form = RULES[kind]
        if not re.fullmatch(pattern, name):
            raise RegistryError([Fault(where, "is not a name of this kind.", allowed=(form,))])
        if not _TARGET.fullmatch(target) and (target or kind in KINDS):
            raise RegistryError([Fault(where, f"the target '{for_message(target)}' is not 'package.module:Name'.")])
        if not hasattr(config, "__dataclass_fields__"):
            raise RegistryError([Fault(where, "its config is not a dataclass.")])
        spec = Spec(kind, name, target, config, summary, self.source, detail)
        other = self._specs.get((kind, name))
        if other is not None and (other.target, other.config, other.detail) == (target, config, detail):
            return other  # the same plugin again, such as one that is installed and given with --plugin too
        if other is not None:
            owners = [f"{one.source} ({one.target})" if one.target else one.source for one in (other, spec)]
            fault = Fault(
                where, f"registered twice: by {' and by '.join(owners)}.", hint="rename one, or leave one plugin out"
            )
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

    def postprocessor(
        self,
        name: str,
        target: str,
        config: type[Any],
        *,
        gives: Mapping[str, ColumnType] | None = None,
        summary: str = "",
    ) -> None:
        """Register a :class:`~pipeline_kit.contract.stages.Postprocessor`.

        :param gives: the keys of its results with their types (:mod:`~pipeline_kit.contract.column_types`), in order; a
            ? stands behind one that an option adds. They are the columns of Parquet and CSV. None: the first rows show.
        """
        self.add("postprocessor", name, target, config, summary, gives)

    def task(
        self,
        name: str,
        postprocessor: str,
        *,
        head: str,
        takes: Sequence[str] = ("text",),
        model: str | None = None,
        evaluator: str = "",
        aliases: Sequence[str] = (),
        parameters: Sequence[str] = (),
        summary: str = "",
        run: str = '--text "I love this."',
        tip: str = "",
    ) -> None:
        """Register a task: ``task=NAME`` chooses its stages, and every command knows it by its name.

        :param evaluator: ``package.module:Name`` of what makes its
            :class:`~pipeline_kit.contract.evaluator.Evaluator` from an ``EvaluationContext``; ``""``: it has none.
        :param aliases: other names of it.

        The other parameters are those of :class:`Task`.
        """
        found = Task(name, postprocessor, head, tuple(takes), model, tuple(parameters), run, tip)
        self.add("task", name, summary=summary, detail=found)
        for alias in aliases:
            self.add("task", alias, summary=f"another name of {name}", detail=found)
        if evaluator:
            self.add("evaluator", name, evaluator, summary=f"compares results of {name} with labels")

    def view(self, name: str, target: str, config: type[Any] = NoOptions, *, summary: str = "") -> None:
        """Register a :class:`~pipeline_kit.explain.view.View`, for ``pipeline-kit explain --view NAME``."""
        self.add("view", name, target, config, summary)

    def storage(self, scheme: str, target: str, *, summary: str = "") -> None:
        """Register a :class:`~pipeline_kit.files.storage.base.Storage`, for URLs that begin with ``scheme://``."""
        self.add("scheme", scheme, target, summary=summary)

    def conf(self, package: str) -> None:
        """Add the presets of a package, written ``pkg://package.conf``, to the config search path."""
        if not re.fullmatch(r"pkg://[A-Za-z_][\w.]*", package):
            raise RegistryError([Fault("conf", f"'{for_message(package)}' is not of the form 'pkg://package.conf'.")])
        self.conf_packages[package] = self.source

    def get(self, kind: str, name: str) -> Spec:
        """Return what is registered as `name`.

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
        typed = kind.replace("_", ".")  # a format is chosen by the option input.format
        return Fault(f"{typed}={for_message(name, 80)}", "no such option.", known, closest_match(name, known), hint)

    def specs(self, kind: str | None = None) -> Iterator[Spec]:
        """Go through what is registered, by kind and then by name."""
        for key in sorted(self._specs):
            if kind is None or key[0] == kind:
                yield self._specs[key]

    def copy(self) -> Registry:
        """Return an independent registry with the same content, to try a registration on."""
        twin = Registry()
        twin._specs, twin.conf_packages = dict(self._specs), dict(self.conf_packages)
        twin.failed, twin.contested, twin.source = dict(self.failed), dict(self.contested), self.source
        return twin

    def adopt(self, other: Registry) -> None:
        """Take what is new in `other`, a copy of this one that a registration succeeded on."""
        self._specs = {**other._specs, **self._specs}
        self.conf_packages = {**other.conf_packages, **self.conf_packages}


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
