"""A context, and a whole pipeline, that need no checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final
from zlib import crc32

import torch

from pipeline_kit.builtin.tokenizers.options import HfTokenizerConfig
from pipeline_kit.checkpoint.resolve import CheckpointConfig, resolve_checkpoint
from pipeline_kit.contract.fields import text_and_pair
from pipeline_kit.contract.stages import ENCODING_FIELDS, Model, Postprocessor, StageContext, Tokenizer
from pipeline_kit.contract.types import Checkpoint, Device, Encoding, Example, ModelOutput, Side, TokenBatch
from pipeline_kit.errors import ExampleError
from pipeline_kit.explain.record import explain
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.runtime.padding import PaddingPolicy
from pipeline_kit.runtime.pipeline import Pipeline
from pipeline_kit.testing.kit import TinyModelConfig, WordTokenizerConfig


def tiny_stage_context(
    *,
    labels: Sequence[str] = ("NEGATIVE", "NEUTRAL", "POSITIVE"),
    head: str = "base",
    device: Device | None = None,
    requires: frozenset[str] = ENCODING_FIELDS,
    config: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
) -> StageContext:
    """Return what a stage is built with, on a checkpoint whose folder does not exist.

    :param config: further keys of the checkpoint's ``config.json``, such as ``problem_type``.
    :param tokenizer: None is a :class:`WordTokenizer`.
    """
    names = {str(i): label for i, label in enumerate(labels)}
    checkpoint = Checkpoint(Path("tiny-checkpoint"), "tiny-checkpoint", {"id2label": names, **(config or {})})
    return StageContext(checkpoint, device or Device(), head, requires, "", tokenizer or WordTokenizer())


def checkpoint_context(
    folder: Path,
    files: Mapping[str, Any] | None = None,
    *,
    labels: Sequence[str] = ("NEGATIVE", "NEUTRAL", "POSITIVE"),
    head: str = "base",
    device: Device | None = None,
    tokenizer: Tokenizer | None = None,
) -> StageContext:
    """Return what a stage is built with on the files of `folder`, which :func:`tiny_checkpoint` or `files` wrote.

    :param files: what to write there first, by name: bytes, a text, or what becomes JSON.
    :param labels: of a folder without a ``config.json``, which names them otherwise.
    :param tokenizer: None is that of the folder's ``tokenizer.json``, or else a :class:`WordTokenizer`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (files or {}).items():
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    context = tiny_stage_context(labels=labels, head=head, device=device, tokenizer=tokenizer)
    if not (folder / "config.json").exists():
        return replace(context, checkpoint=replace(context.checkpoint, path=folder, name=str(folder)))
    context = replace(context, checkpoint=resolve_checkpoint(CheckpointConfig(path=str(folder))))
    if tokenizer is None and (folder / "tokenizer.json").exists():
        from pipeline_kit.builtin.tokenizers.hf import HfTokenizer

        return replace(context, tokenizer=HfTokenizer(HfTokenizerConfig(), replace(context, tokenizer=None)))
    return context


def tiny_pipeline(
    postprocessor: Postprocessor,
    *,
    tokenizer: Tokenizer | None = None,
    model: Model | None = None,
    context: StageContext | None = None,
    padding: PaddingPolicy | None = None,
    batching: BatchingPolicy | None = None,
) -> Pipeline:
    """Put a postprocessor behind a :class:`WordTokenizer` and a :class:`TinyModel`, or stages of your own.

    :param context: what the model is built with, if it is not given.
    """
    context = context or tiny_stage_context()
    tokenizer = tokenizer or WordTokenizer()
    model = model or TinyModel(TinyModelConfig(), context)
    padding = padding or PaddingPolicy("longest", tokenizer.padding_side, tokenizer.pad_token_id or 0)
    return Pipeline(
        tokenizer, model, postprocessor, padding, batching or BatchingPolicy(), context.device, {}, explainer=explain
    )


@final
class TinyModel(Model):
    """Returns ``last_hidden_state [B, T, H]`` and ``logits``.

    ``logits`` are ``[B, L]``, or ``[B, T, L]`` where the context's head is ``token-classification``; ``L``
    is the number of the checkpoint's labels. A token's vector mixes its id, its place, and the mean of its
    row, so that answers change with any token but not with padding.
    """

    deterministic = True

    def __init__(self, config: TinyModelConfig, context: StageContext) -> None:
        generator = torch.Generator().manual_seed(config.seed)
        sizes = [(256, config.hidden_size), (config.hidden_size, len(context.checkpoint.labels))]
        place = {"device": context.device.name, "dtype": getattr(torch, context.device.dtype)}
        self._table, self._head = (torch.randn(size, generator=generator).to(**place) for size in sizes)
        self._per_token = context.head == "token-classification"

    @property
    def safe_padding_sides(self) -> frozenset[Side]:
        """Both."""
        return frozenset({"left", "right"})

    @torch.inference_mode()
    def forward(self, batch: TokenBatch) -> ModelOutput:
        """Return hidden states and logits; ids beyond the 256 rows of the table start again at 0."""
        mask = batch.attention_mask[:, :, None].to(self._table.dtype)
        places = batch.attention_mask.cumsum(dim=1)[:, :, None].to(self._table.dtype)
        words = self._table[batch.input_ids % len(self._table)] * mask
        mean = words.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
        hidden = torch.tanh(words + mean + 0.1 * torch.sin(places))
        pooled = hidden if self._per_token else (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        per_token = {"last_hidden_state", "logits"} if self._per_token else {"last_hidden_state"}
        return ModelOutput({"last_hidden_state": hidden, "logits": pooled @ self._head}, frozenset(per_token))


PAD, BEGIN, END, FIRST_WORD = 0, 1, 2, 3
_WORD = re.compile(r"\w+|[^\w\s]")

# Text, offsets, sequence and word of one token; special tokens have neither sequence nor word.
_Token = tuple[str, tuple[int, int], int | None, int | None]
_BEGIN: _Token = ("[CLS]", (0, 0), None, None)
_END: _Token = ("[SEP]", (0, 0), None, None)
_SPECIAL = {_BEGIN[0]: BEGIN, _END[0]: END}


@final
class WordTokenizer(Tokenizer):
    """Frames words as ``[CLS] … [SEP]``, a pair as ``[CLS] … [SEP] … [SEP]``; all encoding fields are filled.

    Different words may share an id, so ``decode`` returns ids by number and not the words. Of a pair that is too
    long the first text is cut or split, or the second where the context's ``truncation`` is ``only_second``.
    """

    def __init__(self, config: WordTokenizerConfig | None = None, context: StageContext | None = None) -> None:
        """Take the options, the defaults if there are none, and from the context which text of a pair is cut."""
        self._config = config or WordTokenizerConfig()
        self._cuts_second = context is not None and context.truncation == "only_second"

    @property
    def pad_token_id(self) -> int:
        """Zero."""
        return PAD

    @property
    def padding_side(self) -> Side:
        """As configured."""
        return self._config.padding_side

    @property
    def max_length(self) -> int | None:
        """As configured."""
        return self._config.max_length

    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        """Encode `examples`; a text longer than `max_length` is cut at its end or split into windows."""
        return [encoding for i, example in enumerate(examples) for encoding in self._encode(i, example)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return ``w7 w21`` for the ids 7 and 21."""
        return " ".join(f"w{i}" for i in ids if i >= FIRST_WORD)

    def _encode(self, place: int, example: Example) -> list[Encoding]:
        text, pair = text_and_pair(example)
        words = _words(text, 0)
        head, tail = [_BEGIN], [_END] if pair is None else [_END, *_words(pair, 1), _END]
        if pair is not None and self._cuts_second:
            head, words, tail = [_BEGIN, *words, _END], tail[1:-1], [_END]
        limit = self.max_length
        room = len(words) if limit is None else limit - len(head) - len(tail)
        windows = self._config.overflow == "window"
        if room < 0 or (windows and len(words) > room <= self._config.overlap):
            raise ExampleError(f"the pair leaves no room for the text in {limit} tokens")
        if len(words) <= room or not windows:
            framed = [*head, *words[:room], *tail]
            return [self._encoding(framed, place, 0, max(0, len(words) - room))]
        step = room - self._config.overlap
        starts = range(0, len(words) - self._config.overlap, step)
        return [
            replace(
                self._encoding([*head, *words[start : start + room], *tail], place, window, 0),
                token_span=(start, min(start + room, len(words))),
            )
            for window, start in enumerate(starts)
        ]

    def _encoding(self, tokens: Sequence[_Token], place: int, window: int, truncated: int) -> Encoding:
        texts, offsets, sequences, words = zip(*tokens, strict=True)
        size = self._config.vocab_size - FIRST_WORD
        ids = [_SPECIAL[t] if word is None else FIRST_WORD + crc32(t.encode()) % size for t, _, _, word in tokens]
        return Encoding(
            input_ids=ids,
            special_tokens_mask=[int(word is None) for word in words],
            offsets=list(offsets),
            tokens=list(texts),
            word_ids=list(words),
            sequence_ids=list(sequences),
            example=place,
            window=window,
            truncated=truncated,
        )


def _words(text: str, sequence: int) -> list[_Token]:
    return [(found.group(), found.span(), sequence, i) for i, found in enumerate(_WORD.finditer(text))]
