"""The whole of a pipeline's config, typed, and the check that turns composed plain data into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline_kit.builtin.models.options import GenerationHead, Head
from pipeline_kit.checkpoint.resolve import CheckpointConfig
from pipeline_kit.contract.options import option, parse_options
from pipeline_kit.contract.registry import KINDS, Registry, StageSpec
from pipeline_kit.errors import ConfigError, Fault, RegistryError, closest_match, declare, for_message
from pipeline_kit.files.read.parts import InputConfig
from pipeline_kit.files.write.base import OutputConfig
from pipeline_kit.runtime.batching import BatchingConfig
from pipeline_kit.runtime.config import JobConfig, RunnerConfig
from pipeline_kit.runtime.device import DeviceConfig
from pipeline_kit.runtime.padding import PaddingConfig


@dataclass
class TaskConfig:
    """Options of the group ``task``."""

    name: str = option("text-classification", "the task, by its Hugging Face name")
    head: Head | GenerationHead = option("base", "the head it needs on top of the network")
    takes: list[str] = option(["text"], "the fields of an example; a ? stands behind one that may be left out")
    gives: list[str] = option([], "the keys of a result; a ? stands behind one that an option adds")
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
}
"""The groups that are not stages, with their options."""

for _group, _schema in POLICIES.items():
    declare(_schema, _group)


@dataclass(frozen=True)
class StageChoice:
    """A stage and its checked options."""

    spec: StageSpec
    options: Any

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.spec.name


@dataclass(frozen=True)
class PipelineConfig:
    """A config in which everything is known, typed and in range. `data` is the same as plain data."""

    task: TaskConfig
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
    data: Mapping[str, Any]


def parse_config(data: Mapping[str, Any], registry: Registry, faults: list[Fault]) -> PipelineConfig:
    """Check composed data against every dataclass.

    :param faults: faults already known; the new ones are added.
    :raises ConfigError: with all of them, if there is any.
    """
    known = (*POLICIES, *KINDS)
    for key in data:
        if key not in known:
            faults.append(Fault(for_message(str(key), 80), "unknown option.", known, closest_match(key, known)))
    parts: dict[str, Any] = {}
    for group, schema in POLICIES.items():
        node = data.get(group, {})
        if isinstance(node, Mapping):
            parts[group] = parse_options(schema, node, group, faults, hint=f"see: pipeline-kit show {group}")
        else:
            faults.append(Fault(group, f"'{for_message(node)}' is not a mapping of options."))
    for kind in KINDS:
        parts[kind] = _stage(kind, data.get(kind), registry, faults)
    if faults:
        raise ConfigError(faults)
    return PipelineConfig(**parts, data=data)


def _stage(kind: str, node: Any, registry: Registry, faults: list[Fault]) -> StageChoice | None:
    if not isinstance(node, Mapping):
        faults.append(Fault(kind, "no stage was chosen.", tuple(s.name for s in registry.specs(kind))))
        return None
    name = node.get("name")
    try:
        spec = registry.get(kind, name if isinstance(name, str) else for_message(name))
    except RegistryError as error:
        faults.extend(error.faults)
        return None
    rest = {key: value for key, value in node.items() if key != "name"}
    options = parse_options(spec.config, rest, kind, faults, hint=f"see: pipeline-kit show {kind}/{name}")
    return None if options is None else StageChoice(spec, options)
