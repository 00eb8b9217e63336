"""A tokenizer that needs no files: words and punctuation marks, hashed to ids."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import final
from zlib import crc32

from pipeline_kit.errors import ExampleError
from pipeline_kit.fields import text_and_pair
from pipeline_kit.stages import StageContext, Tokenizer
from pipeline_kit.testing.kit import WordTokenizerConfig
from pipeline_kit.types import Encoding, Example, Side

__all__ = ["PAD", "WordTokenizer"]

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

    Different words may share an id, so ``decode`` gives ids by number and not the words. Of a pair that is too
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
        """Give ``w7 w21`` for the ids 7 and 21."""
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
                span=(start, min(start + room, len(words))),
            )
            for window, start in enumerate(starts)
        ]

    def _encoding(self, tokens: Sequence[_Token], place: int, window: int, truncated: int) -> Encoding:
        texts, offsets, sequences, words = zip(*tokens, strict=True)
        return Encoding(
            input_ids=[self._id(text) if word is not None else _SPECIAL[text] for text, _, _, word in tokens],
            special_tokens_mask=[int(word is None) for word in words],
            offsets=list(offsets),
            tokens=list(texts),
            word_ids=list(words),
            sequence_ids=list(sequences),
            example=place,
            window=window,
            truncated=truncated,
        )

    def _id(self, word: str) -> int:
        return FIRST_WORD + crc32(word.encode("utf-8")) % (self._config.vocab_size - FIRST_WORD)


def _words(text: str, sequence: int) -> list[_Token]:
    return [(found.group(), found.span(), sequence, i) for i, found in enumerate(_WORD.finditer(text))]
