"""A network run through torch.compile, and without it where the compiler fails or returns other answers."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, final
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import nn

from pipeline_kit.builtin.models.hf.batches import are_close, noise_of
from pipeline_kit.builtin.models.hf.linears import FusedLinear
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.contract.types import Device, ModelOutput, Side, TokenBatch
from pipeline_kit.errors import for_message

_log = logging.getLogger(__name__)

_MOST_GRAPHS = 64  # compilations of one network before the compiler gives up; 2 to 4 are made
_MOST_RECORDS = 1024  # shapes before it warns of their number; `Buckets` has fewer


@final
class CompiledNetwork:
    """Runs a network's compiled form.

    One graph with open sizes serves all batches: it takes two or three compilations (a batch of one row, and of
    several, is each a graph of its own), not one for each shape, and on a CPU it is as fast as one of fixed sizes.
    On a GPU it is recorded as a CUDA graph for each shape, so batches are filled up to the shapes of `Buckets`
    there, on a side that the network may be padded on; batches padded on another side run without recording.

    The first answer of each graph is compared to the network's own. If they differ, or the compiler fails, a line
    is logged and the network runs as it is from then on.
    """

    def __init__(
        self,
        network: nn.Module,
        call: Callable[[Callable[..., Any], TokenBatch], ModelOutput],
        device: Device,
        sides: frozenset[Side],
        *,
        filler: int = 0,
        limit: int | None = None,
        bucketed: bool | None = None,
    ) -> None:
        """Compile nothing yet.

        :param call: runs what it is given and names its answers.
        :param sides: the sides on which the network may be padded, with the id `filler`.
        :param limit: the longest text in tokens; None: no limit.
        :param bucketed: whether to fill batches up; None: on a GPU.
        """
        self._network, self._call, self._sides, self._filler = network, call, sides, filler
        self._noise = noise_of("compiled", device)
        self._records = device.kind == "cuda"
        self._buckets = Buckets(limit) if (self._records if bucketed is None else bucketed) else None
        self._compiled: dict[bool, Callable[..., Any]] = {}
        self._proven: set[Hashable] = set()
        self._show = wrap_layers_as_operators(network)
        self.failure: str | None = None

    def __call__(self, batch: TokenBatch) -> ModelOutput:
        """Return the network's answers to `batch`, in tensors of their own; raise OutOfMemoryError as it would."""
        if self.failure is not None:
            return self._call(self._network, batch)
        shaped = self._shaped(batch)
        rows, width = shaped.input_ids.shape
        size: tuple[Hashable, ...] = (rows, width) if self._filled(batch) else (rows == 1, width == 1)
        kind = (*size, shaped.has_padding, shaped.side, shaped.token_type_ids is None)
        try:
            with nullcontext() if kind in self._proven else quiet():  # the compiler warns of what it calls itself
                answers = self._cut(self._call(self._function(self._filled(batch)), shaped), batch)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            expected = self._call(self._network, batch)  # raises what is wrong with the batch, if that is the reason
            self._give_up(f"{type(error).__name__}: {str(error).strip() or 'no message'}")
            return expected
        if kind in self._proven:
            return answers
        expected = self._call(self._network, batch)
        if are_close(answers, expected, batch, self._noise):
            self._proven.add(kind)
        else:
            self._give_up(f"its answers to a batch of {rows} rows and {width} tokens differ from the network's own")
        return expected

    def _filled(self, batch: TokenBatch) -> bool:
        return self._buckets is not None and batch.side in self._sides

    def _shaped(self, batch: TokenBatch) -> TokenBatch:
        rows, width = batch.input_ids.shape
        if self._buckets is not None and self._filled(batch):
            return fill(batch, *self._buckets.shape(rows, width), self._filler)
        if rows > 1 and batch.side in self._sides:
            return replace(batch, has_padding=True)  # with a mask it is the same graph as a batch with padding
        return batch

    def _cut(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
        rows, width = batch.input_ids.shape
        columns = slice(0, width) if batch.side == "right" else slice(-width, None)
        found = {}
        for name, value in output.tensors.items():
            part = value[:rows, columns] if name in output.per_token else value[:rows]
            found[name] = part.clone() if self._records else part  # a CUDA graph writes there again
        return ModelOutput(found, output.per_token)

    def _function(self, filled: bool) -> Callable[..., Any]:
        record = self._records and filled
        if record:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        if record not in self._compiled:
            self._compiled[record] = _compile(self._network, record)
        return self._compiled[record]

    def _give_up(self, why: str) -> None:
        self.failure = for_message(why.splitlines()[0])
        self._compiled.clear()
        self._show()
        _log.warning("model.compile=true has no effect, the network runs as it is: %s", self.failure)


def _compile(network: nn.Module, record: bool) -> Callable[..., Any]:
    """Compile `network` with open sizes; `record` makes a CUDA graph for each shape it is called with."""
    extra: dict[str, Any] = {}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        # Else graphs of other pipelines with the same architecture would count towards the limit.
        extra |= {"isolate_recompiles": True, "recompile_limit": _MOST_GRAPHS}
    options: dict[str, Any] = {}
    if record:
        options["triton.cudagraphs"] = True
        limit = "triton.cudagraph_dynamic_shape_warn_limit"
        if limit in torch._inductor.list_options():
            options[limit] = _MOST_RECORDS
    compiled: Callable[..., Any] = torch.compile(network, dynamic=True, options=options or None, **extra)
    return compiled


_WIDTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)


@dataclass(frozen=True, slots=True)
class Buckets:
    """Widths that grow by a third to a half, and powers of two for rows.

    At most a half more columns and twice the rows are computed. Up to 512 tokens and 16,384 tokens a batch
    there are about 90 shapes.

    :param limit: the model's longest text in tokens, which no width goes beyond; None: no limit.
    """

    limit: int | None = None

    def shape(self, rows: int, width: int) -> tuple[int, int]:
        """Return rows and width of the bucket for a batch of at least one row and column."""
        power = 1 << (width - 1).bit_length()  # beyond the table: that, or the middle between two of them
        found = next((known for known in (*_WIDTHS, power * 3 // 4) if width <= known), power)
        wide = found if self.limit is None else max(width, min(found, self.limit))
        return 1 << (rows - 1).bit_length(), wide


def fill(batch: TokenBatch, rows: int, width: int, filler: int) -> TokenBatch:
    """Fill `batch` up to `rows` and `width`: columns of padding on its own side, copies of its last row at its end.

    A row of padding alone would make some kernels divide by zero.
    """
    more, columns = rows - batch.input_ids.shape[0], width - batch.input_ids.shape[1]
    sides = (0, columns) if batch.side == "right" else (columns, 0)

    def filled(values: torch.Tensor, value: int) -> torch.Tensor:
        wide = torch.nn.functional.pad(values, sides, value=value)
        return torch.cat([wide, wide[-1:].expand(more, -1)]) if more else wide

    types = batch.token_type_ids
    return replace(
        batch,
        input_ids=filled(batch.input_ids, filler),
        attention_mask=filled(batch.attention_mask, 0),
        token_type_ids=None if types is None else filled(types, 0),
        lengths=np.concatenate([batch.lengths, np.repeat(batch.lengths[-1:], more)]),
        has_padding=True,  # also where nothing was added: a batch without a mask would be one shape more
    )


_LAYERS: WeakValueDictionary[int, FusedLinear] = WeakValueDictionary()
_NUMBERS = count()
_untyped: Any = torch.library.Library
_LIBRARY = _untyped("pipeline_kit", "FRAGMENT")
_LIBRARY.define("hidden_layer(Tensor input, int number, int out_features) -> Tensor")


def _run(input: torch.Tensor, number: int, out_features: int) -> torch.Tensor:
    result: torch.Tensor = _LAYERS[number](input)
    return result


def _shape(input: torch.Tensor, number: int, out_features: int) -> torch.Tensor:
    return input.new_empty(*input.shape[:-1], out_features)


_LIBRARY.impl("hidden_layer", _run, "CompositeExplicitAutograd")
torch.library.register_fake("pipeline_kit::hidden_layer", _shape, lib=_LIBRARY)


@final
class _Hidden(nn.Module):
    """Runs a layer by its number; keeps its weight and bias in sight for code that asks for their dtype."""

    def __init__(self, layer: FusedLinear) -> None:
        super().__init__()
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._number = next(_NUMBERS)
        _LAYERS[self._number] = layer

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.pipeline_kit.hidden_layer(input, self._number, self.out_features)
        return result


def wrap_layers_as_operators(network: nn.Module) -> Callable[[], None]:
    """Put every fused linear layer of `network` behind one operator; return a function that puts them back."""
    hidden: dict[nn.Module, _Hidden] = {}
    places = []
    for owner in list(network.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, FusedLinear):
                hidden.setdefault(child, _Hidden(child))
                places.append((owner, name, child))
    for owner, name, child in places:
        setattr(owner, name, hidden[child])

    def show() -> None:
        for owner, name, child in places:
            setattr(owner, name, child)

    return show
