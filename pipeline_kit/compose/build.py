"""The composition root: from a checked config to a runnable pipeline. Only here are stages built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from pipeline_kit.builtin.models.options import GenerationHead
from pipeline_kit.checkpoint.resolve import resolve_checkpoint
from pipeline_kit.compose.compose import compose
from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.compose.schema import PipelineConfig, StageChoice
from pipeline_kit.contract.registry import KINDS, Registry
from pipeline_kit.contract.stages import ENCODING_FIELDS, Model, Postprocessor, StageContext, Tokenizer
from pipeline_kit.contract.types import Checkpoint, Device
from pipeline_kit.errors import (
    CheckpointError,
    ConfigError,
    Fault,
    PipelineKitError,
    RegistryError,
    for_message,
    redacted,
)
from pipeline_kit.explain.record import explain
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.runtime.calls import StageCalls, no_exit
from pipeline_kit.runtime.device import emulated, resolve_device
from pipeline_kit.runtime.padding import PaddingConfig, PaddingPolicy
from pipeline_kit.runtime.pipeline import Pipeline


def load(
    *overrides: str,
    config_dir: str | Path | Sequence[str | Path] = (),
    config_name: str = "config",
    plugins: Sequence[str] = (),
) -> Pipeline:
    """Compose a config and build its pipeline: the Python twin of the command line.

    :param overrides: as on the command line: ``"task=sentence-embedding"``, ``"device.threads=2"``.
    :param config_dir: a folder, or several, with YAML of your own.
    :param config_name: the config to start from, for one that stands in `config_dir`.
    :param plugins: files or modules with a ``register(registry)`` function; installed ones are found.
    :raises ConfigError: with all faults of the config at once.
    :raises CheckpointError: if the model folder or hub id cannot be used.
    :raises DeviceError: if the device is not on this machine.
    """
    folders = [config_dir] if isinstance(config_dir, str | Path) else config_dir
    registry = load_registry(plugins)
    return build(compose(overrides, registry=registry, config_dir=folders, config_name=config_name))


@no_exit("building the pipeline")
def build(config: PipelineConfig, registry: Registry | None = None) -> Pipeline:
    """Build the pipeline that `config` describes.

    :param registry: not needed, since the config holds its stages; taken for symmetry with `compose`.
    """
    del registry
    checkpoint = resolve_checkpoint(config.checkpoint)
    device = resolve_device(config.device, checkpoint)
    postprocessor_class = _class(config.postprocessor, Postprocessor)
    requires = postprocessor_class.required_fields
    if not requires <= ENCODING_FIELDS:
        unknown = ", ".join(sorted(requires - ENCODING_FIELDS))
        raise RegistryError(
            [Fault(f"postprocessor={config.postprocessor.name}", f"requires unknown fields: {unknown}.")]
        )
    head = config.task.head
    context = StageContext(
        checkpoint,
        device,
        head,
        requires,
        config.task.name,
        truncation=postprocessor_class.truncation,
        overflow=postprocessor_class.overflow,
        pair_names=postprocessor_class.pair_names,
        src_lang=config.task.src_lang,
        tgt_lang=config.task.tgt_lang,
    )
    model_class = _class(config.model, Model)
    with _reading(checkpoint, config.model):
        context = replace(context, reserved_positions=model_class.reserved_positions(config.model.options, context))
    tokenizer_class = _class(config.tokenizer, Tokenizer)
    with _reading(checkpoint, config.tokenizer):
        tokenizer: Tokenizer = tokenizer_class(config.tokenizer.options, context)
    context = replace(context, tokenizer=tokenizer)
    with _reading(checkpoint, config.model):
        model: Model = model_class(config.model.options, context)
    context = replace(context, model=model)
    with _reading(checkpoint, config.postprocessor):
        postprocessor: Postprocessor = postprocessor_class(config.postprocessor.options, context)
    padding = _padding(config.padding, tokenizer, model)
    batching = BatchingPolicy.of(config.batching, device.kind, writes=head in get_args(GenerationHead))
    stages = (tokenizer, model, postprocessor)
    calls = StageCalls(config.runner.retries, config.runner.retry_delay)
    pipeline = Pipeline(*stages, padding, batching, device, {}, calls=calls, explainer=explain)
    return replace(pipeline, description=_describe(config, checkpoint, pipeline))


@contextmanager
def _reading(checkpoint: Checkpoint, choice: StageChoice) -> Iterator[None]:
    """Turn whatever a library raises while a built-in stage reads the checkpoint into an error of the checkpoint.

    The values in its files are anybody's, and libraries check few of them.
    """
    try:
        yield
    except (PipelineKitError, MemoryError):
        raise
    except Exception as error:
        if not choice.spec.target.startswith("pipeline_kit.builtin."):
            raise
        raise CheckpointError(
            f"{choice.spec.kind}={choice.name} cannot use the checkpoint '{for_message(checkpoint.name)}': "
            f"{type(error).__name__}: {for_message(str(error), 300)}. Most often a value in the JSON files of "
            f"{checkpoint.path} is not what the architecture takes: compare them with those of the original"
        ) from error


def _describe(config: PipelineConfig, checkpoint: Checkpoint, pipeline: Pipeline) -> dict[str, Any]:
    """Describe what every 'auto' and null became."""
    padding, batching, device = pipeline.padding, pipeline.batching, pipeline.device
    return {
        "task": config.task.name,
        "checkpoint": {"name": checkpoint.name, "revision": checkpoint.revision, "path": str(checkpoint.path)},
        "tokenizer": {"name": config.tokenizer.name, "max_length": pipeline.tokenizer.max_length},
        "model": {"name": config.model.name, "tolerance": pipeline.model.tolerance, **pipeline.model.runtime_info},
        "postprocessor": {"name": config.postprocessor.name},
        "device": {"name": device.name, "dtype": device.dtype, "threads": device.threads},
        "padding": {"name": padding.name, "side": padding.side, "max_length": padding.max_length},
        "batching": {"max_tokens": batching.max_tokens, "max_rows": batching.max_rows, "window": batching.window},
        "options": {
            kind: redacted({key: value for key, value in config.data.get(kind, {}).items() if key != "name"}, kind)
            for kind in (*KINDS, "padding")
        },
        "notes": _notes(config, padding, device),
    }


def _class(choice: StageChoice, interface: type[Any]) -> Any:
    found = choice.spec.load()
    if not issubclass(found, interface):
        where = f"{choice.spec.kind}={choice.name}"
        raise RegistryError(
            [Fault(where, f"'{choice.spec.target}' is not a {interface.__name__}; see docs/plugins.md.")]
        )
    return found


def _padding(config: PaddingConfig, tokenizer: Tokenizer, model: Model) -> PaddingPolicy:
    """Make the padding policy definite, giving up padding where it would change the model's answers."""
    side = config.side or tokenizer.padding_side
    sides = model.safe_padding_sides
    if config.side is not None and config.side not in sides and sides:
        problem = f"this checkpoint's answers change when it is padded on the {config.side}."
        raise ConfigError([Fault("padding.side", problem, allowed=tuple(sorted(sides)))])
    if side not in sides and sides:
        side = next(iter(sides))
    limit = tokenizer.max_length
    if config.max_length is not None and limit is not None and config.max_length > limit:
        problem = f"{config.max_length} is more than the {limit} tokens that the tokenizer returns at the most."
        raise ConfigError([Fault("padding.max_length", problem, hint="set tokenizer.max_length too")])
    if config.name == "max_length" and config.max_length is None and limit is None:
        problem = "padding=max_length needs a length: this checkpoint names none."
        raise ConfigError([Fault("padding.max_length", problem, hint="set padding.max_length=128, say")])
    name, note = config.name, None
    if name != "none" and not sides:
        note = "padding changes this architecture's answers, so only rows of equal length share a batch"
    elif name != "none" and tokenizer.pad_token_id is None:
        note = "the checkpoint has no padding token, so only rows of equal length share a batch"
    return PaddingPolicy(
        name="none" if note else name,
        side=side,
        pad_token_id=tokenizer.pad_token_id or 0,
        max_length=config.max_length if config.max_length is not None else limit,
        multiple_of=config.multiple_of,
        note=note,
    )


def _notes(config: PipelineConfig, padding: PaddingPolicy, device: Device) -> list[str]:
    """Return what a user should know: another padding, a dtype that costs time, options that do nothing."""
    found = [] if padding.note is None else [padding.note]
    if device.kind == "cpu" and emulated(device.dtype):
        found.append(
            f"this CPU has no products in {device.dtype}: they are emulated, which is slower than device.dtype=float32"
        )
    if (config.task.src_lang or config.task.tgt_lang) and config.task.head != "seq2seq-lm":
        found.append(f"task.src_lang and task.tgt_lang have no effect with task={config.task.name}")
    if config.padding.max_length is not None and config.padding.name in ("longest", "none"):
        found.append(f"padding.max_length has no effect with padding={config.padding.name}")
    if config.batching.max_tokens is not None and config.batching.name == "fixed":
        found.append("batching.max_tokens has no effect with batching=fixed")
    return found
