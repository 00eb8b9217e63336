"""The zero_shot postprocessor by hand, its errors, its properties, and many labels in bounded memory."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from harness import checkpoint, pipeline_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_kit import Pipeline
from pipeline_kit.builtin.tasks.options import ZeroShotConfig
from pipeline_kit.builtin.tasks.zero_shot import ZeroShot
from pipeline_kit.cli.app import main
from pipeline_kit.contract.stages import StageContext
from pipeline_kit.contract.types import Device, Encoding, Example, Result
from pipeline_kit.errors import CheckpointError, ConfigError, ExampleError, RowFailure
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.testing import (
    PostprocessorConformance,
    WordTokenizer,
    WordTokenizerConfig,
    tiny_pipeline,
    tiny_stage_context,
)

NLI = ("contradiction", "neutral", "entailment")


def stage(names: Sequence[str] = NLI, **options: Any) -> ZeroShot:
    return ZeroShot(ZeroShotConfig(**options), tiny_stage_context(labels=names))


def run(
    post: ZeroShot, logits: Sequence[Sequence[Sequence[float]]], example: Example = "a text", tokens: int = 3
) -> Result:
    """Return the result for the logits of each window of each part; window w has w more tokens than the first."""
    encodings, outputs = [], []
    for part, windows in enumerate(logits):
        for window, row in enumerate(windows):
            encodings.append(Encoding([1] * (tokens + window), part=part, window=window))
            outputs.append({"logits": np.asarray(row, dtype=np.float32)})
    [result] = post([example], [encodings], [outputs])
    json.dumps(result, allow_nan=False)
    return result


def scores(result: Result) -> dict[str, float]:
    return {item["label"]: item["score"] for item in result["labels"]}


class TestZeroShot(PostprocessorConformance):
    stage = "zero_shot"
    options: ClassVar = {"labels": ["good", "bad", "about food"]}

    def context(self, device: Device | None = None) -> StageContext:
        return tiny_stage_context(device=device, labels=NLI)


class TestZeroShotOfItsOwnLabels(TestZeroShot):
    options: ClassVar = {"multi_label": True, "merge": "max", "top_k": 2, "hypothesis_template": "{}"}
    examples: ClassVar = [
        {"text": "I love this.", "labels": ["good", "bad", "day"]},
        {"text": "A longer text, so that the rows are not all of one length.", "labels": "food"},
        {"text": "ok", "labels": '["one, two", "three"]'},
    ]

    def example(self, text: str) -> Example:
        return {"text": text, "labels": ["good", "bad"]}


# Scores by hand.


def test_entailment_over_all_labels() -> None:
    result = run(stage(labels=["a", "b"]), [[[9.0, 9.0, 0.0]], [[-9.0, 0.0, math.log(3.0)]]])
    assert result["label"] == "b"
    assert result["score"] == result["labels"][0]["score"] == pytest.approx(0.75)
    assert result["labels"][1] == {"label": "a", "score": pytest.approx(0.25)}
    assert set(result) == {"label", "score", "labels"}
    assert type(result["score"]) is float


@pytest.mark.parametrize("names", [("entailment", "contradiction", "neutral"), ("neutral", "contradiction", "Entails")])
def test_multi_label_is_entailment_against_contradiction_wherever_they_stand(names: tuple[str, ...]) -> None:
    by_name = {"e": 1.0, "c": 1.0 - math.log(4.0), "n": 50.0}
    row = [by_name[name[0].lower()] for name in names]
    result = run(stage(names, labels=["a", "b"], multi_label=True), [[row], [row]])
    assert scores(result) == {"a": pytest.approx(0.8), "b": pytest.approx(0.8)}


@pytest.mark.parametrize("other", ["not_entailment", "NOT ENTAILMENT", "non-entailment", "no_entailment", "other"])
def test_of_two_labels_the_other_is_the_opposite(other: str) -> None:
    for names, row in (((other, "entailment"), [0.0, math.log(4.0)]), (("entailment", other), [math.log(4.0), 0.0])):
        assert run(stage(names, labels=["a"]), [[row]])["score"] == pytest.approx(0.8)


def test_a_single_label_is_not_always_certain() -> None:
    post = stage(labels=["a"])
    assert run(post, [[[0.0, 7.0, math.log(4.0)]]]) == {
        "label": "a",
        "score": pytest.approx(0.8),
        "labels": [{"label": "a", "score": pytest.approx(0.8)}],
    }
    assert run(post, [[[0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]]], {"text": "t", "labels": "x,y"})["score"] == 0.5


def test_large_logits_do_not_overflow() -> None:
    assert scores(run(stage(labels=["a", "b"]), [[[0.0, 0.0, 1e30]], [[0.0, 0.0, -1e30]]])) == {"a": 1.0, "b": 0.0}
    result = run(stage(labels=["a", "b"], multi_label=True), [[[1e30, 0.0, -1e30]], [[-1e30, 0.0, 1e30]]])
    assert scores(result) == {"a": 0.0, "b": 1.0}


def test_equal_labels_stay_in_order_and_saturated_scores_do_not() -> None:
    post = stage(labels=["a", "b", "c"], multi_label=True)
    assert [item["label"] for item in run(post, [[[0.0, 0.0, 1.0]]] * 3)["labels"]] == ["a", "b", "c"]
    result = run(post, [[[0.0, 0.0, value]] for value in (40.0, 60.0, 50.0)])
    assert [item["label"] for item in result["labels"]] == ["b", "c", "a"]
    assert set(scores(result).values()) == {1.0}


def test_top_k_lists_the_best() -> None:
    result = run(stage(labels=["a", "b", "c"], top_k=2), [[[0.0, 0.0, value]] for value in (1.0, 3.0, 2.0)])
    assert [item["label"] for item in result["labels"]] == ["b", "c"]
    assert result["score"] == pytest.approx(math.exp(3) / (math.exp(1) + math.exp(2) + math.exp(3)))


def test_windows_are_merged_before_the_softmax() -> None:
    """The second window, of one token more, entails both labels far less: it must not count as much as the first."""
    windows = [[[0.0, 0.0, 7.0], [0.0, 0.0, -7.0]], [[0.0, 0.0, 3.5], [0.0, 0.0, 0.0]]]
    a, b = (3 * 7.0 + 4 * -7.0) / 7, 3 * 3.5 / 7
    expected = math.exp(a) / (math.exp(a) + math.exp(b))
    assert scores(run(stage(labels=["a", "b"]), windows))["a"] == pytest.approx(expected)
    assert scores(run(stage(labels=["a", "b"], merge="max"), windows))["a"] == pytest.approx(1 / (1 + math.exp(-3.5)))


def test_the_window_most_in_favour_brings_its_own_contradiction() -> None:
    windows = [[[5.0, 0.0, 6.0], [0.0, 0.0, 3.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]
    result = run(stage(labels=["a", "b"], multi_label=True, merge="max"), windows)
    assert scores(result) == {"a": pytest.approx(1 / (1 + math.exp(-3.0))), "b": 0.5}
    mean = run(stage(labels=["a", "b"], multi_label=True), windows)
    assert scores(mean)["a"] == pytest.approx(1 / (1 + math.exp(-(3 * 1.0 + 4 * 3.0) / 7)))


# What is encoded.


def test_a_pair_for_each_label() -> None:
    post = stage(labels=["good", "bad"], hypothesis_template="{{It}} is {}, {0}!")
    pairs = [{"text": "t", "text_pair": "{It} is good, good!"}, {"text": "t", "text_pair": "{It} is bad, bad!"}]
    assert post.prepare("t") == post.prepare({"text": "t"}) == post.prepare({"text": "t", "labels": None}) == pairs
    assert post.prepare({"text": "t", "labels": " "}) == pairs, "an empty cell of a CSV file"
    assert post.truncation == "only_first"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["a, b", "c"], ["a, b", "c"]),
        (("x", " y"), ["x", " y"]),
        ("one, two ,,three,", ["one", "two", "three"]),
        (' ["a, b", "{c}"]', ["a, b", "{c}"]),
        ("שלום,👩‍👩‍👧", ["שלום", "👩‍👩‍👧"]),
    ],
)
def test_labels_of_the_example(labels: object, expected: Sequence[str]) -> None:
    post = stage(labels=["asked", "never"], hypothesis_template="{}")
    example = {"text": "t", "labels": labels}
    assert [part["text_pair"] for part in post.prepare(example) if isinstance(part, Mapping)] == expected
    result = run(post, [[[0.0, 0.0, -float(place)]] for place in range(len(expected))], example)
    assert [item["label"] for item in result["labels"]] == expected


def test_no_labels_anywhere_says_where_to_put_them() -> None:
    pipe = tiny_pipeline(stage(), context=tiny_stage_context(labels=NLI))
    first, second = pipe.results_or_failures(["a text", {"text": "a text", "labels": ["good", "bad"]}])
    assert isinstance(first, RowFailure)
    assert (first.stage, first.error) == ("input", "ExampleError")
    assert "set postprocessor.labels=[sport,politics], say, or add the field 'labels' to the example" in first.message
    assert not isinstance(second, RowFailure)


# Configuration.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": ["a", "a"]}, "postprocessor.labels: the field 'labels' has 'a' twice"),
        ({"labels": ["a", ""]}, r"postprocessor.labels: the field 'labels\[1\]' is empty"),
        ({"hypothesis_template": "This is it."}, "hypothesis_template: 'This is it.' has no {}"),
        ({"hypothesis_template": ""}, "has no {}"),
        ({"hypothesis_template": "It is {{}}."}, "has no {}"),
        ({"hypothesis_template": "It is {label}."}, "the placeholder 'label'; a label stands at {}"),
        ({"hypothesis_template": "It is {0.__class__}."}, "the placeholder '0.__class__'"),
        ({"hypothesis_template": "It is {:>9}."}, "a label stands at {}"),
        ({"hypothesis_template": "It is {}} {."}, "cannot be read.*write a brace as {{ or }}"),
        ({"entailment_label": "entailmnt"}, "entailment_label: .* no label 'entailmnt'. Did you mean 'entailment'"),
        ({"contradiction_label": "x"}, "contradiction_label: .*\n  allowed: contradiction, neutral, entailment"),
        (
            {"entailment_label": "neutral", "contradiction_label": "neutral"},
            "contradiction_label: 'neutral' is postprocessor.entailment_label already",
        ),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        stage(**options)


@pytest.mark.parametrize("names", [("LABEL_0", "LABEL_1", "LABEL_2"), ("NEGATIVE", "POSITIVE"), ("neutral", "no")])
def test_a_checkpoint_whose_labels_do_not_tell(names: tuple[str, ...]) -> None:
    with pytest.raises(CheckpointError, match="no label for entailment among") as caught:
        stage(names, labels=["a"])
    assert all(f"'{name}'" in str(caught.value) for name in names)
    assert "postprocessor.entailment_label=" in str(caught.value)


def test_a_checkpoint_with_two_entailments() -> None:
    names = ("strong contradiction", "entailment weak", "Entailment strong")
    with pytest.raises(CheckpointError, match="more than one label for entailment"):
        stage(names, labels=["a"])
    assert run(stage(names, labels=["a", "b"], entailment_label=names[2]), [[[0.0, 9.0, 0.0]]] * 2)["score"] == 0.5


def test_a_checkpoint_with_many_labels_lists_a_few() -> None:
    with pytest.raises(CheckpointError, match="'l11', 'and 988 more'"):
        stage([f"l{i}" for i in range(1000)], labels=["a"])


def test_named_labels_win() -> None:
    names = ("LABEL_0", "LABEL_1", "LABEL_2")
    post = stage(names, labels=["a"], entailment_label="LABEL_1", contradiction_label="LABEL_2")
    assert run(post, [[[9.0, math.log(4.0), 0.0]]])["score"] == pytest.approx(0.8)
    post = stage(("entailment", "contradiction", "refuted"), labels=["a"], contradiction_label="refuted")
    assert run(post, [[[math.log(4.0), 9.0, 0.0]]])["score"] == pytest.approx(0.8)


def test_without_a_label_for_contradiction_only_several_candidates_can_be_scored() -> None:
    names = ("entailment", "neutral", "unrelated")
    with pytest.raises(ConfigError, match=r"contradiction_label: multi_label needs .*\n  allowed: neutral, unrelated"):
        stage(names, labels=["a", "b"], multi_label=True)
    post = stage(names, labels=["a", "b"])
    assert run(post, [[[0.0, 0.0, 0.0]]] * 2)["score"] == 0.5
    with pytest.raises(ExampleError, match=r"a single candidate needs .*contradiction_label=… \(one of neutral, unr"):
        post.prepare({"text": "t", "labels": "a"})


# Properties, behind the tiny stages.

WORDS = st.text(alphabet="ab .é漢👩\u200d\u0301שׁ", min_size=1, max_size=12).filter(str.strip)
LABELS = st.lists(WORDS, min_size=1, max_size=6, unique=True)


@settings(max_examples=40)
@given(text=WORDS, labels=LABELS, multi=st.booleans(), merge=st.sampled_from(["mean", "max"]), data=st.data())
def test_labels_in_any_order_have_the_same_scores(
    text: str, labels: list[str], multi: bool, merge: str, data: st.DataObject
) -> None:
    tokenizer = WordTokenizer(WordTokenizerConfig(max_length=30, overflow="window", overlap=1))
    post = stage(multi_label=multi, merge=merge)
    pipe = tiny_pipeline(post, tokenizer=tokenizer, context=tiny_stage_context(labels=NLI))
    result = pipe({"text": text * 9, "labels": labels})
    listed = [item["score"] for item in result["labels"]]
    assert listed == sorted(listed, reverse=True)
    assert all(0 <= score <= 1 for score in listed)
    assert sorted(scores(result)) == sorted(labels)
    if not multi and len(labels) > 1:
        assert sum(listed) == pytest.approx(1, abs=1e-5)
    shuffled = pipe({"text": text * 9, "labels": data.draw(st.permutations(labels))})
    assert scores(shuffled) == pytest.approx(scores(result), abs=1e-6)


@settings(max_examples=30)
@given(rows=st.lists(st.tuples(WORDS, LABELS), min_size=1, max_size=5), size=st.integers(1, 40), data=st.data())
def test_rows_of_any_number_of_labels_share_batches(
    rows: list[tuple[str, list[str]]], size: int, data: st.DataObject
) -> None:
    context = tiny_stage_context(labels=NLI)
    examples = [{"text": text, "labels": labels} for text, labels in rows]
    alone = [tiny_pipeline(stage(), context=context)(example) for example in examples]
    order = data.draw(st.permutations(range(len(rows))))
    batching = BatchingPolicy(data.draw(st.booleans()), size * 4, data.draw(st.integers(1, 9)), window=size)
    pipe = tiny_pipeline(stage(), context=context, batching=batching)
    for place, result in zip(order, pipe([examples[i] for i in order]), strict=True):
        assert scores(result) == pytest.approx(scores(alone[place]), abs=1e-6)


# On a checkpoint.


@pytest.fixture(scope="module")
def folder() -> Path:
    return checkpoint(labels=NLI, max_positions=48)


assemble = partial(pipeline_of, "zero-shot-classification")


def test_a_cut_text_counts_once_and_windows_are_counted(folder: Path) -> None:
    text = "what a long day " * 20
    labels = ["good", "bad", "dull"]
    cut = assemble(folder, labels=labels)(text)
    assert 30 < cut["truncated"] < 60, "tokens of the text, not of the text for each label"
    split = assemble(folder, {"overflow": "window", "overlap": 4}, labels=labels)(text)
    assert "truncated" not in split
    assert split["windows"] >= 3 * 2


def test_a_hypothesis_that_fills_the_model_fails_its_row_alone(folder: Path) -> None:
    long = "a movie about love and hate " * 20
    outcomes = list(
        assemble(folder).results_or_failures([{"text": "good", "labels": [long, "a"]}, {"text": "x", "labels": "a,b"}])
    )
    assert isinstance(outcomes[0], RowFailure)
    assert "may not be cut" in outcomes[0].message
    assert not isinstance(outcomes[1], RowFailure)


def test_labels_from_a_csv_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('text,labels\na day,"good, bad"\na dog,\na cat,"[""one, two"", ""x""]"\n', encoding="utf-8")
    options = [
        f"checkpoint.path={folder}",
        "postprocessor.labels=[city,food]",
        'postprocessor.hypothesis_template="{}"',
    ]
    assert main(["run", "task=zero-shot-classification", *options, "--input", str(file)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [set(scores(row)) for row in rows] == [{"good", "bad"}, {"city", "food"}, {"one, two", "x"}]


def rows_of(count: int, labels: Sequence[str]) -> Iterator[Example]:
    return ({"text": f"row {i}", "labels": labels} for i in range(count))


def peak(pipe: Pipeline, examples: Iterator[Example]) -> int:
    """Return the most memory that Python held while `examples` ran, beyond what it held before, in bytes."""
    tracemalloc.start()
    try:
        assert not any(isinstance(outcome, RowFailure) for outcome in pipe.results_or_failures(examples))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_many_labels_run_in_bounded_memory() -> None:
    """16 rows of 600 labels are 9,600 pairs, which run in chunks and batches of bounded size."""
    labels = [f"label {i}" for i in range(600)]
    window, chunks, batches = 512, list[int](), list[int]()

    def observe(name: str, given: Any, made: Any) -> None:
        if name == "tokenizer":
            chunks.append(sum(len(item) for item in made))
        elif name == "padding":
            batches.append(made.input_ids.numel())

    batching = BatchingPolicy(max_tokens=4096, window=window)
    pipe = tiny_pipeline(stage(top_k=1), context=tiny_stage_context(labels=NLI), batching=batching)
    results = list(replace(pipe, observer=observe).results_or_failures(rows_of(16, labels)))
    assert len(results) == 16
    assert sum(chunks) == 16 * 600
    assert max(chunks) < window + len(labels)
    assert max(batches) <= 4096
    small, large = peak(pipe, rows_of(2, labels)), peak(pipe, rows_of(8, labels))
    assert large < 1.2 * small, "four times the rows need no more memory"
