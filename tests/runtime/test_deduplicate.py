"""Texts that repeat: run once where the model is deterministic, with the results, failures and counts of every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline_kit
from pipeline_kit import Pipeline
from pipeline_kit.contract.stages import Model, Postprocessor
from pipeline_kit.contract.types import Encoding, Example, ModelOutput, Result, RowOutput, RunStats, Side, TokenBatch
from pipeline_kit.errors import RowFailure
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.runtime.calls import StageCalls
from pipeline_kit.runtime.padding import equal_rows
from pipeline_kit.testing import tiny_pipeline

texts = st.lists(st.sampled_from(["a", "a b", "b a", "A", "a b c d e", "bad", ""]), max_size=30)


class Counter(Model):
    """Returns the sum of a row's ids, and how many rows it has seen; fails on texts with 'bad'."""

    safe_padding_sides: frozenset[Side] = frozenset({"right"})

    def __init__(self, deterministic: bool, unlucky: int = -1) -> None:
        self.deterministic, self.unlucky, self.seen = deterministic, unlucky, 0

    def forward(self, batch: TokenBatch) -> ModelOutput:
        if bool((batch.input_ids == self.unlucky).any()):
            raise ValueError("unlucky")
        self.seen += len(batch.input_ids)
        return ModelOutput({"sum": batch.input_ids.sum(1).float()[:, None]})


class Spoiler(Postprocessor):
    """Writes into what it is given."""

    def __call__(
        self, examples: Sequence[Example], encodings: Any, outputs: Sequence[Sequence[RowOutput]]
    ) -> list[Result]:
        results: list[Result] = []
        for example, [row] in zip(examples, outputs, strict=True):
            results.append({"text": example, "sum": float(row["sum"][0])})
            row["sum"][:] = np.nan
        return results


def make(deterministic: bool = True, unlucky: int = -1, **batching: Any) -> Pipeline:
    pipe = tiny_pipeline(postprocessor=Spoiler(), batching=BatchingPolicy(**batching))
    return replace(pipe, model=Counter(deterministic, unlucky))


@pytest.fixture(scope="module")
def shipped() -> Pipeline:
    return pipeline_kit.load()


@settings(max_examples=60, deadline=None)
@given(texts, st.integers(1, 60), st.booleans(), st.sampled_from([3, 100]))
def test_results_are_those_of_every_row_alone(rows: list[str], tokens: int, sort: bool, window: int) -> None:
    one, other = (
        make(sort=sort, max_tokens=tokens, max_rows=4, window=window, deduplicate=once) for once in (True, False)
    )
    assert one(rows) == other(rows)


@settings(max_examples=25, deadline=None)
@given(texts)
def test_in_the_same_batches_the_bits_are_the_same(shipped: Pipeline, rows: list[str]) -> None:
    every = replace(shipped, batching=replace(shipped.batching, deduplicate=False))
    distinct = list(dict.fromkeys(row.lower() for row in rows))  # the checkpoint is uncased
    by_text = dict(zip(distinct, every(distinct), strict=True))
    found = shipped(rows)
    assert found == [by_text[row.lower()] for row in rows]
    for one, other in zip(found, every(rows), strict=True):
        assert (one["label"], one["score"]) == (other["label"], pytest.approx(other["score"], abs=1e-5))


def test_a_row_that_fails_fails_for_each_of_its_twins() -> None:
    bad = make().tokenizer.encode(["bad"])[0].input_ids[1]
    rows = ["a", "bad", "a", "b", "bad", "bad"]
    found = list(make(unlucky=bad).results_or_failures(rows))
    assert [outcome.index for outcome in found if isinstance(outcome, RowFailure)] == [1, 4, 5]
    assert {(o.stage, o.message) for o in found if isinstance(o, RowFailure)} == {("model", "unlucky")}
    assert found[0] == found[2]


def test_a_model_that_does_not_promise_it_sees_every_row() -> None:
    for pipe, seen in ((make(False), 4), (make(deduplicate=False), 4), (make(), 2)):
        pipe(["a", "b", "a", "a"])
        assert pipe.model.seen == seen  # type: ignore[attr-defined]


def test_counts_and_watchers_know_of_every_row() -> None:
    watched: list[Sequence[int]] = []
    batches: list[tuple[int, int]] = []

    def observe(stage: str, given: Any, made: Any) -> None:
        if stage == "padding":
            batches.append((len(given), len(made.input_ids)))

    calls = StageCalls(watch=lambda stage, rows: watched.append(rows) if stage == "model" and rows else None)
    stats, pipe = RunStats(), replace(make(), calls=calls, observer=observe)
    results = list(pipe.results_or_failures(["a b", "c", "a b", "c", "a b"], stats))
    assert (stats.rows, stats.batches, stats.repeats, stats.tokens) == (5, 1, 3, 4 + 3)
    assert [sorted(rows) for rows in watched] == [[0, 1, 2, 3, 4]]
    assert batches == [(2, 2)]
    assert len(results) == 5


def test_limits_count_a_text_that_repeats_once() -> None:
    pipe = make(max_rows=2, sort=False)
    encodings = pipe.tokenizer.encode(["a", "b", "a", "c", "a"])
    assert pipe.batch(encodings) == [[0, 2, 4, 1], [3]]


def test_rows_are_equal_by_all_that_the_model_sees() -> None:
    rows = [
        Encoding([1, 2], [0, 0]),
        Encoding([1, 2], [0, 1]),
        Encoding((1, 2), (0, 0)),
        Encoding([1, 2]),
        Encoding([1]),
    ]
    assert equal_rows([replace(row, example=place) for place, row in enumerate(rows)]) == [[0, 2], [1], [3], [4]]
    arrays = [Encoding(np.array([1, 2]), np.array([0, 0])), Encoding(np.array([1, 2]), np.array([0, 0]))]  # type: ignore[arg-type]
    assert equal_rows(arrays) == [[0, 1]]
    assert equal_rows([]) == []


def test_windows_of_long_texts_that_are_equal_are_run_once() -> None:
    pipe = pipeline_kit.load(tokenizer={"max_length": 8, "overflow": "window"})
    every = replace(pipe, batching=replace(pipe.batching, deduplicate=False))
    long, stats = "good " * 40, RunStats()
    [one, two] = pipe.results_or_failures([long, long], stats)
    [alone] = every([long])
    assert one == two == {**alone, "score": pytest.approx(alone["score"], abs=1e-5)}
    assert stats.repeats > stats.windows // 2


def test_an_explanation_shows_a_repeated_text_where_it_was_run(shipped: Pipeline) -> None:
    rows = ["I love this.", "no", "I love this."]
    trace = shipped.explain(rows)
    assert [row.result for row in trace.rows] == shipped(rows)
    assert trace.rows[0].places == trace.rows[2].places
    assert [len(batch.rows) for batch in trace.batches] == [2]
    assert trace.rows[0].panels["postprocessor"] == trace.rows[2].panels["postprocessor"]
