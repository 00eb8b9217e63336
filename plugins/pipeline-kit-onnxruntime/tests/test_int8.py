"""What int8 costs: how far its answers are from float32, and whether labels stay what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pk_onnxruntime import OnnxRuntimeConfig, Precision
from pk_onnxruntime.graph import needs_reduced_range
from pk_onnxruntime.stage import OnnxRuntimeModel

import pipeline_kit as pk
from pipeline_kit.testing import GraphContexts, assert_answers_of_hf

pytest_plugins = ("onnx_fixtures",)

DATA = Path(pk.__file__).parents[1] / "benchmarks" / "data"
TEXTS = ["good", "bad and very dull day again", "", "a b c d e f g h i j k l m", "good " * 90]
CASES = [
    ("llama", "sequence-classification"),
    ("modernbert", "sequence-classification"),
    ("roberta", "token-classification"),
]


@pytest.mark.parametrize("precision", ["int8", "int8_blocks"])
@pytest.mark.parametrize(("architecture", "head"), CASES)
def test_answers_are_within_the_tolerance(
    architecture: str, head: str, precision: Precision, make_context: GraphContexts
) -> None:
    """On random weights, which are harder to round than trained ones."""
    context = make_context(architecture, head)
    ours = OnnxRuntimeModel(OnnxRuntimeConfig(precision=precision), context)
    assert_answers_of_hf(ours, context, ours.tolerance, TEXTS)


def sentiment(*overrides: str) -> Any:
    return pk.load("device=cpu", *overrides, plugins=["pk_onnxruntime"])


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """640 sentences and reviews."""
    files = [(DATA / f"{name}.jsonl").read_text(encoding="utf-8") for name in ("short", "mixed")]
    return [json.loads(line)["text"] for file in files for line in file.splitlines()]


@pytest.fixture(scope="module")
def expected(texts: list[str]) -> Any:
    """What the checkpoint that the package ships says to them."""
    return sentiment("model=hf")(texts)


@pytest.mark.parametrize("precision", ["float32", "int8", "int8_blocks"])
def test_labels_of_a_trained_classifier_stay(precision: str, texts: list[str], expected: Any) -> None:
    pairs = list(zip(sentiment("model=onnxruntime", f"model.precision={precision}")(texts), expected, strict=True))
    same = sum(mine["label"] == other["label"] for mine, other in pairs) / len(pairs)
    furthest = max(abs(mine["score"] - other["score"]) for mine, other in pairs if mine["label"] == other["label"])
    assert same >= {"float32": 1.0, "int8": 0.98, "int8_blocks": 0.99}[precision]
    assert furthest <= {"float32": 1e-5, "int8": 0.2, "int8_blocks": 0.05}[precision]


def test_in_blocks_an_answer_does_not_depend_on_its_batch() -> None:
    texts = ["I love this.", "ok", "It was awful, and I would not do it again! " * 4, "Good day"]
    pipe = sentiment("model=onnxruntime", "model.precision=int8_blocks")
    assert [pipe(text)["score"] for text in texts] == pytest.approx([r["score"] for r in pipe(texts)], abs=1e-6)


@pytest.mark.parametrize(
    ("machine", "flags", "reduced"),
    [
        ("x86_64", "fma avx2 avx512f", True),
        ("x86_64", "avx2 avx512_vnni", False),
        ("AMD64", "avx2 avx_vnni", False),
        ("aarch64", "asimd", False),
        ("x86_64", None, True),
    ],
)
def test_weights_have_seven_bits_where_eight_could_overflow(
    machine: str, flags: str | None, reduced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any, **__: Any) -> str:
        if flags is None:
            raise FileNotFoundError
        return f"flags : {flags}\n"

    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", read)
    assert needs_reduced_range() is reduced
