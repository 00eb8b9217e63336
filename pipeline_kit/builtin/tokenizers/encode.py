"""Bulk encoding with the tokenizers library: what both built-in tokenizers do with a loaded backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from itertools import chain
from typing import Any

from tokenizers import Encoding as Encoded
from tokenizers import Tokenizer

from pipeline_kit.builtin.tokenizers.chat import Rendered
from pipeline_kit.builtin.tokenizers.limits import TextSlice, check_options, looks, settle_overflow, view
from pipeline_kit.builtin.tokenizers.options import HfTokenizerConfig
from pipeline_kit.builtin.tokenizers.spans import SpanLayout, TokenSpan, layout, truncated, windows
from pipeline_kit.contract.fields import text_and_pair
from pipeline_kit.contract.stages import ENCODING_FIELDS, StageContext
from pipeline_kit.contract.types import Encoding, Example
from pipeline_kit.errors import ExampleError

Texts = tuple[str, ...]
Views = tuple[TextSlice, ...]

# The fields that encode_batch_fast fills; it leaves offsets, tokens and word ids empty.
_FAST_FIELDS = frozenset({"special_tokens_mask", "sequence_ids"})

# An untruncated encoding takes about 600 bytes a token until it is cut, so a call gets no more than this at once.
_CHARS_PER_CALL = 500_000


class Encoder:
    """A loaded tokenizer with all that :func:`encode` needs to know.

    :ivar fields: the fields of an encoding that are filled on request.
    """

    def __init__(
        self,
        backend: Tokenizer,
        options: HfTokenizerConfig,
        context: StageContext,
        max_length: int | None,
        *,
        token_types: bool,
        left: bool,
    ) -> None:
        """Check the options against the tokenizer.

        :param token_types: whether encodings get segment ids.
        :param left: whether truncation cuts at the beginning.
        :raises ConfigError: if special tokens leave no room for text, or windows would not move forward.
        """
        options = settle_overflow(options, context, max_length)
        check_options(options, max_length, backend.num_special_tokens_to_add(False) * options.add_special_tokens)
        self.backend, self.options, self.max_length, self.token_types = backend, options, max_length, token_types
        self.left = left or context.head == "causal-lm"  # a text that is carried on keeps its end
        self.looks = looks(options, max_length)
        self.truncation, self.pair = context.truncation, context.pair_names
        self.fields = tuple(sorted(context.required_fields))
        self.fast = context.required_fields <= _FAST_FIELDS


def encode(encoder: Encoder, examples: Sequence[Example]) -> list[Encoding]:
    """Encode `examples` as :meth:`pipeline_kit.contract.stages.Tokenizer.encode` says.

    :raises ExampleError: for the first example that cannot be encoded.
    """
    # All of them first: a wrong row must not cost an encoding. transformers also takes an empty second text for none.
    rows = [(text, pair) if pair else (text,) for text, pair in map(text_and_pair, examples)]
    found: list[Encoding] = []
    for start, views in _groups(encoder, rows):
        for place, encoded in enumerate(_call(encoder, views, rows[start]), start):
            found.extend(_finish(encoder, place, rows[place], views[place - start], encoded))
    return found


def encode_fully(encoder: Encoder, examples: Sequence[Example]) -> list[Encoding]:
    """Encode as :func:`encode` does, but with all fields filled, whether or not they are required."""
    full = copy(encoder)
    full.fields, full.fast = tuple(sorted(ENCODING_FIELDS)), False
    return encode(full, examples)


def _groups(encoder: Encoder, rows: Sequence[Texts]) -> Iterator[tuple[int, list[Views]]]:
    """Cut the rows into calls of bounded size; returns the place of the first row and the rows' views."""
    limit = None if encoder.looks is None else encoder.looks.first
    last = encoder.looks.last if encoder.looks is not None and encoder.options.overflow == "error" else None
    start, size = 0, 0
    group: list[Views] = []
    for place, texts in enumerate(rows):
        for text in texts:
            if last is not None and len(text) > last:
                raise ExampleError(
                    f"the text has {len(text)} characters; for max_length {encoder.max_length} at most {last} are "
                    "looked at; set tokenizer.overflow to truncate or window, or raise tokenizer.max_chars"
                )
        views = tuple([view(text, limit, encoder.left) for text in texts])
        group.append(views)
        size += sum([len(v.text) for v in views])
        mixed = place + 1 < len(rows) and _framed(texts) != _framed(rows[place + 1])
        if size >= _CHARS_PER_CALL or mixed:
            yield start, group
            start, size, group = place + 1, 0, []
    if group:
        yield start, group


def _framed(texts: Texts) -> bool:
    """Return whether a row has its special tokens already, as a rendered conversation has."""
    return isinstance(texts[0], Rendered)


def _call(encoder: Encoder, views: Sequence[Views], texts: Texts) -> list[Encoded]:
    """Encode the views of rows that are all framed, or none of them, as `texts` is."""
    batch = encoder.backend.encode_batch_fast if encoder.fast else encoder.backend.encode_batch
    specials = encoder.options.add_special_tokens and not _framed(texts)
    rows = [row[0].text if len(row) == 1 else (row[0].text, row[1].text) for row in views]
    found: list[Encoded] = batch(rows, add_special_tokens=specials)
    return found


def _finish(encoder: Encoder, place: int, texts: Texts, views: Views, encoded: Encoded) -> list[Encoding]:
    """Turn the encoding of a row into one that fits, or into its windows."""
    count, max_length = len(encoded), encoder.max_length
    unseen = any([v.unseen for v in views])
    if not unseen and (max_length is None or count <= max_length):
        if not count:
            raise ExampleError("the text has no tokens")
        return [_encoding(encoder, place, encoded)]
    if unseen:
        views, encoded = _look_further(encoder, texts, views, encoded)
        count = len(encoded)
    if not count:
        raise ExampleError("the text has no tokens")
    spans = _spans(encoder, views, encoded)
    kept = sum([end - begin for begin, end in spans[0][0]])
    full = {"input_ids": encoded.ids, **_fields(encoder, views, encoded)}
    return [
        Encoding(
            **_cut(full, window_spans),
            example=place,
            window=window,
            truncated=count - kept if len(spans) == 1 else 0,
            truncated_chars=sum([v.unseen for v in views]),
            token_span=part if len(spans) > 1 else None,
        )
        for window, (window_spans, part) in enumerate(spans)
    ]


def _look_further(encoder: Encoder, texts: Texts, views: Views, encoded: Encoded) -> tuple[Views, Encoded]:
    """Tokenize more of the texts that were not seen whole until they fill the room there is, or to the last look."""
    assert encoder.looks is not None, "only a limited look leaves anything unseen"
    limit = encoder.looks.first
    while limit < encoder.looks.last and encoder.max_length is not None:
        where = layout(encoded.sequence_ids, len(texts))
        room = encoder.max_length - where.specials
        # One token more than fits: the last one of a cut text may be half of a word.
        short = [v.unseen and count <= room for v, count in zip(views, where.counts, strict=True)]
        if not any(short):
            break
        limit = min(limit * 2, encoder.looks.last)
        pairs = zip(texts, views, short, strict=True)
        views = tuple([view(text, limit, encoder.left) if again else v for text, v, again in pairs])
        encoded = _call(encoder, [views], texts)[0]
    return views, encoded


def _spans(encoder: Encoder, views: Views, encoded: Encoded) -> Sequence[tuple[list[TokenSpan], TokenSpan | None]]:
    """Decide which tokens stay, for each encoding of the row, and what part of the text a window holds.

    :raises ExampleError: if ``overflow`` is ``error`` and not all of them fit.
    """
    count, max_length = len(encoded), encoder.max_length
    if max_length is None or count <= max_length:
        return [([(0, count)], None)]
    if encoder.options.overflow == "error":
        more = "more than " if any([v.unseen for v in views]) else ""
        raise ExampleError(
            f"the text has {more}{count} tokens; at most {max_length} fit. Set tokenizer.overflow to "
            "truncate or window to take longer ones"
        )
    where: SpanLayout = layout(encoded.sequence_ids, len(views))
    if encoder.options.overflow == "window":
        return windows(where, max_length, encoder.options.overlap, encoder.truncation, encoder.pair)
    return [(truncated(where, max_length, encoder.left, encoder.truncation, encoder.pair), None)]


def _encoding(encoder: Encoder, place: int, encoded: Encoded) -> Encoding:
    """Return a whole encoding; the path of nearly every row, so it does nothing more."""
    types = encoded.type_ids if encoder.token_types else None
    if not encoder.fields:
        return Encoding(encoded.ids, types, example=place)
    extra = {name: getattr(encoded, name) for name in encoder.fields}
    return Encoding(encoded.ids, types, example=place, **extra)


def _fields(encoder: Encoder, views: Views, encoded: Encoded) -> dict[str, Any]:
    """Return the fields of an encoding besides its ids, offsets as places in the source texts."""
    found: dict[str, Any] = {name: getattr(encoded, name) for name in encoder.fields}
    if encoder.token_types:
        found["token_type_ids"] = encoded.type_ids
    if "offsets" in found and any([v.start for v in views]):
        found["offsets"] = [
            (begin, end) if text is None else (begin + views[text].start, end + views[text].start)
            for (begin, end), text in zip(encoded.offsets, encoded.sequence_ids, strict=True)
        ]
    return found


def _cut(fields: dict[str, Any], spans: Sequence[TokenSpan]) -> dict[str, Any]:
    return {
        name: list(chain.from_iterable([values[begin:end] for begin, end in spans])) for name, values in fields.items()
    }
