"""What int8 and bfloat16 cost: how far answers are from float32, and whether labels stay what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pk_openvino import OpenVinoConfig, Precision
from pk_openvino.graph import MODEL, Compiled, compress, has_bfloat16, has_int8, openvino, write
from pk_openvino.stage import OpenVinoModel

import pipeline_kit as pk
from pipeline_kit import Encoding
from pipeline_kit.graphs import graph_inputs
from pipeline_kit.kit import Device, PaddingPolicy, collate
from pipeline_kit.testing import GraphContexts, assert_answers_of_hf

pytest_plugins = ("openvino_fixtures",)

DATA = Path(pk.__file__).parents[1] / "benchmarks" / "data"
CASES = [
    ("gpt2", "sequence-classification"),
    ("albert", "sequence-classification"),
    ("modernbert", "masked-lm"),
    ("roberta", "token-classification"),
]
ROUNDED = ["int8", pytest.param("bfloat16", marks=pytest.mark.skipif(not has_bfloat16(), reason="no bfloat16 here"))]


@pytest.mark.parametrize("precision", ROUNDED)
@pytest.mark.parametrize(("architecture", "head"), CASES)
def test_answers_are_within_the_tolerance(
    architecture: str, head: str, precision: Precision, make_context: GraphContexts
) -> None:
    """On random weights, which are harder to round than trained ones."""
    context = make_context(architecture, head)
    ours = OpenVinoModel(OpenVinoConfig(precision=precision), context)
    assert_answers_of_hf(ours, context, ours.tolerance)


def sentiment(*overrides: str) -> Any:
    return pk.load("device=cpu", *overrides, plugins=["pk_openvino"])


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """640 sentences and reviews."""
    lines = [
        line
        for name in ("short", "mixed")
        for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="module")
def expected(texts: list[str]) -> Any:
    """What the checkpoint that the package ships says to them."""
    return sentiment("model=hf", "model.linear=eager")(texts)


@pytest.mark.parametrize("precision", ["float32", *ROUNDED])
def test_labels_of_a_trained_classifier_stay(precision: str, texts: list[str], expected: Any) -> None:
    pairs = list(zip(sentiment("model=openvino", f"model.precision={precision}")(texts), expected, strict=True))
    same = sum(mine["label"] == other["label"] for mine, other in pairs) / len(pairs)
    apart = [abs(mine["score"] - other["score"]) for mine, other in pairs if mine["label"] == other["label"]]
    assert same >= {"float32": 1.0, "bfloat16": 0.995, "int8": 0.99}[precision]
    assert max(apart) <= {"float32": 1e-5, "bfloat16": 0.05, "int8": 0.1}[precision]


def test_in_int8_an_answer_does_not_depend_on_its_batch() -> None:
    texts = ["I love this.", "ok", "It was awful, and I would not do it again! " * 4, "Good day"]
    pipe = sentiment("model=openvino", "model.precision=int8")
    assert [pipe(text)["score"] for text in texts] == pytest.approx([r["score"] for r in pipe(texts)], abs=1e-6)


def products(path: Path) -> dict[str, Any]:
    model = openvino().Core().read_model(str(path))
    return {node.get_friendly_name(): node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"}


@pytest.mark.skipif(not has_int8(), reason="this processor has no products in int8")
def test_int8_is_in_the_products_and_not_in_the_weights_alone(make_context: GraphContexts) -> None:
    context = make_context("bert")
    stage = OpenVinoModel(OpenVinoConfig(precision="int8"), context)
    batch = collate([Encoding([5, 6, 7], token_type_ids=[0, 0, 0])], PaddingPolicy("longest", "right", 0), "cpu")
    whole = Compiled(Path(stage.runtime_info["graph"]) / MODEL, Device(), group=0)
    widened = whole(graph_inputs(batch, stage._facts.head, stage._facts.takes), ["logits"])
    assert float((stage.forward(batch)["logits"] - widened["logits"]).abs().max()) > 1e-4


def test_weights_that_lie_the_other_way_round(make_context: GraphContexts, tmp_path: Path) -> None:
    """[inputs, outputs], as in a product that is written without a transposition."""
    ops = openvino().opset14
    given = ops.parameter([-1, 32], np.float32, name="given")
    weights = np.random.default_rng(0).standard_normal((32, 48), dtype=np.float32)
    (tmp_path / "whole").mkdir()
    write(openvino().Model([ops.matmul(given, ops.constant(weights), False, False)], [given]), tmp_path / "whole")
    assert compress(make_context("bert").checkpoint, tmp_path / "whole", tmp_path) == 32
    compiled = openvino().Core().compile_model(str(tmp_path / MODEL), "CPU", {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0})
    inputs = np.random.default_rng(1).standard_normal((5, 32), dtype=np.float32)
    np.testing.assert_allclose(compiled([inputs])[0], inputs @ weights, rtol=0, atol=0.2)


@pytest.mark.parametrize("architecture", ["distilbert", "gpt2"])
def test_weights_are_rounded_by_output(architecture: str, make_context: GraphContexts, tmp_path: Path) -> None:
    """Each to the nearest of 255 values, a scale an output; what is small or no weight stays as it is."""
    context = make_context(architecture)
    whole = Path(OpenVinoModel(OpenVinoConfig(), context).runtime_info["graph"])
    group = compress(context.checkpoint, whole, tmp_path)
    before, after = products(whole / MODEL), products(tmp_path / MODEL)
    rounded = 0
    for name, node in after.items():
        scaled = node.input_value(1).get_node()
        weight = before[name].input_value(1).get_node()
        if scaled.get_type_name() != "Multiply":
            assert weight.get_type_name() != "Constant" or min(weight.get_output_shape(0)) < 16
            continue
        rows = weight.data if before[name].get_attributes()["transpose_b"] else weight.data.T
        whole_numbers, scales = (scaled.input_value(i).get_node() for i in (0, 1))
        stored = whole_numbers.input_value(0).get_node()
        assert stored.get_element_type() == openvino().Type.i8
        assert (np.abs(stored.data.astype(int)).max(axis=1) == 127).all()
        assert (np.abs(stored.data * scales.data - rows) <= scales.data * 0.5001).all()
        assert rows.shape[1] % group == 0
        rounded += 1
    assert rounded >= 4
    assert group % 16 == 0
