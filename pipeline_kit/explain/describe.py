"""A run in words and plain data: values that pass between stages, tokens with their places, layers, attention."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import metadata
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from pipeline_kit.contract.fields import text_and_pair
from pipeline_kit.contract.stages import Model, Tokenizer
from pipeline_kit.contract.types import Encoding, Example, TokenBatch
from pipeline_kit.errors import ExampleError, for_message
from pipeline_kit.explain.blocks import Value
from pipeline_kit.explain.formats import aligned, numbers
from pipeline_kit.explain.trace import Layer, SequenceTrace, Token

_SHOWN = 6
"""Numbers of a tensor that are shown."""

_INVISIBLE = frozenset({"Cc", "Cf", "Mn", "Zl", "Zp", "Zs"})
"""Unicode categories of characters that a tokenizer may drop without a token."""


def describe_value(name: str, value: Any) -> Value:
    """Describe type, shape and content of a value."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        dtype = str(value.dtype).removeprefix("torch.")
        kind = "array" if isinstance(value, np.ndarray) else "tensor"
        return Value(name, f"{dtype} {kind}", tuple(value.shape), dtype, numbers(value, _SHOWN))
    if isinstance(value, Encoding):
        return Value(name, "Encoding", (len(value.input_ids),), "", f"{len(value.input_ids)} ids")
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        kinds = {type(item).__name__ for item in value}
        kind = f"list of {kinds.pop()}" if len(kinds) == 1 else "list"
        shown = ", ".join(_word(item) for item in value[:3]) + (", …" if len(value) > 3 else "")
        return Value(name, kind, (len(value),), "", shown)
    return Value(name, type(value).__name__, (), "", _word(value))


def batch_values(batch: TokenBatch) -> tuple[Value, ...]:
    """Describe a padded batch field by field."""
    found = [describe_value("input_ids", batch.input_ids), describe_value("attention_mask", batch.attention_mask)]
    if batch.token_type_ids is not None:
        found.append(describe_value("token_type_ids", batch.token_type_ids))
    found.append(Value("padding", "str", (), "", f"on the {batch.side}" if batch.has_padding else "none"))
    return tuple(found)


_distributions = cache(metadata.packages_distributions)


def stage_source(stage: object) -> str:
    """Name the distribution, or the file, that a stage's class comes from."""
    module = type(stage).__module__
    top = module.partition(".")[0]
    if top == __name__.partition(".")[0]:
        from pipeline_kit.contract.version import __version__

        return f"pipeline-kit {__version__}"
    if found := _distributions().get(top):
        return f"{found[0]} {metadata.version(found[0])}"
    return str(getattr(sys.modules.get(module), "__file__", None) or module)


def _word(value: Any) -> str:
    if isinstance(value, Encoding):
        return f"{len(value.input_ids)} ids"
    if isinstance(value, float):
        return aligned(value)
    if isinstance(value, Mapping):
        return for_message("{" + ", ".join(f"{key}: {_word(item)}" for key, item in value.items()) + "}", 120)
    if isinstance(value, list | tuple):
        return f"list of {len(value)}" if len(value) > 3 else for_message("[" + ", ".join(map(_word, value)) + "]", 120)
    return for_message(f"'{value}'" if isinstance(value, str) else str(value), 80)


def to_numpy(tensor: Any) -> NDArray[Any]:
    """Copy a tensor to the CPU; floats as float32, which holds every value of the shorter ones."""
    found: NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().numpy()
    return found.copy()


def layer_of(name: str, states: Any, batch: TokenBatch) -> Layer:
    """Describe the hidden states of one layer.

    :param states: a tensor ``[B, T, H]``; of a search with n beams ``[B * n, T, H]``, where only the first beam of
        each row is kept, since all of them are the same in the pass that is watched.
    """
    import torch

    rows, width = batch.input_ids.shape
    if states.shape[0] > rows and states.shape[0] % rows == 0:
        states = states[:: states.shape[0] // rows]
    norms = torch.linalg.vector_norm(states.float(), dim=-1)
    if norms.dim() == 2 and norms.shape[1] > width:  # a network that fills its rows up itself
        norms = norms[:, :width]
    return Layer(name, tuple(states.shape), str(states.dtype).removeprefix("torch."), to_numpy(norms))


def attention_arrays(
    model: Model, batch: TokenBatch, ran: Sequence[tuple[str, Any]]
) -> tuple[dict[str, NDArray[Any]], str]:
    """Ask `model` for the attention of `batch`, by a run of its own, and compare that run to the one that counts.

    :param ran: the hidden states of the run that made the result.
    :returns: the maps, and a note that says how far the two runs' hidden states are apart.
    """
    with model.capture_layers() as again:
        maps: Mapping[str, Any] = model.attentions(batch)
    if not maps:
        return {}, "the model does not report its attention"
    difference = _difference(ran, again, batch)
    note = "attention comes from a second run, which could not be compared with the one that made the result"
    if difference is not None:
        far = f"its hidden states differ by {difference:.1e} at the most from those that made the result"
        note = f"attention comes from a second run; {far}"
    return {name: to_numpy(weights) for name, weights in maps.items()}, note


def _difference(ran: Sequence[tuple[str, Any]], again: Sequence[tuple[str, Any]], batch: TokenBatch) -> float | None:
    """Return the largest difference of two runs' hidden states, padding left out; None if they cannot be compared."""
    if not ran or [name for name, _ in ran] != [name for name, _ in again]:
        return None
    largest = 0.0
    rows = batch.input_ids.shape[0]
    for (_, first), (_, second) in zip(ran, again, strict=True):
        first, second = (states[:: max(1, states.shape[0] // rows)] for states in (first, second))
        if first.shape != second.shape:
            return None
        apart = (first.float() - second.float()).abs()
        if apart.shape[:2] == batch.attention_mask.shape:
            apart = apart[batch.attention_mask.bool()]
        largest = max(largest, float(apart.max()))
    return largest


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
        try:
            again = tokenizer.encode_fully(parts)
            if [_ids(encoding) for encoding in again] == [_ids(encoding) for encoding in encodings]:
                filled = again
            else:
                note = "asked for the places of its tokens the tokenizer returned other ids; shown are those that ran"
        except Exception as error:
            note = f"the tokenizer failed when asked for the places of its tokens: {for_message(str(error))}"
    elif any(encoding.offsets is None for encoding in encodings):
        name = type(tokenizer).__name__
        note = f"{name} does not tell where its tokens stand in the text; their texts are what it decodes each id to"
    sequences = []
    for ran, full in zip(encodings, filled, strict=True):
        try:
            source = tuple(text for text in text_and_pair(parts[ran.part]) if text is not None)
        except ExampleError:  # a tokenizer of another kind may take other fields
            source = (for_message(parts[ran.part], 1000),)
        tokens = tuple(_token(tokenizer, full, place, source) for place in range(len(ran.input_ids)))
        span = None if ran.token_span is None else (int(ran.token_span[0]), int(ran.token_span[1]))
        counts = ran.truncated, ran.truncated_chars
        sequences.append(SequenceTrace(ran.part, ran.window, source, tokens, *counts, span=span))
    # What none of a text's windows holds is noted in the first of them.
    for place, sequence in enumerate(sequences):
        if not sequence.window and (sequence.truncated or sequence.truncated_chars):
            kept = [token for other in sequences if other.part == sequence.part for token in other.tokens]
            sequences[place] = replace(sequence, cut=_cut(sequence.source, kept))
    return tuple(sequences), note


def _ids(encoding: Encoding) -> tuple[list[int], list[int] | None]:
    types = encoding.token_type_ids
    return [int(id) for id in encoding.input_ids], None if types is None else [int(type) for type in types]


def _token(tokenizer: Tokenizer, encoding: Encoding, place: int, source: tuple[str, ...]) -> Token:
    id = int(encoding.input_ids[place])
    special = bool(_at(encoding.special_tokens_mask, place))
    sequence = _at(encoding.sequence_ids, place)
    if sequence is None and encoding.sequence_ids is None and len(source) == 1 and not special:
        sequence = 0
    offsets = None if special else _at(encoding.offsets, place)
    text = _at(encoding.tokens, place)
    if text is None:  # special tokens are empty when decoded, so they go by their number
        try:
            text = tokenizer.decode([id]) or f"#{id}"
        except Exception:
            text = f"#{id}"
    return Token(
        id,
        str(text),
        None if offsets is None else int(offsets[0]),
        None if offsets is None else int(offsets[1]),
        special,
        _at(encoding.word_ids, place),
        sequence,
        _at(encoding.token_type_ids, place),
    )


def _at(values: Sequence[Any] | None, place: int) -> Any:
    return None if values is None else values[place]


def _cut(source: tuple[str, ...], tokens: Sequence[Token]) -> str | None:
    """Return the text that no token stands for any more, None if offsets do not show it."""
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
