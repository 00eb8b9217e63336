"""``model=hf``: a transformers network with the head the task asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, final

import torch

from pipeline_kit.builtin.models.hf import layers
from pipeline_kit.builtin.models.hf.batches import (
    TOLERANCES,
    forward_in_groups,
    inputs_of,
    is_close,
    known_sides,
    network_inputs,
    noise_of,
    probe_sides,
    row_groups,
    sample_batch,
)
from pipeline_kit.builtin.models.hf.compiled import CompiledNetwork
from pipeline_kit.builtin.models.hf.heads import HEAD_KINDS, check_head_name
from pipeline_kit.builtin.models.hf.linears import choose_linear_kernels
from pipeline_kit.builtin.models.hf.loading import load_network
from pipeline_kit.builtin.models.hf.recorded import RecordedNetwork
from pipeline_kit.builtin.models.options import HfModelConfig
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.contract.gradients import Differentiable
from pipeline_kit.contract.stages import Model, Panel, StageContext
from pipeline_kit.contract.types import ModelOutput, Side, TokenBatch


@final
class HfModel(Model):
    """A network from a local folder of safetensors, with transformers' own code for its ``model_type``.

    By head it returns

    - ``sequence-classification``: ``logits [B, L]``;
    - ``token-classification``: ``logits [B, T, L]``, ``masked-lm``: ``logits [B, T, V]``;
    - ``question-answering``: ``start_logits [B, T]`` and ``end_logits [B, T]``;
    - ``multiple-choice``: ``logits [B]``, one for each row, which holds one choice;
    - ``base``: ``last_hidden_state [B, T, H]``, of an encoder-decoder such as T5 or BART that of its encoder.

    All of them are what the checkpoint returns for each row alone, whatever its batch. ``masked-lm`` returns those of
    the batch's wanted tokens alone where its head reads each token by itself, which is tried out at load.
    """

    deterministic = True

    def __init__(self, config: HfModelConfig, context: StageContext) -> None:
        """Load the checkpoint's network and measure how it may be padded.

        :raises CheckpointError: if the checkpoint lacks the head or a part of the network.
        :raises ConfigError: if there is no such head or kernel, or the device cannot compute as asked for.
        """
        self._built_with = config, context
        self._head = config.head or context.head
        check_head_name(self._head)
        device = context.device
        self._network = load_network(context.checkpoint, device, self._head, config.attn_implementation)
        self._takes = inputs_of(self._network)
        settings = self._network.config
        self._end: int | None = settings.eos_token_id if settings.is_encoder_decoder else None
        self._sparse = layers.sparse_part(self._network)
        filler = None if context.tokenizer is None else context.tokenizer.pad_token_id
        limit = None if context.tokenizer is None else context.tokenizer.max_length
        limit = limit or getattr(settings.get_text_config(), "max_position_embeddings", None)
        self._compiled: CompiledNetwork | None = None
        self._recorded: RecordedNetwork | None = None
        self._watch: layers.LayerWatch | None = None
        with quiet():
            if self._head == "sequence-classification" and self._takes.pad_token_id is None:
                _allow_batches(self._network)
            sides = known_sides(settings, self._head)
            if self._sparse is not None:
                sides = frozenset()
            self._sides = probe_sides(self.forward, settings, device, filler) if sides is None else sides
            sample = sample_batch(settings, device)
            self._selects = self._head == "masked-lm" and self._selects_tokens(sample)
            asked = (config.linear, config.quantization)
            products = choose_linear_kernels(self._network, lambda: self.forward(sample).tensors, *asked, device)
        self._products = products
        self._tolerance = max(TOLERANCES[device.dtype], products.tolerance)
        if config.compile:
            self._compiled = CompiledNetwork(
                self._network, self._answers, device, self._sides, filler=filler or 0, limit=limit
            )
            self.forward(sample)  # finds out whether the compiler works before the first batch
        elif device.kind == "cpu":
            self._recorded = RecordedNetwork(self._walk, noise_of("compiled", device))

    @property
    def runtime_info(self) -> Mapping[str, Any]:
        """The kernels; ``compile`` is whether the network runs compiled, or why it does not though it was asked for."""
        return {
            "attn_implementation": self._network.config._attn_implementation,
            **self._products.details,
            "compile": (self._compiled.failure or True) if self._compiled is not None else False,
        }

    @property
    def pinned_options(self) -> Mapping[str, Any]:
        return self._products.settled

    @property
    def safe_padding_sides(self) -> frozenset[Side]:
        """The padding sides that leave every answer as it is; known for common families, else tried at load."""
        return self._sides

    @property
    def tolerance(self) -> float:
        """1e-5 in float32, 0.02 in float16, 0.1 in bfloat16, 0.5 in int8, for logits and states of order 10."""
        return self._tolerance

    @torch.inference_mode()
    def forward(self, batch: TokenBatch) -> ModelOutput:
        """Run the network and return the tensors of the head, see the class, in the device's dtype."""
        groups = row_groups(batch, self._head, self._end, self._takes.pad_token_id)
        found = forward_in_groups(batch, groups, self._run)
        if self._watch is not None and len(groups) > 1:
            self._watch.join(groups, batch)
        return found

    @contextmanager
    def capture_layers(self) -> Iterator[Sequence[tuple[str, Any]]]:
        """Note nothing of a compiled network, since its layers are one graph."""
        if self._compiled is not None and self._compiled.failure is None:
            yield ()
            return
        before, self._watch = self._watch, layers.LayerWatch(self._network)
        try:
            with self._watch.watching() as seen:
                yield seen
        finally:
            self._watch = before

    @torch.inference_mode()
    def attentions(self, batch: TokenBatch) -> Mapping[str, Any]:
        """Run the network once more, with eager attention and padding."""

        def run(part: TokenBatch) -> Mapping[str, torch.Tensor]:
            return layers.named_attentions(self._network, self._call(self._network, part, output_attentions=True))

        groups = row_groups(batch, self._head, self._end, self._takes.pad_token_id)
        with layers.eager_attention(self._network):
            found = layers.attention_maps(run, batch, groups)
        if self._watch is not None and len(groups) > 1:
            self._watch.join(groups, batch)
        return found

    def panels(self, batch: TokenBatch, output: ModelOutput) -> Sequence[Panel]:
        return (layers.network_panel(self._network, self.runtime_info),)

    def differentiable(self) -> Differentiable:
        """Return the network, or a copy that is loaded in float32 where something here has no gradient."""
        config, context = self._built_with
        attention = None if config.attn_implementation == "flash_attention_2" else config.attn_implementation
        plain = HfModelConfig(config.head, attention, "eager")
        device = replace(context.device, dtype="float32")
        if (replace(config, **self.pinned_options), context.device) == (plain, device):
            return Differentiable(self._network, self._walk, "the network itself")
        copy = HfModel(plain, replace(context, device=device))
        note = "a copy of the network in float32, run by torch's own layers"
        return Differentiable(copy._network, copy._walk, note)

    def _run(self, batch: TokenBatch) -> ModelOutput:
        """Run rows that the network may see together."""
        if self._compiled is not None:
            return self._compiled(batch)
        if batch.wanted is not None and self._selects:
            return self._at_wanted(batch, batch.wanted)
        if self._recorded is not None and self._watch is None:
            return self._recorded(batch)
        return self._walk(batch)

    def _walk(self, batch: TokenBatch) -> ModelOutput:
        """Run the network's modules."""
        return self._answers(self._network, batch)

    def _at_wanted(self, batch: TokenBatch, wanted: torch.Tensor) -> ModelOutput:
        """Run the base model on all tokens, and the head on the states of the wanted ones."""
        count = wanted.sum(dim=1, keepdim=True)
        # Text comes before padding, of which no number must reach the head, and fills up rows with fewer.
        order = (2 * wanted + batch.attention_mask).argsort(dim=1, descending=True, stable=True)
        order = order[:, : max(1, int(count.max()))]
        places = torch.where(torch.arange(order.shape[1], device=order.device) < count, order, order[:, :1])[:, :, None]

        def select(_: Any, inputs: Any, output: Any) -> Any:
            states = output[0].gather(1, places.expand(-1, -1, output[0].shape[-1]))
            return (states, *output[1:]) if isinstance(output, tuple) else type(output)(last_hidden_state=states)

        hook = self._network.base_model.register_forward_hook(select)
        try:
            return ModelOutput(self._answers(self._network, batch).tensors)
        finally:
            hook.remove()

    def _selects_tokens(self, sample: TokenBatch) -> bool:
        """Try out whether the head may be run on some tokens: the answers there are those of the whole network."""
        if self._network.base_model is self._network:
            return False
        wanted = torch.zeros_like(sample.input_ids, dtype=torch.bool)
        wanted[0, 1::3], wanted[1, 2] = True, True
        with torch.inference_mode(), suppress(RuntimeError, ValueError, IndexError, TypeError, AttributeError):
            found, whole = self._at_wanted(sample, wanted), self._answers(self._network, sample)
            noise = noise_of("padded", self._built_with[1].device)
            return is_close(found.at("logits", wanted), whole.at("logits", wanted), noise)
        return False

    def _answers(self, network: Any, batch: TokenBatch) -> ModelOutput:
        """Run `network`, or what it was compiled to, and name what it returns."""
        output = self._call(network, batch)
        kind = HEAD_KINDS[self._head]
        tensors = {name: getattr(output, name) for name in kind.outputs}
        if self._head == "multiple-choice":
            tensors = {"logits": output.logits[:, 0]}
        return ModelOutput(tensors, frozenset(kind.outputs if kind.per_token else ()))

    def _call(self, network: Any, batch: TokenBatch, **more: Any) -> Any:
        if self._sparse is not None:
            layers.set_attention(self._sparse, batch.input_ids.shape[1])
        return network(**network_inputs(batch, self._takes, self._head), **more)


def _allow_batches(network: Any) -> None:
    """Let a decoder's classifier without a padding id run several rows at once.

    It refuses, since it could not tell padding from text. With an id that no token has it reads the last
    position of each row, as it does for a row alone; right padding is then found to be unsafe.
    """
    twice = torch.zeros(2, 2, dtype=torch.int64, device=network.device)
    try:
        with torch.inference_mode():
            network(input_ids=twice)
    except ValueError:
        network.config.get_text_config().pad_token_id = -1
