"""``model=generate``: a transformers network that writes text, causal or encoder-decoder."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from itertools import takewhile
from queue import SimpleQueue
from typing import Any, final

import numpy as np
import torch

from pipeline_kit.builtin.models.generate.choosing import Draw, StopStrings, Warper, drawn, draws, end_of, warpers
from pipeline_kit.builtin.models.generate.settings import Settings, generation_config, padding_shows, settle
from pipeline_kit.builtin.models.generate.writer import (
    PROBED,
    PromptQueue,
    SlotWriter,
    WritingRules,
    joins_rows,
    not_finite,
)
from pipeline_kit.builtin.models.hf import layers
from pipeline_kit.builtin.models.hf.batches import noise_of, probe_sides, sample_batch
from pipeline_kit.builtin.models.hf.heads import GENERATION_HEADS, check_head_name
from pipeline_kit.builtin.models.hf.linears import choose_linear_kernels
from pipeline_kit.builtin.models.hf.loading import load_network
from pipeline_kit.builtin.models.options import GenerateModelConfig
from pipeline_kit.builtin.quiet import quiet
from pipeline_kit.contract.stages import Model, Panel, StageContext
from pipeline_kit.contract.types import Encoding, ModelOutput, Side, TokenBatch
from pipeline_kit.errors import UsageError
from pipeline_kit.runtime.padding import PaddingPolicy, collate

CAUSAL = "causal-lm"
_ROWS_SEARCHED = 32  # together by transformers' own search, which keeps them to the end of the longest


@final
class GenerateModel(Model):
    """Writes with transformers' own search, from the checkpoint's settings and the user's over them.

    It returns ``sequences [B, N]`` int64, the ids that were written (of a causal model without the prompt, of an
    encoder-decoder without the token it starts with), and ``sequence_lengths [B]`` int64, how many of them are a
    row's: those before its end token. N is the most tokens that may be written, whatever the batch; the rest
    of a row is filled with the padding id.

    A row's ids are the same alone and in any batch, unless ``quantization=int8`` rounds by the range in the batch.
    Greedy and beam search see no other row; draws come from a generator for each row, seeded by its ids and ``seed``.
    """

    deterministic = True  # what is drawn depends on the row's ids and the seed alone

    def __init__(self, config: GenerateModelConfig, context: StageContext) -> None:
        """Load the network, decide how it writes, and measure how it may be padded.

        :raises CheckpointError: if the checkpoint lacks the head, or asks for what is not built in.
        :raises ConfigError: for options that do not fit the checkpoint, or a language that it does not have.
        """
        head = config.head or context.head
        check_head_name(head, GENERATION_HEADS)
        device = context.device
        self._causal = head == CAUSAL
        settings = settle(config.generation, context, self._causal)  # what is wrong is seen before the weights are read
        self._network = load_network(context.checkpoint, device, head, config.attn_implementation)
        self._forced = min(7, self._network.config.get_text_config().vocab_size - 1)
        self._device, self._waits = device, True
        self._tried: list[bool | None] = []  # a list, so that twins share it
        self._write_by(settings, config, context)
        filler = None if context.tokenizer is None else context.tokenizer.pad_token_id
        with quiet():
            self._sides = probe_sides(self._first_logits, self._network.config, device, filler)
            if config.quantization != "none":
                self._tried.append(self._try_joins())  # by numbers that nothing has rounded yet
            sample = sample_batch(self._network.config, device)
            asked = (config.linear, config.quantization)
            self._products = choose_linear_kernels(
                self._network, lambda: self._first_logits(sample).tensors, *asked, device
            )

    def _write_by(self, settings: Settings, config: GenerateModelConfig, context: StageContext) -> None:
        self._settings, self._options, self._tokenizer = settings, config, context.tokenizer
        self.stop_strings: Sequence[str] = settings.stop_strings
        self.max_new_tokens = settings.new_tokens
        self._config = generation_config(settings, context, self._network)
        ends = self._config.eos_token_id
        self._ends: list[int] = [] if ends is None else ends if isinstance(ends, list) else [ends]

    def with_options(self, config: Any, context: StageContext) -> GenerateModel | None:
        if replace(config, generation=self._options.generation) != self._options:
            return None
        twin = copy(self)
        twin._write_by(settle(config.generation, context, self._causal), config, context)
        return twin

    @classmethod
    def reserved_positions(cls, config: Any, context: StageContext) -> int:
        """For a causal model the most tokens it writes; an encoder-decoder writes in positions of its own."""
        causal = (config.head or context.head) == CAUSAL
        return settle(config.generation, context, causal).new_tokens if causal else 0

    @property
    def pinned_options(self) -> Mapping[str, Any]:
        return self._products.settled

    @property
    def safe_padding_sides(self) -> frozenset[Side]:
        """The padding sides that leave the scores of the first two tokens as they are; tried out at load."""
        return frozenset() if padding_shows(self._settings.values, self._causal) else self._sides

    @property
    def runtime_info(self) -> Mapping[str, Any]:
        """How many linear layers and activations run on which kernel, and the settings that were decided on."""
        shown = {"max_new_tokens": self._settings.new_tokens, **self._settings.values}
        writing = {**shown, "seed": self._settings.seed, "stop_strings": list(self.stop_strings)}
        return {**self._products.details, "generation": writing}

    @torch.inference_mode()
    def forward(self, batch: TokenBatch) -> ModelOutput:
        with quiet():
            rows = self._write_rows(batch) if self._waits else self._search(batch)
        if self.stop_strings and self._tokenizer is not None:
            rows = [row[: end_of(row, self.stop_strings, self._tokenizer.decode)] for row in rows]
        lengths = torch.tensor([len(row) for row in rows])
        sequences = torch.full((len(rows), self._settings.new_tokens), self._config.pad_token_id)
        for place, row in enumerate(rows):
            sequences[place, : len(row)] = torch.tensor(row, dtype=torch.int64)
        found = {"sequences": sequences, "sequence_lengths": lengths}
        return ModelOutput({name: tensor.to(batch.input_ids.device) for name, tensor in found.items()})

    @contextmanager
    def capture_layers(self) -> Iterator[Sequence[tuple[str, Any]]]:
        """Note the first pass alone, which is over the whole texts of all rows: none waits for another one's place."""
        before, self._waits = self._waits, False
        try:
            with layers.LayerWatch(self._network, once=True).watching() as seen:
                yield seen
        finally:
            self._waits = before

    @torch.inference_mode()
    def attentions(self, batch: TokenBatch) -> Mapping[str, Any]:
        """Return those of the pass that returns the first token, run again."""
        with quiet(), layers.eager_attention(self._network):
            output = self._network.generate(
                batch.input_ids,
                attention_mask=batch.attention_mask,
                generation_config=self._probe(1, output_attentions=True),
            )
        return layers.named_attentions(self._network, output)

    def panels(self, batch: TokenBatch, output: ModelOutput) -> Sequence[Panel]:
        return layers.network_panel(self._network, self.runtime_info), layers.written_panel(output, self._tokenizer)

    def write(self, batch: TokenBatch) -> Iterator[int]:
        """Yield the ids of a batch of one row as they are written, without the end token.

        :raises UsageError: with beams, where no token is certain before the last.
        """
        if self._settings.num_beams > 1:
            raise UsageError("with beams no text is certain before all is written; set model.generation.num_beams=1")
        ends = set(self._ends)
        for token in write_in_thread(lambda streamer: self._generate(batch, streamer)):
            if token in ends:
                return
            yield token

    def _write_rows(self, batch: TokenBatch) -> list[list[int]]:
        """Return the ids that each row wrote, without end tokens; raise ExampleError if its scores are not finite."""
        if self._settings.num_beams == 1 and len(batch.lengths) > 1 and self._joins is not None:
            return SlotWriter(self._network, batch, self._rules(batch), joins=self._joins).write()
        found: list[list[int]] = [[] for _ in batch.lengths]
        waiting = PromptQueue(batch)
        while waiting:
            numbers = waiting.take(_ROWS_SEARCHED)
            for number, row in zip(numbers, self._search(waiting.rows(numbers)), strict=True):
                found[number] = row
        return found

    def _search(self, batch: TokenBatch) -> list[list[int]]:
        """Return the same of transformers' own search, all rows at once."""
        return [list(takewhile(lambda token: token not in self._ends, row)) for row in self._generate(batch).tolist()]

    def _rules(self, batch: TokenBatch) -> WritingRules:
        stopped = None
        if self.stop_strings and self._tokenizer is not None:
            stopped = StopStrings(self.stop_strings, self._tokenizer.decode).ended
        draw = None
        if self._settings.do_sample:
            change, numbers = self._draws(batch)

            def draw(scores: torch.Tensor, rows: Sequence[int], steps: Sequence[int]) -> torch.Tensor:
                return drawn(scores, change, numbers[rows, steps])

        return WritingRules(self._config, self._settings.new_tokens, frozenset(self._ends), draw, stopped)

    def _draws(self, batch: TokenBatch) -> tuple[list[Warper], torch.Tensor]:
        """Return what changes the scores before a draw, and each row's numbers ``[B, new_tokens]``."""
        ids, mask = batch.input_ids.cpu().numpy(), batch.attention_mask.cpu().numpy().astype(np.bool_)
        rows = [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]
        device = str(batch.input_ids.device)
        numbers = draws(rows, self._settings.seed, self._settings.new_tokens, device)
        return warpers(self._settings.values, device), numbers

    def _generate(self, batch: TokenBatch, streamer: Any = None) -> torch.Tensor:
        """Return the new ids ``[B, n]`` of transformers' own search; raise ExampleError as above."""
        start = batch.input_ids.shape[1] if self._causal else 1
        processors = [Draw(*self._draws(batch))] if self._settings.do_sample else []
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

    @property
    def _joins(self) -> bool | None:
        """Whether rows can enter and leave while others are written, see `joins_rows`; tried out when first needed."""
        if not self._tried:
            self._tried.append(self._try_joins())
        return self._tried[0]

    def _try_joins(self) -> bool | None:
        row = sample_batch(self._network.config, self._device).input_ids[0].tolist()
        # An encoder-decoder's both have the end token. They differ in length where that may be in a batch.
        pair = [Encoding(row), Encoding(row[len(row) // 2 :] if self._sides else [row[1], row[0], *row[2:]])]
        policy = PaddingPolicy("longest", "left", self._config.pad_token_id)
        alone = [self._first_logits(collate([one], policy, self._device.name), PROBED)["logits"] for one in pair]
        expected = [logits.reshape(PROBED, -1) for logits in alone]
        both, noise = collate(pair, policy, self._device.name), noise_of("padded", self._device)
        return joins_rows(self._network, both, self._probe(PROBED), self._forced, expected, noise)

    @torch.inference_mode()
    def _first_logits(self, batch: TokenBatch, count: int = 2) -> ModelOutput:
        """Return the logits of the first tokens, ``[B, count V]``, each after a token that is always the same."""
        forced = torch.tensor(self._forced, device=batch.input_ids.device)

        def force(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return torch.full_like(scores, -torch.inf).index_fill(1, forced, 0.0)

        found = self._network.generate(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            generation_config=self._probe(count, output_logits=True),
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
        self.wanted = threading.Semaphore(0)
        self.closed = False
        self._started = False

    def put(self, value: torch.Tensor) -> None:
        """Take ids; raise _Closed, out of the search, if nobody wants more."""
        if self._started:
            self.queue.put(int(value.reshape(-1)[-1]))
            self.wanted.acquire()  # the search rests between two ids, so that other threads may use the model
        self._started = True
        if self.closed:
            raise _Closed

    def end(self) -> None:
        """Do nothing; the thread reports its end."""


def write_in_thread(generate: Callable[[Any], object]) -> Iterator[int]:
    """Run `generate` with a streamer and yield the ids that it writes, in step with the reader; raise what it raises.

    Closing the iterator ends the search after the token it is at, and waits for that.
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
            streamer.wanted.release()
        if item is not None:
            raise item
    finally:
        streamer.closed = True
        streamer.wanted.release()
        thread.join()


@contextmanager
def finite_scores(network: Any, *, at_once: bool) -> Iterator[None]:
    """Check the scores that `network` returns in the body, before the search changes them.

    A network may rule tokens out by minus infinity, so what counts is each row's best score. It is infinite, or not a
    number, if one score is, or if there is none left.

    :param at_once: end the search at the step itself; else the body ends first, and a GPU is not waited for.
    :raises ExampleError: if the best score of a row is not finite.
    """
    seen: list[torch.Tensor] = []
    thread = threading.get_ident()

    def look(module: Any, given: Any, output: Any) -> None:
        if threading.get_ident() != thread:  # it has the model between two pieces of a text
            return
        found = output.logits[:, -1].amax(dim=-1).isfinite().all()
        if at_once:
            refuse(found)
        seen[:] = [seen[0] & found if seen else found]

    def refuse(found: torch.Tensor) -> None:
        if not found:
            raise not_finite()

    handle = network.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()
    for found in seen:
        refuse(found)
