"""Panels of zero-shot classification, ranking and multiple choice, held against transformers' own logits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import checkpoint
from panels_helpers import (
    LONG,
    WINDOWS,
    Told,
    ask,
    assemble,
    close,
    column,
    last_number,
    network,
    padded,
    reference,
    shown,
    token_weights,
)

from pipeline_kit import Pipeline

NLI = ("contradiction", "neutral", "entailment")
CANDIDATES = ("good", "bad", "about food, or Paris", "漢字 😀")
TEXTS = ("I love this movie.", "a", "Ünïcödé 漢字 😀 e\u0301 עברית \t zzz", LONG)
QUERY = {"query": "Was it dull?", "documents": ["a", LONG, "", "Grüße 🙂 aus Paris, so good", "a"]}
CHOICES = (
    {"text": "It was a long day, so", "choices": ["I want some food.", "it will rain.", "a"]},
    {"text": LONG, "choices": ["שלום עולם", "the same"]},
)


@pytest.fixture(scope="module")
def folders() -> Mapping[str, Path]:
    return {
        "nli": checkpoint(labels=NLI),
        "left": checkpoint("xlnet", labels=NLI),
        "ranker": checkpoint(labels=("RELEVANT",)),
        "choice": checkpoint(head="multiple-choice"),
        "choice left": checkpoint("xlnet", head="multiple-choice"),
    }


def both_sides(pipe: Pipeline) -> list[Pipeline]:
    return [padded(pipe, side) for side in sorted(pipe.model.safe_padding_sides)]


def merged(told: Told, values: torch.Tensor, how: str) -> torch.Tensor:
    """Merge one value of each encoding to one of each part, ``[parts]``."""
    found = []
    for part in range(told.encodings[-1].part + 1):
        at = [i for i, encoding in enumerate(told.encodings) if encoding.part == part]
        weights = token_weights([told.encodings[i] for i in at])
        own = values.double()[at]
        found.append(own.max() if how == "max" else (own * weights).sum() / weights.sum())
    return torch.stack(found)


@pytest.mark.parametrize("merge", ["mean", "max"])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("name", ["nli", "left"])
def test_zero_shot(folders: Mapping[str, Path], name: str, multi_label: bool, merge: str) -> None:
    model = network(folders[name], "AutoModelForSequenceClassification")
    options = {"labels": list(CANDIDATES), "multi_label": multi_label, "merge": merge}
    post = {"name": "zero_shot", **options}
    pipe = assemble(folders[name], "zero-shot-classification", post, {**WINDOWS, "max_length": 40})
    for told in ask(both_sides(pipe)[0], TEXTS):
        logits = torch.stack([row["logits"] for row in reference(model, told)])
        values = logits[:, 2] - logits[:, 0] if multi_label else logits[:, 2]
        whole = merged(told, values, merge)
        scores = torch.sigmoid(whole) if multi_label else torch.softmax(whole, dim=0)
        order = torch.argsort(whole, descending=True, stable=True).tolist()

        pairs = told.panel("does the text entail")
        for row in pairs.rows:
            at = next(
                i
                for i, encoding in enumerate(told.encodings)
                if (CANDIDATES[encoding.part], encoding.window) == (row[0], row[2])
            )
            assert row[1] == f"This example is {row[0]}."
            close(row[3:], [logits[at, 2], logits[at, 0], values[at]] if multi_label else [logits[at, 2]])
        assert pairs.rows[0][0] == told.result["label"]

        final = told.panels[-1]
        assert column(final, "label") == [CANDIDATES[i] for i in order]
        close(column(final, "lead" if multi_label else "logit"), whole[order])
        close(column(final, "score"), scores[order])
        close(column(final, "score"), [item["score"] for item in told.result["labels"]])
        assert last_number(final) == shown(told.result["score"])
        assert len(told.panels) == (3 if "windows" in told.result else 2)
        if len(told.panels) == 3:
            assert told.panels[1].rows[0][0] == told.result["label"]
            assert last_number(told.panels[1]) == shown(float(whole.max()))


def test_zero_shot_with_one_candidate_is_scored_by_itself(folders: Mapping[str, Path]) -> None:
    pipe = assemble(folders["nli"], "zero-shot-classification", {"name": "zero_shot"})
    [told] = ask(pipe, [{"text": "I love it", "labels": ["good"]}])
    logits = reference(network(folders["nli"], "AutoModelForSequenceClassification"), told)[0]["logits"]
    panel = told.panel("leads to scores (sigmoid)")
    close(panel.rows[0][1:], [logits[2] - logits[0], torch.softmax(logits[[0, 2]], dim=0)[1]])


@pytest.mark.parametrize("merge", ["mean", "max"])
@pytest.mark.parametrize(
    ("name", "options"), [("ranker", {}), ("nli", {"label": "entailment"}), ("ranker", {"function": "none"})]
)
def test_ranking(folders: Mapping[str, Path], name: str, options: Mapping[str, Any], merge: str) -> None:
    model = network(folders[name], "AutoModelForSequenceClassification")
    pipe = assemble(folders[name], "text-ranking", {"name": "ranking", "merge": merge, "top_k": 3, **options}, WINDOWS)
    [told] = ask(pipe, [QUERY])
    logits = torch.stack([row["logits"] for row in reference(model, told)])
    several = name == "nli"
    values = torch.log_softmax(logits, dim=1)[:, 2] if several else logits[:, 0]
    whole = merged(told, values, merge)
    scores = whole.exp() if several else whole if options else torch.sigmoid(whole)
    panel = told.panel("documents, best first")
    indexes = column(panel, "index")
    assert sorted(indexes) == list(range(5))
    close(column(panel, "log p" if several else "logit"), whole[indexes])
    close(column(panel, "score"), scores[indexes])
    assert [(row[1], row[4]) for row in panel.rows if row[-1]] == [
        (item["index"], pytest.approx(item["score"], abs=1e-6)) for item in told.result["ranking"]
    ]
    assert column(panel, "rank") == [1, 2, 3, 4, 5]
    assert last_number(panel) == shown(told.result["ranking"][0]["score"])
    windows = told.panel(f"windows put together ({merge})")
    assert windows.rows[0][0].startswith(f"{indexes[0]}: ")
    assert last_number(windows) == shown(float(whole[indexes[0]]))


def test_the_softmax_behind_a_rank_names_its_window(folders: Mapping[str, Path]) -> None:
    post = {"name": "ranking", "label": "entailment"}
    [told] = ask(assemble(folders["nli"], "text-ranking", post, WINDOWS), [{"query": "dull", "documents": [LONG]}])
    model = network(folders["nli"], "AutoModelForSequenceClassification")
    chances = torch.stack([row["logits"] for row in reference(model, told)]).softmax(dim=1)[:, 2]
    panel = told.panel("documents, best first")
    assert panel.formula.split("\n")[0] == f"of window {int(chances.argmax())}:"
    assert last_number(panel, 4) == shown(float(chances.max()))


@pytest.mark.parametrize("name", ["choice", "choice left"])
def test_multiple_choice(folders: Mapping[str, Path], name: str) -> None:
    model = network(folders[name], "AutoModelForMultipleChoice")
    pipe = assemble(folders[name], "multiple-choice", {"name": "choice"}, WINDOWS)
    for way in both_sides(pipe):
        for told, example in zip(ask(way, CHOICES), CHOICES, strict=True):
            logits = torch.stack([row["logits"].reshape(()) for row in reference(model, told)])
            whole = merged(told, logits, "mean")
            order = torch.argsort(whole, descending=True).tolist()
            panel = told.panel("choices: logits to scores")
            assert column(panel, "choice") == [example["choices"][i] for i in order]
            close(column(panel, "logit"), whole[order])
            close(column(panel, "exp(logit - max)"), (whole - whole.max()).exp()[order])
            close(column(panel, "score"), torch.softmax(whole, dim=0)[order])
            assert panel.rows[0][0] == told.result["choice"]
            assert last_number(panel) == shown(told.result["score"])
            if len(told.panels) > 1:
                assert last_number(told.panels[0]) == shown(float(whole.max()))
            assert len(told.panels) == (2 if example["text"] == LONG else 1)


def test_many_documents_are_bounded(folders: Mapping[str, Path]) -> None:
    pipe = assemble(folders["ranker"], "text-ranking", {"name": "ranking"})
    [told] = ask(pipe, [{"query": "x", "documents": [f"{'so good ' * 30} {i}" for i in range(60)]}])
    assert "10 documents left out" in told.panels[-1].note
    assert told.panels[-1].rows[0][1] == told.result["ranking"][0]["index"]
