"""What each layer of a transformers network returns, seen through hooks while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import nn

from pipeline_kit.builtin.models.hf.batches import select_rows
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.contract.stages import Cell, Panel, Tokenizer
from pipeline_kit.contract.types import ModelOutput, TokenBatch

_TIME_FIRST = frozenset({"xlnet"})
"""Families whose layers return ``[T, B, H]``."""


@dataclass(frozen=True)
class _Stack:
    """One stack of layers.

    :param prefix: what stands before the names of its layers, such as ``decoder``; empty where there is one stack.
    :param norms: the normalisations beside the layers, through which the last one's output may go.
    """

    prefix: str
    layers: tuple[nn.Module, ...]
    norms: tuple[nn.Module, ...]


@final
class LayerWatch:
    """Notes what goes into the first layer of each stack (``embeddings``), and what each layer returns.

    A layer that runs several times in a pass, as in ALBERT, is noted as many layers. A normalisation behind the
    last layer is noted as ``final norm``. What is noted are copies ``[B, T, H]``, zero at padding that did not run.

    :ivar seen: names and hidden states in the order in which they came.
    """

    def __init__(self, network: Any, *, once: bool = False) -> None:
        """Watch nothing yet; `once` notes only the first pass of each stack, which is over the prompt."""
        self.seen: list[tuple[str, torch.Tensor]] = []
        self._network, self._once = network, once
        self._time_first = network.config.model_type in _TIME_FIRST
        self._passes = 0
        self._counts: dict[str, int] = {}
        self._joined = 0

    @contextmanager
    def watching(self) -> Iterator[Sequence[tuple[str, torch.Tensor]]]:
        """Have the hooks in place while the body runs; yield `seen`."""
        hooks = [self._network.register_forward_pre_hook(self._begin)]
        try:
            for stack in _stacks(self._network):
                hooks.append(stack.layers[0].register_forward_pre_hook(partial(self._before, stack), with_kwargs=True))
                hooks += [layer.register_forward_hook(partial(self._after, stack)) for layer in stack.layers]
                hooks += [norm.register_forward_hook(partial(self._normed, stack)) for norm in stack.norms]
            yield self.seen
        finally:
            for hook in hooks:
                hook.remove()

    def join(self, groups: Sequence[torch.Tensor], batch: TokenBatch) -> None:
        """Put the passes over `groups` of the rows of `batch`, which ran apart, back together."""
        fresh = self.seen[self._joined :]
        each = len(fresh) // len(groups)
        for place in range(each):
            parts = [fresh[place + each * group][1] for group in range(len(groups))]
            self.seen[self._joined + place] = fresh[place][0], scatter_rows(parts, groups, batch, (1,))
        del self.seen[self._joined + each :]
        self._joined = len(self.seen)

    def _begin(self, network: nn.Module, args: Any) -> None:
        self._passes += 1
        if not self._once:
            self._counts.clear()

    def _note(self, name: str, value: Any) -> None:
        hidden = _hidden(value)
        if hidden is None or (self._once and self._passes > 1):
            return
        if self._time_first:
            hidden = hidden.transpose(0, 1)
        self.seen.append((name, hidden.clone()))

    def _before(self, stack: _Stack, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not self._counts.get(stack.prefix, 0):
            self._note(f"{stack.prefix} embeddings".strip(), args or kwargs.get("hidden_states", kwargs))

    def _after(self, stack: _Stack, layer: nn.Module, args: Any, output: Any) -> None:
        number = self._counts[stack.prefix] = self._counts.get(stack.prefix, 0) + 1
        self._note(f"{stack.prefix} layer {number}".strip(), output)

    def _normed(self, stack: _Stack, norm: nn.Module, args: Any, output: Any) -> None:
        if self._counts.get(stack.prefix, 0) >= len(stack.layers):
            self._note(f"{stack.prefix} final norm".strip(), output)


def scatter_rows(
    parts: Sequence[torch.Tensor], groups: Sequence[torch.Tensor], batch: TokenBatch, token_dims: Sequence[int]
) -> torch.Tensor:
    """Put tensors of rows that ran apart, each without the columns it does not need, into one of the whole batch.

    :param groups: the rows of `batch` that each part holds.
    :param token_dims: the dimensions that are tokens; they are filled with zeros to the longest part.
    """
    shape = list(parts[0].shape)
    shape[0] = batch.input_ids.shape[0]
    for dim in token_dims:
        shape[dim] = max(part.shape[dim] for part in parts)
    whole = parts[0].new_zeros(shape)
    for rows, part in zip(groups, parts, strict=True):
        place: list[Any] = [slice(None)] * len(shape)
        for dim in token_dims:
            size = part.shape[dim]
            place[dim] = slice(0, size) if batch.side == "right" else slice(shape[dim] - size, shape[dim])
        target = whole[(slice(None), *place[1:])]
        target[rows] = part
    return whole


def _stacks(network: nn.Module) -> list[_Stack]:
    """Find the stacks of layers: the lists of modules that are not inside another list."""
    lists = [(name, part) for name, part in network.named_modules() if isinstance(part, nn.ModuleList) and len(part)]
    outer = [(name, part) for name, part in lists if not any(name.startswith(f"{other}.") for other, _ in lists)]
    found = []
    for name, part in outer:
        parts = name.split(".")
        prefix = next((half for half in ("encoder", "decoder") if half in parts), parts[-1])
        beside = network.get_submodule(name.rpartition(".")[0]).children()
        norms = tuple(module for module in beside if "norm" in type(module).__name__.lower())
        found.append(_Stack(prefix if len(outer) > 1 else "", tuple(_flat(part)), norms))
    return found


def _flat(layers: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of a list, also of one made of lists."""
    for layer in layers.children():
        if isinstance(layer, nn.ModuleList):
            yield from _flat(layer)
        else:
            yield layer


def _hidden(value: Any) -> torch.Tensor | None:
    """Find the hidden states in what a layer takes or returns: its first tensor ``[B, T, H]`` of floats."""
    if isinstance(value, torch.Tensor):
        return value if value.dim() == 3 and value.is_floating_point() else None
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return next((found for item in value if (found := _hidden(item)) is not None), None)
    return None


_WINDOWED = frozenset({"longformer"})
"""Families whose weights are those of each token's neighbours, not of all tokens."""

_KINDS = (
    ("attentions", ""),
    ("encoder_attentions", "encoder "),
    ("decoder_attentions", "decoder "),
    ("cross_attentions", "cross "),
)
"""By transformers' name what ours begins with; ``cross`` is from the decoder's tokens to the encoder's."""


@contextmanager
def eager_attention(network: Any) -> Iterator[None]:
    """Let `network` attend by plain products while the body runs, and by what it had before afterwards."""
    before = network.config._attn_implementation
    if before == "eager":
        yield
        return
    with quiet():
        network.set_attn_implementation("eager")
    try:
        yield
    finally:
        with quiet():
            network.set_attn_implementation(before)


def named_attentions(network: Any, output: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the maps ``[B, heads, T, T]`` by layer name, of the first of several steps; {} if there are none."""
    if network.config.model_type in _WINDOWED:
        return {}
    found: dict[str, torch.Tensor] = {}
    for name, prefix in _KINDS:
        layers = output.get(name)
        if layers and isinstance(layers[0], tuple):
            layers = layers[0]
        for number, weights in enumerate(layers or (), start=1):
            if isinstance(weights, torch.Tensor) and weights.dim() == 4:
                found[f"{prefix}layer {number}"] = weights
    return found


def attention_maps(
    run: Callable[[TokenBatch], Mapping[str, torch.Tensor]], batch: TokenBatch, groups: Sequence[torch.Tensor]
) -> Mapping[str, torch.Tensor]:
    """Return the maps of a batch whose `groups` of rows are run apart by `run`, zero where nothing ran."""
    if len(groups) < 2:
        return run(batch)
    parts = [run(select_rows(batch, rows)) for rows in groups]
    return {name: scatter_rows([part[name] for part in parts], groups, batch, (2, 3)) for name in parts[0]}


def sparse_part(network: Any) -> Any:
    """Return the part of `network` whose attention depends on the length of a batch, None if there is none."""
    if getattr(network.config, "attention_type", None) != "block_sparse":
        return None
    return next((part for part in network.modules() if hasattr(part, "set_attention_type")), None)


def set_attention(part: Any, width: int) -> None:
    """Choose the attention for a batch of `width` tokens by the rule of transformers' BigBird.

    It applies the rule itself, but after the first short batch it stays with full attention for good, so
    that an answer would depend on what ran before.
    """
    config = part.config
    limit = (5 + 2 * config.num_random_blocks) * config.block_size
    part.set_attention_type("original_full" if width <= limit else "block_sparse")


_SIZES = (
    ("layers", "num_hidden_layers"),
    ("decoder layers", "decoder_layers"),
    ("hidden size", "hidden_size"),
    ("attention heads", "num_attention_heads"),
    ("vocabulary", "vocab_size"),
    ("positions", "max_position_embeddings"),
)
"""What a size is called, and where transformers' configuration has it."""


def network_panel(network: Any, details: Mapping[str, Any]) -> Panel:
    """Describe which network runs, how large it is, and on which kernels, by the `details` of the model stage."""
    config = network.config
    text = config.get_text_config()
    rows: list[tuple[Cell, ...]] = [("class", type(network).__name__), ("model_type", str(config.model_type))]
    for shown, name in _SIZES:
        size = getattr(text, name, None)
        if isinstance(size, int):
            rows.append((shown, size))
    rows.append(("dtype", str(network.dtype).removeprefix("torch.")))
    kernels = {name: value for name, value in details.items() if isinstance(value, str | int | float)}
    rows += [(name.replace("_", " "), value) for name, value in kernels.items()]
    return Panel("the network", ("what", "value"), rows)


def written_panel(output: ModelOutput, tokenizer: Tokenizer | None) -> Panel:
    """List the ids that were written for each row, with their texts."""
    lengths = output["sequence_lengths"].tolist()
    rows: list[tuple[Cell, ...]] = []
    for row, (ids, length) in enumerate(zip(output["sequences"].tolist(), lengths, strict=True)):
        for step, id in enumerate(ids[:length], start=1):
            rows.append((row, step, id, "" if tokenizer is None else tokenizer.decode([id])))
    note = "the end token is not among them; each id was chosen with all ids before it in sight"
    return Panel("what was written", ("row", "step", "id", "text"), rows, note=note)
