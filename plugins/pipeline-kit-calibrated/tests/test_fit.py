"""Fitting: the measures, the temperature, and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pk_calibrated.fit import main
from pk_calibrated.measures import calibration_error, fit_temperature, log_softmax, loss

from pipeline_kit.testing import tiny_checkpoint


def drawn(temperature: float, rows: int = 4000) -> tuple[Any, Any]:
    """Logits that are `temperature` times too large, and labels drawn by the true probabilities."""
    random = np.random.default_rng(7)
    logits = random.normal(size=(rows, 3)) * 2
    chances = np.exp(log_softmax(logits, 1.0)).cumsum(axis=1)
    labels = (random.random((rows, 1)) > chances).sum(axis=1).clip(0, 2)
    return logits * temperature, labels.astype(np.int64)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_was_put_in_is_found(temperature: float) -> None:
    logits, labels = drawn(temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.1)
    assert calibration_error(logits, labels, found) < 0.03
    assert loss(logits, labels, found) <= min(loss(logits, labels, found * f) for f in (0.9, 0.99, 1.01, 1.1))


def test_loss_and_error_by_hand() -> None:
    logits = np.log(np.array([[0.8, 0.2], [0.8, 0.2], [0.6, 0.4]]))
    truth = np.array([0, 1, 0])
    assert loss(logits, truth, 1.0) == pytest.approx(-(np.log(0.8) + np.log(0.2) + np.log(0.6)) / 3)
    assert calibration_error(logits, truth, 1.0) == pytest.approx((2 * abs(0.8 - 0.5) + abs(0.6 - 1.0)) / 3)


def test_the_temperature_stays_between_its_limits() -> None:
    logits = np.array([[5.0, 0.0], [0.0, 5.0]])
    assert fit_temperature(logits, np.array([0, 1])) == pytest.approx(0.01)
    assert fit_temperature(logits, np.array([1, 0])) == pytest.approx(100.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"), labels=("BAD", "GOOD"))


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


ROWS = [
    {"text": "good", "label": "GOOD"},
    {"text": "very good day", "label": 1},
    {"text": "bad", "label": "BAD"},
    {"text": "dull and boring", "label": "0"},
    {"text": "good", "text_pair": "bad", "label": "BAD"},
]


def test_the_command_prints_overrides_that_compose(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(write(tmp_path / "rows.jsonl", ROWS)), f"checkpoint.path={folder}"]) == 0
    out, err = capsys.readouterr()
    first, second = out.split()
    assert first == "postprocessor=calibrated"
    key, _, value = second.partition("=")
    assert key == "postprocessor.temperature"
    assert 0.01 <= float(value) <= 100
    assert "5 rows" in err
    assert "expected calibration error:" in err
    assert "before" in err


@pytest.mark.parametrize(
    ("rows", "overrides", "message"),
    [
        (
            [{"text": "x", "label": "GOD"}, *ROWS],
            [],
            "row 0: 'GOD' is not a label of the checkpoint: BAD, GOOD. Did you",
        ),
        ([*ROWS, {"text": "x", "label": 2}], [], "row 5: '2' is not a label"),
        ([*ROWS, {"text": "x", "label": "1" * 5000}], [], "…' is not a label"),
        ([*ROWS, {"text": "x", "label": True}], [], "row 5: 'True' is not a label"),
        ([{"text": "x"}], [], "'label'"),
        (["only a text"], [], "a text without a label"),
        (ROWS[:1], [], "has 1 rows"),
        (ROWS, ["postprocessor.top_k=2"], "leave the postprocessor out"),
        (ROWS, ["tokenizer.max_lenght=2"], "Did you mean 'max_length'?"),
    ],
)
def test_mistakes_are_told(
    tmp_path: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[Any],
    overrides: list[str],
    message: str,
) -> None:
    code = main([str(write(tmp_path / "rows.jsonl", rows)), f"checkpoint.path={folder}", *overrides])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
