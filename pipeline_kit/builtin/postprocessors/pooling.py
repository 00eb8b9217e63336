"""Token vectors to one vector per text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import torch

from pipeline_kit.builtin.postprocessors.configs import PoolingConfig
from pipeline_kit.builtin.postprocessors.merge import floats, merge_windows
from pipeline_kit.builtin.postprocessors.pool import pool
from pipeline_kit.builtin.postprocessors.pooling_panels import pooling_panels
from pipeline_kit.builtin.postprocessors.prompts import choose_prompts, prompt_length, read_settings
from pipeline_kit.builtin.postprocessors.sentence_modules import SentenceModules, read_sentence_modules
from pipeline_kit.errors import CheckpointError, ConfigError, ExampleError, Fault, StageError, shorten
from pipeline_kit.panels import Panel, Seen
from pipeline_kit.stages import Postprocessor, StageContext
from pipeline_kit.types import Checkpoint, Encoding, Example, ModelOutput, Result, RowOutput, TokenBatch

__all__ = ["Pooling"]

_WIDTHS = ("word_embed_proj_dim", "hidden_size", "dim", "d_model", "n_embd")


@final
class Pooling(Postprocessor):
    """Gives ``embedding``, a list of floats.

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
        """Give ``embedding [B, S, D]``, float32, not normalized.

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
        """Give the vectors, normalized if asked for; a vector of zeros stays as it is.

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
            raise CheckpointError(f"'{shorten(checkpoint.name)}': {_wrong_width(layer.takes, width)}")
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
    :raises CheckpointError: if the folder's ``truncate_dim`` is no number of numbers.
    """
    if asked is not None:
        if width is not None and asked > width:
            problem = f"'{asked}' is more than the {width} numbers of a vector of '{shorten(checkpoint.name)}'."
            raise ConfigError([Fault("postprocessor.dimensions", problem, allowed=(f"1 to {width}",))])
        return asked
    own = settings.get("truncate_dim")
    if own is None:
        return None
    if type(own) is not int or own < 1:
        raise CheckpointError(f"'{shorten(checkpoint.name)}' has truncate_dim {shorten(own, 40)}, not a whole number")
    return own if width is None else min(own, width)
