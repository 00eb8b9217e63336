"""The stream: order, shapes, isolation of bad rows, bounded memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_kit.contract.stages import Model, Postprocessor, Tokenizer
from pipeline_kit.contract.types import (
    Device,
    Encoding,
    Example,
    ModelOutput,
    Result,
    RowOutput,
    RunStats,
    Side,
    TokenBatch,
)
from pipeline_kit.errors import ExampleError, RowError, RowFailure, StageError
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.runtime.padding import PaddingPolicy
from pipeline_kit.runtime.pipeline import Pipeline
from pipeline_kit.testing import WordTokenizer, WordTokenizerConfig


class Panic(BaseException):
    """Stands for a panic in a tokenizer's native code, which is no Exception."""


class Sums(Model):
    """Gives the sum of a row's ids, and the ids themselves per token; may refuse large batches."""

    def __init__(self, max_rows: int | None = None) -> None:
        self.max_rows = max_rows
        self.sizes: list[tuple[int, ...]] = []

    @property
    def safe_padding_sides(self) -> frozenset[Side]:
        return frozenset({"left", "right"})

    def forward(self, batch: TokenBatch) -> ModelOutput:
        self.sizes.append(tuple(batch.input_ids.shape))
        if self.max_rows is not None and len(batch.input_ids) > self.max_rows:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        ids = (batch.input_ids * batch.attention_mask).float()
        return ModelOutput({"sum": ids.sum(1), "ids": ids}, frozenset({"ids"}))


class Echo(Postprocessor):
    """Gives the text back with what the model said about it."""

    def __call__(
        self,
        examples: Sequence[Example],
        encodings: Sequence[Sequence[Encoding]],
        outputs: Sequence[Sequence[RowOutput]],
    ) -> list[Result]:
        results: list[Result] = []
        for example, windows, arrays in zip(examples, encodings, outputs, strict=True):
            text = example if isinstance(example, str) else example["text"]
            if "bad-result" in text:
                raise ValueError("no result for this one")
            assert [list(w.input_ids) for w in windows] == [a["ids"].astype(int).tolist() for a in arrays]
            results.append({"text": text, "sum": float(sum(a["sum"] for a in arrays))})
        return results


class Picky(Tokenizer):
    """A word tokenizer that some texts break."""

    def __init__(self) -> None:
        self.inner = WordTokenizer(WordTokenizerConfig(max_length=12, overflow="window"))

    pad_token_id = 0
    padding_side = "right"
    max_length = 12

    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        if any("panic" in e for e in examples):
            raise Panic("called `Result::unwrap()` on an `Err` value")
        if any("ctrl-c" in e for e in examples):
            raise KeyboardInterrupt
        return self.inner.encode(examples)

    def decode(self, ids: Sequence[int]) -> str:
        return self.inner.decode(ids)


def make(
    model: Model | None = None,
    postprocessor: Postprocessor | None = None,
    padding: PaddingPolicy | None = None,
    batching: BatchingPolicy | None = None,
    tokenizer: Tokenizer | None = None,
) -> Pipeline:
    return Pipeline(
        tokenizer or Picky(),
        model or Sums(),
        postprocessor or Echo(),
        padding or PaddingPolicy("longest"),
        batching or BatchingPolicy(max_tokens=64, window=16),
        Device(),
        {},
    )


TEXTS = [" ".join(["word"] * (1 + (7 * i) % 23)) + f" {i}" for i in range(100)]


def test_shapes_follow_the_input_alone() -> None:
    pipe = make()
    one = pipe("a b")
    assert isinstance(one, dict)
    assert pipe({"text": "a b"}) == one
    assert pipe(["a b"]) == [one]
    assert pipe(("a b", "a b")) == [one, one]
    assert pipe([]) == []
    assert list(pipe(iter(["a b"]))) == [one]
    assert list(pipe(text for text in ["a b"])) == [one]
    for wrong in (b"a b", 7, None):
        with pytest.raises(ExampleError):
            pipe(wrong)


@pytest.mark.parametrize("policy", ["longest", "max_length", "multiple_of", "none"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batching", [BatchingPolicy(), BatchingPolicy(False, None, 8), BatchingPolicy(window=7)])
def test_results_come_in_order_whatever_the_policy(policy: Any, side: Side, batching: BatchingPolicy) -> None:
    alone = [make()(text) for text in TEXTS]
    pipe = make(padding=PaddingPolicy(policy, side, 0, 12, 8), batching=batching)
    assert pipe(TEXTS) == alone
    assert list(pipe.stream(iter(TEXTS))) == alone


words = st.lists(st.sampled_from(["a", "bb", "panic", "bad-result", "c", "d", "e"]), max_size=30).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(words, max_size=40), st.integers(1, 80), st.integers(1, 20), st.sampled_from(["longest", "none"]))
def test_every_row_has_one_outcome_in_its_place(texts: list[str], tokens: int, window: int, policy: Any) -> None:
    stats = RunStats()
    pipe = make(padding=PaddingPolicy(policy), batching=BatchingPolicy(max_tokens=tokens, window=window))
    outcomes = list(pipe.results_or_failures(iter(texts), stats))
    assert len(outcomes) == len(texts) == stats.rows
    for place, (text, outcome) in enumerate(zip(texts, outcomes, strict=True)):
        if "panic" in text:
            assert isinstance(outcome, RowFailure)
            assert (outcome.index, outcome.stage, outcome.error) == (place, "tokenizer", "Panic")
        elif "bad-result" in text:
            assert isinstance(outcome, RowFailure)
            assert (outcome.index, outcome.stage, outcome.error) == (place, "postprocessor", "ValueError")
        else:
            assert isinstance(outcome, Mapping)
            assert outcome == make()(text)
    assert stats.failed == sum(isinstance(outcome, RowFailure) for outcome in outcomes)


def test_calling_raises_on_the_first_bad_row_and_streaming_after_the_good_ones() -> None:
    texts = ["a", "b", "panic", "c", "bad-result"]
    with pytest.raises(RowError, match="row 2: tokenizer: Panic"):
        make()(texts)
    stream = make().stream(texts)
    assert [next(stream)["text"], next(stream)["text"]] == ["a", "b"]
    with pytest.raises(RowError) as caught:
        next(stream)
    assert (caught.value.failure.index, caught.value.failure.stage) == (2, "tokenizer")


@pytest.mark.parametrize("count", [0, 3, 64, 100, 1000])
def test_what_the_stream_itself_raises_comes_after_the_rows_before_it(count: int) -> None:
    def torn() -> Iterator[str]:
        yield from (TEXTS * 10)[:count]
        raise OSError("the disk is gone")

    found: list[Any] = []
    with pytest.raises(OSError, match="the disk is gone"):
        found.extend(make().stream(torn()))
    assert [result["text"] for result in found] == (TEXTS * 10)[:count]


def test_a_request_to_stop_passes_through() -> None:
    with pytest.raises(KeyboardInterrupt):
        make()(["a", "ctrl-c"])
    with pytest.raises(KeyboardInterrupt):
        list(make().stream(iter(["a"] * 100 + ["ctrl-c"])))


def test_lack_of_memory_halves_the_batch_down_to_one_row_and_goes_on() -> None:
    model = Sums(max_rows=1)
    pipe = make(model, batching=BatchingPolicy(max_tokens=None, max_rows=8, window=8))
    assert pipe(TEXTS[:8]) == make()(TEXTS[:8])
    assert max(rows for rows, _ in model.sizes) > 4
    assert sum(rows == 1 for rows, _ in model.sizes) >= 8
    outcomes = list(make(Sums(max_rows=0)).results_or_failures(["a"]))
    assert isinstance(outcomes[0], RowFailure)
    assert outcomes[0].stage == "model"


class Broken(Model):
    """Gives too few rows."""

    safe_padding_sides = frozenset({"right"})

    def forward(self, batch: TokenBatch) -> ModelOutput:
        return ModelOutput({"sum": torch.zeros(len(batch.input_ids) + 1)})


class Short(Postprocessor):
    """Gives one result too few."""

    def __call__(self, examples: Any, encodings: Any, outputs: Any) -> list[Result]:
        results: list[Result] = [{} for _ in examples]
        return results[1:]


class Silent(Picky):
    """Gives no encoding for some texts."""

    def encode(self, examples: Sequence[Example]) -> list[Encoding]:
        return [e for e in super().encode(examples) if e.example]


@pytest.mark.parametrize(
    "pipe", [make(model=Broken()), make(postprocessor=Short()), make(tokenizer=Silent())], ids=["model", "post", "tok"]
)
def test_a_stage_that_breaks_its_contract_is_named(pipe: Pipeline) -> None:
    with pytest.raises(StageError, match="returned"):
        pipe(["a", "b", "c"])


def test_a_stage_error_in_reduce_stops_at_once() -> None:
    class Reducer(Echo):
        def reduce(self, output: ModelOutput, batch: TokenBatch) -> ModelOutput:
            raise StageError("the model returned no 'logits'")

    with pytest.raises(StageError, match="logits"):
        list(make(postprocessor=Reducer()).results_or_failures(["a", "b"]))


def test_cut_and_split_texts_are_reported() -> None:
    cut = make(tokenizer=WordTokenizer(WordTokenizerConfig(max_length=5)))
    stats = RunStats()
    results = list(cut.stream(["a b c d e f", "a"], stats))
    assert results[0]["truncated"] == 3
    assert "truncated" not in results[1]
    assert stats.truncated_rows == 1
    assert make()(" ".join("a" * 40))["windows"] > 1


def test_a_stream_reads_ahead_no_more_than_two_windows() -> None:
    taken = 0

    def source() -> Iterator[str]:
        nonlocal taken
        for i in range(10_000):
            taken = i + 1
            yield f"text {i}"

    stream = make(batching=BatchingPolicy(window=32)).stream(source())
    for count, _ in enumerate(stream, start=1):
        assert taken - count <= 3 * 32
        if count == 1000:
            break
    stream.close()  # type: ignore[attr-defined]


def test_nothing_is_kept_of_a_row_but_its_result() -> None:
    class Text(str):
        __slots__ = ("__weakref__",)

    alive: list[weakref.ref[Text]] = []

    def source() -> Iterator[str]:
        for i in range(400):
            text = Text(f"text {i}")
            alive.append(weakref.ref(text))
            yield text

    class Drop(Echo):
        def __call__(self, examples: Any, encodings: Any, outputs: Any) -> list[Result]:
            return [{} for _ in examples]

    pipe = make(postprocessor=Drop(), batching=BatchingPolicy(window=16))
    gc.freeze()  # what is there already need not be looked at each time
    try:
        for number, _ in enumerate(pipe.stream(source())):
            if number % 100 == 99:
                gc.collect()
                assert sum(ref() is not None for ref in alive) <= 4 * 16
    finally:
        gc.unfreeze()


@settings(max_examples=30, deadline=None)
@given(st.lists(words, max_size=12), st.integers(1, 80))
def test_the_four_calls_of_a_stream_make_what_the_stream_makes(texts: list[str], tokens: int) -> None:
    pipe, stats = make(batching=BatchingPolicy(max_tokens=tokens, window=16)), RunStats()
    rows = range(100, 100 + len(texts))
    encoded = pipe.encode(texts, rows, stats)
    owners = [(row, e) for row, item in enumerate(encoded) if not isinstance(item, RowFailure) for e in item]
    outputs: list[list[Any]] = [[] for _ in texts]
    places = [place for batch in pipe.batch([e for _, e in owners]) for place in batch]
    assert sorted(places) == list(range(len(owners)))
    for row, encoding in owners:
        outputs[row] += pipe.forward([encoding], [rows[row]], stats)
    found = pipe.postprocess(texts, encoded, outputs, rows, stats)
    counts = RunStats()
    for row, one, other in zip(rows, found, pipe.results_or_failures(texts, counts), strict=True):
        assert one == (replace(other, index=row) if isinstance(other, RowFailure) else other)
    assert (stats.tokens, stats.windows) == (counts.tokens, counts.windows)


def test_each_call_passes_failures_on_and_numbers_rows_by_their_places() -> None:
    pipe = make(Sums(max_rows=0))
    one, bad = pipe.encode(["a b", "panic"])
    assert bad == RowFailure(1, "tokenizer", "Panic", "called `Result::unwrap()` on an `Err` value")
    assert not isinstance(one, RowFailure)
    outputs = [pipe.forward(one), []]
    first, second = pipe.postprocess(["a b", "panic"], [one, bad], outputs)
    assert isinstance(first, RowFailure)
    assert (first.stage, second) == ("model", bad)
    assert pipe.encode(["a"], prepared=[bad]) == [bad]
    assert (pipe.encode([]), pipe.batch([]), pipe.forward([]), pipe.postprocess([], [], [])) == ([], [], [], [])
