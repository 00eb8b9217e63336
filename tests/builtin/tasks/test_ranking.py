"""The ranking postprocessor by hand, its errors, its properties, and many documents in bounded memory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_kit.builtin.tasks.options import RankingConfig
from pipeline_kit.builtin.tasks.ranking import Ranking
from pipeline_kit.contract.stages import StageContext
from pipeline_kit.contract.types import Checkpoint, Device, Encoding, Example, ModelOutput, Result
from pipeline_kit.errors import CheckpointError, ConfigError
from pipeline_kit.runtime.padding import PaddingPolicy, collate
from pipeline_kit.testing import (
    PostprocessorConformance,
    WordTokenizer,
    WordTokenizerConfig,
    tiny_pipeline,
    tiny_stage_context,
)

ONE = ("relevance",)


def stage(names: Sequence[str] = ONE, config: Mapping[str, Any] | None = None, **options: Any) -> Ranking:
    return Ranking(RankingConfig(**options), tiny_stage_context(labels=names, config=config))


def run(post: Ranking, logits: Sequence[Sequence[Sequence[float]]]) -> list[dict[str, Any]]:
    """Return the ranking for the logits of each window of each document; window w has w more tokens than the first."""
    encodings, outputs = [], []
    for part, windows in enumerate(logits):
        for window, row in enumerate(windows):
            encodings.append(Encoding([1] * (3 + window), part=part, window=window))
            outputs.append(row)
    batch = collate(encodings, PaddingPolicy("longest"), "cpu")
    reduced = post.reduce(ModelOutput({"logits": torch.tensor(outputs)}), batch)["value"]
    example = {"query": "q", "documents": ["d"] * len(logits)}
    [result] = post([example], [encodings], [[{"value": row} for row in reduced.numpy()]])
    json.dumps(result, allow_nan=False)
    assert set(result) == {"ranking"}
    ranking: list[dict[str, Any]] = result["ranking"]
    return ranking


def scores(result: Result) -> list[float]:
    """Return the scores in the order of the documents."""
    by_index = {item["index"]: item["score"] for item in result["ranking"]}
    return [by_index[i] for i in range(len(by_index))]


class TestRanking(PostprocessorConformance):
    stage = "ranking"
    examples: ClassVar = [
        {"query": "good food", "documents": ["The food is good.", "I love this.", "ok"]},
        {"query": "a day", "documents": '["A day like any other.", "so"]'},
        {"query": "it", "documents": [""]},
    ]

    def context(self, device: Device | None = None) -> StageContext:
        return tiny_stage_context(device=device, labels=ONE)

    def example(self, text: str) -> Example:
        return {"query": text, "documents": ["good food", "day"]}


class TestRankingByALabel(TestRanking):
    options: ClassVar = {"label": "yes", "merge": "mean", "top_k": 2}

    def context(self, device: Device | None = None) -> StageContext:
        return tiny_stage_context(device=device, labels=("no", "yes", "perhaps"))


# Scores by hand.


def test_best_first_with_the_place_of_each_document() -> None:
    ranking = run(stage(), [[[0.0]], [[math.log(4.0)]], [[-math.log(4.0)]]])
    assert ranking == [
        {"index": 1, "score": pytest.approx(0.8)},
        {"index": 0, "score": 0.5},
        {"index": 2, "score": pytest.approx(0.2)},
    ]
    assert type(ranking[0]["index"]) is int
    assert type(ranking[0]["score"]) is float


def test_equal_documents_stay_in_order_and_saturated_scores_do_not() -> None:
    assert [item["index"] for item in run(stage(), [[[1.0]]] * 4)] == [0, 1, 2, 3]
    ranking = run(stage(), [[[40.0]], [[60.0]], [[50.0]], [[-2e4]]])
    assert ranking == [{"index": i, "score": score} for i, score in ((1, 1.0), (2, 1.0), (0, 1.0), (3, 0.0))]


def test_top_k_lists_the_best() -> None:
    assert [item["index"] for item in run(stage(top_k=2), [[[1.0]], [[3.0]], [[2.0]]])] == [1, 2]
    assert len(run(stage(top_k=9), [[[1.0]], [[3.0]]])) == 2


def test_windows_of_a_document() -> None:
    documents = [[[4.0], [-3.0]], [[2.0], [1.0]]]
    assert run(stage(function="none"), documents) == [{"index": 0, "score": 4.0}, {"index": 1, "score": 2.0}]
    assert run(stage(function="none", merge="mean"), documents) == [
        {"index": 1, "score": pytest.approx(10 / 7)},
        {"index": 0, "score": 0.0},
    ]


def test_a_label_of_several_ranks_by_its_probability_and_not_its_logit() -> None:
    rows = [[[5.0, 3.0]], [[0.0, math.log(4.0)]]]
    names = ("no", "yes")
    assert run(stage(names, label="yes"), rows) == [
        {"index": 1, "score": pytest.approx(0.8)},
        {"index": 0, "score": pytest.approx(1 / (1 + math.exp(2.0)))},
    ]
    assert [item["index"] for item in run(stage(names, label="yes", function="none"), rows)] == [0, 1]
    assert run(stage(names, label="no", function="sigmoid"), rows)[0]["score"] == pytest.approx(1 / (1 + math.exp(-5)))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 0.5),
        ({"problem_type": "regression"}, 0.0),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, 0.0),
        ({"sentence_transformers": {"activation_fn": "torch.nn.Sigmoid"}, "problem_type": "regression"}, 0.5),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, 0.0),
        ({"sbert_ce_default_activation_function": None}, 0.5),
        ({"sentence_transformers": {}}, 0.5),
        ({"sentence_transformers": "4.1"}, 0.5),
    ],
)
def test_what_the_checkpoint_says_of_its_activation(config: dict[str, Any], expected: float) -> None:
    assert run(stage(config=config), [[[0.0]]])[0]["score"] == expected


@pytest.mark.parametrize(
    "name", ["torch.nn.Tanh", "os.system", "evil.Identity", "Identity", "", "torch.nn.Identity()", "torchy.Sigmoid"]
)
def test_other_activations_are_refused_and_never_imported(name: str) -> None:
    config = {"sentence_transformers": {"activation_fn": name}}
    with pytest.raises(CheckpointError, match=r"names the activation .* Set postprocessor.function to sigmoid or none"):
        stage(config=config)
    assert run(stage(config=config, function="sigmoid"), [[[0.0]]])[0]["score"] == 0.5


def test_an_activation_of_its_own_file(tmp_path: Path) -> None:
    context = tiny_stage_context(labels=ONE)
    context = replace(context, checkpoint=Checkpoint(tmp_path, "mine", context.checkpoint.config))
    file = tmp_path / "config_sentence_transformers.json"
    for model, expected in (("CrossEncoder", 0.0), ("SentenceTransformer", 0.5)):
        content = {"activation_fn": "torch.nn.modules.linear.Identity", "model_type": model}
        file.write_text(json.dumps(content), encoding="utf-8")
        (tmp_path / "modules.json").unlink(missing_ok=True)
        assert run(Ranking(RankingConfig(), context), [[[0.0]]])[0]["score"] == 0.5, "no modules, so no such model"
        (tmp_path / "modules.json").write_text("[]", encoding="utf-8")
        assert run(Ranking(RankingConfig(), context), [[[0.0]]])[0]["score"] == expected
    number = '{"activation_fn": 3, "model_type": "CrossEncoder"}'
    for text, words in (('["x"]', "not a JSON object"), ("{", "not valid JSON"), (number, "as int")):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(CheckpointError, match=words):
            Ranking(RankingConfig(), context)


def test_several_labels_need_one_to_be_named() -> None:
    with pytest.raises(CheckpointError, match=r"2 labels, 'no', 'yes', and .*: postprocessor.label=yes"):
        stage(("no", "yes"))
    with pytest.raises(CheckpointError, match=r"1000 labels, .*'l11', …, and ranking"):
        stage([f"l{i}" for i in range(1000)])
    with pytest.raises(ConfigError, match=r"postprocessor.label: .* no label 'yess'. Did you mean 'yes'"):
        stage(("no", "yes"), label="yess")
    with pytest.raises(ConfigError, match=r"function: 'softmax' over the one label"):
        stage(function="softmax")
    assert run(stage(label="relevance"), [[[0.0]]])[0]["score"] == 0.5


# What is encoded.


def test_a_pair_for_each_document() -> None:
    pairs = [
        {"text": "q", "text_pair": "a"},
        {"text": "q", "text_pair": ""},
        {"text": "q", "text_pair": "👩‍👩‍👧 e\u0301"},
    ]
    assert stage().prepare({"query": "q", "documents": ["a", "", "👩‍👩‍👧 e\u0301"]}) == pairs
    assert stage().prepare({"query": "q", "documents": ' ["a", "", "👩‍👩‍👧 e\u0301"]'}) == pairs
    assert stage().prepare({"query": "q", "documents": ("a",)}) == pairs[:1]


# Properties, behind the tiny stages.

TEXTS = st.text(alphabet="ab .é漢👩\u200d\u0301שׁ", max_size=12)
QUERIES = TEXTS.filter(str.strip)
DOCUMENTS = st.lists(TEXTS, min_size=1, max_size=7)


@settings(max_examples=50)
@given(query=QUERIES, documents=DOCUMENTS, merge=st.sampled_from(["mean", "max"]), data=st.data())
def test_permuted_documents_have_the_same_scores(
    query: str, documents: list[str], merge: str, data: st.DataObject
) -> None:
    tokenizer = WordTokenizer(WordTokenizerConfig(max_length=30, overflow="window", overlap=1))
    pipe = tiny_pipeline(stage(merge=merge), tokenizer=tokenizer, context=tiny_stage_context(labels=ONE))
    result = pipe({"query": query * 9, "documents": documents})
    listed = [item["score"] for item in result["ranking"]]
    assert listed == sorted(listed, reverse=True)
    assert all(0 <= score <= 1 for score in listed)
    assert sorted(item["index"] for item in result["ranking"]) == list(range(len(documents)))
    order = data.draw(st.permutations(range(len(documents))))
    shuffled = pipe({"query": query * 9, "documents": [documents[i] for i in order]})
    assert scores(shuffled) == pytest.approx([scores(result)[i] for i in order], abs=1e-6)


# On a checkpoint.
