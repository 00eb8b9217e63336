"""The composition root: from a checked config to a runnable pipeline. Only here are stages built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from pipeline_kit.checkpoint.resolve import find_folder, resolve_checkpoint
from pipeline_kit.compose.aliases import FIXED
from pipeline_kit.compose.compose import at_call
from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.compose.schema import PipelineConfig, StageChoice, parse_config
from pipeline_kit.contract.options import choices_of
from pipeline_kit.contract.registry import KINDS
from pipeline_kit.contract.stages import (
    ENCODING_FIELDS,
    PAIR,
    Model,
    Postprocessor,
    StageContext,
    TextWriter,
    Tokenizer,
)
from pipeline_kit.contract.types import Checkpoint, Device
from pipeline_kit.errors import (
    CheckpointError,
    ConfigError,
    Fault,
    PipelineKitError,
    RegistryError,
    closest_match,
    for_message,
    redacted,
)
from pipeline_kit.explain.record import explain, explain_steps
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.runtime.calls import StageCalls, no_exit
from pipeline_kit.runtime.device import emulated, prepare_process
from pipeline_kit.runtime.padding import PaddingPolicy
from pipeline_kit.runtime.pipeline import Pipeline, Recipe
from pipeline_kit.runtime.steps import Step, StepPipeline

_BUILTIN = "pipeline_kit.builtin."
_MOST_VARIANTS = 8


def rebuild(data: Mapping[str, Any], plugins: Sequence[str]) -> Pipeline:
    """Build the pipeline of a composed config that was kept as plain data, such as in a pickle."""
    return build(parse_config(data, load_registry(plugins), []), plugins=plugins)


@no_exit("building the pipeline")
def build(config: PipelineConfig, plugins: Sequence[str] = ()) -> Pipeline:
    """Build the pipeline that `config` describes.

    :param plugins: the plugins that `config` needs besides installed ones, for building it once more.
    """
    return _build_steps(config, plugins) if config.steps else _build(config, plugins, [])


def _build_steps(config: PipelineConfig, plugins: Sequence[str]) -> Pipeline:
    """Build each step's pipeline; those whose models would be the same share one."""
    models: BuiltModels = []
    built = {name: _build(part, plugins, models) for name, part in config.parts.items()}
    steps = {name: Step(step.wiring, built.get(name)) for name, step in config.steps.items()}
    described = {name: {k: v for k, v in pipe.description.items() if k != "options"} for name, pipe in built.items()}
    notes = [f"{name}: {note}" for name, pipe in built.items() for note in pipe.description["notes"]]
    last = next(reversed(built.values())).description
    description = {"task": last["task"], "checkpoint": last["checkpoint"], "steps": described, "notes": notes}
    gives = {name: step.column for name, step in config.steps.items()}
    recipe = Recipe(config.data, tuple(plugins), rebuild, tuple(config.task.takes), gives)
    return StepPipeline.of(steps, recipe, description=description, explainer=explain_steps)


BuiltModels = list[tuple[tuple[Any, ...], Model]]
"""Models with all that they were built from."""


def _build(config: PipelineConfig, plugins: Sequence[str], models: BuiltModels) -> Pipeline:
    """Build one pipeline.

    :param models: those that are there already; one that is built is added.
    """
    checkpoint = checkpoint_of(config)
    device = config.policies["device"].load()(config.device, checkpoint)
    if not isinstance(device, Device):
        raise RegistryError([Fault(f"device={config.device.name}", "its function returned no Device.")])
    context = _context(config, checkpoint, device)
    model_class = config.model.spec.load(Model)
    with _reading(checkpoint, config.model):
        context = replace(context, reserved_positions=model_class.reserved_positions(config.model.options, context))
    tokenizer_class = config.tokenizer.spec.load(Tokenizer)
    with _reading(checkpoint, config.tokenizer):
        tokenizer: Tokenizer = tokenizer_class(config.tokenizer.options, context)
    context = replace(context, tokenizer=tokenizer)
    # What a model sees of a tokenizer follows from the tokenizer's options and the checkpoint. Tokenizers themselves
    # are not shared: each encodes on a thread of its own pipeline's.
    alone = replace(context, tokenizer=None, required_fields=frozenset(), truncation="longest_first")
    made_of = (config.model, config.tokenizer, replace(alone, overflow="truncate", pair_names=PAIR))
    model = next((model for known, model in models if known == made_of), None)
    if model is None:
        prepare_process(device)
        with _reading(checkpoint, config.model):
            model = model_class(config.model.options, context)
        models.append((made_of, model))
    context = replace(context, model=model)
    light = _light_parts(config, context)
    calls = StageCalls(config.runner.retries, config.runner.retry_delay)
    labels = checkpoint.labels if context.head.endswith("-classification") else ()
    gives = config.gives or {}
    recipe = Recipe(config.data, tuple(plugins), rebuild, tuple(config.task.takes), gives, labels)
    light |= {"explainer": explain, "adapter": partial(_adapted, config, context, {}), "recipe": recipe}
    pipeline = Pipeline(device=device, description={}, calls=calls, **light)
    return replace(pipeline, description=_describe(config, checkpoint, pipeline))


def _context(config: PipelineConfig, checkpoint: Checkpoint, device: Device) -> StageContext:
    """Return what the stages of `config` may know before any of them is built."""
    postprocessor = config.postprocessor.spec.load(Postprocessor)
    requires = postprocessor.required_fields
    if not requires <= ENCODING_FIELDS:
        unknown = ", ".join(sorted(requires - ENCODING_FIELDS))
        raise RegistryError(
            [Fault(f"postprocessor={config.postprocessor.name}", f"requires unknown fields: {unknown}.")]
        )
    return StageContext(
        checkpoint,
        device,
        config.task.head,
        requires,
        config.task.name,
        truncation=postprocessor.truncation,
        overflow=postprocessor.overflow,
        pair_names=postprocessor.pair_names,
        src_lang=config.task.src_lang,
        tgt_lang=config.task.tgt_lang,
        others=tuple(other_checkpoints_of(config)),
    )


def check(config: PipelineConfig) -> None:
    """Raise what building would raise of the head, as far as options and the files of a local checkpoint show it.

    No weights are read and no stage is loaded. A model's options may have a method ``check(checkpoint, head)``, which
    raises for a checkpoint that the stage could not use.

    :raises ConfigError: if the model does not have the head that the task needs.
    :raises CheckpointError: if the checkpoint is a folder that is broken, or without the head.
    """
    options, spec = config.model.options, config.model.spec
    head, known = getattr(options, "head", None) or config.task.head, choices_of(spec.config, "head")
    if known and head not in known:
        problem = f"it needs the head '{for_message(head, 80)}', which model={spec.name} does not have."
        raise ConfigError([Fault(f"task={config.task.name}", problem, tuple(known), closest_match(head, known))])
    if find_folder(config.checkpoint.path) is not None and hasattr(options, "check"):
        options.check(checkpoint_of(config), head)


def checkpoint_of(config: PipelineConfig) -> Checkpoint:
    """Find and check the checkpoint that `config` names, in the format that its model stage reads.

    :raises CheckpointError: as :func:`~pipeline_kit.checkpoint.resolve.resolve_checkpoint`.
    """
    return resolve_checkpoint(config.checkpoint, lambda: getattr(_plugin_model(config), "checkpoint_format", None))


def other_checkpoints_of(config: PipelineConfig) -> list[Checkpoint]:
    """Find and check the checkpoints that the model stage reads beside that one, see `Model.other_checkpoints`.

    :raises CheckpointError: as :func:`~pipeline_kit.checkpoint.resolve.resolve_checkpoint`.
    """
    model = _plugin_model(config)
    paths = () if model is None else model.other_checkpoints(config.model.options)
    return [resolve_checkpoint(replace(config.checkpoint, path=path, revision=None, prompts={})) for path in paths]


def _plugin_model(config: PipelineConfig) -> type[Model] | None:
    """Return the class of a model stage that is not built in.

    The built-in ones read the Hugging Face format and no other checkpoint, and their modules import torch.
    """
    built_in = config.model.spec.target.startswith(_BUILTIN)
    return None if built_in else config.model.spec.load(Model)


def _light_parts(config: PipelineConfig, context: StageContext) -> dict[str, Any]:
    """Return the tokenizer and the model of `context` with what is light to build for them."""
    tokenizer, model = context.tokenizer, context.model
    assert tokenizer is not None
    assert model is not None
    with _reading(context.checkpoint, config.postprocessor):
        postprocessor = config.postprocessor.spec.load(Postprocessor)(config.postprocessor.options, context)
    batching: type[BatchingPolicy] = config.policies["batching"].load(BatchingPolicy)
    return {
        "tokenizer": tokenizer,
        "model": model,
        "postprocessor": postprocessor,
        "padding": _padding(config, tokenizer, model),
        "batching": batching.of(config.batching, context.device, writes=isinstance(model, TextWriter)),
    }


def _adapted(
    config: PipelineConfig,
    context: StageContext,
    made: dict[str, dict[str, Any]],
    pipeline: Pipeline,
    options: Mapping[str, Any],
) -> Pipeline:
    """Return `pipeline` with other options around the same model; the parts of the last few calls stay in `made`.

    :raises ConfigError: for options that are not there, or for which the model would be loaded anew.
    """
    key = repr(sorted(options.items()))
    found = made.get(key)  # read once: other threads may clear it
    if found is None:
        changed, model = at_call(config, options), context.model
        assert model is not None
        other_model, room = changed.model.options != config.model.options, context.reserved_positions
        if other_model:
            room = model.reserved_positions(changed.model.options, context)
        if room != context.reserved_positions or changed.tokenizer.options != config.tokenizer.options:
            context = replace(context, reserved_positions=room)
            with _reading(context.checkpoint, config.tokenizer):
                tokenizer = changed.tokenizer.spec.load(Tokenizer)(changed.tokenizer.options, context)
            context = replace(context, tokenizer=tokenizer)
        if other_model:
            context = replace(context, model=model.with_options(changed.model.options, context))
        if context.model is None:
            raise ConfigError([Fault("model", FIXED)])
        if len(made) >= _MOST_VARIANTS:
            made.clear()
        found = _light_parts(changed, context) | {"recipe": replace(pipeline.recipe, data=changed.data)}
        found["description"] = _describe(changed, context.checkpoint, replace(pipeline, **found))
        made[key] = found
    return replace(pipeline, **found)


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
        if not choice.spec.target.startswith(_BUILTIN):
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


def _padding(choices: PipelineConfig, tokenizer: Tokenizer, model: Model) -> PaddingPolicy:
    """Make the padding policy definite, giving up padding where it would change the model's answers."""
    config = choices.padding
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
    policy: type[PaddingPolicy] = PaddingPolicy if note else choices.policies["padding"].load(PaddingPolicy)
    return policy(
        name="none" if note else name,
        side=side,
        pad_token_id=tokenizer.pad_token_id or 0,
        max_length=config.max_length if config.max_length is not None else limit,
        multiple_of=config.multiple_of,
        note=note,
        config=config,
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
