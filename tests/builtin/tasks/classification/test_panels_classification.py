"""Panels of text classification and of raw logits, held against transformers' own logits and torch's own functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import checkpoint
from panels_helpers import (
    LONG,
    TEXTS,
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

THREE = ("BAD", "MIXED", "GOOD")
CASES: Mapping[str, tuple[str, tuple[str, ...], str | None]] = {
    "bert": ("bert", THREE, None),
    "xlnet": ("xlnet", THREE, "multi_label_classification"),
    "llama": ("llama", ("SPAM",), None),
    "regression": ("bert", ("STARS",), "regression"),
}
FUNCTIONS = {"bert": "softmax", "xlnet": "sigmoid", "llama": "sigmoid", "regression": "none"}


@pytest.fixture(scope="module")
def folders() -> Mapping[str, Path]:
    return {
        name: checkpoint(architecture, labels=labels, problem_type=problem)
        for name, (architecture, labels, problem) in CASES.items()
    }


def make(folder: Path, tokenizer: Mapping[str, Any] | None = None, **options: Any) -> Pipeline:
    return assemble(folder, "text-classification", {"name": "classification", **options}, tokenizer)


def scored(logits: torch.Tensor, function: str) -> torch.Tensor:
    if function == "softmax":
        return torch.softmax(logits.double(), dim=-1)
    return torch.sigmoid(logits.double()) if function == "sigmoid" else logits.double()


def logits_of(model: Any, told: Told) -> torch.Tensor:
    """Return transformers' own logits for each of the example's encodings, ``[W, L]``."""
    return torch.stack([row["logits"] for row in reference(model, told)])


@pytest.mark.parametrize("name", CASES)
def test_the_function_with_its_numbers(folders: Mapping[str, Path], name: str) -> None:
    labels, function = CASES[name][1], FUNCTIONS[name]
    pipe, model = make(folders[name]), network(folders[name], "AutoModelForSequenceClassification")
    for side in sorted(pipe.model.safe_padding_sides):
        for told in ask(padded(pipe, side), TEXTS if name != "llama" else TEXTS[:-1]):
            [panel] = told.panels
            [logits] = logits_of(model, told)
            scores = scored(logits, function)
            order = torch.argsort(logits, descending=True, stable=True).tolist()
            assert panel.title == f"logits to scores ({function})"
            assert column(panel, "label") == [labels[i] for i in order]
            close(column(panel, "logit"), logits[order])
            close(column(panel, "score"), scores[order])
            if function == "softmax":
                close(column(panel, "exp(logit - max)"), (logits - logits.max()).double().exp()[order])
                assert last_number(panel, 2) == pytest.approx(
                    float((logits - logits.max()).exp().sum()), rel=1e-5, abs=2e-6
                )
            assert (told.result["label"], told.result["score"]) == (panel.rows[0][0], panel.rows[0][-1])
            assert last_number(panel) == shown(told.result["score"])


def test_the_lines_of_a_softmax_are_the_arithmetic(folders: Mapping[str, Path]) -> None:
    """Each line, read as Python, gives what it says it gives, to the digits that are shown."""
    from math import exp

    [told] = ask(make(folders["bert"]), TEXTS[:1])
    rule, peak, total, share = told.panels[0].formula.split("\n")
    assert rule == "p = exp(z - m) / sum of exp(z - m) over 3 labels, m = max z"
    assert float(peak.removeprefix("m = ")) == shown(max(column(told.panels[0], "logit")))
    for line in (total, share):
        _, middle, value = line.split(" = ")
        assert eval(middle, {"exp": exp}) == pytest.approx(float(value), rel=1e-4)


@pytest.mark.parametrize("merge", ["mean", "max"])
@pytest.mark.parametrize("name", ["bert", "xlnet", "regression"])
def test_windows_put_together(folders: Mapping[str, Path], name: str, merge: str) -> None:
    labels, function = CASES[name][1], FUNCTIONS[name]
    model = network(folders[name], "AutoModelForSequenceClassification")
    pipe = make(folders[name], WINDOWS, merge=merge, top_k=None)
    examples = (LONG, "a", "", {"text": LONG, "text_pair": "Grüße 🙂"})
    side = sorted(pipe.model.safe_padding_sides)[-1]
    for told, windowed in zip(ask(padded(pipe, side), examples), (True, False, False, True), strict=True):
        assert (len(told.encodings) > 1) is windowed
        logits = logits_of(model, told)
        scores, weights = scored(logits, function), token_weights(told.encodings)[:, None]
        merged = scores.max(dim=0).values if merge == "max" else (scores * weights).sum(dim=0) / weights.sum()
        if windowed:
            panel = told.panel("windows put together")
            for row in panel.rows:
                label, window, begin, end, counts, found = row
                close([found], scores[window, labels.index(label)][None])
                assert (begin, end) == told.encodings[window].token_span
                if merge == "max":
                    assert counts is (window == int(scores[:, labels.index(label)].argmax()))
                else:
                    close([counts], weights[window])
            best = int(merged.argmax())
            assert panel.formula.startswith(f"score({labels[best]}) = ")
            assert last_number(panel) == shown(float(merged[best]))
        chosen = told.panel("scores to labels")
        order = torch.argsort(merged, descending=True, stable=True).tolist()
        assert column(chosen, "label") == [labels[i] for i in order]
        close(column(chosen, "score"), merged[order])
        assert column(chosen, "score") == [item["score"] for item in told.result["labels"]]


def test_the_function_is_told_for_the_window_that_is_highest(folders: Mapping[str, Path]) -> None:
    [told] = ask(make(folders["bert"], WINDOWS, merge="max"), [LONG])
    panel = told.panel("logits to scores")
    logits = logits_of(network(folders["bert"], "AutoModelForSequenceClassification"), told)
    at = int(torch.softmax(logits, dim=-1)[:, THREE.index(told.result["label"])].argmax())
    assert panel.note.startswith(f"window {at} of {len(told.encodings)}, ")
    close(column(panel, "logit"), logits[at].sort(descending=True).values)


@pytest.mark.parametrize(
    ("options", "listed"),
    [
        ({"top_k": 2}, 2),
        ({"top_k": None, "thresholds": {"BAD": 1.0}}, 2),
        ({"thresholds": dict.fromkeys(THREE, 1.0)}, 0),
    ],
)
def test_labels_chosen(folders: Mapping[str, Path], options: Mapping[str, Any], listed: int) -> None:
    for told in ask(make(folders["bert"], **options), TEXTS):
        panel = told.panel("scores to labels")
        kept = [row[0] for row in panel.rows if row[-1]]
        assert kept == [item["label"] for item in told.result.get("labels", ()) or ()]
        assert len(kept) == listed
        if "thresholds" in options:
            assert dict(zip(column(panel, "label"), column(panel, "threshold"), strict=True)) == {
                label: options["thresholds"].get(label) for label in THREE
            }
        if not listed:
            assert panel.formula.startswith("no label reaches its threshold")


def test_many_labels_are_bounded(tmp_path: Path) -> None:
    names = tuple(f"a label with a long name {i} of many" for i in range(120))
    folder = checkpoint(labels=names)
    for told in ask(make(folder, WINDOWS, top_k=None), ["I love this", LONG]):
        for panel in told.panels:
            assert len(panel.rows) == 50
        assert "70 labels left out" in told.panel("logits to scores").note
        assert told.panel("scores to labels").rows[0][1] == told.result["score"]


def test_raw_logits(folders: Mapping[str, Path]) -> None:
    pipe = assemble(folders["bert"], "text-classification", {"name": "logits"}, WINDOWS)
    model = network(folders["bert"], "AutoModelForSequenceClassification")
    texts: Sequence[str] = ("I love this", "", LONG)
    for told in ask(pipe, texts):
        logits, weights = logits_of(model, told).double(), token_weights(told.encodings)[:, None]
        merged = (logits * weights).sum(dim=0) / weights.sum()
        panel = told.panel("logits")
        order = torch.argsort(merged, descending=True).tolist()
        close(column(panel, "logit"), merged[order])
        assert column(panel, "logit") == [told.result["logits"][i] for i in order]
        assert len(told.panels) == (2 if len(told.encodings) > 1 else 1)
