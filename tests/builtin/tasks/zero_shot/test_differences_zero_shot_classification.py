"""Where zero-shot classification differs from transformers.pipeline on purpose; each is worked out from raw logits.

The behaviours of transformers meant here are those of version 5.23:
https://github.com/huggingface/transformers/blob/main/src/transformers/pipelines/zero_shot_classification.py
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from harness import checkpoint, pipeline_of
from safetensors.torch import load_file, save_file

from pipeline_kit.errors import CheckpointError, RowError
from pipeline_kit.testing.checkpoints import tiny_checkpoint

C, N, E = "contradiction", "neutral", "entailment"
WRONG_ORDERS = ((E, C, N), (N, C, E), (N, E, C))
TEXT = "The film was dull and the food was good."
LABELS = ("good", "bad", "food")


assemble = partial(pipeline_of, "zero-shot-classification")


def theirs(folder: Path) -> Any:
    return transformers.pipeline("zero-shot-classification", model=str(folder), device="cpu")


def scores(result: Any) -> dict[str, float]:
    if "scores" in result:
        return dict(zip(result["labels"], result["scores"], strict=True))
    return {item["label"]: item["score"] for item in result["labels"]}


def raw_logits(folder: Path, labels: Sequence[str]) -> list[list[float]]:
    """Return the model's logits for TEXT with each label's hypothesis, one at a time, without any pipeline."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        pairs = [tokenizer(TEXT, f"This example is {label}.", return_tensors="pt") for label in labels]
        return [model(**pair).logits[0].double().tolist() for pair in pairs]


def against(logits: Sequence[float], entailed: int, opposite: int) -> float:
    """Return the softmax of two logits, at the place of the first."""
    return 1 / (1 + math.exp(logits[opposite] - logits[entailed]))


@pytest.fixture(scope="module", params=WRONG_ORDERS, ids=lambda names: "".join(name[0] for name in names))
def ordered(request: pytest.FixtureRequest) -> tuple[Path, tuple[str, ...]]:
    return checkpoint(labels=request.param, seed=3), request.param


@pytest.mark.parametrize("labels", [LABELS, LABELS[:1]], ids=["multi_label", "a single label"])
def test_contradiction_is_found_by_its_name(ordered: tuple[Path, tuple[str, ...]], labels: Sequence[str]) -> None:
    """With `multi_label`, or one label, a score is entailment against contradiction, as the docs of both say.

    transformers finds entailment by name but takes the last label for contradiction where entailment is the
    first, and else the first one. In three of the six orders of the labels that is neutral, and a text that
    plainly contradicts a label scores high for it if it is even less neutral. We read the name.
    """
    folder, names = ordered
    logits = raw_logits(folder, labels)
    multi = len(labels) > 1
    right = {label: against(row, names.index(E), names.index(C)) for label, row in zip(labels, logits, strict=True)}
    wrong = {label: against(row, names.index(E), names.index(N)) for label, row in zip(labels, logits, strict=True)}
    assert scores(theirs(folder)(TEXT, list(labels), multi_label=multi)) == pytest.approx(wrong, abs=1e-5)
    assert scores(assemble(folder, labels=labels, multi_label=multi)(TEXT)) == pytest.approx(right, abs=1e-5)
    assert max(abs(right[label] - wrong[label]) for label in labels) > 0.01, "the two can be told apart"


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Return a checkpoint whose logits are in the hundreds."""
    folder = tiny_checkpoint(tmp_path / "large", labels=(C, N, E))
    weights = load_file(folder / "model.safetensors")
    weights = {name: value * 300 if name.startswith("classifier") else value for name, value in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")
def test_large_logits_give_numbers(large: Path) -> None:
    """transformers takes the exponential of each logit as it is; all of them are NaN where that leaves float32.

    It does above 88 and, if every label does so, below -104. A softmax does not change when the same number
    is taken off every logit; we take off the largest.
    """
    entailed = np.array([row[2] for row in raw_logits(large, LABELS)])
    assert entailed.max() < -104
    powers = np.exp(entailed - entailed.max())
    right = dict(zip(LABELS, (powers / powers.sum()).tolist(), strict=True))
    assert scores(assemble(large, labels=LABELS)(TEXT)) == pytest.approx(right, abs=1e-4)
    assert all(math.isnan(score) for score in theirs(large)(TEXT, list(LABELS))["scores"])


def test_equal_labels_keep_their_order() -> None:
    """For a lower-casing tokenizer two labels may be one and the same; transformers lists the later one first."""
    folder = checkpoint(labels=(C, N, E))
    first, second = raw_logits(folder, ["good", "GOOD"])
    assert first == second
    assert [item["label"] for item in assemble(folder, labels=["good", "GOOD"])(TEXT)["labels"]] == ["good", "GOOD"]
    assert theirs(folder)(TEXT, ["good", "GOOD"])["labels"] == ["GOOD", "good"]


def test_a_doubled_label_is_refused() -> None:
    """transformers scores it twice, so that it takes from all others and its own two scores add up to its real one."""
    folder = checkpoint(labels=(C, N, E))
    entailed = [row[2] for row in raw_logits(folder, LABELS[:2])]
    powers = [math.exp(value) for value in entailed]
    found = theirs(folder)(TEXT, [*LABELS[:2], LABELS[0]])
    twice = [score for label, score in zip(found["labels"], found["scores"], strict=True) if label == LABELS[0]]
    assert twice == pytest.approx([powers[0] / (2 * powers[0] + powers[1])] * 2, abs=1e-5)
    assert twice[0] < powers[0] / sum(powers) - 0.01
    with pytest.raises(RowError, match=r"'labels' has 'good' twice, as \[0\] and \[2\]"):
        assemble(folder)({"text": TEXT, "labels": [*LABELS[:2], LABELS[0]]})


@pytest.fixture
def records() -> Iterator[list[str]]:
    """Collect what transformers logs, which does not reach the root logger."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def test_a_checkpoint_without_entailment_is_refused(records: list[str]) -> None:
    """transformers logs a warning and takes the last label for entailment, whatever it means."""
    folder = checkpoint(labels=("LABEL_0", "LABEL_1", "LABEL_2"))
    logits = raw_logits(folder, LABELS)
    powers = np.exp([row[2] for row in logits])
    last = dict(zip(LABELS, (powers / powers.sum()).tolist(), strict=True))
    assert scores(theirs(folder)(TEXT, list(LABELS))) == pytest.approx(last, abs=1e-5)
    assert any("Failed to determine 'entailment'" in message for message in records)
    with pytest.raises(CheckpointError, match="has no label for entailment among 'LABEL_0', 'LABEL_1', 'LABEL_2'"):
        assemble(folder, labels=LABELS)
    powers = np.exp([row[0] for row in logits])
    first = dict(zip(LABELS, (powers / powers.sum()).tolist(), strict=True))
    named = assemble(folder, labels=LABELS, entailment_label="LABEL_0")
    assert scores(named(TEXT)) == pytest.approx(first, abs=1e-5)


def test_cut_texts_say_so() -> None:
    """transformers cuts a long text without a word; ours counts the tokens, once for all labels."""
    folder = checkpoint(labels=(C, N, E))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = "what a long day " * 40
    longest = max(len(tokenizer(f"This example is {label}.", add_special_tokens=False).input_ids) for label in LABELS)
    result = assemble(folder, labels=LABELS)(text)
    assert result["truncated"] == 160 - (64 - 3 - longest)
    assert set(theirs(folder)(text, list(LABELS))) == {"sequence", "labels", "scores"}


def test_blank_texts_are_refused() -> None:
    """transformers scores a text of spaces, of which the model sees nothing; an empty one it refuses as we do."""
    folder = checkpoint(labels=(C, N, E))
    assert scores(theirs(folder)("  ", list(LABELS))).keys() == set(LABELS)
    with pytest.raises(ValueError, match="at least one sequence"):
        theirs(folder)("", list(LABELS))
    for text in ("", "  "):
        with pytest.raises(RowError, match="the field 'text' is empty"):
            assemble(folder, labels=LABELS)(text)
