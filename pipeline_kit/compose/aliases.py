"""What people type by habit, and the options that it means: in overrides, keywords of Python and flags alike."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pipeline_kit.builtin.models.options import GenerationOptions
from pipeline_kit.compose.schema import GROUPS, NAMED_POLICIES, POLICIES
from pipeline_kit.contract.options import defaults
from pipeline_kit.contract.registry import Registry
from pipeline_kit.contract.spelling import spelled
from pipeline_kit.errors import ConfigError, Fault, RegistryError, closest_match, for_message

NOTHING = object()
"""The value of an alias that asks for what is done anyway."""


class Instruction(str):
    """An answer in the place of a value. Between backticks stand overrides; Python's users see their keywords."""


@dataclass(frozen=True)
class Alias:
    """Another name of an option, or of several of which a composed config has one.

    :param options: dotted; the first one that the config has is set. Empty: pipeline-kit has no such option.
    :param values: what a value becomes; others stay as they are.
    :param words: the answer where none of `options` is in the config, or `unless` is.
    :param unless: an option beside which the name would mean something else.
    """

    options: tuple[str, ...] = ()
    values: Mapping[Any, Any] = field(default_factory=dict)
    words: str = ""
    unless: str = ""


@dataclass(frozen=True)
class Setting:
    """A value for an option, or for the one that an alias means in the config.

    :param typed: the option's dotted name, or that of the alias.
    :param literal: whether ``${`` in a text is just that, and not a reference.
    """

    typed: str
    value: Any
    literal: bool = False
    alias: Alias | None = None


OBJECTS = "pass a folder or a hub id (an object is written to one by save_pretrained), as `checkpoint=./my-model`"
FIXED = "cannot change at a call; pass it to pipeline_kit.load or pipeline_kit.pipeline."
_DTYPES = {
    **{name: "float32" for name in ("torch.float32", "fp32", "float", "torch.float")},
    **{name: "float16" for name in ("torch.float16", "fp16", "half", "torch.half")},
    **{name: "bfloat16" for name in ("torch.bfloat16", "bf16")},
}
_READ = "`tokenizer.overflow=window` reads a long text to its end, `tokenizer.overflow=error` fails its row"
_WRITES = (
    "a limit of what is read is `tokenizer.max_length=512`, of what is written `model.generation.max_new_tokens=50`"
)
_NO_CODE = "code in a checkpoint is never run; see docs/reliability.md#what-is-refused"
_WITHIN = (
    "the tokenizer is read from the checkpoint's folder; put its files there. Other readers: pipeline-kit ls tokenizer"
)
_TEXTS_ALONE = "pipelines are for texts alone; tasks: pipeline-kit ls task"
_HUB = "a token is read from the environment variable HF_TOKEN; a config holds none"
_SAME = """
    device.threads model.attn_implementation model.quantization checkpoint.revision checkpoint.cache_dir task.src_lang
    task.tgt_lang tokenizer.add_special_tokens postprocessor.ignore_labels postprocessor.hypothesis_template
    postprocessor.multi_label postprocessor.max_answer_len postprocessor.handle_impossible_answer
    postprocessor.align_to_words postprocessor.targets postprocessor.pooling postprocessor.prompt
    postprocessor.prompt_name postprocessor.prefix
"""


def _of(task: str, name: str, values: Mapping[Any, Any] | None = None) -> Alias:
    return Alias((f"postprocessor.{name}",), values or {}, f"it is an option of `task={task}`")


ALIASES: dict[str, Alias] = {
    **{path.rpartition(".")[2]: Alias((path,)) for path in _SAME.split()},
    **{item.name: Alias((f"model.generation.{item.name}",)) for item in fields(GenerationOptions)},
    # where and how the model runs
    "batch_size": Alias(("batching.max_rows",)),
    **{name: Alias(("device.dtype",), _DTYPES) for name in ("dtype", "torch_dtype")},
    "fp16": Alias(("device.dtype",), {True: "float16", False: NOTHING}),
    "bf16": Alias(("device.dtype",), {True: "bfloat16", False: NOTHING}),
    "device_map": Alias(("device",)),
    "load_in_8bit": Alias(("model",), {True: "int8", False: NOTHING}),
    "num_workers": Alias(words="`runner.workers=2` shares a job among processes; one alone reads ahead by itself"),
    # which checkpoint
    **{name: Alias(("checkpoint",)) for name in ("model_name", "model_name_or_path")},
    "local_files_only": Alias(("checkpoint.offline",)),
    **{name: Alias(words=_HUB) for name in ("token", "use_auth_token")},
    "trust_remote_code": Alias(values={False: NOTHING}, words=_NO_CODE),
    "use_fast": Alias(values={True: NOTHING}, words="every tokenizer is a fast one: leave use_fast out"),
    "framework": Alias(values={"pt": NOTHING}, words="models run in PyTorch; see docs/speed.md for other engines"),
    "model_kwargs": Alias(words="pass each by its own name, such as `model.attn_implementation=eager`"),
    "pipeline_class": Alias(words="a stage of your own is a plugin, see docs/plugins.md"),
    **{f"{name}processor": Alias(words=_TEXTS_ALONE) for name in ("", "image_", "video_")},
    # how texts are cut
    "truncation": Alias(("tokenizer.overflow",), {True: "truncate", False: Instruction(_READ)}),
    "max_length": Alias(("tokenizer.max_length",), words=_WRITES, unless="model.generation"),
    "max_seq_len": Alias(("tokenizer.max_length",)),
    **{name: Alias(("tokenizer.overlap",)) for name in ("stride", "doc_stride")},
    "column": Alias(("input.fields.text",)),
    # what a result holds
    "top_k": Alias(("postprocessor.top_k", "model.generation.top_k")),
    "return_all_scores": _of("text-classification", "top_k", {True: None, False: 1}),
    "function_to_apply": _of("text-classification", "function", {None: "auto"}),
    "aggregation_strategy": _of("token-classification", "aggregation"),
    "grouped_entities": _of("token-classification", "aggregation", {True: "simple", False: "none"}),
    "candidate_labels": _of("zero-shot-classification", "labels"),
    "normalize_embeddings": _of("sentence-embedding", "normalize"),
    "truncate_dim": _of("sentence-embedding", "dimensions"),
    "return_full_text": _of("text-generation", "full_text"),
}
"""By the name that is typed. One that means several things, or nothing here, has words only."""

LISTS = ("candidate_labels", "ignore_labels", "targets")
"""Aliases whose value may be one text with commas."""

TASKS = {
    **{name: "zero-shot-classification" for name in ("zero-shot", "nli")},
    **{name: "sentence-embedding" for name in ("embedding", "embeddings", "sentence-similarity", "text-embedding")},
    **{name: "text-ranking" for name in ("rerank", "reranking", "reranker", "cross-encoder")},
    "qa": "question-answering",
    "sentiment": "text-classification",
    "mask-filling": "fill-mask",
}
"""Other names of tasks."""

COMMANDS = {
    **{name: "run" for name in ("predict", "infer", "inference")},
    "eval": "evaluate",
    "list": "ls",
    "describe": "show",
    "benchmark": "bench",
    "config": "cfg",
    "check": "validate",
    "optimize": "tune",
    "train": "pipeline-kit is not a trainer; measure a checkpoint with: evaluate --input FILE",
    "finetune": "pipeline-kit is not a trainer; measure a checkpoint with: evaluate --input FILE",
    "plugin": "write a plugin to start from with: new-plugin tokenizer NAME",
}
"""Other names of subcommands, and answers for those there are not."""

_DEVICE = re.compile(r"(?P<kind>[a-z][a-z0-9_]*)(?::(?P<index>\d+))?")


def meaning(name: str, value: Any) -> Setting | None:
    """Return what the alias `name` with `value` sets; None if it asks for what is done anyway.

    :raises ConfigError: with the words to use, if it has no meaning here.
    """
    alias = ALIASES[name]
    if name in LISTS and isinstance(value, str):
        value = [item.strip() for item in value.split(",")]
    known = alias.values[value] if isinstance(value, Hashable) and value in alias.values else value
    if known is NOTHING:
        return None
    if isinstance(known, Instruction) or not alias.options:
        words = known if isinstance(known, Instruction) else alias.words
        raise ConfigError([Fault(f"{name}={for_message(value, 40)}", f"{answer(words)}.")])
    return Setting(name, known, alias=alias)


def answer(words: str) -> str:
    """Return `words` with the overrides between backticks as the user writes them."""
    return re.sub(r"`([^`]*)`", lambda found: spelled(found[1]), words)


def choice(group: str, value: Any, known: Sequence[str]) -> list[tuple[str, Any]] | None:
    """Return the groups and options that `value`, which is not an option of `group`, means; None if it means none.

    :raises ConfigError: with the words to use, if it has no meaning here.
    """
    text = str(value)
    if group in ("checkpoint", "model") and _names_folder(text):
        return [("checkpoint.path", text)]
    if group == "checkpoint" and re.fullmatch(r"\w+(-[\w.]+)+", text) and closest_match(text, known) is None:
        return [("checkpoint.path", text)]  # a hub id of one word, such as bert-base-uncased
    if group == "tokenizer" and _names_folder(text):
        raise ConfigError([Fault(f"tokenizer={for_message(text, 80)}", f"{_WITHIN}.")])
    if group == "padding" and text.lower() in ("true", "false", "do_not_pad"):
        return [("padding", "longest" if text.lower() == "true" else "none")]
    if group == "task":
        dashed = text.lower().replace("_", "-")
        pair = re.fullmatch(r"translation-([a-z-]+)-to-([a-z-]+)", dashed)
        if pair is not None:
            said = f"write `task=translation` `src_lang={pair[1]}` `tgt_lang={pair[2]}`, as the checkpoint calls them"
            raise ConfigError([Fault(f"task={for_message(text, 80)}", f"{answer(said)}.")])
        found = TASKS.get(dashed, dashed)
        return [("task", found)] if found in known else None
    return _device(text, known) if group == "device" else None


def alone(text: str, known: Mapping[str, Collection[str]]) -> str | None:
    """Return the override that a task or a checkpoint stands for without its group; None if `text` is neither."""
    if text in known["task"]:
        return f"task={text}"
    names = tuple(known["checkpoint"])
    path = not re.search(r"\s", text) and choice("checkpoint", text, names)
    return f"checkpoint={text}" if text in names or path else None


def _device(text: str, known: Sequence[str]) -> list[tuple[str, Any]] | None:
    if re.fullmatch(r"-?\d+", text):
        return [("device", "cpu")] if int(text) < 0 else [("device", "cuda"), ("device.index", int(text))]
    found = _DEVICE.fullmatch(text.lower())
    kind = {"gpu": "cuda"}.get(found["kind"], found["kind"]) if found else ""
    if found is None or kind not in known:
        return None
    only = found["index"] is None or (kind in ("cpu", "mps") and found["index"] == "0")
    return [("device", kind)] if only else [("device", kind), ("device.index", int(found["index"]))]


def _names_folder(text: str) -> bool:
    """Return whether `text` is a folder, looks like a path, or is a hub id such as ``org/name``."""
    try:
        return "/" in text or "\\" in text or text.startswith(".") or Path(text).is_dir()
    except (OSError, ValueError):
        return False


def set_options(
    data: dict[str, Any], settings: Iterable[Setting], registry: Registry, groups: Sequence[str] = ()
) -> Iterator[Fault]:
    """Set values in a composed config; yield what cannot be set.

    :param groups: those whose options may be set; none: all.
    """
    for setting in settings:
        alias, path = setting.alias, setting.typed
        if alias is not None:
            path = next((path for path in alias.options if _has(data, path, registry)), "")
        if alias is not None and not path:
            stages = ", ".join(f"{kind}={data.get(kind, {}).get('name')}" for kind in ("model", "postprocessor"))
            problem = f"task={data.get('task', {}).get('name')} has no such option ({stages})."
            kind, _, name = alias.options[0].partition(".")
            specs = [spec for spec in registry.specs(kind) if name.partition(".")[0] in defaults(spec.config)]
            have = ", ".join(f"`{kind}={spec.name}`" for spec in specs)
            yield Fault(setting.typed, problem, hint=answer(alias.words or f"it is one of {have}"))
        elif alias is not None and alias.unless and _has(data, alias.unless, registry):
            problem = f"has two meanings with task={data['task']['name']}: {answer(alias.words)}."
            yield Fault(setting.typed, problem)
        elif groups and "." in path and path.partition(".")[0] not in groups:
            yield Fault(setting.typed, FIXED)
        else:
            *parents, last = path.split(".")
            node: Any = data
            for parent in parents:
                node = node.setdefault(parent, {}) if isinstance(node, dict) else None
            if isinstance(node, dict):
                node[last] = _merged(node.get(last), setting.value)
            else:
                yield Fault(path, f"'{parents[-1]}' is not a mapping of options.")


def _has(data: Mapping[str, Any], path: str, registry: Registry) -> bool:
    """Return whether a composed config has the option `path`: its stage declares it."""
    group, *names = path.split(".")
    try:
        named = group in NAMED_POLICIES or group not in POLICIES
        schema = registry.get(group, data[group]["name"]).config if named else POLICIES[group]
    except (RegistryError, KeyError, TypeError):  # reported when the whole is checked
        return True
    node: Any = defaults(schema)
    for place, name in enumerate(names):
        if not isinstance(node, Mapping) or name not in node:
            return place > 0 and node == {}  # a mapping with keys of the user's own
        node = node[name]
    return True


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
    return new


def override_of_flag(word: str, following: deque[str]) -> str | None:
    """Return the override that a flag such as ``--batch-size 8`` stands for; its value is taken from `following`.

    None if its name is neither an alias nor an option.
    """
    name, equals, value = word.removeprefix("--").partition("=")
    key = name.replace("-", "_")
    if key not in ALIASES and key.partition(".")[0] not in GROUPS:
        return None
    if not equals:  # a word that is a flag or an override is not the value
        takes = following and not re.match(r"--|\+*[A-Za-z_][\w.]*=", following[0])
        value = following.popleft() if takes else "true"
    if key in GROUPS or re.fullmatch(r"-?[\d.]+(e-?\d+)?|true|false|null|[\[{].*", value):
        return f"{key}={value}"
    from pipeline_kit.compose.hydra import written  # here, since --help needs no Hydra

    return f"{key}={written(value)}"
