"""``model=generate``: a transformers network that writes text, causal or encoder-decoder."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from queue import SimpleQueue
from typing import Any, final

import numpy as np
import torch

from pipeline_kit.builtin.models.generate.search import Draw, StopStrings, draws, end_of, finite_scores, warpers
from pipeline_kit.builtin.models.generate.settings import Settings, generation_config, padding_shows, settle
from pipeline_kit.builtin.models.hf.batches import probe_sides, sample_batch
from pipeline_kit.builtin.models.hf.heads import GENERATION_HEADS, check_head_name
from pipeline_kit.builtin.models.hf.layers import (
    LayerWatch,
    eager_attention,
    named_attentions,
    network_panel,
    written_panel,
)
from pipeline_kit.builtin.models.hf.loading import load_network
from pipeline_kit.builtin.models.kernels.linears import choose_linear_kernels
from pipeline_kit.builtin.models.options import GenerateModelConfig
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.contract.stages import Model, Panel, StageContext
from pipeline_kit.contract.types import ModelOutput, Side, TokenBatch
from pipeline_kit.errors import UsageError

CAUSAL = "causal-lm"


@final
class GenerateModel(Model):
    """Writes with transformers' own search, from the checkpoint's settings and the user's over them.

    It returns ``sequences [B, N]`` int64, the ids that were written (of a causal model without the prompt, of an
    encoder-decoder without the token it starts with), and ``sequence_lengths [B]`` int64, how many of them are a
    row's: those before its end token. N is the most tokens that may be written, whatever the batch; the rest
    of a row is filled with the padding id.

    A row's ids are the same alone and in any batch. Greedy and beam search see no other row; draws come from a
    generator for each row, seeded by its ids and ``seed``.

    Building it sets torch's number of CPU threads to the device's.
    """

    def __init__(self, config: GenerateModelConfig, context: StageContext) -> None:
        """Load the network, decide how it writes, and measure how it may be padded.

        :raises CheckpointError: if the checkpoint lacks the head, or asks for what is not built in.
        :raises ConfigError: for options that do not fit the checkpoint, or a language that it does not have.
        """
        head = config.head or context.head
        check_head_name(head, GENERATION_HEADS)
        device = context.device
        if torch.get_num_threads() != device.threads:
            torch.set_num_threads(device.threads)
        self._causal = head == CAUSAL
        self._settings: Settings = settle(config.generation, context, self._causal)
        self.stop_strings: Sequence[str] = self._settings.stop_strings
        self._tokenizer = context.tokenizer
        self._network = load_network(context.checkpoint, device, head, config.attn_implementation)
        self._config = generation_config(self._settings, context, self._network)
        ends = self._config.eos_token_id
        self._ends = torch.tensor([] if ends is None else ends, dtype=torch.int64, device=device.name).reshape(-1)
        filler = None if context.tokenizer is None else context.tokenizer.pad_token_id
        with quiet():
            sides = probe_sides(self._first_logits, self._network.config, device, filler)
            sample = sample_batch(self._network.config, device)
            self._products = choose_linear_kernels(
                self._network, lambda: self._first_logits(sample).tensors, config.linear, "none", device
            )
        if padding_shows(self._settings.values, self._causal):
            sides = frozenset()
        self._sides = sides

    @classmethod
    def reserved_positions(cls, config: Any, context: StageContext) -> int:
        """For a causal model the most tokens it writes; an encoder-decoder writes in positions of its own."""
        causal = (config.head or context.head) == CAUSAL
        return settle(config.generation, context, causal).new_tokens if causal else 0

    @property
    def pinned_options(self) -> Mapping[str, Any]:
        """The kernel for linear layers that ``linear=auto`` came to."""
        return self._products.settled

    @property
    def safe_padding_sides(self) -> frozenset[Side]:
        """The padding sides that leave the scores of the first two tokens as they are; tried out at load."""
        return self._sides

    @property
    def runtime_info(self) -> Mapping[str, Any]:
        """How many linear layers and activations run on which kernel, and the settings that were decided on."""
        shown = {"max_new_tokens": self._settings.new_tokens, **self._settings.values}
        writing = {**shown, "seed": self._settings.seed, "stop_strings": list(self.stop_strings)}
        return {**self._products.details, "generation": writing}

    @torch.inference_mode()
    def forward(self, batch: TokenBatch) -> ModelOutput:
        """Write for each row; returns ``sequences`` and ``sequence_lengths``, see the class."""
        with quiet():
            written = self._generate(batch)
        count, width = written.shape
        ended = torch.isin(written, self._ends)
        lengths = torch.where(ended.any(dim=1), ended.int().argmax(dim=1), width)
        if self.stop_strings and self._tokenizer is not None:
            rows = [row[:length] for row, length in zip(written.tolist(), lengths.tolist(), strict=True)]
            found = [end_of(row, self.stop_strings, self._tokenizer.decode) for row in rows]
            lengths = torch.tensor(found, device=written.device)
        sequences = torch.full((count, self._settings.new_tokens), self._config.pad_token_id, device=written.device)
        kept = torch.arange(width, device=written.device) < lengths[:, None]
        sequences[:, :width] = torch.where(kept, written, self._config.pad_token_id)
        return ModelOutput({"sequences": sequences, "sequence_lengths": lengths})

    def capture_layers(self) -> AbstractContextManager[Sequence[tuple[str, Any]]]:
        """See :class:`~pipeline_kit.contract.stages.Model`; of the first pass, which is over the whole text."""
        return LayerWatch(self._network, once=True).watching()

    @torch.inference_mode()
    def attentions(self, batch: TokenBatch) -> Mapping[str, Any]:
        """See :class:`~pipeline_kit.contract.stages.Model`; of the pass that returns the first token, run again."""
        with quiet(), eager_attention(self._network):
            output = self._network.generate(
                batch.input_ids,
                attention_mask=batch.attention_mask,
                generation_config=self._probe(1, output_attentions=True),
            )
        return named_attentions(self._network, output)

    def panels(self, batch: TokenBatch, output: ModelOutput) -> Sequence[Panel]:
        """See :class:`~pipeline_kit.contract.stages.Model`; which network it is, and what it wrote."""
        del batch
        return network_panel(self._network, self.runtime_info), written_panel(output, self._tokenizer)

    def write(self, batch: TokenBatch) -> Iterator[int]:
        """Yield the ids of a batch of one row as they are written, without the end token.

        :raises UsageError: with beams, where no token is certain before the last.
        """
        if self._settings.num_beams > 1:
            raise UsageError("with beams no text is certain before all is written; set model.generation.num_beams=1")
        ends = set(self._ends.tolist())
        for token in write_in_thread(lambda streamer: self._generate(batch, streamer)):
            if token in ends:
                return
            yield token

    def _generate(self, batch: TokenBatch, streamer: Any = None) -> torch.Tensor:
        """Run transformers' search; returns the new ids ``[B, n]``, n up to the most that may be written.

        :raises ExampleError: if a row has no next token, since its scores are not finite.
        """
        start = batch.input_ids.shape[1] if self._causal else 1
        processors = self._draws(batch) if self._settings.do_sample else []
        criteria = []
        if self.stop_strings and self._tokenizer is not None:
            criteria.append(StopStrings(self.stop_strings, self._tokenizer.decode, start))
        with finite_scores(self._network, at_once=streamer is not None):
            written: torch.Tensor = self._network.generate(
                batch.input_ids,
                attention_mask=batch.attention_mask,
                generation_config=self._config,
                logits_processor=processors,
                stopping_criteria=criteria,
                streamer=streamer,
            )
        return written[:, start:]

    def _draws(self, batch: TokenBatch) -> list[Draw]:
        ids, mask = batch.input_ids.cpu().numpy(), batch.attention_mask.cpu().numpy().astype(np.bool_)
        rows = [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]
        device = str(batch.input_ids.device)
        numbers = draws(rows, self._settings.seed, self._settings.new_tokens, device)
        return [Draw(warpers(self._settings.values, device), numbers)]

    @torch.inference_mode()
    def _first_logits(self, batch: TokenBatch) -> ModelOutput:
        """Return the logits of the first two tokens, ``[B, 2 V]``, the second after a token that is always the same."""
        forced = min(7, self._network.config.get_text_config().vocab_size - 1)

        def force(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            del input_ids
            return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor(forced, device=scores.device), 0.0)

        found = self._network.generate(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            generation_config=self._probe(2, output_logits=True),
            logits_processor=[force],
        )
        return ModelOutput({"logits": torch.cat(found.logits, dim=1)})

    def _probe(self, tokens: int, **outputs: bool) -> Any:
        """Return the settings of a greedy search for a few tokens that returns more than its ids."""
        from transformers import GenerationConfig

        kept = ("bos_token_id", "pad_token_id", "decoder_start_token_id")
        ids = {name: getattr(self._config, name) for name in kept}
        return GenerationConfig(**ids, **outputs, max_new_tokens=tokens, do_sample=False, return_dict_in_generate=True)


class _Closed(Exception):
    """Nobody wants more ids."""


class _Streamer:
    """What transformers' generate hands its ids to: first those it starts with, then each new one."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[int | BaseException | None] = SimpleQueue()
        self.closed = False
        self._started = False

    def put(self, value: torch.Tensor) -> None:
        """Take ids.

        :raises _Closed: out of the search, which ends it, if nobody wants more.
        """
        if self.closed:
            raise _Closed
        if self._started:
            self.queue.put(int(value.reshape(-1)[-1]))
        self._started = True

    def end(self) -> None:
        """Do nothing; the thread reports its end."""


def write_in_thread(generate: Callable[[Any], object]) -> Iterator[int]:
    """Run `generate` with a streamer and give the ids that it hands over, in step with the reader or ahead of it.

    Closing the iterator ends the search after the token it is at, and waits for that.

    :raises Exception: whatever `generate` raises.
    """
    streamer = _Streamer()

    def work() -> None:
        outcome: BaseException | None = None
        try:
            with torch.inference_mode(), quiet():
                generate(streamer)
        except _Closed:
            pass
        except BaseException as error:  # handed to the reader, whatever it is
            outcome = error
        streamer.queue.put(outcome)

    thread = threading.Thread(target=work, name="pipeline-kit-writer", daemon=True)
    thread.start()
    try:
        while isinstance(item := streamer.queue.get(), int):
            yield item
        if item is not None:
            raise item
    finally:
        streamer.closed = True
        thread.join()
