"""Estimators of scikit-learn: its own checks, clones, pickles, pipelines and searches."""

from __future__ import annotations

import importlib.util
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from harness import checkpoint, pipeline_of
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import validate_data

import pipeline_kit as pk
import pipeline_kit.sklearn
from pipeline_kit.errors import UsageError
from pipeline_kit.sklearn import TextClassifier, TextEmbedder

TEXTS = ["I love this.", "I hate this!", "Wonderful film.", "Awful, awful film."] * 3
LABELS = ["POSITIVE", "NEGATIVE"] * 6


def embedder() -> TextEmbedder:
    return TextEmbedder([f"checkpoint.path={checkpoint('bert')}"])


class Numbers:
    """Writes the numbers that scikit-learn's checks pass as texts. Without it they are all skipped: X is no matrix."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        assert (tags.requires_fit, tags.input_tags.string, tags.input_tags.two_d_array) == (False, True, False)
        tags.input_tags.string = tags.input_tags.one_d_array = False
        tags.input_tags.two_d_array = True
        return tags

    def fit(self, X: Any, y: Any = None) -> Any:
        validate_data(self, X)
        return super().fit(X)  # type: ignore[misc]

    def texts(self, X: Any) -> list[str]:
        return [" ".join(f"w{number:.0f}" for number in row) for row in validate_data(self, X, reset=False)]


class NumbersEmbedder(Numbers, TextEmbedder):
    def transform(self, X: Any) -> Any:
        return super().transform(self.texts(X))


class NumbersClassifier(Numbers, TextClassifier):
    """Predicts the places of labels, since the checks compare predictions as numbers."""

    @property
    def classes_(self) -> Any:
        return np.arange(len(super().classes_))

    def predict_proba(self, X: Any) -> Any:
        return TextClassifier(self.overrides).predict_proba(self.texts(X))


PRETRAINED = "the labels are the checkpoint's; it does not learn other ones, or anything, from y"
LEARNING = (
    "check_classifiers_classes",
    "check_classifiers_train",
    "check_classifiers_regression_target",
    "check_supervised_y_no_nan",
    "check_supervised_y_2d",
)


@pytest.mark.parametrize(
    ("estimator", "reasons"),
    [
        (NumbersEmbedder([f"checkpoint.path={checkpoint('bert')}"]), {}),
        (NumbersClassifier(), dict.fromkeys(LEARNING, PRETRAINED)),
    ],
    ids=["embedder", "classifier"],
)
@pytest.mark.filterwarnings("ignore")  # the checks themselves pass odd data
def test_the_checks_of_scikit_learn(estimator: Any, reasons: dict[str, str]) -> None:
    found = check_estimator(estimator, expected_failed_checks=reasons, on_fail=None, on_skip=None)
    by_status: dict[str, set[str]] = {}
    for check in found:
        by_status.setdefault(check["status"], set()).add(check["check_name"])
    assert by_status.pop("failed", set()) == set()
    assert by_status.pop("xfail", set()) == set(reasons), "a check that passes is not listed"
    assert by_status.pop("skipped") == {"check_array_api_input"}
    assert len(by_status.pop("passed")) > 35


def test_embeddings_are_those_of_the_pipeline() -> None:
    pipe = pipeline_of("sentence-embedding", checkpoint("bert"))
    found = embedder().fit_transform(pd.Series(TEXTS))
    assert (found.dtype, found.tolist()) == (np.float32, pipe.embed(TEXTS).tolist())
    assert embedder().transform(TEXTS).tolist() == found.tolist()
    assert embedder().get_feature_names_out()[:2].tolist() == ["textembedder0", "textembedder1"]
    frame = pd.DataFrame({"review": TEXTS, "stars": range(12)}, index=range(5, 17))
    columns = ColumnTransformer([("text", embedder(), "review")], remainder="passthrough").set_output(
        transform="pandas"
    )
    made = columns.fit_transform(frame)
    names = list(made)
    assert names[0] == "text__textembedder0"
    assert (names[-1], made.index.tolist()) == ("remainder__stars", frame.index.tolist())
    with pytest.raises(pk.ExampleError, match=r"one dimension, this one has 2; .*array\[:, 0\]"):
        embedder().transform(np.array([TEXTS]))


def test_classifier() -> None:
    model, pipe = TextClassifier().fit(TEXTS, LABELS), pk.load("postprocessor.top_k=null")
    assert model.classes_.tolist() == ["NEGATIVE", "POSITIVE"]
    scores = [{entry["label"]: entry["score"] for entry in result["labels"]} for result in pipe(TEXTS)]
    assert model.predict_proba(TEXTS).tolist() == [[score["NEGATIVE"], score["POSITIVE"]] for score in scores]
    assert model.predict(TEXTS).tolist() == [result["label"] for result in pk.load()(TEXTS)]
    assert model.score(TEXTS, LABELS) == 1.0
    assert (model.predict([]).shape, model.predict_proba([]).shape) == ((0,), (0, 2))
    assert TextClassifier("tokenizer=tokenizers_json").predict(TEXTS).tolist() == model.predict(TEXTS).tolist()
    with pytest.raises(UsageError, match=r"scores every label: leave postprocessor\.thresholds out"):
        TextClassifier(["postprocessor.thresholds={POSITIVE: 0.9}"]).fit(TEXTS)
    with pytest.raises(ValueError, match="y has the labels 0, 1; the checkpoint's are NEGATIVE, POSITIVE"):
        model.fit(TEXTS, np.array([0, 1] * 6))


def test_a_classifier_of_labels_of_your_own() -> None:
    folder = checkpoint("bert", head="sequence-classification", labels=["contradiction", "entailment"])
    overrides = ["task=zero-shot-classification", f"checkpoint.path={folder}", "postprocessor.labels=[sport,art]"]
    model = TextClassifier(overrides).fit(TEXTS)
    assert model.classes_.tolist() == ["art", "sport"]
    np.testing.assert_allclose(model.predict_proba(TEXTS).sum(axis=1), 1)


def test_clones_pickles_pipelines_and_searches() -> None:
    steps = make_pipeline(embedder(), LogisticRegression()).fit(TEXTS, LABELS)
    assert clone(steps).get_params()["textembedder__overrides"] == embedder().overrides
    data = pickle.dumps(steps)
    assert len(data) < 20_000, "no weights"
    assert pickle.loads(data).predict(TEXTS).tolist() == steps.predict(TEXTS).tolist()
    base = embedder().overrides
    grid = {"embed__overrides": [[*base, "postprocessor.pooling=cls"], [*base, "postprocessor.dimensions=1"]]}
    search = GridSearchCV(Pipeline([("embed", embedder()), ("learn", LogisticRegression())]), grid, cv=2)
    search.fit(TEXTS, LABELS)
    assert search.best_params_["embed__overrides"] in grid["embed__overrides"]
    assert [len(scores) for scores in (search.cv_results_["split0_test_score"], search.cv_results_["params"])] == [2, 2]
    over = GridSearchCV(TextClassifier(), {"overrides": [["postprocessor.function=none"], []]}, cv=2).fit(TEXTS, LABELS)
    assert over.best_score_ == 1.0


def test_a_pipeline_is_loaded_once_until_its_checkpoint_changes(tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("bert"), tmp_path / "model")
    one, two = (TextEmbedder([f"checkpoint.path={folder}"]) for _ in range(2))
    first = one._pipe()
    assert two._pipe() is clone(one)._pipe() is first
    os.utime(folder / "config.json")
    assert one._pipe() is not first
    assert one._pipe() is two._pipe()
    for length in (7, 8):
        TextEmbedder([*one.overrides, f"tokenizer.max_length={length}"])._pipe()
    assert len(pipeline_kit.sklearn._loaded) == 2


def test_without_scikit_learn_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    spec = importlib.util.spec_from_file_location("again", str(pipeline_kit.sklearn.__file__))
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(UsageError, match=r"needs scikit-learn: pip install 'pipeline-kit\[sklearn\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
