"""Text ranking gives what sentence-transformers' CrossEncoder gives, whatever the batch and the padding."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline_kit import Pipeline, builtin
from pipeline_kit.compose.build import build
from pipeline_kit.compose.schema import parse_config
from pipeline_kit.contract.registry import Registry
from pipeline_kit.runtime.batching import BatchingPolicy
from pipeline_kit.runtime.padding import PaddingPolicy
from pipeline_kit.testing.checkpoints import tiny_checkpoint

sentence_transformers = pytest.importorskip("sentence_transformers")

TOLERANCE = 1e-5
MAX_LENGTH = 48
IDENTITY, SIGMOID = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"
DOCUMENTS = (
    "The food in Paris is the best in the world.",
    "a",
    "It was a terrible film, and the plot was so dull that I never want to see it again!",
    "What a long day. " * 30,
    "Ünïcödé 漢字 😀 e\u0301 שלום \t zzz",
    "ends with </s> and [SEP] and <pad>",
)
QUERIES = ("good food", "Where is the best food in Paris?", "so dull " * 40, "漢字 😀")
ROWS = [{"query": query, "documents": list(DOCUMENTS[i:])} for i, query in enumerate(QUERIES)]


@dataclass(frozen=True)
class Case:
    """A kind of checkpoint: its architecture, and what it says about its activation and where."""

    architecture: str
    config: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        said = [f"{key}={value}" for key, value in {**self.config, **self.own}.items()]
        return "-".join([self.architecture, *said]).replace("torch.nn.modules.", "")


CASES = (
    *(Case(name) for name in ("bert", "roberta", "deberta-v2", "bart", "modernbert")),
    Case("xlm-roberta", {"sentence_transformers": {"activation_fn": SIGMOID}}),
    Case("electra", {"sentence_transformers": {"activation_fn": IDENTITY, "version": "4.1.0"}}),
    Case("distilbert", {"sbert_ce_default_activation_function": IDENTITY}),
    Case("bert", {"sentence_transformers": {"activation_fn": SIGMOID}}, {"activation_fn": IDENTITY}),
    Case("bert", {"sentence_transformers": {"activation_fn": "torch.nn.Identity"}}, {"activation_fn": None}),
    Case("bert", {}, {"activation_fn": IDENTITY, "model_type": "SentenceTransformer"}),
)


def assemble(folder: Path, task: str = "text-ranking", name: str = "ranking", **postprocessor: Any) -> Pipeline:
    registry = Registry()
    builtin.register(registry)
    data = {
        "task": {"name": task, "head": "sequence-classification"},
        "checkpoint": {"path": str(folder)},
        "tokenizer": {"name": "hf"},
        "model": {"name": "hf"},
        "postprocessor": {"name": name, **postprocessor},
        "device": {"name": "cpu", "threads": 1},
    }
    return build(parse_config(data, registry, []))


@pytest.fixture(scope="module", params=CASES, ids=str)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Return a checkpoint and the reference on it."""
    case: Case = request.param
    folder = tmp_path_factory.mktemp("ranking") / "checkpoint"
    tiny_checkpoint(folder, case.architecture, labels=("LABEL_0",), max_positions=MAX_LENGTH, **case.config)
    if case.own:
        sentence_transformers.CrossEncoder(str(folder), device="cpu").save_pretrained(str(folder))
        for name, change in (("config.json", case.config), ("config_sentence_transformers.json", case.own)):
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            (folder / name).write_text(json.dumps(content | dict(change)), encoding="utf-8")
    return folder, sentence_transformers.CrossEncoder(str(folder), device="cpu")


def assert_equal(results: Sequence[Mapping[str, Any]], wanted: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    assert len(results) == len(wanted)
    for result, reference in zip(results, wanted, strict=True):
        assert [item["index"] for item in result["ranking"]] == [item["corpus_id"] for item in reference]
        differences = [a["score"] - b["score"] for a, b in zip(result["ranking"], reference, strict=True)]
        assert max(map(abs, differences)) <= TOLERANCE


def ranked(reference: Any, rows: Sequence[Mapping[str, Any]], **options: Any) -> list[list[dict[str, Any]]]:
    """Rank one pair at a time: some of the reference's models refuse batches or give other answers in them."""
    options |= {"batch_size": 1, "show_progress_bar": False}
    return [reference.rank(row["query"], row["documents"], **options) for row in rows]


def test_rankings_in_any_batch_order_and_padding(built: tuple[Path, Any]) -> None:
    folder, reference = built
    wanted = ranked(reference, ROWS)
    assert all(np.ptp([item["score"] for item in row]) > 100 * TOLERANCE for row in wanted), "documents differ"
    pipe = assemble(folder)
    assert_equal([pipe(row) for row in ROWS], wanted)
    chance, pad, order = random.Random(7), pipe.padding.pad_token_id, list(range(len(ROWS)))
    for padding in (pipe.padding, PaddingPolicy("none", "right", pad), PaddingPolicy("max_length", "right", pad, 48)):
        for batching in (BatchingPolicy(), BatchingPolicy(max_tokens=100), BatchingPolicy(False, None, 5, 7)):
            chance.shuffle(order)
            changed = replace(pipe, padding=padding, batching=batching)
            assert_equal(changed([ROWS[i] for i in order]), [wanted[i] for i in order])


def test_top_k(built: tuple[Path, Any]) -> None:
    folder, reference = built
    assert_equal(assemble(folder, top_k=2)(ROWS), ranked(reference, ROWS, top_k=2))


def test_a_named_function_wins(built: tuple[Path, Any]) -> None:
    from torch import nn

    folder, reference = built
    assert_equal(assemble(folder, function="none")(ROWS), ranked(reference, ROWS, activation_fn=nn.Identity()))
    assert_equal(assemble(folder, function="sigmoid")(ROWS), ranked(reference, ROWS, activation_fn=nn.Sigmoid()))


def test_a_folder_that_sentence_transformers_wrote(tmp_path: Path) -> None:
    from torch import nn

    plain = tiny_checkpoint(tmp_path / "plain", labels=("LABEL_0",), max_positions=MAX_LENGTH)
    encoder = sentence_transformers.CrossEncoder(str(plain), device="cpu", activation_fn=nn.Identity())
    encoder.save_pretrained(str(tmp_path / "saved"))
    wanted = ranked(encoder, ROWS)
    assert any(item["score"] > 1 for row in wanted for item in row), "raw logits"
    assert_equal(assemble(tmp_path / "saved")(ROWS), wanted)


def test_text_classification_of_the_pair_gives_the_same_score(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "checkpoint", labels=("LABEL_0",), max_positions=MAX_LENGTH)
    pairs = [{"text": row["query"], "text_pair": document} for row in ROWS for document in row["documents"]]
    single = [result["score"] for result in assemble(folder, "text-classification", "classification")(pairs)]
    rankings = [{item["index"]: item["score"] for item in row["ranking"]} for row in assemble(folder)(ROWS)]
    scores = [ranking[i] for ranking in rankings for i in range(len(ranking))]
    assert scores == pytest.approx(single, abs=1e-6)


@pytest.mark.parametrize("labels", [("no", "yes"), ("contradiction", "entailment", "neutral")])
@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
def test_one_of_several_labels_ranks_as_text_classification_scores_it(
    tmp_path: Path, labels: tuple[str, ...], problem_type: str | None
) -> None:
    folder = tiny_checkpoint(
        tmp_path / "checkpoint", labels=labels, problem_type=problem_type, max_positions=MAX_LENGTH
    )
    pairs = [{"text": row["query"], "text_pair": document} for row in ROWS for document in row["documents"]]
    listed = assemble(folder, "text-classification", "classification", top_k=None)(pairs)
    for label in labels:
        wanted = [next(item["score"] for item in row["labels"] if item["label"] == label) for row in listed]
        rankings = [
            {item["index"]: item["score"] for item in row["ranking"]} for row in assemble(folder, label=label)(ROWS)
        ]
        scores = [ranking[i] for ranking in rankings for i in range(len(ranking))]
        assert scores == pytest.approx(wanted, abs=1e-6)


def test_raw_logits_of_several_labels_are_those_that_predict_gives(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "checkpoint", labels=("a", "b", "c"), max_positions=MAX_LENGTH)
    encoder = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    query, documents = QUERIES[0], list(DOCUMENTS)
    logits = encoder.predict([(query, document) for document in documents], show_progress_bar=False)
    ranking = assemble(folder, label="b", function="none")({"query": query, "documents": documents})["ranking"]
    assert [item["score"] for item in ranking] == pytest.approx(sorted(logits[:, 1].tolist(), reverse=True), abs=1e-5)
    with pytest.raises(ValueError, match="num_labels=1"):
        encoder.rank(query, documents)


def test_an_empty_document_is_scored_as_the_query_alone(tmp_path: Path) -> None:
    """Where the reference gives it the frame of a pair, a text without a second one has no such frame here.

    That is how the tokenizers of transformers read ``tokenizer(text, "")``, and text classification does.
    """
    folder = tiny_checkpoint(tmp_path / "checkpoint", labels=("LABEL_0",), max_positions=MAX_LENGTH)
    result = assemble(folder)({"query": QUERIES[0], "documents": ["", "food"]})
    score = {item["index"]: item["score"] for item in result["ranking"]}[0]
    alone = assemble(folder, "text-classification", "classification")(QUERIES[0])
    assert score == pytest.approx(alone["score"], abs=1e-6)
    encoder = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    assert abs(float(encoder.predict([(QUERIES[0], "")], show_progress_bar=False)[0]) - score) > 1e-3
