"""A network whose layers run on the tokens of a batch alone, without its padding.

Embeddings and head see the padded batch as ever. Before the first layer its tokens are put in one long row, after
the last they are put back, and attention stays within each of the rows there were. This is done by hooks, so no
architecture is rewritten; whether one can be run so is found out at load by running it both ways.

Tested with ALBERT, the encoders of BART and mBART, BERT, DistilBERT, ELECTRA, GPT-2, GPT-NeoX, Llama, Mistral,
ModernBERT, OPT, Qwen2, Qwen3, RoBERTa and XLM-RoBERTa. Refused: what mixes tokens outside attention (ConvBERT, FNet,
Funnel, MobileBERT ...), has attention of its own (DeBERTa, Longformer, MPNet, RoFormer, T5, XLNet ...) or a decoder
beside its encoder.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import nn

from pipeline_kit.builtin.models.hf.batches import sample_batch
from pipeline_kit.builtin.models.kernels.replace import noise_of, outputs_match
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.contract.types import Device, Encoding, ModelOutput, Side, TokenBatch
from pipeline_kit.errors import ConfigError, Fault, for_message
from pipeline_kit.runtime.padding import PaddingPolicy, collate

_LENGTHS = (4, 160, 3, 11, 4)
"""Of the rows that prove it: two equal ones, a token or two more or less, and one longer than most windows."""

_ERRORS = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError)
"""What a network may raise that gets something else than it expects."""


@final
class Unpadded:
    """The hooks on one network, proven to leave its answers as they are.

    Threads: the batch that runs is kept for each thread, so several may run batches at once.
    """

    def __init__(
        self,
        network: Any,
        forward: Callable[[TokenBatch], ModelOutput],
        device: Device,
        sides: frozenset[Side],
        filler: int = 0,
        limit: int | None = None,
    ) -> None:
        """Put the hooks on the layers of `network`, and hold its answers to a few rows against those with padding.

        :param forward: runs the network on a batch and gives its answers.
        :param sides: the sides on which the network may be padded.
        :param filler: the id that stands for padding.
        :param limit: the longest text in tokens; None: no limit.
        :raises ConfigError: if this architecture cannot be run so; the network is then as it was before.
        """
        self._varlen = varlen_kernel(device)
        self._hooks: list[Any] = []
        trials = [_trial(network.config, device, side, filler, limit) for side in sorted(sides)]
        try:
            if not trials:
                raise NotUnpaddableError("padding changes its answers, so its batches have none")
            layers = _stack(network)
            expected = [forward(batch) for batch in trials]
            self._hook(network, layers)
            if not self._proves(forward, trials, expected, device):
                self._varlen = None
                if not self._proves(forward, trials, expected, device):
                    raise NotUnpaddableError("its answers change")
        except torch.OutOfMemoryError:
            raise
        except _ERRORS as error:
            self._unhook(network)
            raise _refusal(network, error) from error

    @property
    def kernel(self) -> str:
        """What attention runs on: ``varlen`` for all rows at once, ``sdpa`` for each length by itself."""
        return "sdpa" if self._varlen is None else "varlen"

    @contextmanager
    def running(self, batch: TokenBatch) -> Iterator[Rows | None]:
        """Run the network without the padding of `batch` in the body; as ever if it has none."""
        rows = rows_of(batch, self._varlen) if batch.padded else None
        token = RUNNING.set(rows)
        try:
            yield rows
        finally:
            RUNNING.reset(token)

    def _hook(self, network: Any, layers: Sequence[nn.Module]) -> None:
        register_attention()
        with quiet():
            network.set_attn_implementation(NAME)
        if network.config._attn_implementation != NAME:
            raise NotUnpaddableError("its attention cannot be exchanged")
        self._hooks = [layer.register_forward_pre_hook(_pack, with_kwargs=True) for layer in layers]
        self._hooks.append(layers[-1].register_forward_hook(_spread))

    def _unhook(self, network: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        if network.config._attn_implementation == NAME:
            with quiet():
                network.set_attn_implementation("sdpa")

    def _proves(
        self,
        forward: Callable[[TokenBatch], ModelOutput],
        trials: Sequence[TokenBatch],
        expected: Sequence[ModelOutput],
        device: Device,
    ) -> bool:
        for batch, known in zip(trials, expected, strict=True):
            try:
                with self.running(batch) as rows:
                    found = forward(batch)
            except _ERRORS:
                if self._varlen is None:
                    raise
                return False
            if rows is None or not rows.attended or not outputs_match(found, known, batch, noise_of(device)):
                return False
        return True


def _stack(network: Any) -> Sequence[nn.Module]:
    """Return the layers of `network`: the one list of modules that is not inside another."""
    if network.config._attn_implementation != "sdpa":
        raise NotUnpaddableError(f"its attention is '{network.config._attn_implementation}', not 'sdpa'")
    if getattr(network.config, "attention_chunk_size", None):
        raise NotUnpaddableError("its attention works in chunks")
    lists = [(name, part) for name, part in network.named_modules() if isinstance(part, nn.ModuleList)]
    outer = [part for name, part in lists if not any(name.startswith(f"{other}.") for other, _ in lists)]
    if len(outer) != 1:
        raise NotUnpaddableError(f"it has {len(outer)} stacks of layers")
    return list(outer[0])


def _pack(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
    """Pack what a layer gets; its first argument is the hidden states."""
    del layer
    rows = RUNNING.get()
    if rows is None:
        return None
    if args:
        return (rows.pack(args[0]), *(_beside(rows, value) for value in args[1:])), _beside(rows, kwargs)
    if "hidden_states" not in kwargs:
        raise NotUnpaddableError("its layers do not say which argument is the hidden states")
    beside = {name: value for name, value in kwargs.items() if name != "hidden_states"}
    return args, {**_beside(rows, beside), "hidden_states": rows.pack(kwargs["hidden_states"])}


def _beside(rows: Rows, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return rows.pack_beside(value)
    if isinstance(value, tuple):
        return tuple(_beside(rows, item) for item in value)
    if isinstance(value, dict):
        return {name: _beside(rows, item) for name, item in value.items()}
    return value


def _spread(layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Put the last layer's tokens back to where they were."""
    del layer, args
    rows = RUNNING.get()
    if rows is None:
        return None
    if isinstance(output, torch.Tensor):
        return rows.spread(output)
    return (rows.spread(output[0]), *output[1:])


def _trial(config: Any, device: Device, side: Side, filler: int, limit: int | None) -> TokenBatch:
    """Make rows of `_LENGTHS` from ordinary ids; some architectures have fewer places for tokens than `limit`."""
    most = max(_LENGTHS) if limit is None else max(1, limit * 3 // 4)
    ids = sample_batch(config, device).input_ids[0].tolist()
    rows = []
    for place, length in enumerate(_LENGTHS):
        rows.append([ids[(3 * place + i) % len(ids)] for i in range(min(length, most))])
    return collate([Encoding(row) for row in rows], PaddingPolicy("longest", side, filler), device.name)


def _refusal(network: Any, error: Exception) -> ConfigError:
    why = str(error)
    if not isinstance(error, NotUnpaddableError):
        why = f"its layers cannot run on a packed batch: {type(error).__name__}: {why}"
    problem = f"a {network.config.model_type} ({type(network).__name__}) cannot run without padding: "
    problem += f"{for_message(why.strip().splitlines()[0])}."
    hint = "leave model.unpadded out; batches are then padded as ever"
    return ConfigError([Fault("model.unpadded", problem, ("false",), hint=hint)])


NAME = "pipeline_kit_unpadded"
"""What ``config._attn_implementation`` says."""


@final
class RowMasks:
    """Stands for a mask until an attention layer asks for that of a row of some length.

    A network hands it on to its layers as it would a mask, so each gets the pattern that transformers means for
    it: full, causal, or within a window.
    """

    def __init__(self, asked: dict[str, Any]) -> None:
        """Keep what transformers' ``sdpa_mask`` was `asked` for."""
        self._asked = asked
        self._made: dict[int, torch.Tensor | None] = {}

    def of(self, length: int) -> torch.Tensor | None:
        """Return the mask ``[1, 1, length, length]``, bool; None where none is needed."""
        from transformers.masking_utils import sdpa_mask

        if length not in self._made:
            row = {"batch_size": 1, "q_length": length, "kv_length": length, "attention_mask": None}
            self._made[length] = sdpa_mask(**(self._asked | row))
        return self._made[length]


def register_attention() -> None:
    """Make the name known to transformers; without a packed batch it means ``sdpa``."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _mask)


def varlen_kernel(device: Device) -> Varlen | None:
    """Return torch's kernel for rows of any lengths, None where it does not run: it is for a GPU in half precision."""
    if device.kind != "cuda" or device.dtype == "float32":
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    return varlen_attn if {"scale", "window_size", "enable_gqa"} <= set(known) else None


def _mask(*args: Any, **asked: Any) -> Any:
    from transformers.masking_utils import sdpa_mask

    if RUNNING.get() is None:
        return sdpa_mask(*args, **asked)
    if args or "q_length" not in asked:
        raise NotUnpaddableError("this version of transformers asks for masks in another way")
    return RowMasks(asked)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    **given: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each row: ``[1, heads, N, D]`` to ``[1, N, heads, D]``."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows = RUNNING.get()
    if rows is None:
        done: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **given)
        return done
    if not isinstance(attention_mask, RowMasks):
        raise NotUnpaddableError("it makes its attention mask by itself")
    if {len(rows.places)} != {query.shape[2], key.shape[2]} or query.shape[0] != 1:
        raise NotUnpaddableError(f"its attention gets queries of shape {list(query.shape)}")
    rows.attended += 1
    result = _at_once(module, query, key, value, attention_mask, rows, given)
    if result is None:
        result = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
        for start, count, length in rows.groups:
            own = slice(start, start + count * length)
            parts = (_by_row(tensor[0, :, own], count, length) for tensor in (query, key, value))
            found, _ = sdpa_attention_forward(module, *parts, attention_mask.of(length), **given)
            result[own] = found.flatten(0, 1)
    return result[None], None


def _by_row(packed: torch.Tensor, count: int, length: int) -> torch.Tensor:
    """See ``[heads, count * length, D]`` as ``[count, heads, length, D]``."""
    return packed.view(packed.shape[0], count, length, packed.shape[2]).transpose(0, 1)


def _at_once(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    masks: RowMasks,
    rows: Rows,
    given: dict[str, Any],
) -> torch.Tensor | None:
    """Run all rows in one kernel, ``[N, heads, D]``; None where there is none or it has not the pattern."""
    if rows.varlen is None or given.get("softcap") is not None or given.get("position_bias") is not None:
        return None
    causal = given.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    behind = -1
    if masks.of(rows.longest) is not None:
        if not given.get("sliding_window"):
            return None
        behind = int(given["sliding_window"]) - 1  # transformers counts the token itself, the kernel does not
    packed = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    result: torch.Tensor = rows.varlen(
        *packed,
        rows.ends,
        rows.ends,
        rows.longest,
        rows.longest,
        scale=given.get("scaling"),
        window_size=(behind, 0 if causal else behind),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return result


Varlen = Callable[..., Any]


class NotUnpaddableError(RuntimeError):
    """A network does something with its batch that unpadding does not know."""


@dataclass(slots=True)
class Rows:
    """The rows of one padded batch, put one behind the other, the shortest first.

    :param shape: rows and width of the padded batch.
    :param places: of each of the N tokens, its place in the batch read row by row; int64 ``[N]`` on the device.
    :param groups: rows of equal length: where the first begins, how many there are, and their length.
    :param varlen: a kernel that takes rows of any lengths at once; None: each group is run by itself.
    :param ends: where each row ends, from a leading 0 on; int32 ``[B + 1]``, only with `varlen`.
    :param attended: how many attention layers have run.
    """

    shape: tuple[int, int]
    places: torch.Tensor
    groups: tuple[tuple[int, int, int], ...]
    varlen: Varlen | None = None
    ends: torch.Tensor | None = None
    attended: int = 0
    _beside: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """The longest row's length."""
        return self.groups[-1][2]

    def pack(self, hidden: torch.Tensor) -> torch.Tensor:
        """Make ``[B, T, H]`` to ``[1, N, H]``; leave what is packed already."""
        if hidden.shape[:2] == self.shape:
            return hidden.reshape(-1, *hidden.shape[2:])[self.places][None]
        if hidden.shape[:2] != (1, len(self.places)):
            raise NotUnpaddableError(f"a layer gets hidden states of shape {list(hidden.shape)}")
        return hidden

    def spread(self, packed: torch.Tensor) -> torch.Tensor:
        """Make ``[1, N, H]`` to ``[B, T, H]`` with zeros at the padding."""
        rows, width = self.shape
        hidden = packed.new_zeros(rows * width, *packed.shape[2:])
        return hidden.index_copy_(0, self.places, packed[0]).view(rows, width, *packed.shape[2:])

    def pack_beside(self, values: torch.Tensor) -> torch.Tensor:
        """Pack what a layer gets beside its hidden states, such as rotary positions ``[B or 1, T, D]``."""
        if values.dim() < 2:
            return values
        rows, width = self.shape
        if values.dim() > 3 or values.shape[1] != width or values.shape[0] not in (1, rows):
            raise NotUnpaddableError(f"a layer gets a tensor of shape {list(values.shape)} beside its hidden states")
        if id(values) not in self._beside:
            packed = values[0][self.places % width][None] if values.shape[0] == 1 else self.pack(values)
            self._beside[id(values)] = values, packed  # the first is held so that its id stays its own
        return self._beside[id(values)][1]


RUNNING: ContextVar[Rows | None] = ContextVar("RUNNING", default=None)
"""The batch that runs unpadded in this thread."""


def rows_of(batch: TokenBatch, varlen: Varlen | None = None) -> Rows:
    """Find the tokens of `batch` from its lengths, without a look at the device."""
    rows, width = batch.input_ids.shape
    order = np.argsort(batch.lengths, kind="stable")
    lengths = batch.lengths[order]
    ends = np.cumsum(lengths)
    begins = order * width + (width - lengths if batch.side == "left" else 0)
    places = np.arange(ends[-1]) + np.repeat(begins - (ends - lengths), lengths)
    sizes, first, counts = np.unique(lengths, return_index=True, return_counts=True)
    starts = (ends - lengths)[first]
    device = batch.input_ids.device
    return Rows(
        (rows, width),
        torch.from_numpy(places).to(device),
        tuple(zip(starts.tolist(), counts.tolist(), sizes.tolist(), strict=True)),
        varlen,
        None if varlen is None else torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)).to(device),
    )
