"""The stage: scores, abstention, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pk_calibrated
import pytest
from pk_calibrated import CalibratedConfig
from pk_calibrated.stage import Calibrated

from pipeline_kit import Encoding
from pipeline_kit.kit import Classification, ClassificationConfig, ConfigError, StageError
from pipeline_kit.testing import PostprocessorConformance, compose_config, tiny_pipeline, tiny_stage_context

TEXTS = ["I love this.", "I hate it", "ok", "a longer text than the others, that is all"]
KEYS = ["label", "score", "best", "abstained", "margin", "entropy"]


class TestConformance(PostprocessorConformance):
    stage = "calibrated"
    register = pk_calibrated.register
    options: ClassVar[Mapping[str, Any]] = {"temperature": 1.7, "abstain_below": 0.5, "abstain_label": "UNSURE"}


def stage(**options: Any) -> Calibrated:
    return Calibrated(CalibratedConfig(**options), tiny_stage_context())


def results_of(logits: list[list[float]], **options: Any) -> list[dict[str, Any]]:
    """The results for examples of one window each with these logits."""
    rows = [[{"logits": np.array(row, dtype=np.float32)}] for row in logits]
    return stage(**options)(["x"] * len(rows), [[Encoding([1, 2])] for _ in rows], rows)


def test_scores_at_temperature_one_are_those_of_classification() -> None:
    expected = tiny_pipeline(Classification(ClassificationConfig(), tiny_stage_context()))(TEXTS)
    found = tiny_pipeline(stage())(TEXTS)
    for mine, theirs in zip(found, expected, strict=True):
        assert list(mine) == KEYS
        assert mine["label"] == mine["best"] == theirs["label"]
        assert mine["score"] == pytest.approx(theirs["score"], abs=1e-6)


def test_score_margin_and_entropy() -> None:
    [result] = results_of([[math.log(0.7), math.log(0.2), math.log(0.1)]])
    entropy = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1))
    assert result["score"] == pytest.approx(0.7)
    assert result["margin"] == pytest.approx(0.5)
    assert result["entropy"] == pytest.approx(entropy)


def test_a_temperature_changes_scores_but_never_the_best_label() -> None:
    logits = [[2.0, 1.0, 0.0], [0.0, 0.1, 5.0], [3.0, 3.0, 3.0]]
    sharp, plain, flat = (results_of(logits, temperature=t) for t in (0.5, 1.0, 4.0))
    for a, b, c in zip(sharp[:2], plain[:2], flat[:2], strict=True):
        assert a["best"] == b["best"] == c["best"]
        assert a["score"] > b["score"] > c["score"]
        assert a["entropy"] < b["entropy"] < c["entropy"]
    assert flat[0]["score"] == pytest.approx(math.exp(0.5) / (math.exp(0.5) + math.exp(0.25) + 1))


def test_extreme_logits_stay_finite() -> None:
    [result] = results_of([[3e38, -3e38, 0.0]], temperature=0.01)
    assert (result["score"], result["margin"], result["entropy"]) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize(("name", "label"), [(None, None), ("UNSURE", "UNSURE")])
def test_abstention_keeps_the_shape(name: str | None, label: str | None) -> None:
    sure, unsure = results_of([[9.0, 0.0, 0.0], [0.1, 0.0, 0.0]], abstain_below=0.9, abstain_label=name)
    assert list(sure) == list(unsure) == KEYS
    assert (sure["label"], sure["abstained"]) == ("NEGATIVE", False)
    assert (unsure["label"], unsure["best"], unsure["abstained"]) == (label, "NEGATIVE", True)


def test_a_score_at_the_limit_does_not_abstain() -> None:
    assert results_of([[0.0, 0.0, -1e30]], abstain_below=0.5)[0]["abstained"] is False


def test_windows_are_merged_by_their_logits() -> None:
    windows = [{"logits": np.array(row, dtype=np.float32)} for row in ([4.0, 0.0, 0.0], [0.0, 1.0, 0.0])]
    encodings = [Encoding([1] * 3), Encoding([1] * 1, window=1)]
    [result] = stage(temperature=2.0)(["x"], [encodings], [windows])
    [expected] = results_of([[3.0, 0.25, 0.0]], temperature=2.0)
    assert result == pytest.approx(expected)


def test_a_model_of_another_width_is_refused() -> None:
    with pytest.raises(StageError, match="2 logits"):
        results_of([[1.0, 2.0]])


@pytest.mark.parametrize(
    ("labels", "config"),
    [
        (["A", "B"], {"problem_type": "multi_label_classification"}),
        (["A", "B"], {"problem_type": "regression"}),
        (["A"], {}),
    ],
)
def test_only_softmax_heads_are_calibrated(labels: list[str], config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="softmax") as caught:
        Calibrated(CalibratedConfig(), tiny_stage_context(labels=labels, config=config))
    assert "postprocessor=classification" in str(caught.value)


def test_the_abstain_label_is_no_label_of_the_checkpoint() -> None:
    with pytest.raises(ConfigError, match="NEUTRAL"):
        stage(abstain_label="NEUTRAL")


PLUGIN = ["pk_calibrated"]


def test_the_preset_composes() -> None:
    config = compose_config("postprocessor=calibrated_cautious", "postprocessor.temperature=2", plugins=PLUGIN)
    expected = CalibratedConfig(temperature=2.0, abstain_below=0.9, abstain_label="UNSURE")
    assert config.postprocessor.options == expected


def test_every_fault_of_the_options_is_reported() -> None:
    overrides = ["postprocessor=calibrated", "postprocessor.temperature=0", "postprocessor.abstain_below=2"]
    with pytest.raises(ConfigError) as caught:
        compose_config(*overrides, "postprocessor.abstainlabel=X", plugins=PLUGIN)
    text = str(caught.value)
    assert "postprocessor.temperature: 0.0 is out of range" in text
    assert "postprocessor.abstain_below: 2.0 is out of range" in text
    assert "Did you mean 'abstain_label'?" in text
