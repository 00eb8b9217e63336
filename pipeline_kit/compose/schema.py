"""The whole of a pipeline's config, typed, and the check that turns composed plain data into it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pipeline_kit.checkpoint.resolve import CheckpointConfig
from pipeline_kit.contract.column_types import COUNTS, ColumnType
from pipeline_kit.contract.options import option, parse_options
from pipeline_kit.contract.registry import KINDS, Registry, Spec, Task
from pipeline_kit.errors import ConfigError, Fault, RegistryError, UsageError, closest_match, declare, for_message
from pipeline_kit.files.read.columns import EVERY
from pipeline_kit.files.read.parts import InputConfig
from pipeline_kit.files.storage.retries import StorageConfig
from pipeline_kit.files.write.base import OutputConfig
from pipeline_kit.files.write.layout import ERROR, ID
from pipeline_kit.runtime.config import (
    BatchingConfig,
    DeviceConfig,
    JobConfig,
    PaddingConfig,
    RunnerConfig,
    ServeConfig,
)
from pipeline_kit.runtime.wiring import FieldPath, Wiring

if TYPE_CHECKING:
    from pipeline_kit.files.read.source import Source


@dataclass
class TaskConfig:
    """Options of the group ``task``."""

    name: str = option("text-classification", "the task, by its Hugging Face name")
    src_lang: str | None = option(None, "the language of the texts, as a multilingual checkpoint calls it")
    tgt_lang: str | None = option(None, "the language to translate into, as the checkpoint calls it")


POLICIES: dict[str, type[Any]] = {
    "task": TaskConfig,
    "checkpoint": CheckpointConfig,
    "padding": PaddingConfig,
    "batching": BatchingConfig,
    "device": DeviceConfig,
    "input": InputConfig,
    "output": OutputConfig,
    "job": JobConfig,
    "runner": RunnerConfig,
    "storage": StorageConfig,
    "serve": ServeConfig,
}
"""The groups that are not stages, with their options."""

GROUPS = (*POLICIES, *KINDS, "steps")
NAMED_POLICIES = ("padding", "batching", "device", "runner")
"""Those of them whose `name` is one that is registered, by us or by a plugin."""

WIRES = ("take", "when", "split")
"""The keys of a step beside the groups of its config."""

ONCE = ("input", "output", "job", "storage", "serve")
WHOLE = (*ONCE, "runner")
"""The groups that a config with steps has once, for all of them."""

PARTS = tuple(group for group in (*POLICIES, *KINDS) if group not in (*ONCE, "task"))
MOST_STEPS = 20

for _group, _schema in POLICIES.items():
    declare(_schema, _group)


@dataclass(frozen=True)
class StageChoice:
    """A stage and its checked options."""

    spec: Spec
    options: Any

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.spec.name


@dataclass(frozen=True)
class TaskChoice:
    """A task and its checked options.

    :param name: the task's own name, also where it was chosen by an alias.
    :param head: the head that it needs on top of the network.
    :param takes: the fields of an example; a ? stands behind one that may be left out.
    """

    spec: Spec
    name: str
    head: str
    takes: tuple[str, ...]
    src_lang: str | None
    tgt_lang: str | None


@dataclass(frozen=True)
class PipelineConfig:
    """A config in which everything is known, typed and in range.

    :param policies: what is registered under the names of padding, batching, device, runner and formats.
    :param data: the same as plain data.
    :param steps: several pipelines in one. Stages, checkpoint and device are then those of the last step, and the task
        is its task, with the fields that all steps take of an example.
    """

    task: TaskChoice
    checkpoint: CheckpointConfig
    tokenizer: StageChoice
    model: StageChoice
    postprocessor: StageChoice
    padding: PaddingConfig
    batching: BatchingConfig
    device: DeviceConfig
    input: InputConfig
    output: OutputConfig
    job: JobConfig
    runner: RunnerConfig
    storage: StorageConfig
    serve: ServeConfig
    policies: Mapping[str, Spec]
    data: Mapping[str, Any]
    steps: Mapping[str, StepConfig] = field(default_factory=dict)

    @property
    def parts(self) -> Mapping[str, PipelineConfig]:
        """The configs of the steps that have one, by name; without steps the config itself, under ``""``."""
        return {name: step.config for name, step in self.steps.items() if step.config is not None} or {"": self}

    @property
    def gives(self) -> Mapping[str, ColumnType] | None:
        """The columns of the results; None where only the rows can tell."""
        if not self.steps:
            own: Mapping[str, ColumnType] | None = self.postprocessor.spec.detail
            return own
        found = {name: step.column for name, step in self.steps.items()}
        return {name: kind for name, kind in found.items() if kind is not None} if all(found.values()) else None

    def refuse_steps(self, what: str) -> None:
        """Raise UsageError, for what works on one pipeline alone, if there are steps."""
        if self.steps:
            raise UsageError(
                f"{what} one pipeline; this config has the steps {', '.join(self.steps)}: pass the config of one"
            )

    def mapped(self, change: Callable[[str, PipelineConfig], PipelineConfig]) -> PipelineConfig:
        """Return the config with a change to each of its `parts`."""
        if not self.steps:
            return change("", self)
        steps = {
            name: step if step.config is None else replace(step, config=change(name, step.config))
            for name, step in self.steps.items()
        }
        last = [*steps.values()][-1].config
        assert last is not None, "the last step has a config"
        own = {group: getattr(last, group) for group in PARTS}
        return replace(self, **own, steps=steps)


@dataclass(frozen=True)
class StepConfig:
    """One of several pipelines in a config; one without a config of its own splits a text into sentences."""

    wiring: Wiring
    config: PipelineConfig | None

    @property
    def column(self) -> ColumnType | None:
        """The column of its results."""
        if self.config is None:
            return {"list": {"struct": {"text": "string", "start": "int64", "end": "int64"}}}
        gives = self.config.gives
        if gives is None:
            return None
        kind: ColumnType = {"struct": {**{name.removesuffix("?"): kind for name, kind in gives.items()}, **COUNTS}}
        return {"list": kind} if self.wiring.each else kind


def carry_all(config: PipelineConfig, source: Source, *, identified: bool) -> tuple[PipelineConfig, Source]:
    """Put names in the place of ``input.carry=[*]``: of the columns of `source` all that are none of the output's own.

    :param identified: whether the output has a column ``id`` of its own.
    """
    if EVERY not in config.input.carry:
        return config, source
    own = {*COUNTS, ERROR, *((ID,) if identified else ()), config.input.id}
    own |= {key.removesuffix("?") for key in config.gives or ()}
    carry = [name for name in source.column_names() if name not in own]
    data = {**config.data, "input": {**config.data["input"], "carry": carry}}
    return replace(config, input=replace(config.input, carry=carry), data=data), source.carrying(carry)


def parse_config(data: Mapping[str, Any], registry: Registry, faults: list[Fault]) -> PipelineConfig:
    """Check composed data against every dataclass.

    :param faults: faults already known; the new ones are added.
    :raises ConfigError: with all of them, if there is any.
    """
    if data.get("steps"):
        return _parse_steps(data, registry, faults)
    for key in data:
        if key not in GROUPS:
            group, _, rest = str(key).partition(".")
            hint = f"write it nested: {group}: {{{for_message(rest, 80)}: ...}}" if rest and group in GROUPS else None
            known = () if hint else GROUPS
            faults.append(Fault(for_message(str(key), 80), "unknown option.", known, closest_match(key, known), hint))
    if not any(isinstance(node := data.get(kind), Mapping) and "name" in node for kind in KINDS):
        problem = "the config chooses no stages, and starts from no other that does."
        raise ConfigError([*faults, Fault("defaults", problem, hint="begin it with: defaults: [config, _self_]")])
    parts, policies = _policies(data, registry, faults)
    for kind in KINDS:
        parts[kind] = _stage(kind, data.get(kind), registry, faults)
    chosen = parts.get("task")
    if isinstance(chosen, TaskConfig) and (spec := _spec("task", chosen.name, registry, faults)) is not None:
        task: Task = spec.detail
        parts["task"] = TaskChoice(spec, task.name, task.head, task.takes, chosen.src_lang, chosen.tgt_lang)
    if faults:
        raise ConfigError(faults)
    return PipelineConfig(**parts, policies=policies, data=data)


def _policies(
    data: Mapping[str, Any], registry: Registry, faults: list[Fault]
) -> tuple[dict[str, Any], dict[str, Spec]]:
    """Check the groups that are not stages; return their options, and what is registered under their names."""
    parts: dict[str, Any] = {}
    policies: dict[str, Spec] = {}
    for group, schema in POLICIES.items():
        node = data.get(group, {})
        if not isinstance(node, Mapping):
            faults.append(_no_options(group, node))
            continue
        hint = f"see: pipeline-kit show {group}"
        if group in NAMED_POLICIES:
            spec = _spec(group, node.get("name", schema().name), registry, faults)
            if spec is None:
                continue
            if not issubclass(spec.config, schema):
                where = f"{group}={spec.name}"
                faults.append(Fault(where, f"its options '{spec.config.__name__}' do not extend {schema.__name__}."))
            policies[group], schema, hint = spec, spec.config, f"{hint}/{spec.name}"
        parts[group] = parse_options(schema, node, group, faults, hint=hint)
    for group in ("input", "output"):
        if (chosen := getattr(parts.get(group), "format", None)) is not None:
            spec = _spec(f"{group}_format", chosen, registry, faults)
            policies |= {} if spec is None else {spec.kind: spec}
    return parts, policies


def task_preset(spec: Spec) -> dict[str, Any]:
    """Return a task as the YAML of a preset: the stages it overrides, and its name."""
    task: Task = spec.detail
    stages = {"model": task.model, "postprocessor": task.postprocessor}
    overrides = [{f"override /{kind}": name} for kind, name in stages.items() if name is not None]
    return {"defaults": overrides, "task": {"name": task.name}}


def _stage(kind: str, node: Any, registry: Registry, faults: list[Fault]) -> StageChoice | None:
    if not isinstance(node, Mapping):
        nothing = Fault(kind, "no stage was chosen.", tuple(spec.name for spec in registry.specs(kind)))
        faults.append(nothing if node is None else _no_options(kind, node))
        return None
    spec = _spec(kind, node.get("name"), registry, faults)
    if spec is None:
        return None
    rest = {key: value for key, value in node.items() if key != "name"}
    options = parse_options(spec.config, rest, kind, faults, hint=f"see: pipeline-kit show {kind}/{spec.name}")
    return None if options is None else StageChoice(spec, options)


def _no_options(group: str, node: Any) -> Fault:
    """Return the fault of a group that holds no options; often it is the name of a choice."""
    name = for_message(node, 80)
    hint = f"to choose it, write in the list of defaults: override {group}: {name}" if isinstance(node, str) else None
    return Fault(group, f"'{'null' if node is None else name}' is not a mapping of options.", hint=hint)


def _spec(kind: str, name: Any, registry: Registry, faults: list[Fault]) -> Spec | None:
    try:
        return registry.get(kind, name if isinstance(name, str) else for_message(name))
    except RegistryError as error:
        faults.extend(error.faults)
        return None


def _parse_steps(data: Mapping[str, Any], registry: Registry, faults: list[Fault]) -> PipelineConfig:
    """Check a config with steps; each step's own faults are found as those of any config."""
    nodes = data["steps"]
    if not isinstance(nodes, Mapping) or len(nodes) > MOST_STEPS:
        problem = f"are a mapping of at most {MOST_STEPS} names, each with a mapping such as 'task: ner'."
        raise ConfigError([*faults, Fault("steps", problem)])
    known = ("task", "steps", *WHOLE)
    for key in data:
        if key not in known:
            faults.append(Fault(for_message(str(key), 80), "unknown option.", known, closest_match(key, known)))
    whole: dict[str, Any] = {
        group: parse_options(POLICIES[group], data.get(group, {}), group, faults) for group in ONCE
    }
    steps: dict[str, StepConfig] = {}
    for name, node in nodes.items():
        try:
            steps[name] = _parse_step(name, node, tuple(nodes), data.get("runner", {}), registry)
        except ConfigError as error:
            faults += of_steps({name: error.faults})
    paths = [path for step in steps.values() for path in (*step.wiring.take.values(), *step.wiring.when)]
    takes = list(dict.fromkeys(path.words[0] for path in paths if path.words[0] not in nodes))
    *_, last = steps.values() if len(steps) == len(nodes) else (None,)
    if last is not None and last.config is None:
        faults.append(Fault(f"steps.{name}", "the last step is a pipeline; sentences are for a step behind it."))
    if faults or last is None or last.config is None:
        raise ConfigError(faults)
    parts = {group: getattr(last.config, group) for group in (*PARTS, "policies")}
    task = replace(last.config.task, takes=tuple(takes))
    data = {**data, "task": {"name": task.name, "takes": takes, "gives": list(steps)}}
    return PipelineConfig(task=task, **whole, **parts, data=data, steps=steps)


def of_steps(found: Mapping[str, Sequence[Fault]]) -> Iterator[Fault]:
    """Yield the faults of steps' configs as faults of the whole."""
    for name, faults in found.items():
        prefix = f"steps.{for_message(name, 80)}."
        yield from (replace(fault, key=f"{prefix}{fault.key}".rstrip(".")) for fault in faults)


def _parse_step(name: str, node: Any, names: tuple[str, ...], runner: Any, registry: Registry) -> StepConfig:
    faults: list[Fault] = []
    if not re.fullmatch(r"[A-Za-z_][\w-]{0,63}", name) or name in ("id", "error"):
        faults.append(Fault("", "a step's name is a word of letters, digits, - and _, other than id and error."))
    if not isinstance(node, Mapping):
        raise ConfigError([*faults, Fault("", f"'{for_message(node)}' is not a mapping, such as 'task: ner'.")])
    config: PipelineConfig | None = None
    take: Mapping[str, Any] = {"text": node.get("split")}
    if "split" in node:
        others = [key for key in node if key not in ("split", "when")]
        if others:
            faults.append(Fault(f"{others[0]}", "has no effect in a step that splits a text.", ("split", "when")))
    else:
        own = {key: value for key, value in node.items() if key not in WIRES}
        try:
            config = parse_config({**own, "runner": runner}, registry, [])
            take = _taken(node.get("take"), config.task, faults)
        except ConfigError as error:
            faults += error.faults
            take = given if isinstance(given := node.get("take"), Mapping) else {}
    earlier = names[: names.index(name)]
    where = "split" if "split" in node else "take"
    paths = {field: _path(where, text, faults) for field, text in take.items()}
    when = dict(_conditions(node.get("when"), faults))
    wiring = Wiring(
        {field: path for field, path in paths.items() if path is not None},
        {path: values for path, values in when.items() if path is not None},
        frozenset(earlier),
    )
    for path in (*wiring.take.values(), *wiring.when):
        if path.words[0] in names and path.words[0] not in earlier:
            problem = f"'{path}' is of a step that does not come before this one; steps run in their order."
            faults.append(Fault(where if path in wiring.take.values() else "when", problem, earlier or ("none",)))
    if any(path.each for path in wiring.when) and not any(path.each for path in wiring.take.values()):
        faults.append(Fault("when", "has a * and 'take' has none: both go through the items of a list, or neither."))
    if faults:
        raise ConfigError(faults)
    return StepConfig(wiring, config)


def _taken(node: Any, task: TaskChoice, faults: list[Fault]) -> Mapping[str, Any]:
    """Check a step's ``take``; without one the fields that its task needs, or its first, are those of the example."""
    fields = [field.removesuffix("?") for field in task.takes]
    required = [field for field in task.takes if not field.endswith("?")]
    if node is None:
        return {field: field for field in required or fields[:1]}
    if not isinstance(node, Mapping):
        raise ConfigError([Fault("take", f"'{for_message(node)}' is not a mapping, such as 'text: text'.")])
    for key in node:
        if key not in fields:
            problem = f"task={task.name} has no such field."
            faults.append(Fault(f"take.{for_message(key, 80)}", problem, tuple(fields), closest_match(key, fields)))
    for key in required:
        if key not in node:
            faults.append(Fault("take", f"the field '{key}' of task={task.name} is missing."))
    return node


def _conditions(node: Any, faults: list[Fault], path: str = "") -> Iterator[tuple[FieldPath | None, Any]]:
    """Yield each path of a step's ``when``, and the values it may hold; None for any but null."""
    if isinstance(node, str) and not path:
        yield _path("when", node, faults), None
    elif isinstance(node, Mapping):  # an override such as when.language.label=de makes one mapping in another
        for key, value in node.items():
            yield from _conditions(value, faults, f"{path}.{key}".lstrip("."))
    elif path:
        values = tuple(node) if isinstance(node, list) else (node,)
        if not all(value is None or isinstance(value, str | int | float) for value in values):
            faults.append(Fault(f"when.{path}", "its values are texts, numbers, true, false or null."))
        yield _path(f"when.{path}", path, faults), values
    elif node is not None:
        problem = "is a path, or a mapping of paths to values, such as 'language.label: [de, fr]'."
        faults.append(Fault("when", problem))


def _path(where: str, text: Any, faults: list[Fault]) -> FieldPath | None:
    try:
        return FieldPath.parse(text)
    except ValueError as error:
        faults.append(Fault(where, f"'{for_message(text, 80)}' {error}."))
        return None
