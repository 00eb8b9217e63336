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

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import nn

from pipeline_kit.builtin.models.closeness import alike, noise_of
from pipeline_kit.builtin.models.padding_safety import sample_batch
from pipeline_kit.builtin.models.unpadded_attention import NAME, register, varlen_kernel
from pipeline_kit.builtin.models.unpadded_rows import RUNNING, NotUnpaddableError, Rows, rows_of
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.errors import ConfigError, Fault, shorten
from pipeline_kit.padding import PaddingPolicy, collate
from pipeline_kit.types import Device, Encoding, ModelOutput, Side, TokenBatch

__all__ = ["Unpadded"]

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
        register()
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
            if rows is None or not rows.attended or not alike(found, known, batch, noise_of(device)):
                return False
        return True


def _stack(network: Any) -> Sequence[nn.Module]:
    """Give the layers of `network`: the one list of modules that is not inside another."""
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
    problem += f"{shorten(why.strip().splitlines()[0])}."
    hint = "leave model.unpadded out; batches are then padded as ever"
    return ConfigError([Fault("model.unpadded", problem, ("false",), hint=hint)])
