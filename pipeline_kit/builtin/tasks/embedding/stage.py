"""Token vectors to one vector per text."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from pipeline_kit.builtin.tasks.common.merge import floats, merge_windows
from pipeline_kit.builtin.tasks.embedding.modules import SentenceModules, pool, read_sentence_modules
from pipeline_kit.builtin.tasks.embedding.panels import pooling_panels
from pipeline_kit.builtin.tasks.options import PoolingConfig
from pipeline_kit.checkpoint.json import read_object
from pipeline_kit.contract.fields import read_fields, text_of
from pipeline_kit.contract.stages import Panel, Postprocessor, Seen, StageContext, Tokenizer
from pipeline_kit.contract.types import Checkpoint, Encoding, Example, ModelOutput, Result, RowOutput, TokenBatch
from pipeline_kit.errors import (
    CheckpointError,
    ConfigError,
    ExampleError,
    Fault,
    StageError,
    closest_match,
    did_you_mean,
    for_message,
)

_WIDTHS = ("word_embed_proj_dim", "hidden_size", "dim", "d_model", "n_embd")


@final
class Pooling(Postprocessor):
    """Returns ``embedding``, a list of floats.

    With ``auto`` and null the checkpoint's sentence-transformers files say how to pool, which layers follow and
    whether to normalize; a folder without them gets the normalized mean. An explicit ``pooling`` takes the place of
    the folder's own, its layers stay. The order is: prompt, pooling, layers, windows merged, first `dimensions`
    numbers, length 1.

    Each window of a long text is pooled and goes through the layers by itself; their vectors are merged by their
    mean, weighted by tokens, for every mode, and only that is cut to `dimensions` and normalized. The prompt stands
    at the beginning of the text, so in its first window.
    """

    def __init__(self, config: PoolingConfig, context: StageContext) -> None:
        """Read the folder and settle what ``auto`` and null stand for.

        :raises CheckpointError: if the folder's files are broken, or ask for what this stage cannot do.
        :raises ConfigError: for an unknown prompt, or more dimensions than there are.
        """
        checkpoint = context.checkpoint
        root = checkpoint.root or checkpoint.path
        settings = read_settings(root)
        chosen = None if config.pooling == "auto" else config.pooling
        modules = read_sentence_modules(root, chosen) or SentenceModules((chosen or "mean",))
        self._modes = modules.pooling
        self._layers = tuple(layer.to(context.device.name) for layer in modules.layers)
        self._normalize = modules.normalize if config.normalize is None else config.normalize
        self._dimensions = _dimensions(config.dimensions, settings, _width(modules, checkpoint), checkpoint)
        self._prompts = choose_prompts(checkpoint, settings, config.prompt, config.prompt_name)
        self._skipped = {} if modules.include_prompt else self._lengths(context)
        self._skips = tuple(sorted({0, *self._skipped.values()}))

    def _lengths(self, context: StageContext) -> dict[str, int]:
        """Count the tokens of each prompt, for a checkpoint that does not pool them."""
        texts = {text for text in (self._prompts.default, *self._prompts.named.values()) if text}
        if not texts:
            return {}
        if context.tokenizer is None:
            raise StageError("this checkpoint leaves its prompts out of the pooling, which needs a tokenizer to count")
        return {text: prompt_length(text, context.tokenizer) for text in texts}

    def prepare(self, example: Example) -> Sequence[Example]:
        """Put the prompt before the text, as it is: a space between them is the prompt's own.

        :raises ExampleError: for a wrong field, or a ``prompt_name`` that is unknown.
        """
        prompt, text = self._prompts.split(example)
        return (prompt + text,)

    def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        """Return ``embedding [B, S, D]``, float32, not normalized.

        ``S`` is 1, unless prompts are left out of the pooling: then there is a vector for each number of tokens
        that the prompts have, and ``__call__`` takes the right one.
        """
        hidden = floats(output, "last_hidden_state", 3, "[B, T, H]")
        rows = []
        for skip in self._skips:
            parts = [pool(hidden, batch.attention_mask, mode, skip) for mode in self._modes]
            vectors = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
            for layer in self._layers:
                if layer.takes not in (None, vectors.shape[-1]):
                    raise StageError(_wrong_width(layer.takes, vectors.shape[-1]))
                vectors = layer(vectors)
            rows.append(vectors)
        width = rows[0].shape[-1]
        if self._dimensions is not None and self._dimensions > width:
            raise StageError(f"postprocessor.dimensions={self._dimensions}: the vectors have {width} numbers")
        return ModelOutput({"embedding": torch.stack(rows, dim=1)[:, :, : self._dimensions]})

    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
        """Return the vectors, normalized if asked for; a vector of zeros stays as it is.

        :raises ExampleError: if a value is not finite, or nothing is left of a text without its prompt.
        """
        if not examples:
            return []
        rows = zip(examples, encodings, outputs, strict=True)
        chosen = [self._chosen(example, windows, found) for example, windows, found in rows]
        vectors = merge_windows(encodings, chosen, "embedding")
        if self._normalize:
            # In float64, since the squares of large float32 values overflow.
            lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
            vectors = np.asarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)
        return [{"embedding": vector} for vector in vectors.tolist()]

    def panels(self, seen: Seen) -> Sequence[Panel]:
        """Show how token vectors became one, and its length before and after normalizing."""
        skip = self._skipped.get(self._prompts.split(seen.example)[0], 0)
        chosen = self._chosen(seen.example, seen.encodings, seen.outputs)
        shape = (self._modes, self._layers, self._dimensions, self._normalize, skip)
        return pooling_panels(*shape, seen.encodings, seen.raw, chosen, seen.result)

    def _chosen(
        self, example: Example, windows: Sequence[Encoding], outputs: Sequence[RowOutput]
    ) -> Sequence[RowOutput]:
        """Take of each window's vectors the one without its prompt's tokens; only the first window has any."""
        if len(self._skips) == 1:
            return [{"embedding": row["embedding"][0]} for row in outputs]
        skip = self._skipped.get(self._prompts.split(example)[0], 0)
        if len(windows[0].input_ids) <= skip:
            raise ExampleError("nothing is left of the text without its prompt, which this checkpoint does not pool")
        places = [self._skips.index(0 if window.window else skip) for window in windows]
        return [{"embedding": row["embedding"][place]} for row, place in zip(outputs, places, strict=True)]


def _width(modules: SentenceModules, checkpoint: Checkpoint) -> int | None:
    """Work out how many numbers a vector has, None if the checkpoint's files do not say.

    :raises CheckpointError: if a layer takes vectors of another width.
    """
    hidden = modules.hidden or next((checkpoint.config[key] for key in _WIDTHS if checkpoint.config.get(key)), None)
    width = hidden * len(modules.pooling) if isinstance(hidden, int) else None
    for layer in modules.layers:
        if layer.takes is not None and width not in (None, layer.takes):
            raise CheckpointError(f"'{for_message(checkpoint.name)}': {_wrong_width(layer.takes, width)}")
        width = layer.gives or width
    return width


def _wrong_width(takes: int | None, width: int | None) -> str:
    return (
        f"a layer behind the pooling takes vectors of {takes} numbers, not {width}; "
        "does postprocessor.pooling differ from the checkpoint's own?"
    )


def _dimensions(
    asked: int | None, settings: Mapping[str, Any], width: int | None, checkpoint: Checkpoint
) -> int | None:
    """Settle how many numbers of a vector are kept, None for all.

    :raises ConfigError: if it is more than a vector has.
    :raises CheckpointError: if the folder's ``truncate_dim`` is not a number of dimensions.
    """
    if asked is not None:
        if width is not None and asked > width:
            problem = f"'{asked}' is more than the {width} numbers of a vector of '{for_message(checkpoint.name)}'."
            raise ConfigError([Fault("postprocessor.dimensions", problem, allowed=(f"1 to {width}",))])
        return asked
    own = settings.get("truncate_dim")
    if own is None:
        return None
    if type(own) is not int or own < 1:
        raise CheckpointError(
            f"'{for_message(checkpoint.name)}' has truncate_dim {for_message(own, 40)}, not a whole number"
        )
    return own if width is None else min(own, width)


SETTINGS_NAME = "config_sentence_transformers.json"


@dataclass(frozen=True)
class Prompts:
    """The prompts there are.

    :param default: what stands before a text whose example names none; perhaps empty.
    :param named: by name, from the folder and from ``checkpoint.prompts``.
    """

    default: str
    named: Mapping[str, str]

    def split(self, example: Example) -> tuple[str, str]:
        """Read the fields ``text`` and ``prompt_name`` of an example.

        :returns: the prompt, perhaps empty, and the text.
        :raises ExampleError: for a wrong field, or a name that no prompt has.
        """
        if isinstance(example, str):
            return self.default, text_of(example, "text")
        fields = read_fields(example, ("text",), ("prompt_name",))
        text, name = text_of(fields["text"], "text"), fields.get("prompt_name")
        if name is None:
            return self.default, text
        found = self.named.get(name) if isinstance(name, str) else None
        if found is None:
            raise ExampleError(
                f"the field 'prompt_name' is '{for_message(name, 80)}'; {_listed(self.named)}."
                + did_you_mean(name, self.named)
            )
        return found, text


def read_settings(folder: Path) -> Mapping[str, Any]:
    """Read ``config_sentence_transformers.json`` of a folder, ``{}`` if it has none.

    :raises CheckpointError: if it is not a JSON object.
    """
    file = folder / SETTINGS_NAME
    return read_object(file) if os.path.lexists(file) else {}


def choose_prompts(
    checkpoint: Checkpoint, settings: Mapping[str, Any], prompt: str | None, prompt_name: str | None
) -> Prompts:
    """Settle which prompt is the default, as sentence-transformers does: `prompt`, `prompt_name`, the folder's own.

    :param settings: what :func:`read_settings` returned.
    :param prompt: may be empty, which leaves the folder's default prompt out.
    :raises ConfigError: if both are given, or no prompt is called `prompt_name`.
    :raises CheckpointError: if the folder's prompts are not texts by name, or do not have the default one.
    """
    where = (checkpoint.root or checkpoint.path) / SETTINGS_NAME
    own = settings.get("prompts") or {}
    if not isinstance(own, Mapping) or not all(isinstance(text, str | None) for text in own.values()):
        raise CheckpointError(f"'{where}': 'prompts' must map names to texts, not {for_message(own, 80)}")
    named = {name: text or "" for name, text in own.items()} | dict(checkpoint.prompts)
    if prompt is not None:
        if prompt_name is not None:
            problem = f"'{for_message(prompt, 80)}' and postprocessor.prompt_name={prompt_name} are both set."
            raise ConfigError([Fault("postprocessor.prompt", problem, hint="leave one of them out")])
        return Prompts(prompt, named)
    if prompt_name is not None:
        if prompt_name not in named:
            problem = (
                f"'{for_message(prompt_name, 80)}' is unknown{'' if named else '; this checkpoint names no prompts'}."
            )
            hint = f"name one of your own: 'checkpoint.prompts={{{for_message(prompt_name, 80)}: \"its text \"}}'"
            near = closest_match(prompt_name, tuple(named))
            raise ConfigError([Fault("postprocessor.prompt_name", problem, tuple(named), near, hint)])
        return Prompts(named[prompt_name], named)
    default = settings.get("default_prompt_name")
    if default is None:
        return Prompts("", named)
    if default not in named:
        raise CheckpointError(
            f"'{where}': the default prompt '{for_message(default, 80)}' is not among its prompts; "
            "set postprocessor.prompt or prompt_name"
        )
    return Prompts(named[default], named)


def prompt_length(prompt: str, tokenizer: Tokenizer) -> int:
    """Count the tokens that a prompt takes at the beginning of an encoding, special ones before it included.

    They are those of the prompt alone without a special token at the end, as sentence-transformers counts them:
    https://github.com/huggingface/sentence-transformers/blob/main/sentence_transformers/base/modules/transformer.py
    """
    ids = tokenizer.encode([prompt])[0].input_ids
    try:
        frame: Sequence[int] = tokenizer.encode([""])[0].input_ids
    except ExampleError:  # a tokenizer without special tokens makes nothing of an empty text
        frame = ()
    return len(ids) - (bool(frame) and ids[-1] == frame[-1])


def _listed(named: Mapping[str, str]) -> str:
    if not named:
        return "this checkpoint names no prompts"
    return "the prompts are " + ", ".join(f"'{for_message(name, 40)}'" for name in named)
