"""Token vectors to one vector per text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline_kit.builtin.tasks.common.merge import Outputs, Windows, floats, merge_windows
from pipeline_kit.builtin.tasks.common.panels import Item, counted, digits, merge_panels, table_panel, wrapped
from pipeline_kit.builtin.tasks.embedding.modules import (
    Mode,
    SentenceLayer,
    SentenceModules,
    pool,
    read_sentence_modules,
)
from pipeline_kit.builtin.tasks.options import PoolingConfig
from pipeline_kit.checkpoint.json import read_optional
from pipeline_kit.contract.evaluator import value_of
from pipeline_kit.contract.fields import read_fields, text_of
from pipeline_kit.contract.stages import Cell, Panel, Postprocessor, Seen, StageContext, Tokenizer
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
from pipeline_kit.evaluate.numbers import PairEvaluator

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
        settings = read_optional(root / SETTINGS_NAME)
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
        """Put the prompt before the text, as it is: a space between them is the prompt's own."""
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

    def __call__(self, examples: Sequence[Example], encodings: Windows, outputs: Outputs) -> list[Result]:
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
        skip = self._skipped.get(self._prompts.split(seen.example)[0], 0)
        chosen = self._chosen(seen.example, seen.encodings, seen.outputs)
        hidden = [np.asarray(row["last_hidden_state"], dtype=np.float32) for row in seen.raw]
        skips = [0 if encoding.window else skip for encoding in seen.encodings]
        merged = merge_windows([seen.encodings], [chosen], "embedding")[0]
        numbers = [[float(row["embedding"][i]) for row in chosen] for i in range(min(_NUMBERS, len(merged)))]
        items = [Item(f"number {i}", seen.encodings, values) for i, values in enumerate(numbers)]
        return [
            *(_pooled(mode, hidden, skips, len(self._modes) > 1) for mode in self._modes),
            _steps(self._modes, self._layers, self._dimensions, hidden, skips[0]),
            *merge_panels(items, "mean", "value", heading="of the vector"),
            _length(merged, self._normalize, seen.result),
        ]

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
    """Return how many numbers a vector has; None: unknown. Raise CheckpointError if a layer takes another width."""
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
    """The prompt of examples that name none, perhaps empty, and those of the folder and ``checkpoint.prompts``."""

    default: str
    named: Mapping[str, str]

    def split(self, example: Example) -> tuple[str, str]:
        """Return an example's prompt, perhaps empty, and text; raise ExampleError for a name that no prompt has."""
        if isinstance(example, str):
            return self.default, text_of(example, "text")
        fields = read_fields(example, ("text",), ("prompt_name",))
        text, name = text_of(fields["text"], "text"), fields.get("prompt_name")
        if name is None:
            return self.default, text
        found = self.named.get(name) if isinstance(name, str) else None
        if found is None:
            there = "the prompts are " + ", ".join(f"'{for_message(name, 40)}'" for name in self.named)
            raise ExampleError(
                f"the field 'prompt_name' is '{for_message(name, 80)}'; "
                f"{there if self.named else 'this checkpoint names no prompts'}.{did_you_mean(name, self.named)}"
            )
        return found, text


def choose_prompts(
    checkpoint: Checkpoint, settings: Mapping[str, Any], prompt: str | None, prompt_name: str | None
) -> Prompts:
    """Settle which prompt is the default, as sentence-transformers does: `prompt`, `prompt_name`, the folder's own.

    :param settings: the folder's ``config_sentence_transformers.json``.
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
    default = settings.get("default_prompt_name") if prompt_name is None else prompt_name
    if default is None or default in named:
        return Prompts("" if default is None else named[default], named)
    shown = for_message(default, 80)
    if prompt_name is None:
        problem = f"'{where}': the default prompt '{shown}' is not among its prompts"
        raise CheckpointError(f"{problem}; set postprocessor.prompt or prompt_name")
    problem = f"'{shown}' is unknown{'' if named else '; this checkpoint names no prompts'}."
    hint = f"name one of your own: 'checkpoint.prompts={{{shown}: \"its text \"}}'"
    near = closest_match(prompt_name, tuple(named))
    raise ConfigError([Fault("postprocessor.prompt_name", problem, tuple(named), near, hint)])


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


@final
class EmbeddingEvaluator(PairEvaluator):
    """Correlations of the cosine of the angle between two embeddings; 0 if one of them is all zeros."""

    def score(self, results: Sequence[Result]) -> float:
        one, other = (np.asarray(value_of(result, "embedding"), dtype=np.float64) for result in results)
        lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
        return float(one @ other) / lengths if lengths else 0.0


_NUMBERS = 8  # of a vector that are shown

_SAYS: dict[Mode, str] = {
    "mean": "the sum of the tokens' vectors by their number",
    "mean_sqrt_len": "the sum of the tokens' vectors by the root of their number",
    "weighted_mean": "each token's vector counts by its place in the row, from 1",
    "cls": "the vector of the first token",
    "last": "the vector of the last token",
    "max": "the largest value of each column",
}


def _pooled(mode: Mode, hidden: Sequence[NDArray[Any]], skips: Sequence[int], several: bool) -> Panel:
    """Show the first numbers of each window's pooled vector, and what they were made of."""
    rows: list[Sequence[Cell]] = []
    for window, (values, skip) in enumerate(zip(hidden, skips, strict=True)):
        parts, divisor = _parts(mode, values, skip)
        pooled = _pool(values, mode, skip)
        for i in range(min(_NUMBERS, values.shape[1])):
            rows.append((window, i, _made_of(mode, parts[:, i], len(values), skip), divisor, float(pooled[0, i])))
    made = {"max": "token", "cls": "token", "last": "token"}.get(mode, "sum")
    parts, divisor = _parts(mode, hidden[0], skips[0])
    return table_panel(
        f"pooling ({mode})",
        ("window", "number", made, "divided by", "pooled"),
        rows,
        "row",
        _SAYS[mode],
        f"{counted(len(parts), 'token')} of window 0" if len(hidden) > 1 else counted(len(parts), "token"),
        f"the {counted(skips[0], 'token')} of the prompt left out" if skips[0] else "",
        "one of several vectors, which stand one behind the other" if several else "",
        f"the first {min(_NUMBERS, hidden[0].shape[1])} of {hidden[0].shape[1]} numbers are shown",
        formula=_pool_line(mode, parts, divisor, hidden[0], skips[0]),
        windows=len(hidden),
    )


def _pool(values: NDArray[Any], mode: Mode, skip: int) -> torch.Tensor:
    return pool(torch.from_numpy(values)[None], torch.ones(1, len(values), dtype=torch.int64), mode, skip)


def _parts(mode: Mode, values: NDArray[Any], skip: int) -> tuple[NDArray[Any], float | None]:
    """Return the vectors that are added up, float64 ``[n, H]``, and what the sum is divided by, None if it is not."""
    kept = values[skip:].astype(np.float64)
    if mode == "mean":
        return kept, float(len(kept))
    if mode == "mean_sqrt_len":
        return kept, float(np.sqrt(len(kept)))
    if mode == "weighted_mean":
        weights = np.arange(skip + 1, len(values) + 1, dtype=np.float64)
        return kept * weights[:, None], float(weights.sum())
    return kept, None


def _made_of(mode: Mode, column: NDArray[Any], count: int, skip: int) -> Cell:
    """Return the sum of a column, or which token its number is from."""
    if mode == "max":
        return skip + int(column.argmax())
    return {"cls": skip, "last": count - 1}[mode] if mode in ("cls", "last") else float(column.sum())


def _pool_line(mode: Mode, parts: NDArray[Any], divisor: float | None, values: NDArray[Any], skip: int) -> str:
    column = parts[:, 0]
    pooled = f"= {digits(float(_pool(values, mode, skip)[0, 0]))}"
    if divisor is not None:
        ends = (f"/ {digits(divisor)}", f"= {digits(float(column.sum()))} / {digits(divisor)}", pooled)
        return wrapped("pooled[0] = ", [digits(value) for value in column], " +", ends)
    if mode == "max":
        return wrapped("pooled[0] = max", [digits(value) for value in column], ",", (pooled,))
    return f"pooled = the vector of token {_made_of(mode, column, len(values), skip)}"


def _steps(
    modes: Sequence[Mode],
    layers: Sequence[SentenceLayer],
    dimensions: int | None,
    hidden: Sequence[NDArray[Any]],
    skip: int,
) -> Panel:
    """Show a vector's width, length and first number after each step."""
    vector = torch.cat([_pool(hidden[0], mode, skip) for mode in modes], dim=-1)
    rows = [_step(f"pooling {' + '.join(modes)}", vector)]
    for layer in layers:
        vector = layer.to("cpu")(vector)
        rows.append(_step(layer.name, vector))
    if dimensions is not None:
        vector = vector[:, :dimensions]
        rows.append(_step(f"the first {dimensions} numbers", vector))
    several = f"of window 0; {len(hidden)} windows go through these steps, each by itself"
    note = several if len(hidden) > 1 else ""
    return Panel("vector, step by step", ("step", "numbers", "norm", "first number"), rows, note=note)


def _step(name: str, vector: torch.Tensor) -> Sequence[Cell]:
    return (name, vector.shape[-1], float(vector.double().norm()), float(vector[0, 0]))


def _length(vector: NDArray[Any], normalize: bool, result: Result) -> Panel:
    """Show the length before and after it is made 1."""
    embedding = np.array(result["embedding"])
    before, after = (float(np.linalg.norm(v.astype(np.float64))) for v in (vector, embedding))
    squares = [f"{digits(abs(value))}^2" for value in vector]
    lines = [wrapped("norm = sqrt", squares, " +", (f"= {digits(before)}",))]
    if normalize:
        first = f"{digits(vector[0])} / {digits(max(before, 1e-12))} = {digits(embedding[0])}"
        lines.append(f"embedding[0] = {first}")
        lines.append(f"norm of the embedding = {digits(after)}")
    rows = [(i, float(vector[i]), float(embedding[i])) for i in range(min(_NUMBERS, len(embedding)))]
    title = "normalising: each number by the norm" if normalize else "no normalising"
    note = f"the first {len(rows)} of {counted(len(embedding), 'number')} are shown"
    return Panel(title, ("number", "before", "embedding"), rows, formula="\n".join(lines), note=note)
