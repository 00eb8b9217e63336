"""Encodings as they are shown: each token with its text and place, and what was cut off."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from pipeline_kit.contract.fields import text_and_pair
from pipeline_kit.contract.stages import Tokenizer
from pipeline_kit.contract.types import Encoding, Example
from pipeline_kit.errors import ExampleError, for_message
from pipeline_kit.explain.trace import SequenceTrace, Token

_INVISIBLE = frozenset({"Cc", "Cf", "Mn", "Zl", "Zp", "Zs"})
"""Unicode categories of characters that a tokenizer may drop without a token."""


@runtime_checkable
class FullEncoder(Protocol):
    """What a tokenizer may have besides: encodings fill only what is required, this fills them for a reader."""

    def encode_fully(self, examples: Sequence[Example]) -> list[Encoding]:
        """Encode as ``encode`` does, the ids the same, with all fields of the encodings filled."""
        ...


def show_encodings(
    tokenizer: Tokenizer, parts: Sequence[Example], encodings: Sequence[Encoding]
) -> tuple[tuple[SequenceTrace, ...], str]:
    """Describe the encodings that ran.

    :param parts: what was encoded for the example, in the order of ``Encoding.part``.
    :param encodings: those that ran. Where they lack fields the tokenizer is asked to encode `parts` once more with
        all of them; its answer is used only if its ids are those that ran.
    :returns: the sequences, and a note of what a reader should know, empty for nothing.
    """
    note = ""
    filled: Sequence[Encoding] = encodings
    if isinstance(tokenizer, FullEncoder):
        again = _encode_again(tokenizer, parts)
        if isinstance(again, str):
            note = again
        elif [_ids(encoding) for encoding in again] == [_ids(encoding) for encoding in encodings]:
            filled = again
        else:
            note = "asked for the places of its tokens the tokenizer returned other ids; shown are those that ran"
    elif any(encoding.offsets is None for encoding in encodings):
        name = type(tokenizer).__name__
        note = f"{name} does not tell where its tokens stand in the text; their texts are what it decodes each id to"
    sequences = []
    for ran, full in zip(encodings, filled, strict=True):
        source = _source(parts, ran)
        tokens = tuple(_token(tokenizer, full, place, source) for place in range(len(ran.input_ids)))
        span = None if ran.token_span is None else (int(ran.token_span[0]), int(ran.token_span[1]))
        counts = ran.truncated, ran.truncated_chars
        sequences.append(SequenceTrace(ran.part, ran.window, source, tokens, *counts, span=span))
    return _with_cuts(sequences), note


def _encode_again(tokenizer: FullEncoder, parts: Sequence[Example]) -> list[Encoding] | str:
    try:
        return tokenizer.encode_fully(parts)
    except Exception as error:
        return f"the tokenizer failed when asked for the places of its tokens: {for_message(str(error))}"


def _ids(encoding: Encoding) -> tuple[list[int], list[int] | None]:
    types = encoding.token_type_ids
    return [int(id) for id in encoding.input_ids], None if types is None else [int(type) for type in types]


def _source(parts: Sequence[Example], encoding: Encoding) -> tuple[str, ...]:
    example = parts[encoding.part]
    try:
        text, pair = text_and_pair(example)
    except ExampleError:  # a tokenizer of another kind may take other fields
        return (for_message(example, 1000),)
    return (text,) if pair is None else (text, pair)


def _with_cuts(sequences: Sequence[SequenceTrace]) -> tuple[SequenceTrace, ...]:
    """Note in the first window of each text what none of its windows holds."""
    found = []
    for sequence in sequences:
        if not sequence.window and (sequence.truncated or sequence.truncated_chars):
            kept = [token for other in sequences if other.part == sequence.part for token in other.tokens]
            sequence = replace(sequence, cut=_cut(sequence.source, kept))
        found.append(sequence)
    return tuple(found)


def _token(tokenizer: Tokenizer, encoding: Encoding, place: int, source: tuple[str, ...]) -> Token:
    id = int(encoding.input_ids[place])
    special = bool(_at(encoding.special_tokens_mask, place))
    sequence = _at(encoding.sequence_ids, place)
    if sequence is None and encoding.sequence_ids is None and len(source) == 1 and not special:
        sequence = 0
    offsets = None if special else _at(encoding.offsets, place)
    text = _at(encoding.tokens, place)
    return Token(
        id,
        _decoded(tokenizer, id) if text is None else str(text),
        None if offsets is None else int(offsets[0]),
        None if offsets is None else int(offsets[1]),
        special,
        _at(encoding.word_ids, place),
        sequence,
        _at(encoding.token_type_ids, place),
    )


def _at(values: Sequence[Any] | None, place: int) -> Any:
    return None if values is None else values[place]


def _decoded(tokenizer: Tokenizer, id: int) -> str:
    """Return the text of an id; special tokens have none when decoded, so they go by their number."""
    try:
        return tokenizer.decode([id]) or f"#{id}"
    except Exception:
        return f"#{id}"


def _cut(source: tuple[str, ...], tokens: Sequence[Token]) -> str | None:
    """Return the text that no token stands for any more, None if offsets do not tell."""
    found = []
    for number, text in enumerate(source):
        own = [token for token in tokens if token.sequence == number]
        places = [(token.start, token.end) for token in own if token.start is not None and token.end is not None]
        if not places:
            if any(token.sequence is not None and token.start is not None for token in tokens):
                found.append(text)
            continue
        before, after = text[: min(start for start, _ in places)], text[max(end for _, end in places) :]
        # Truncation cuts at one end; at the other there may be characters that are no token's.
        found += [
            part
            for part in sorted((before, after), key=len)[-1:]
            if not _INVISIBLE.issuperset(map(unicodedata.category, part))
        ]
    return "\n".join(found) or None
