"""The way in from Python: pipelines by keywords, by overrides, and by the arguments of ``transformers.pipeline``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from pipeline_kit.compose import aliases
from pipeline_kit.compose.build import build
from pipeline_kit.compose.compose import compose, config_file
from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.compose.schema import PipelineConfig
from pipeline_kit.contract.registry import Registry
from pipeline_kit.errors import UsageError
from pipeline_kit.files.storage.retries import use_storage
from pipeline_kit.runtime.pipeline import Pipeline

Choice = str | Mapping[str, Any]
"""The name of a group's option, or a mapping of options; its key ``name`` chooses."""


class Arguments(TypedDict, total=False):
    """The keywords of :func:`pipeline`: names that users of ``transformers`` know, and groups."""

    device: Choice | int | Any
    device_map: str | None
    dtype: Any
    torch_dtype: Any
    batch_size: int | None
    revision: str | None
    framework: str | None
    use_fast: bool
    token: str | bool | None
    trust_remote_code: bool | None
    model_kwargs: Mapping[str, Any] | None
    top_k: int | None
    return_all_scores: bool
    function_to_apply: str | None
    aggregation_strategy: str
    candidate_labels: str | Sequence[str]
    hypothesis_template: str
    multi_label: bool
    truncation: bool | str
    max_length: int
    doc_stride: int
    handle_impossible_answer: bool
    max_new_tokens: int
    do_sample: bool
    temperature: float
    num_beams: int
    return_full_text: bool
    src_lang: str
    tgt_lang: str
    threads: int
    postprocessor: Choice
    padding: Choice | bool
    batching: Choice
    input: Mapping[str, Any]
    job: Mapping[str, Any]
    runner: Mapping[str, Any]
    storage: Mapping[str, Any]
    serve: Mapping[str, Any]
    steps: Choice


class JobOptions(Arguments, total=False):
    """The keywords of ``run_job``, whose own argument `output` is a folder."""

    task: Choice
    checkpoint: Choice | os.PathLike[str]
    tokenizer: Choice
    model: Choice


class Options(JobOptions, total=False):
    """The keywords of :func:`load`."""

    output: Mapping[str, Any]


def load(
    *overrides: str | Mapping[str, Any],
    config: str | os.PathLike[str] | None = None,
    config_dir: str | Path | Sequence[str | Path] = (),
    config_name: str = "config",
    plugins: Sequence[str] = (),
    **options: Unpack[Options],
) -> Pipeline:
    """Compose a config and build its pipeline: the Python twin of the command line.

    ::

        pk.load(task="ner", checkpoint="./my-model", device="cuda:0")       # a folder, a hub id or a preset
        pk.load(tokenizer={"name": "windows", "max_length": 128})           # choose an option and set its options
        pk.load("tokenizer.max_length=128", "device.threads=2")             # as on the command line
        pk.load(cfg.pipeline)                                               # a mapping, such as a DictConfig
        pk.load(config="mine.yaml", batch_size=8, dtype="bfloat16")         # names that transformers uses

    The groups are task, checkpoint, tokenizer, model, postprocessor, padding, batching, device, input, output, job and
    runner; ``pipeline-kit ls`` lists what each has, ``pipeline-kit show tokenizer/hf`` the options of one.

    :param overrides: texts as on the command line, and mappings of options.
    :param config: a YAML file to start from.
    :param config_dir: a folder, or several, with YAML of your own.
    :param config_name: the config to start from, for one that stands in `config_dir`.
    :param plugins: files or modules with a ``register(registry)`` function; installed ones are found.
    :param options: groups and options by name. Their values are data, never read as the text of an override, and win
        over `overrides`.
    :raises ConfigError: with all faults of the config at once.
    :raises CheckpointError: if the model folder or hub id cannot be used.
    :raises DeviceError: if the device is not on this machine.
    """
    chosen = composed((*overrides, options), load_registry(plugins), config, config_dir, config_name)
    use_storage(chosen.storage)
    return build(chosen, plugins=plugins)


def composed(
    overrides: Sequence[str | Mapping[str, Any]],
    registry: Registry,
    config: str | os.PathLike[str] | None = None,
    config_dir: str | Path | Sequence[str | Path] = (),
    config_name: str = "config",
) -> PipelineConfig:
    """Compose what the arguments of :func:`load` describe; see there."""
    folders = [config_dir] if isinstance(config_dir, str | Path) else list(config_dir)
    if config is not None:
        path = config_file(config)
        folders, config_name = [path.parent, *folders], path.stem
    return compose(overrides, registry=registry, config_dir=folders, config_name=config_name)


def pipeline(
    task: str | None = None,
    model: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    tokenizer: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    **arguments: Unpack[Arguments],
) -> Pipeline:
    """Build a pipeline from the arguments of ``transformers.pipeline``; docs/from-transformers.md shows both.

    ::

        pk.pipeline("text-classification", model="./my-model", device=0, batch_size=8, dtype="float16", top_k=None)

    :param model: the checkpoint: a folder, a hub id or a preset. A mapping sets options of the model stage.
    :param tokenizer: options of the tokenizer stage; the tokenizer itself is the one in the checkpoint.
    :raises ConfigError: naming what to use in place of an argument that there is not here.
    """
    for name, value in (("model", model), ("tokenizer", tokenizer)):
        if value is not None and not isinstance(value, str | os.PathLike | Mapping):
            raise UsageError(f"{name}: {aliases.answer(aliases.OBJECTS)}, not an object of {type(value).__name__}")
    passed: dict[str, Any] = {name: value for name, value in arguments.items() if value is not None or name == "top_k"}
    passed["model" if isinstance(model, Mapping) else "checkpoint"] = model
    return load({**passed, "task": task, "tokenizer": None if tokenizer == model else tokenizer})
