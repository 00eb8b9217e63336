"""Bulk encoding with the tokenizers library: what both built-in tokenizers do with a loaded backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain
from typing import Any

from tokenizers import Encoding as Encoded
from tokenizers import Tokenizer

from pipeline_kit.builtin.tokenizers.limits import (
    TextSlice,
    character_limits,
    check_options,
    settle_overflow,
    slice_text,
)
from pipeline_kit.builtin.tokenizers.options import HfTokenizerConfig
from pipeline_kit.builtin.tokenizers.pieces import PieceIds
from pipeline_kit.contract.fields import text_and_pair
from pipeline_kit.contract.stages import ENCODING_FIELDS, PAIR, StageContext, Truncation
from pipeline_kit.contract.types import Encoding, Example
from pipeline_kit.errors import ExampleError


class Rendered(str):
    """A conversation as text, which holds its special tokens already and is encoded without adding them once more.

    It never leaves the tokenizer that made it: what ``Tokenizer.render_chat`` returns is for the same tokenizer's
    ``encode``, so other tokenizers need not know of it, and no text of a user can pretend to be one.
    """

    __slots__ = ()


Texts = tuple[str, ...]
Views = tuple[TextSlice, ...]

# The fields that encode_batch_fast fills; it leaves offsets, tokens and word ids empty.
_FAST_FIELDS = frozenset({"special_tokens_mask", "sequence_ids"})

# An untruncated encoding takes about 600 bytes a token until it is cut, so a call gets no more than this at once.
_CHARS_PER_CALL = 500_000


class Encoder:
    """A loaded tokenizer with all that :func:`encode` needs to know; it fills the `fields` of an encoding."""

    def __init__(
        self,
        backend: Tokenizer,
        options: HfTokenizerConfig,
        context: StageContext,
        max_length: int | None,
        *,
        token_types: bool,
        left: bool,
        pieces: PieceIds | None = None,
    ) -> None:
        """Check the options against the tokenizer.

        :param token_types: whether encodings get segment ids.
        :param pieces: the ids, where the backend's are not those of the checkpoint.
        :raises ConfigError: if special tokens leave no room for text, or windows would not move forward.
        """
        options = settle_overflow(options, context, max_length)
        check_options(options, max_length, backend.num_special_tokens_to_add(False) * options.add_special_tokens)
        self.backend, self.options, self.max_length, self.token_types = backend, options, max_length, token_types
        self.left = left or context.head == "causal-lm"  # a text that is carried on keeps its end
        self.limits = character_limits(options, max_length)
        self.truncation, self.pair = context.truncation, context.pair_names
        self.fields = tuple(sorted(context.required_fields))
        self.pieces = pieces
        self.fast = context.required_fields <= _FAST_FIELDS and pieces is None

    def ids(self, encoded: Encoded) -> list[int]:
        """Return the ids of an encoding."""
        found: list[int] = encoded.ids if self.pieces is None else self.pieces.of(encoded)
        return found


def encode(encoder: Encoder, examples: Sequence[Example]) -> list[Encoding]:
    """Encode `examples` as ``Tokenizer.encode`` says; raise ExampleError for the first that cannot be."""
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
    limit, last = encoder.limits or (None, None)
    refuses = encoder.options.overflow == "error"
    start, size = 0, 0
    group: list[Views] = []
    for place, texts in enumerate(rows):
        for text in texts:
            if refuses and last is not None and len(text) > last:
                raise ExampleError(
                    f"the text has {len(text)} characters; for max_length {encoder.max_length} at most {last} are "
                    "looked at; set tokenizer.overflow to truncate or window, or raise tokenizer.max_chars"
                )
        views = tuple([slice_text(text, limit, encoder.left) for text in texts])
        group.append(views)
        size += sum([len(v.text) for v in views])
        mixed = place + 1 < len(rows) and _is_framed(texts) != _is_framed(rows[place + 1])
        if size >= _CHARS_PER_CALL or mixed:
            yield start, group
            start, size, group = place + 1, 0, []
    if group:
        yield start, group


def _is_framed(texts: Texts) -> bool:
    """Return whether a row has its special tokens already, as a rendered conversation has."""
    return isinstance(texts[0], Rendered)


def _call(encoder: Encoder, views: Sequence[Views], texts: Texts) -> list[Encoded]:
    """Encode the views of rows that are all framed, or none of them, as `texts` is."""
    batch = encoder.backend.encode_batch_fast if encoder.fast else encoder.backend.encode_batch
    specials = encoder.options.add_special_tokens and not _is_framed(texts)
    rows = [row[0].text if len(row) == 1 else (row[0].text, row[1].text) for row in views]
    found: list[Encoded] = batch(rows, add_special_tokens=specials)
    return found


def _finish(encoder: Encoder, place: int, texts: Texts, views: Views, encoded: Encoded) -> list[Encoding]:
    """Turn the encoding of a row into one that fits, or into its windows."""
    unseen = any([v.unseen for v in views])
    if unseen:
        views, encoded = _look_further(encoder, texts, views, encoded)
    count = len(encoded)
    if not count:
        raise ExampleError("the text has no tokens")
    if not unseen and (encoder.max_length is None or count <= encoder.max_length):
        return [_encoding(encoder, place, encoded)]
    spans = _spans(encoder, views, encoded)
    kept = sum([end - begin for begin, end in spans[0][0]])
    full = {"input_ids": encoder.ids(encoded), **_fields(encoder, views, encoded)}
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
    assert encoder.limits is not None, "only a limited look leaves anything unseen"
    limit, last = encoder.limits
    while limit < last and encoder.max_length is not None:
        where = layout(encoded.sequence_ids, len(texts))
        room = encoder.max_length - where.specials
        # One token more than fits: the last one of a cut text may be half of a word.
        short = [v.unseen and count <= room for v, count in zip(views, where.counts, strict=True)]
        if not any(short):
            break
        limit = min(limit * 2, last)
        pairs = zip(texts, views, short, strict=True)
        views = tuple([slice_text(text, limit, encoder.left) if again else v for text, v, again in pairs])
        encoded = _call(encoder, [views], texts)[0]
    return views, encoded


def _spans(encoder: Encoder, views: Views, encoded: Encoded) -> Sequence[tuple[list[TokenSpan], TokenSpan | None]]:
    """Return the tokens that stay and the part of the text they are, for each encoding; raise ExampleError if asked."""
    count, max_length = len(encoded), encoder.max_length
    if max_length is None or count <= max_length:
        return [([(0, count)], None)]
    if encoder.options.overflow == "error":
        more = "more than " if any([v.unseen for v in views]) else ""
        raise ExampleError(
            f"the text has {more}{count} tokens; at most {max_length} fit. Set tokenizer.overflow to "
            "truncate or window to take longer ones"
        )
    where = layout(encoded.sequence_ids, len(views))
    if encoder.options.overflow == "window":
        return windows(where, max_length, encoder.options.overlap, encoder.truncation, encoder.pair)
    return [(truncated(where, max_length, encoder.left, encoder.truncation, encoder.pair), None)]


def _encoding(encoder: Encoder, place: int, encoded: Encoded) -> Encoding:
    """Return a whole encoding; the path of nearly every row, so it does nothing more."""
    types = encoded.type_ids if encoder.token_types else None
    if not encoder.fields:
        return Encoding(encoder.ids(encoded), types, example=place)
    extra = {name: getattr(encoded, name) for name in encoder.fields}
    return Encoding(encoder.ids(encoded), types, example=place, **extra)


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


TokenSpan = tuple[int, int]
"""Begin and end of a run of tokens that stay."""

OVERLAP = 128
"""Tokens that neighbouring windows share where nobody says; as transformers 4 had it for question answering."""


@dataclass(frozen=True, slots=True)
class SpanLayout:
    """Where the texts of an untruncated encoding of `total` tokens begin, and how many tokens each has."""

    total: int
    starts: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def specials(self) -> int:
        """The tokens that belong to no text."""
        return self.total - sum(self.counts)


def layout(sequence_ids: Sequence[int | None], texts: int) -> SpanLayout:
    """Find the texts of an encoding by its sequence ids."""
    counts = tuple(sequence_ids.count(text) for text in range(texts))
    starts = tuple(sequence_ids.index(text) if count else 0 for text, count in enumerate(counts))
    return SpanLayout(len(sequence_ids), starts, counts)


def truncated(
    where: SpanLayout,
    max_length: int,
    left: bool,
    truncation: Truncation = "longest_first",
    names: tuple[str, str] = PAIR,
) -> list[TokenSpan]:
    """Cut to `max_length`, at the end or the beginning (`left`) of texts, by the strategies of transformers.

    :raises ExampleError: if the special tokens alone, or the text that is not to be cut, do not fit.
    """
    room = _room(where, max_length)
    if len(where.counts) == 1:
        kept: tuple[int, ...] = (room,)
    elif truncation == "longest_first":
        kept = longest_first(where.counts[0], where.counts[1], room)
    else:
        cut = 0 if truncation == "only_first" else 1
        rest = room - where.counts[1 - cut]
        if rest < 1:
            raise ExampleError(_no_room(cut, where, max_length, names))
        kept = (rest, where.counts[1]) if cut == 0 else (where.counts[0], rest)
    gone: list[TokenSpan] = []
    for start, count, keep in zip(where.starts, where.counts, kept, strict=True):
        gone.append((start, start + count - keep) if left else (start + keep, start + count))
    return _without(where.total, gone)


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Share `room` tokens between the two texts of a pair.

    The shorter text stays whole while it takes at most half of the room; of an odd room the longer
    text, or the second of two equal ones, has the extra token. This is the rule of the tokenizers library.
    """
    if first + second <= room:
        return first, second
    short, long = min(first, second), max(first, second)
    short_kept = min(short, room // 2)
    long_kept = min(long, room - short_kept)
    return (long_kept, short_kept) if first > second else (short_kept, long_kept)


def windows(
    where: SpanLayout,
    max_length: int,
    overlap: int | None,
    truncation: Truncation = "longest_first",
    names: tuple[str, str] = PAIR,
) -> list[tuple[list[TokenSpan], TokenSpan]]:
    """Split the text that `truncation` would cut, of ``longest_first`` the longer one, keeping the other whole.

    :param overlap: None: :data:`OVERLAP` tokens, or half of a window's text if that is less.
    :returns: for each window the spans that stay, and what it holds of the text, in tokens from the text's first;
        neighbours share exactly `overlap` tokens.
    :raises ExampleError: if the other text leaves no room for windows with that overlap.
    """
    longer = truncation == "longest_first" and len(where.counts) > 1 and where.counts[0] <= where.counts[1]
    text = int(longer or (truncation == "only_second" and len(where.counts) > 1))
    count, start = where.counts[text], where.starts[text]
    others = sum(where.counts) - count
    room = _room(where, max_length) - others
    overlap = min(OVERLAP, max(room, 0) // 2) if overlap is None else overlap
    if room <= overlap:
        if room < 1:
            raise ExampleError(_no_room(text, where, max_length, names))
        raise ExampleError(
            f"{names[1 - text]} has {others} tokens, which leaves {room} of max_length {max_length} for windows of "
            f"{names[text]}; they need more than overlap, {overlap}. Shorten the one, raise tokenizer.max_length, "
            "or lower tokenizer.overlap"
        )
    found: list[tuple[list[TokenSpan], TokenSpan]] = []
    begin = 0
    while True:
        end = min(begin + room, count)
        kept = _without(where.total, [(start, start + begin), (start + end, start + count)])
        found.append((kept, (begin, end)))
        if end == count:
            return found
        begin += room - overlap


def _no_room(cut: int, where: SpanLayout, max_length: int, names: tuple[str, str]) -> str:
    """Return the error for a text that must stay whole and takes all the room; `cut` is the other one."""
    return (
        f"{names[1 - cut]} has {where.counts[1 - cut]} tokens and may not be cut; with {where.specials} special "
        f"tokens that leaves no room for {names[cut]} in max_length {max_length}. Shorten it, or raise "
        "tokenizer.max_length where the model allows that"
    )


def _room(where: SpanLayout, max_length: int) -> int:
    room = max_length - where.specials
    if room < 1:
        raise ExampleError(f"{where.specials} special tokens leave no room for text in max_length {max_length}")
    return room


def _without(total: int, gone: Sequence[TokenSpan]) -> list[TokenSpan]:
    """Return what is left of `total` tokens when the ranges in `gone` are taken out."""
    kept: list[TokenSpan] = []
    begin = 0
    for start, end in sorted(span for span in gone if span[0] < span[1]):
        if begin < start:
            kept.append((begin, start))
        begin = end
    if begin < total:
        kept.append((begin, total))
    return kept
