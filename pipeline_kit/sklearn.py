"""Pipelines as estimators of scikit-learn: a transformer that embeds texts, and a classifier.

Both are trained already: `fit` loads the pipeline and learns nothing. They take a column of texts, whatever a pipeline
takes, so in a ``ColumnTransformer`` name one column: ``("embed", TextEmbedder(), "review")``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline_kit import Pipeline, load
from pipeline_kit.errors import UsageError

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
except ModuleNotFoundError as error:
    raise UsageError("pipeline_kit.sklearn needs scikit-learn: pip install 'pipeline-kit[sklearn]'") from error

__all__ = ["TextClassifier", "TextEmbedder"]

MOST_LOADED = 2
_loaded: dict[tuple[Any, ...], tuple[int, Pipeline]] = {}
_turn = Lock()


def _pipeline(task: str, overrides: str | Sequence[str], plugins: Sequence[str], *more: str) -> Pipeline:
    """Load a pipeline, or return that of an estimator with the same parameters: a search clones hundreds of them.

    The last two are kept, and loaded anew once a file of their checkpoint has changed.
    """
    own = [overrides] if isinstance(overrides, str) else overrides
    key = ((f"task={task}", *own, *more), tuple(plugins))
    with _turn:
        written, pipe = _loaded.pop(key, (-1, None))
        if pipe is None or written != _written(pipe):
            pipe = load(*key[0], plugins=plugins)
        _loaded[key] = _written(pipe), pipe
        for old in list(_loaded)[:-MOST_LOADED]:
            del _loaded[old]
    return pipe


def _written(pipe: Pipeline) -> int:
    files = Path(pipe.description["checkpoint"]["path"]).rglob("*")
    return max((file.stat().st_mtime_ns for file in files if file.is_file()), default=0)


class _TextEstimator(BaseEstimator):  # type: ignore[misc]
    def __init__(self, overrides: str | Sequence[str] = (), plugins: Sequence[str] = ()) -> None:
        self.overrides = overrides
        self.plugins = plugins

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.string = tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        return tags


class TextEmbedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _TextEstimator):  # type: ignore[misc]
    """Texts to embeddings, with ``task=sentence-embedding``.

    :param overrides: as `pipeline_kit.load` takes them, ``["checkpoint.path=./my-model"]``. A search tries several:
        ``{"overrides": [["postprocessor.pooling=cls"], ["postprocessor.pooling=mean"]]}``.
    :param plugins: files or modules, as `pipeline_kit.load` takes them.
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # texts have none
        return tags

    def fit(self, X: Any, y: Any = None) -> TextEmbedder:
        """Load the pipeline; neither `X` nor `y` is looked at."""
        del X, y
        self._pipe()
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Return the embeddings of the texts `X`: float32 ``[N, H]``, as `Pipeline.embed` does."""
        return self._pipe().embed(X)

    @property
    def _n_features_out(self) -> int:
        return int(self._pipe().embed([]).shape[1])

    def _pipe(self) -> Pipeline:
        return _pipeline("sentence-embedding", self.overrides, self.plugins)


class TextClassifier(ClassifierMixin, _TextEstimator):  # type: ignore[misc]
    """Texts to the labels of a checkpoint that was trained for them, with ``task=text-classification``.

    :param overrides: as `pipeline_kit.load` takes them. With ``task=zero-shot-classification`` and
        ``postprocessor.labels=[a,b]`` the labels are your own.
    :param plugins: files or modules, as `pipeline_kit.load` takes them.
    """

    def fit(self, X: Any, y: Any = None) -> TextClassifier:
        """Load the pipeline and learn nothing; `X` is not looked at.

        :raises ValueError: if `y` has a label that the checkpoint does not know.
        """
        del X
        known = self.classes_.tolist()
        unknown = sorted({str(label) for label in ([] if y is None else y) if label not in known})
        if unknown:
            raise ValueError(f"y has the labels {', '.join(unknown[:9])}; the checkpoint's are {', '.join(known)}")
        return self

    @property
    def classes_(self) -> NDArray[Any]:
        """The labels, sorted: the columns of :meth:`predict_proba`."""
        return np.array(sorted({entry["label"] for entry in self._pipe()("a")["labels"]}))

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return each label's score, ``[N, L]`` in the order of `classes_`.

        The scores of a row sum to 1, but for a checkpoint with several labels for a text, whose scores are independent.
        """
        places = {label: place for place, label in enumerate(self.classes_.tolist())}
        rows = []
        for result in self._pipe().stream(X):
            rows.append([0.0] * len(places))
            for entry in result["labels"]:
                rows[-1][places[entry["label"]]] += entry["score"]
        return np.array(rows, np.float64).reshape(-1, len(places))

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the label with the highest score for each text, ``[N]``."""
        labels: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels

    def _pipe(self) -> Pipeline:
        pipe = _pipeline("text-classification", self.overrides, self.plugins, "postprocessor.top_k=null")
        if pipe.config["postprocessor"].get("thresholds"):
            raise UsageError(
                "a TextClassifier scores every label: leave postprocessor.thresholds out, and compare what "
                "predict_proba returns with them"
            )
        return pipe
