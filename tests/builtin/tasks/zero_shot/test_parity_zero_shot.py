"""Zero-shot classification gives what transformers.pipeline gives, where that finds the contradiction label."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from pipeline_kit import Pipeline, builtin
from pipeline_kit.compose.build import build
from pipeline_kit.compose.schema import parse_config
from pipeline_kit.contract.registry import Registry
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.runtime.padding import PaddingPolicy
from pipeline_kit.testing.checkpoints import tiny_checkpoint

TOLERANCE = 1e-5
MAX_LENGTH = 48
C, N, E = "contradiction", "neutral", "entailment"
TEXTS = (
    "I love this movie.",
    "a",
    "It was a terrible film, and the plot was so dull that I never want to see it again!",
    "What a long day. " * 30,
    "Ünïcödé 漢字 😀 e\u0301 שלום \t zzz",
    "ends with </s> and [SEP] and <pad>",
)
LABELS = ("good", "bad", "about food, or Paris", "漢字 😀")


@dataclass(frozen=True)
class Case:
    """A kind of checkpoint."""

    architecture: str
    labels: tuple[str, ...] = (C, N, E)

    def __str__(self) -> str:
        return f"{self.architecture}-{''.join(label[0] for label in self.labels)}"


CASES = (
    Case("bert"),
    Case("roberta", (C, N, E)),
    Case("distilbert", (E, N, C)),
    Case("deberta-v2", (E, N, C)),
    Case("bart", ("CONTRADICTION", "NEUTRAL", "ENTAILMENT")),
    Case("electra", (C, E, N)),
    Case("xlm-roberta", (C, N, E)),
    Case("albert", (E, "not_entailment")),
    Case("modernbert", ("not_entailment", E)),
)
# In these transformers takes neutral for contradiction: see test_differences_zero_shot_classification.py.
OTHER_ORDERS = ((E, C, N), (N, C, E), (N, E, C))


def assemble(folder: Path, overflow: str | None = None, **postprocessor: Any) -> Pipeline:
    registry = Registry()
    builtin.register(registry)
    data = {
        "task": {"name": "zero-shot-classification", "head": "sequence-classification"},
        "checkpoint": {"path": str(folder)},
        "tokenizer": {"name": "hf", "overflow": overflow},
        "model": {"name": "hf"},
        "postprocessor": {"name": "zero_shot", **postprocessor},
        "device": {"name": "cpu", "threads": 1},
    }
    return build(parse_config(data, registry, []))


@pytest.fixture(scope="module", params=CASES, ids=str)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Return a checkpoint and the reference on it."""
    case: Case = request.param
    folder = tmp_path_factory.mktemp("zero-shot") / "checkpoint"
    tiny_checkpoint(folder, case.architecture, labels=case.labels, seed=1, max_positions=MAX_LENGTH)
    return folder, transformers.pipeline("zero-shot-classification", model=str(folder), device="cpu")


def expected(reference: Any, texts: Sequence[str], labels: Sequence[str], **options: Any) -> list[dict[str, float]]:
    results = [reference(text, candidate_labels=list(labels), **options) for text in texts]
    return [dict(zip(result["labels"], result["scores"], strict=True)) for result in results]


def assert_equal(results: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, float]]) -> None:
    assert len(results) == len(wanted)
    for result, scores in zip(results, wanted, strict=True):
        found = {item["label"]: item["score"] for item in result["labels"]}
        assert found.keys() == scores.keys()
        assert max(abs(found[label] - scores[label]) for label in scores) <= TOLERANCE
        assert [item["label"] for item in result["labels"]] == sorted(scores, key=lambda label: -found[label])
        assert (result["label"], result["score"]) == tuple(result["labels"][0].values())


@pytest.mark.parametrize("multi_label", [False, True])
def test_scores_in_any_batch_order_and_padding(built: tuple[Path, Any], multi_label: bool) -> None:
    folder, reference = built
    wanted = expected(reference, TEXTS, LABELS, multi_label=multi_label)
    spread = np.ptp([[scores[label] for label in LABELS] for scores in wanted], axis=0)
    assert spread.min() > 100 * TOLERANCE, "the answers differ from text to text, for every label"
    pipe = assemble(folder, labels=LABELS, multi_label=multi_label)
    assert_equal([pipe(text) for text in TEXTS], wanted)
    chance, pad, order = random.Random(7), pipe.padding.pad_token_id, list(range(len(TEXTS)))
    for padding in (pipe.padding, PaddingPolicy("none", "right", pad), PaddingPolicy("max_length", "right", pad, 48)):
        for batching in (BatchingPolicy(), BatchingPolicy(max_tokens=100), BatchingPolicy(False, None, 5, 7)):
            chance.shuffle(order)
            changed = replace(pipe, padding=padding, batching=batching)
            assert_equal(changed([TEXTS[i] for i in order]), [wanted[i] for i in order])


def test_template_and_labels_of_the_example(built: tuple[Path, Any]) -> None:
    folder, reference = built
    template = "I think {{this}} is {}, really!"
    wanted = expected(reference, TEXTS, LABELS, hypothesis_template=template)
    pipe = assemble(folder, labels=["never", "asked"], hypothesis_template=template)
    assert_equal(pipe([{"text": text, "labels": LABELS} for text in TEXTS]), wanted)
    spaced = reference(TEXTS[0], candidate_labels="good day, bad,, ", hypothesis_template=template)
    found = pipe({"text": TEXTS[0], "labels": "good day, bad,, "})
    assert_equal([found], [dict(zip(spaced["labels"], spaced["scores"], strict=True))])


def test_a_single_label_is_scored_against_contradiction(built: tuple[Path, Any]) -> None:
    folder, reference = built
    wanted = expected(reference, TEXTS, ["good"])
    assert all(0 < scores["good"] < 1 for scores in wanted)
    assert_equal(assemble(folder, labels=["good"])(list(TEXTS)), wanted)


def test_a_long_premise_is_cut_and_never_the_hypothesis(built: tuple[Path, Any]) -> None:
    folder, reference = built
    long, label = "What a long day. " * 30, "the best film that was ever made by us"
    found = assemble(folder, labels=[label, "bad"])(long)
    assert_equal([found], expected(reference, [long], [label, "bad"]))
    assert found["truncated"] > 0


@pytest.mark.parametrize("names", OTHER_ORDERS, ids=lambda names: "".join(name[0] for name in names))
def test_any_order_of_labels_without_multi_label(tmp_path: Path, names: tuple[str, ...]) -> None:
    folder = tiny_checkpoint(tmp_path / "checkpoint", labels=names, max_positions=MAX_LENGTH)
    reference = transformers.pipeline("zero-shot-classification", model=str(folder), device="cpu")
    assert_equal(assemble(folder, labels=LABELS)(list(TEXTS)), expected(reference, TEXTS, LABELS))
