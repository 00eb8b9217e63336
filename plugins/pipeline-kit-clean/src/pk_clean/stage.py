"""The tokenizer ``clean``: clean the text, let ``hf`` encode it, lead offsets back to the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from pipeline_kit import Encoding, Example, ExampleError, StageContext, Tokenizer, text_and_pair
from pipeline_kit.kit import HfTokenizer, Side, character_limits, settle_overflow, slice_text

from . import CleanConfig
from .cleaning import clean, steps
from .edits import Way, trace


@dataclass(frozen=True, slots=True)
class _Cleaned:
    """A cleaned text, the ways back to its source, where the part looked at begins, and how much was not."""

    text: str
    ways: Sequence[Way]
    start: int
    unseen: int


@final
class CleanTokenizer(Tokenizer):
    """Encodes cleaned texts exactly as ``tokenizer=hf`` encodes them; offsets are places in the source.

    The offsets of a token that comes from a replacement, such as ``@user``, span all that was replaced.
    No more characters are cleaned than ``hf`` would look at, so a huge row costs little here too.
    """

    def __init__(self, config: CleanConfig, context: StageContext) -> None:
        """Build the inner tokenizer.

        :raises CheckpointError: as ``tokenizer=hf``.
        :raises ConfigError: as ``tokenizer=hf``.
        """
        requires = context.required_fields | ({"sequence_ids"} if "offsets" in context.required_fields else frozenset())
        self._inner = HfTokenizer(config, replace(context, required_fields=requires))
        self._steps = steps(config)
        config = settle_overflow(config, context, self._inner.max_length)
        self._limits = character_limits(config, self._inner.max_length)
        self._left = context.checkpoint.tokenizer_config.get("truncation_side") == "left"
        self._refuses = config.overflow == "error"

    @property
    def pad_token_id(self) -> int | None:
        """See :class:`~pipeline_kit.contract.stages.Tokenizer`."""
        return self._inner.pad_token_id

    @property
    def padding_side(self) -> Side:
        """See :class:`~pipeline_kit.contract.stages.Tokenizer`."""
        return self._inner.padding_side

    @property
    def max_length(self) -> int | None:
        """See :class:`~pipeline_kit.contract.stages.Tokenizer`."""
        return self._inner.max_length

    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        """See :class:`~pipeline_kit.contract.stages.Tokenizer`."""
        rows = [[self._clean(text) for text in text_and_pair(example) if text is not None] for example in examples]
        fields = ("text", "text_pair")
        texts = [dict(zip(fields, [cleaned.text for cleaned in row], strict=False)) for row in rows]
        encodings = self._inner.encode(texts)
        return [_to_source(encoding, rows[encoding.example]) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """See :class:`~pipeline_kit.contract.stages.Tokenizer`."""
        return self._inner.decode(ids)

    def _clean(self, text: str) -> _Cleaned:
        seen = slice_text(text, None if self._limits is None else self._limits.last, self._left)
        if seen.unseen and self._refuses:
            raise ExampleError(f"the text has {len(text)} characters; {len(seen.text)} are looked at; cut it first")
        cleaned, ways = clean(seen.text, self._steps)
        return _Cleaned(cleaned, ways, seen.start, seen.unseen)


def _to_source(encoding: Encoding, row: Sequence[_Cleaned]) -> Encoding:
    unseen = sum([cleaned.unseen for cleaned in row])
    if unseen:
        encoding = replace(encoding, truncated_chars=encoding.truncated_chars + unseen)
    if encoding.offsets is None or not any([cleaned.ways or cleaned.start for cleaned in row]):
        return encoding
    assert encoding.sequence_ids is not None, "asked for together with the offsets"
    offsets = list(encoding.offsets)
    for text, cleaned in enumerate(row):
        places = [i for i, sequence in enumerate(encoding.sequence_ids) if sequence == text]
        sources = trace(cleaned.ways, [offsets[i] for i in places])
        for i, (begin, end) in zip(places, sources, strict=True):
            offsets[i] = (begin + cleaned.start, end + cleaned.start)
    return replace(encoding, offsets=offsets)
