"""From examples to encodings: chunks of bounded size, what of each example is encoded, and the call that does it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from pipeline_kit.contract.stages import Tokenizer
from pipeline_kit.contract.types import Encoding, Example
from pipeline_kit.errors import StageError
from pipeline_kit.runtime.calls import Failed, InStage, is_interruption, isolate

FIRST_CHUNK = 64  # A stream's first results should not wait for a whole sort window; chunks grow from here.

Prepare = Callable[[Example], Sequence[Example]]
"""``Postprocessor.prepare``, or None where the example itself is encoded."""

Lists = Sequence[Sequence[Example]]

Isolated = Callable[[Callable[[Lists], list[list[Encoding]]], Lists], "list[list[Encoding] | Failed]"]
"""Calls as :func:`~pipeline_kit.runtime.calls.isolate` does."""

ChunkEncodings = list[list[Encoding] | Failed]
"""For each example of a chunk its encodings, by part and window, or why there are none."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Examples that are tokenized and planned together.

    :param parts: for each example what is encoded for it; None where that is the example itself.
    """

    examples: list[Example]
    parts: list[Sequence[Example] | Failed] | None = None


def chunks(examples: Iterable[Example], window: int, prepare: Prepare | None) -> Iterator[Chunk]:
    """Cut a stream into chunks.

    :param window: the most parts of a chunk, unless one example alone has more of them.
    """
    size = window if hasattr(examples, "__len__") else min(FIRST_CHUNK, window)
    source = iter(examples)
    while (chunk := _next(source, size, prepare)).examples:
        yield chunk
        size = min(size * 4, window)


def _next(source: Iterator[Example], size: int, prepare: Prepare | None) -> Chunk:
    if prepare is None:
        return Chunk(list(islice(source, size)))
    examples: list[Example] = []
    parts: list[Sequence[Example] | Failed] = []
    count = 0
    for example in source:
        found = _prepared(prepare, example)
        examples.append(example)
        parts.append(found)
        count += 1 if isinstance(found, Failed) else len(found)
        if count >= size:
            break
    return Chunk(examples, parts)


def _prepared(prepare: Prepare, example: Example) -> Sequence[Example] | Failed:
    try:
        found = prepare(example)
    except BaseException as error:
        if is_interruption(error):
            raise
        return Failed(InStage("input", error))
    if not found:
        raise StageError("the postprocessor's prepare returned nothing to encode for an example")
    return found


def encode_chunk(tokenizer: Tokenizer, chunk: Chunk, isolated: Isolated = isolate) -> ChunkEncodings:
    """Encode a chunk; an example that fails, in any of its parts, does not touch the others.

    :param isolated: makes the call, and narrows a failure down.
    """
    parts = chunk.parts or [(example,) for example in chunk.examples]
    good = [found for found in parts if not isinstance(found, Failed)]
    encoded = iter(isolated(lambda lists: _encode(tokenizer, lists), good))
    return [found if isinstance(found, Failed) else next(encoded) for found in parts]


def _encode(tokenizer: Tokenizer, lists: Sequence[Sequence[Example]]) -> list[list[Encoding]]:
    """Encode the parts of several examples in one call; the result says whose each encoding is."""
    owners = [(place, part) for place, parts in enumerate(lists) for part in range(len(parts))]
    grouped: list[list[Encoding]] = [[] for _ in lists]
    seen = [0] * len(owners)
    for encoding in tokenizer.encode([part for parts in lists for part in parts]):
        if not 0 <= encoding.example < len(owners) or not len(encoding.input_ids):
            raise StageError("the tokenizer returned an encoding that is empty or belongs to no example")
        seen[encoding.example] += 1
        place, part = owners[encoding.example]
        if (place, part) != (encoding.example, 0):
            encoding = replace(encoding, example=place, part=part)
        grouped[place].append(encoding)
    if not all(seen):
        raise StageError(f"the tokenizer returned no encoding for text {seen.index(0)} of {len(seen)}")
    return grouped
