"""The conformance suite for tokenizers."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline_kit.contract.stages import ENCODING_FIELDS, Tokenizer
from pipeline_kit.contract.types import Encoding
from pipeline_kit.errors import ExampleError, for_message
from pipeline_kit.testing.suite import HARD_TEXTS, StageConformance

WIDE = "\u00fc\U0001f642\u6f22 \U0001f642"
"""Characters of several bytes, some of two units of UTF-16."""


class TokenizerConformance(StageConformance):
    """Checks a tokenizer against the contract of :class:`pipeline_kit.contract.stages.Tokenizer`.

    ::

        class TestKeyword(TokenizerConformance):
            stage = "keyword"
            options = {"words": ["spam"]}

    :cvar bad_examples: inputs that are not examples; each must raise ExampleError.
    """

    kind: ClassVar[str] = "tokenizer"
    interface: ClassVar[type[Any]] = Tokenizer
    bad_examples: ClassVar[Sequence[Any]] = (7, None, {"no_such_field": "text"}, "a lone surrogate: \ud800")

    def use(self, stage: Tokenizer) -> None:
        """Encode and decode."""
        for encoding in stage.encode(self.examples):
            stage.decode(encoding.input_ids)

    def test_no_examples(self) -> None:
        """``[]`` returns ``[]``."""
        assert_same(self.build().encode([]), [], 0, "encode([])")

    def test_every_example_is_encoded_in_order(self) -> None:
        """Each example has one encoding or more, in the order of examples and windows; none is empty."""
        encodings = self.build().encode(self.examples)
        places = [(e.example, e.window) for e in encodings]
        assert places == sorted(set(places)), f"encodings are not in the order of examples and windows: {places}"
        assert {e.example for e in encodings} == set(range(len(self.examples))), "not each example has an encoding"
        for encoding in encodings:
            ids = list(encoding.input_ids)
            assert ids, f"example {encoding.example} has an encoding without tokens"
            assert all(int(i) == i and i >= 0 for i in ids), f"an id is not an integer from 0: {ids}"
        for place in range(len(self.examples)):
            windows = [e.window for e in encodings if e.example == place]
            assert windows == list(range(len(windows))), f"the windows of example {place} are numbered {windows}"
            spans = [e.token_span for e in encodings if e.example == place and e.token_span is not None]
            assert len(spans) in (0, len(windows)), f"some windows of example {place} have a span, others not"
            assert all(begin < end for begin, end in spans), f"a window of example {place} has an empty span: {spans}"
            assert spans == sorted(spans), f"the spans of example {place} do not follow each other: {spans}"

    def test_batch_equals_one_by_one(self) -> None:
        """An example's encodings do not depend on the examples beside it."""
        stage = self.build()
        alone = [replace(e, example=i) for i, example in enumerate(self.examples) for e in stage.encode([example])]
        assert_same(stage.encode(self.examples), alone, 0, "encodings of a batch and of its examples alone")

    def test_order_does_not_matter(self) -> None:
        """Examples in reverse have the same encodings in reverse."""
        stage = self.build()
        forward = _by_example(stage.encode(self.examples))
        backward = _by_example(stage.encode(list(reversed(self.examples))))
        assert_same(backward[::-1], forward, 0, "encodings of the examples in reverse")

    def test_max_length_holds(self) -> None:
        """No encoding is longer than `max_length`, and what was cut off is counted."""
        stage = self.build()
        limit = stage.max_length
        try:
            encodings = stage.encode(["short", "many words " * 3000])
        except ExampleError:
            return
        long = [e for e in encodings if e.example == 1]
        if limit is not None:
            lengths = [len(e.input_ids) for e in encodings]
            assert max(lengths) <= limit, f"an encoding has {max(lengths)} tokens, max_length is {limit}"
            cut = sum(e.truncated + e.truncated_chars for e in long)
            silent = len(long) == 1 and len(long[0].input_ids) == limit and not cut
            assert not silent, "a text of 6000 words was cut, but truncated and truncated_chars are 0"

    def test_unicode_and_empty_text(self) -> None:
        """Odd texts are encoded or are an ExampleError, never another error and never an empty encoding."""
        stage = self.build()
        for text in HARD_TEXTS:
            try:
                encodings = stage.encode([text])
            except ExampleError:
                continue
            assert encodings, f"{text!r} has no encoding"
            assert all(len(e.input_ids) for e in encodings), f"{text!r} has an encoding without tokens"

    def test_bad_example_is_an_example_error(self) -> None:
        """What is not an example raises ExampleError."""
        stage = self.build()
        for bad in self.bad_examples:
            try:
                stage.encode([bad])
            except ExampleError:
                continue
            except Exception as error:
                raise AssertionError(f"encode([{bad!r}]) raises {type(error).__name__}, not ExampleError") from error
            raise AssertionError(f"encode([{bad!r}]) raises nothing")

    def test_requested_fields_are_filled(self) -> None:
        """Fields in the context's `required_fields` are there, one value per token; offsets lie inside the text."""
        stage = self.build(replace(self.context(), required_fields=ENCODING_FIELDS))
        examples = [*self.examples, "Grüße: 🙂 漢字"]
        for encoding in stage.encode(examples):
            count = len(encoding.input_ids)
            for name in sorted({*ENCODING_FIELDS, "token_type_ids"}):
                value = getattr(encoding, name)
                assert value is not None or name == "token_type_ids", f"'{name}' is required but not filled"
                assert value is None or len(value) == count, f"'{name}' has {len(value)} values for {count} tokens"
            assert set(encoding.special_tokens_mask or ()) <= {0, 1}, "special_tokens_mask holds more than 0 and 1"
            example = examples[encoding.example]
            texts = [example] if isinstance(example, str) else [v for v in example.values() if isinstance(v, str)]
            longest = max(map(len, texts), default=0)
            for begin, end in encoding.offsets or ():
                assert 0 <= begin <= end <= longest, f"offsets ({begin}, {end}) in a text of {longest} characters"

    def test_offsets_count_characters(self) -> None:
        """Offsets are places in the text in characters: not in bytes, nor in units of UTF-16, nor of a cleaned text."""
        stage = self.build(replace(self.context(), required_fields=ENCODING_FIELDS))
        text = f"{WIDE} stop"
        try:
            encodings = [e for e in stage.encode([text]) if not e.truncated]
        except ExampleError:
            return
        spans = [tuple(span) for e in encodings for span in e.offsets or () if span[0] < span[1]]
        begin = len(WIDE) + 1
        if not spans:
            return  # it drops words that it does not know
        found = f"of {text!r} the tokens have the offsets {spans}"
        # The blank before a word counts as a part of its token for some tokenizers.
        assert any(span[0] in (begin - 1, begin) for span in spans), f"no token at 'stop': {found}"
        assert max(end for _, end in spans) == len(text), f"no token ends with the text: {found}"

    def test_requested_fields_change_no_ids(self) -> None:
        """The ids are the same whatever fields are asked for."""
        context = self.context()
        few, all_ = (self.build(replace(context, required_fields=r)) for r in (frozenset[str](), ENCODING_FIELDS))
        ids = [[list(e.input_ids) for e in stage.encode(self.examples)] for stage in (few, all_)]
        assert_same(ids[0], ids[1], 0, "ids without and with the fields on request")

    def test_decode_gives_text(self) -> None:
        """``decode`` returns a string for what ``encode`` returned, and for no ids."""
        stage = self.build()
        for ids in ([], *(e.input_ids for e in stage.encode(self.examples))):
            assert isinstance(stage.decode(ids), str), f"decode({list(ids)}) is not a string"

    def test_properties(self) -> None:
        """The padding token, the padding side and the longest length are of their types."""
        stage = self.build()
        pad, longest = stage.pad_token_id, stage.max_length
        assert pad is None or (isinstance(pad, int) and pad >= 0), f"pad_token_id is {pad!r}"
        assert stage.padding_side in ("left", "right"), f"padding_side is {stage.padding_side!r}"
        assert longest is None or (isinstance(longest, int) and longest > 0), f"max_length is {longest!r}"

    def test_inputs_are_not_mutated(self) -> None:
        """``encode`` leaves its examples as they were."""
        examples = copy.deepcopy(list(self.examples))
        self.build().encode(examples)
        assert_same(examples, list(self.examples), 0, "examples after encode")

    def test_deterministic(self) -> None:
        """The same examples have the same encodings, whatever was encoded in between."""
        stage = self.build()
        first = stage.encode(self.examples)
        stage.encode(["something else", "many words " * 50])
        assert_same(stage.encode(self.examples), first, 0, "encodings of a second call")

    def test_instances_are_independent(self) -> None:
        """A second instance changes nothing about the first."""
        stage = self.build()
        first = stage.encode(self.examples)
        assert_same(self.build().encode(self.examples), first, 0, "encodings of a second instance")
        assert_same(stage.encode(self.examples), first, 0, "encodings after a second instance was used")

    def test_another_thread_gives_the_same(self) -> None:
        """``encode`` works in another thread than the one that built the stage."""
        stage = self.build()
        with ThreadPoolExecutor(1) as other:
            found = other.submit(stage.encode, self.examples).result()
        assert_same(found, stage.encode(self.examples), 0, "encodings of another thread")


def _by_example(encodings: Sequence[Encoding]) -> list[list[Encoding]]:
    count = max((e.example for e in encodings), default=-1) + 1
    return [[replace(e, example=0) for e in encodings if e.example == i] for i in range(count)]


def assert_same(found: Any, expected: Any, tolerance: float, what: str) -> None:
    """Fail with `what` and the first difference, if there is one; see :func:`difference`."""
    where = difference(found, expected, tolerance)
    assert where is None, f"{what}: {where}"


def difference(found: Any, expected: Any, tolerance: float = 0.0, path: str = "") -> str | None:
    """Describe the first difference of two values, None if they are alike.

    Numbers may differ by `tolerance`, absolutely or as a part of the larger; NaN is like NaN. Tuples and
    lists are alike, and so are arrays and tensors of one shape.
    """
    if isinstance(found, np.ndarray | torch.Tensor) and isinstance(expected, np.ndarray | torch.Tensor):
        return _array_difference(np.asarray(found), np.asarray(expected), tolerance, path)
    found, expected = plain(found), plain(expected)
    if isinstance(found, bool) or isinstance(expected, bool):
        alike = found is expected
    elif isinstance(found, int | float) and isinstance(expected, int | float):
        both_nan = found != found and expected != expected
        alike = both_nan or math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance)
    elif isinstance(found, dict) and isinstance(expected, dict):
        if set(found) != set(expected):
            return f"{path or 'the value'} has the keys {sorted(map(str, found))}, not {sorted(map(str, expected))}"
        places = {key: f"{path}.{key}".lstrip(".") for key in found}
        differences = (difference(found[key], expected[key], tolerance, place) for key, place in places.items())
        return next((where for where in differences if where is not None), None)
    elif isinstance(found, list) and isinstance(expected, list):
        if len(found) != len(expected):
            return f"{path or 'the value'} has {len(found)} items, not {len(expected)}"
        pairs = enumerate(zip(found, expected, strict=True))
        return next((d for i, (a, b) in pairs if (d := difference(a, b, tolerance, f"{path}[{i}]"))), None)
    else:
        alike = type(found) is type(expected) and found == expected
    return None if alike else f"{path or 'the value'} is {for_message(found)}, not {for_message(expected)}"


def plain(value: Any) -> Any:
    """Return encodings as dicts, mappings as dicts, sequences and arrays as lists; the rest as it is."""
    if isinstance(value, Encoding):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(value)
    return value


def _array_difference(found: NDArray[Any], expected: NDArray[Any], tolerance: float, path: str) -> str | None:
    where = path or "the array"
    if found.shape != expected.shape:
        return f"{where} has the shape {list(found.shape)}, not {list(expected.shape)}"
    if np.allclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True):
        return None
    largest = np.nanmax(np.abs(found.astype(np.float64) - expected.astype(np.float64)))
    return f"{where} differs by up to {largest:.3g}, more than {tolerance:.3g}"
