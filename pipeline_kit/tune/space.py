"""What there is to try: engines for the task's head, budgets of a batch, numbers of threads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final, get_args

from pipeline_kit.builtin.models.options import GenerationHead
from pipeline_kit.compose.compose import compose
from pipeline_kit.compose.hydra import written
from pipeline_kit.compose.overrides import options
from pipeline_kit.compose.schema import PipelineConfig, parse_config
from pipeline_kit.contract.options import choices_of
from pipeline_kit.contract.registry import BUILTIN, KINDS, Registry, Spec
from pipeline_kit.contract.types import Device
from pipeline_kit.errors import ConfigError, for_message
from pipeline_kit.runtime.device import available_cpus, emulated

BUDGETS_CPU = (256, 512, 1024, 2048, 4096)
BUDGETS_GPU = tuple(16 * budget for budget in BUDGETS_CPU)
# Options by which plugins offer several engines in one stage.
_PRECISIONS = ("precision", "quantization")
# What a user sets for a model whatever engine it runs on.
_CARRIED = ("head", "cache_dir")


@final
class SearchSpace:
    """Candidates around a user's config.

    :ivar own: that config.
    :ivar reference: the built-in model in float32 with its own settings, which answers are compared with.
    """

    def __init__(
        self,
        own: PipelineConfig,
        device: Device,
        registry: Registry,
        config_dirs: Sequence[str | Path] = (),
        *,
        compiled: bool = False,
        cpus: int | None = None,
    ) -> None:
        """Look around `own`, whose device turned out to be `device`.

        :param registry: with every plugin loaded that is to be tried.
        :param config_dirs: the user's folders, whose presets of models are tried too.
        :param compiled: whether ``model.compile`` is tried.
        :param cpus: processors; None: those this process may run on.
        """
        self._config, self._device, self._registry = own, device, registry
        self._folders = config_dirs
        self._compiled = compiled
        self._cpus = available_cpus() if cpus is None else cpus
        self._base = "generate" if own.task.head in get_args(GenerationHead) else "hf"
        self.own = Candidate("your config", own)
        self.reference = self._built_in({})

    def engines(self) -> list[Candidate]:
        """Return the engines to try, each config once, the user's and the reference left out."""
        found: dict[str, Candidate] = {}
        known = {self.own.key, self.reference.key}
        for candidate in (*self._built_ins(), *self._of_plugins(), *self._presets()):
            name = candidate.engine if candidate.config is None else candidate.key
            if name not in known:
                found.setdefault(name, candidate)
        return list(found.values())

    def budgets(self, leader: Candidate, now: int | None) -> list[Candidate]:
        """Return `leader` with other budgets than the one it has `now`."""
        assert leader.config is not None
        before = leader.config.data["batching"]
        if leader.config.batching.name != "token_budget":  # its max_rows was a batch size, not a limit
            before = {"name": "token_budget", "window": before.get("window", 2048), "max_rows": None}
        budgets = BUDGETS_CPU if self._device.kind == "cpu" else BUDGETS_GPU
        nodes = [{**before, "max_tokens": budget} for budget in budgets if budget != now]
        return [self._candidate(leader.engine, leader.config, batching=node) for node in nodes]

    def threads(self, leader: Candidate, now: int) -> list[Candidate]:
        """Return `leader` with other numbers of threads than the one it has `now`."""
        assert leader.config is not None
        if self._device.kind != "cpu":
            return []
        before = leader.config.data["device"]
        counts = sorted({1 << bit for bit in range(self._cpus.bit_length()) if 1 << bit <= self._cpus} | {self._cpus})
        nodes = [{**before, "threads": count} for count in counts if count != now]
        return [self._candidate(leader.engine, leader.config, device=node) for node in nodes]

    def _candidate(self, engine: str, base: PipelineConfig, **nodes: Mapping[str, Any]) -> Candidate:
        """Put `nodes`, whole groups such as ``model``, in the place of those of `base`, and check the result."""
        try:
            return Candidate(engine, parse_config({**base.data, **nodes}, self._registry, []))
        except ConfigError as error:
            return Candidate(engine, problem=reason_of(error))

    def _built_ins(self) -> Iterator[Candidate]:
        more: list[dict[str, Any]] = []
        if self._base == "hf":
            more = [{"quantization": "int8"}, {"quantization": "int8_per_token"}]
            more += [{"compile": True}] if self._compiled else []
        for dtype in ("bfloat16",) if self._device.kind == "cpu" else ("bfloat16", "float16"):
            if self._device.kind == "cpu" and emulated(dtype):
                problem = f"this processor does not multiply {dtype} itself: it would be slower than float32"
                yield Candidate(f"{_label(self._base)} device.dtype={dtype}", problem=problem)
                continue
            yield self._built_in({}, dtype)
        for settings in more:
            yield self._built_in(settings)

    def _built_in(self, settings: Mapping[str, Any], dtype: str = "float32") -> Candidate:
        node = self._start(self._registry.get("model", self._base))
        return self._engine(_label(self._base, settings), {**node, **settings}, dtype)

    def _of_plugins(self) -> Iterator[Candidate]:
        for spec in self._registry.specs("model"):
            if spec.source == BUILTIN:
                continue
            heads = choices_of(spec.config, "head")
            if heads and self._config.task.head not in heads:
                problem = f"it has no head '{self._config.task.head}', which the task needs"
                yield Candidate(_label(spec.name), problem=problem)
                continue
            varied = next((name for name in _PRECISIONS if choices_of(spec.config, name)), None)
            for settings in [{varied: value} for value in choices_of(spec.config, varied)] if varied else [{}]:
                yield self._engine(_label(spec.name, settings), {**self._start(spec), **settings})

    def _presets(self) -> Iterator[Candidate]:
        """Yield the presets of models that plugins and the user's folders bring."""
        stages = {spec.name for spec in self._registry.specs("model")}
        for name, source in options(self._registry, self._folders)["model"].items():
            if name in stages or source == BUILTIN:
                continue
            try:
                given = compose([f"model={name}"], registry=self._registry, config_dir=self._folders).data["model"]
                spec = self._registry.get("model", given["name"])
            except ConfigError as error:
                yield Candidate(_label(name), problem=reason_of(error))
                continue
            heads = choices_of(spec.config, "head")
            if not heads or self._config.task.head in heads:
                usual = spec.node()
                settings = {key: value for key, value in given.items() if value != usual.get(key)}
                yield self._engine(_label(name), {**self._start(spec), **settings})

    def _engine(self, label: str, node: Mapping[str, Any], dtype: str = "float32") -> Candidate:
        device = self._config.data["device"]
        if self._device.dtype != dtype:
            device = {**device, "dtype": dtype}
        shown = label if dtype == "float32" else f"{label} device.dtype={dtype}"
        return self._candidate(shown, self._config, model=node, device=device)

    def _start(self, spec: Spec) -> dict[str, Any]:
        """Return the options that a stage is tried with, its precision apart."""
        own = self._config.data["model"]
        # The options of hf are what is tuned; those of another stage may say what is to be computed.
        if own["name"] == spec.name and spec.name != "hf":
            return dict(own)
        node = spec.node()
        return node | {name: own[name] for name in _CARRIED if name in own and name in node}


def _label(name: str, settings: Mapping[str, Any] | None = None) -> str:
    shown = {key: str(value).lower() if isinstance(value, bool) else value for key, value in (settings or {}).items()}
    return " ".join([f"model={name}", *(f"model.{key}={value}" for key, value in shown.items())])


@dataclass(frozen=True)
class Candidate:
    """A config under a name.

    :param engine: what the model runs on, for people: ``model=hf model.quantization=int8``.
    :param config: None if there is none, see `problem`.
    :param problem: why it cannot be tried.
    """

    engine: str
    config: PipelineConfig | None = None
    problem: str | None = None

    @property
    def key(self) -> str:
        """The same for two candidates whose configs are equal."""
        return json.dumps(None if self.config is None else self.config.data, sort_keys=True, default=repr)


def reason_of(error: BaseException) -> str:
    """Return in one line why something cannot be tried."""
    faults = getattr(error, "faults", None)
    if faults:
        text = "; ".join(f"{fault.key}: {fault.problem}" if fault.key else fault.problem for fault in faults)
    elif type(error).__module__.startswith("pipeline_kit"):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}"
    return for_message(" ".join(text.split()), 300)


def changes(own: PipelineConfig, other: PipelineConfig) -> list[str]:
    """Write what `other` has and `own` has not as overrides; of another stage, what is not its default."""
    found = []
    for group, node in other.data.items():
        before = own.data.get(group, {})
        if group in KINDS and node["name"] != before.get("name"):
            found.append(f"{group}={node['name']}")
            before = getattr(other, group).spec.node()
        found += _leaves(group, before, node)
    return found


def _leaves(path: str, before: Any, after: Any) -> list[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return [item for key in after for item in _leaves(f"{path}.{key}", before.get(key), after[key])]
    return [] if before == after else [f"{path.removesuffix('.name')}={written(after)}"]
