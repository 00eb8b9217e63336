"""Writes many rows with one cache: rows that end leave the batch, and those that wait enter it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from pipeline_kit.builtin.models.generate.slots import SlotTable, cache_on, cached_tensors, look_again
from pipeline_kit.builtin.models.hf.batches import is_close, select_rows
from pipeline_kit.contract.types import TokenBatch
from pipeline_kit.errors import ExampleError
from pipeline_kit.runtime.batching import MAX_TOKENS_CPU, MAX_TOKENS_GPU

ROWS_CPU, ROWS_GPU = 64, 256
"""How many rows are written side by side at the most."""
_MEMORY = 2 << 30
_JOINING = 4  # so many times fewer than all: a prompt costs a pass over the weights, with one row or with many


def memory_for(network: Any) -> int:
    """Return how many bytes the cache may take: as many as the weights, if that is not too little."""
    weights: int = sum(weight.nbytes for weight in network.parameters())
    return max(_MEMORY, weights)


class PromptQueue:
    """The rows of a batch that wait, those with the longest prompts first."""

    def __init__(self, batch: TokenBatch) -> None:
        self._batch = batch
        self._waiting = deque(np.argsort(-batch.lengths, kind="stable").tolist())
        self._budget = MAX_TOKENS_CPU if batch.input_ids.device.type == "cpu" else MAX_TOKENS_GPU

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, most: int) -> list[int]:
        """Return the rows to run next, at most so many, with as many tokens as a budget allows."""
        count = min(len(self), most, max(1, self._budget // int(self._batch.lengths[self._waiting[0]])))
        return [self._waiting.popleft() for _ in range(count)]

    def rows(self, numbers: Sequence[int]) -> TokenBatch:
        """Return some rows of the batch as one of their own, without the columns that none of them needs."""
        return select_rows(self._batch, torch.tensor(numbers, device=self._batch.input_ids.device))


@dataclass(frozen=True)
class WritingRules:
    """How tokens are chosen and where a row ends.

    :param config: a greedy GenerationConfig; its changes of the scores are made first.
    :param ends: the ids that end a row and are not a part of it.
    :param draw: chooses from scores ``[B, V]`` for rows, by their places in the batch and how many tokens each has;
        None: the best score wins.
    :param stopped: whether what is written ends a row.
    """

    config: Any
    new_tokens: int
    ends: frozenset[int] = frozenset()
    draw: Callable[[torch.Tensor, Sequence[int], Sequence[int]], torch.Tensor] | None = None
    stopped: Callable[[Sequence[int]], bool] | None = None


class _PromptGroup:
    """Rows whose prompts ran together, with what changes their scores, which knows their order and all their ids."""

    def __init__(self, ids: torch.Tensor, processors: Any) -> None:
        self._ids, self._processors = ids, processors

    def change(self, places: Sequence[int], scores: torch.Tensor) -> torch.Tensor:
        every = scores.new_zeros((len(self._ids), scores.shape[1]))
        every[places] = scores
        changed: torch.Tensor = self._processors(self._ids, every)
        return changed[places]

    def append(self, places: Sequence[int], tokens: torch.Tensor) -> None:
        column = torch.zeros_like(self._ids[:, :1])
        column[places, 0] = tokens
        self._ids = torch.cat([self._ids, column], dim=1)


@dataclass
class _SlotRow:
    """A row that is being written: its place in the batch, and where its scores are changed, if they are."""

    number: int
    group: _PromptGroup | None
    place: int
    ids: list[int] = field(default_factory=list)


@final
class SlotWriter:
    """Writes the rows of a batch, those with the longest prompts first.

    :ivar rows: those that are being written.
    :ivar logits: for the next token of each of them, ``[rows, V]``.
    """

    def __init__(self, network: Any, batch: TokenBatch, rules: WritingRules, *, joins: bool) -> None:
        """Write nothing yet.

        :param joins: whether a row may enter beside rows that have written already, see :func:`joins_rows`.
        """
        self._network, self._rules, self._joins = network, rules, joins
        self._causal = not network.config.is_encoder_decoder
        self._waiting = PromptQueue(batch)
        self._most = min(ROWS_CPU if batch.input_ids.device.type == "cpu" else ROWS_GPU, len(self._waiting))
        self._written = self._encoded = SlotTable(0, grows=False)
        self._cache: Any = None
        self._caches: list[Cache] = []
        self._given: dict[str, Any] = {}
        self._positions: torch.Tensor | None = None
        self.rows: list[_SlotRow] = []
        self.logits = torch.empty(0)

    def write(self) -> list[list[int]]:
        """Return what is written for each row of the batch, without end tokens.

        :raises ExampleError: if the scores of a row are not finite.
        """
        found: list[list[int]] = [[] for _ in range(len(self._waiting))]
        while self._waiting or self.rows:
            if not self.rows or (self._joins and self._most - len(self.rows) >= self._most / _JOINING):
                while self._waiting and len(self.rows) < self._most:
                    self.enter(self._waiting.take(self._most - len(self.rows)))
            tokens = self._choose()
            ended: set[int] = set()
            for place, (row, token) in enumerate(zip(self.rows, tokens.tolist(), strict=True)):
                if token not in self._rules.ends:
                    row.ids.append(token)
                    stopped = self._rules.stopped is not None and self._rules.stopped(row.ids)
                    if len(row.ids) < self._rules.new_tokens and not stopped:
                        continue
                found[row.number] = row.ids
                ended.add(place)
            self.advance(tokens, ended)
        return found

    def enter(self, numbers: Sequence[int]) -> None:
        """Run the prompts of these rows of the batch together, and put the rows beside those that are there.

        :raises TypeError: for an architecture that cannot be cut by rows and columns.
        """
        batch = self._waiting.rows(numbers)

        def run(network: Any, input_ids: Any, logits_processor: Any, **given: Any) -> Any:
            for name in ("stopping_criteria", "generation_config"):
                del given[name]
            inputs = network.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **given)
            return input_ids, logits_processor, given, network(**inputs, return_dict=True).logits[:, -1].clone()

        # transformers prepares the inputs, the cache and what changes the scores; its search is left out.
        ids, processors, given, logits = self._network.generate(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            generation_config=self._rules.config,
            custom_generate=run,
        )
        group = _PromptGroup(ids, processors) if processors else None
        self._keep_prompt(batch, ids, given)
        self.logits = torch.cat([self.logits, logits]) if self.rows else logits
        self.rows += [_SlotRow(number, group, place) for place, number in enumerate(numbers)]

    def _keep_prompt(self, batch: TokenBatch, ids: torch.Tensor, given: dict[str, Any]) -> None:
        cache, mask, positions = (
            given.pop(name, None) for name in ("past_key_values", "attention_mask", "position_ids")
        )
        lengths, encoded, own = batch.lengths.tolist(), [], cache
        if self._causal:
            mask = batch.attention_mask
        else:
            states = given.pop("encoder_outputs").last_hidden_state
            encoded = [mask[..., None], states, *cached_tensors(cache.cross_attention_cache)]
            mask = given.pop("decoder_attention_mask", None)
            mask = torch.ones_like(ids) if mask is None else mask
            lengths, own = [ids.shape[1]] * len(ids), cache.self_attention_cache
        odd = [name for name, value in given.items() if isinstance(value, torch.Tensor)]
        if odd or not isinstance(own, DynamicCache) or (positions is not None and positions.dim() != 2):
            raise TypeError(f"{type(self._network).__name__} takes more than this can cut by rows: {odd}")
        written, first = [mask[..., None], *cached_tensors(own)], self._cache is None
        if first:
            self._given = given
            self._make_room(written, encoded, max(lengths))
        self._written.add(written, lengths)
        if not self._causal:
            self._encoded.add(encoded, [encoded[0].shape[1]] * len(ids))
        if first:
            self._cache = cache_on(self._written, own, 1)
            self._caches = [self._cache]
            if not self._causal:
                self._caches.append(cache_on(self._encoded, cache.cross_attention_cache, 2))
                self._cache = EncoderDecoderCache(*self._caches)
        if positions is not None:
            last = positions[:, -1:].expand(len(ids), 1)
            self._positions = last if self._positions is None else torch.cat([self._positions, last])

    def _make_room(self, written: Sequence[torch.Tensor], encoded: Sequence[torch.Tensor], longest: int) -> None:
        """Make the tables, for fewer rows where the longest of the prompts, which come first, needs much memory."""
        each = sum(part[0].nbytes for part in encoded)
        each += sum(part[0].nbytes // part.shape[-2] for part in written) * (longest + self._rules.new_tokens)
        self._most = max(len(written[0]), min(self._most, memory_for(self._network) // each))
        self._written, self._encoded = SlotTable(self._most, grows=True), SlotTable(self._most, grows=False)

    def advance(self, tokens: torch.Tensor, ended: Collection[int]) -> None:
        """Take the next token of each row, let those at the places `ended` leave, and run the network on the others."""
        for group, places in self._by_group():
            group.append([self.rows[place].place for place in places], tokens[places])
        count = len(self.rows) - len(ended)
        movers = (place for place in range(count, len(self.rows)) if place not in ended)
        order = [next(movers) if place in ended else place for place in range(count)]
        self.rows = [self.rows[place] for place in order]
        tables = (self._written,) if self._causal else (self._written, self._encoded)
        for table in tables:
            table.keep(order)
        if self._positions is not None:
            self._positions = self._positions[order] + 1
        if self.rows:
            self._run(tokens[order])

    def _run(self, tokens: torch.Tensor) -> None:
        look_again(*self._caches)
        self._written.add_column()
        self._written.write(0, 1)
        mask = self._written.view(0)[..., 0]
        given = dict(self._given)
        if self._causal:
            given["attention_mask"] = mask
        else:
            given["decoder_attention_mask"], given["attention_mask"] = mask, self._encoded.view(0)[..., 0]
            given["encoder_outputs"] = BaseModelOutput(last_hidden_state=self._encoded.view(1))
        if self._positions is not None:
            given["position_ids"] = self._positions
        inputs = self._network.prepare_inputs_for_generation(
            tokens[:, None], next_sequence_length=1, past_key_values=self._cache, **given
        )
        self.logits = self._network(**inputs, return_dict=True).logits[:, -1]

    def _choose(self) -> torch.Tensor:
        """Return the next token of each row, ``[rows]``."""
        best, tokens = self.logits.max(dim=-1)
        if not bool(best.isfinite().all()):
            raise not_finite()
        groups = self._by_group()
        if not groups and self._rules.draw is None:
            return tokens
        scores = self.logits.float()
        for group, places in groups:
            scores[places] = group.change([self.rows[place].place for place in places], scores[places])
        if self._rules.draw is None:
            return scores.argmax(dim=-1)
        rows = self.rows
        return self._rules.draw(scores, [row.number for row in rows], [len(row.ids) for row in rows])

    def _by_group(self) -> list[tuple[_PromptGroup, list[int]]]:
        """Return the groups that change scores, each with the places of its rows."""
        found: dict[int, tuple[_PromptGroup, list[int]]] = {}
        for place, row in enumerate(self.rows):
            if row.group is not None:
                found.setdefault(id(row.group), (row.group, []))[1].append(place)
        return list(found.values())


def not_finite() -> ExampleError:
    """Make the error for a row from whose scores no token can be chosen."""
    return ExampleError("the model's scores for the next token of this example are not finite numbers")


_STEPS = 4  # that one row is ahead: far enough for a wrong position to show
PROBED = _STEPS + 2
"""How many tokens a row is to be written alone for :func:`joins_rows`."""


def joins_rows(
    network: Any, batch: TokenBatch, config: Any, token: int, expected: Sequence[torch.Tensor], noise: float
) -> bool | None:
    """Try whether a row can enter beside one that has written already; else, whether rows can leave.

    A BART counts its positions by the length of the cache, so its rows must begin together. The state of a Mamba has
    no columns.

    :param batch: two rows.
    :param token: what both write.
    :param expected: for each row the logits of its tokens when it is alone, ``[PROBED, V]``.
    :param noise: how far equal answers may be apart, as a share of the largest number.
    :returns: None if neither works.
    """
    device = batch.input_ids.device
    for joins in (True, False):
        seen: tuple[list[torch.Tensor], ...] = ([], [])
        ahead = _STEPS if joins else 0
        try:
            writer = SlotWriter(network, batch, WritingRules(config, PROBED), joins=joins)
            writer.enter([0])
            for _ in range(ahead):
                writer.advance(torch.full((1,), token, device=device), ())
            writer.enter([1])
            for ended in ((), {0}, {0}):
                for row, logits in zip(writer.rows, writer.logits, strict=True):
                    seen[row.number].append(logits)
                writer.advance(torch.full((len(writer.rows),), token, device=device), ended)
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):
            continue
        pairs = [(seen[0], expected[0][ahead:]), (seen[1], expected[1])]
        if all(is_close(torch.stack(found), wanted[: len(found)], noise) for found, wanted in pairs):
            return joins
    return None
