"""Reads a scikit-learn classifier from a folder: a skops file, or a pickle where the user trusts it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from pipeline_kit.kit import Checkpoint, CheckpointError, for_message

MAX_BYTES = 4 << 30
"""What a file may unpack to."""

_LOADERS = frozenset(
    {"CachedNode", "DictNode", "JsonNode", "ListNode", "LossNode", "NdArrayNode", "ObjectNode", "SetNode"}
    | {"SparseMatrixNode", "TupleNode", "TypeNode"}
)
_TYPES = frozenset(
    {"builtins.bool", "builtins.dict", "builtins.float", "builtins.frozenset", "builtins.int", "builtins.list"}
    | {"builtins.set", "builtins.str", "builtins.tuple", "scipy.sparse._csr.csr_matrix"}
    | {"sklearn._loss._loss.CyHalfBinomialLoss", "sklearn.feature_extraction.text.CountVectorizer"}
    | {"sklearn.feature_extraction.text.TfidfTransformer", "sklearn.feature_extraction.text.TfidfVectorizer"}
    | {"sklearn.linear_model._logistic.LogisticRegression", "sklearn.linear_model._stochastic_gradient.SGDClassifier"}
    | {"sklearn.naive_bayes.BernoulliNB", "sklearn.naive_bayes.ComplementNB", "sklearn.naive_bayes.MultinomialNB"}
    | {
        "sklearn.pipeline.Pipeline",
        "sklearn.preprocessing._data.MaxAbsScaler",
        "sklearn.preprocessing._data.Normalizer",
    }
)
"""What a skops file may be made of, beside numpy's arrays and numbers: skops itself takes far more, and so does numpy
in its submodules."""

_CONVERT = (
    "If you trust the file, convert it once, where you trust it:\n"
    "  python -c \"import joblib, skops.io; skops.io.dump(joblib.load('{name}'), 'model.skops')\"\n"
    "and remove it from the folder; or set checkpoint.trust=pickle on the command line to open it each time"
)


@dataclass(frozen=True)
class Classifier:
    """A fitted text classifier in its three parts.

    :param vectorizer: a ``CountVectorizer`` or ``TfidfVectorizer``.
    :param steps: what changes its counts, in order: ``TfidfTransformer``, ``MaxAbsScaler`` …
    :param classifier: what has ``predict_proba``.
    """

    vectorizer: Any
    steps: tuple[Any, ...]
    classifier: Any

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in the order of ``predict_proba``."""
        return tuple(str(label) for label in self.classifier.classes_)

    @property
    def size(self) -> int:
        """How many terms the vocabulary has; their ids are 0 to one less."""
        return len(self.vectorizer.vocabulary_)


def settings_of(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Return what stands for ``config.json``: the labels, the size of the vocabulary, the id of padding.

    :raises CheckpointError: as :func:`read_classifier`.
    """
    found = read_classifier(checkpoint)
    names = {str(place): label for place, label in enumerate(found.labels)}
    return {"model_type": "sklearn", "id2label": names, "vocab_size": found.size, "pad_token_id": found.size}


def read_classifier(checkpoint: Checkpoint) -> Classifier:
    """Read the classifier of a folder that was scanned.

    :raises CheckpointError: if there is no file, or more than one, it cannot be read, is of a type that is not listed
        above, or is not a fitted text classifier.
    """
    path = _file(checkpoint)
    stat = path.stat()
    loaded = _cached(path, stat.st_mtime_ns, stat.st_size)
    try:
        return _parts(path, loaded)
    except CheckpointError:
        raise
    except Exception as error:  # one that is not fitted, or whose parts do not fit
        raise CheckpointError(
            f"{path} cannot be run: {type(error).__name__}: {for_message(str(error), 300)}"
        ) from error


def _file(checkpoint: Checkpoint) -> Path:
    folder = checkpoint.path
    safe = sorted(folder.glob("*.skops"))
    if len(safe) == 1:
        return safe[0]
    if safe:
        names = ", ".join(for_message(path.name, 60) for path in safe[:5])
        raise CheckpointError(f"{folder} holds {len(safe)} skops files ({names}); a classifier's folder holds one")
    pickles = sorted(path for suffix in ("joblib", "pkl", "pickle") for path in folder.glob(f"*.{suffix}"))
    if not pickles:
        raise CheckpointError(
            f"{folder} holds no skops file, which model=sklearn reads. Write one where the classifier was trained: "
            "skops.io.dump(pipeline, 'model.skops')"
        )
    if checkpoint.trust != "pickle":
        name = for_message(pickles[0].name, 60)
        raise CheckpointError(f"{folder} holds no skops file but {name}. {_CONVERT.format(name=name)}")
    return pickles[0]


@lru_cache(maxsize=1)
def _cached(path: Path, changed: int, size: int) -> Any:
    """Read a file once for both stages and the check before them."""
    del changed, size
    try:
        if path.suffix == ".skops":
            _audit(path)
            import skops.io

            return skops.io.load(path, trusted=[])
        import joblib

        return joblib.load(path)  # the user trusts it by checkpoint.trust=pickle
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # whatever a broken file sets off in skops, numpy, scipy or scikit-learn
        raise CheckpointError(
            f"{path} cannot be read: {type(error).__name__}: {for_message(str(error), 300)}"
        ) from error


def _audit(path: Path) -> None:
    """Refuse a file with any type that no text classifier of ours is made of, before skops sees it."""
    try:
        with ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                raise CheckpointError(f"{path} unpacks to more than {MAX_BYTES >> 30} GB")
            schema = json.loads(archive.read("schema.json"))
    except (BadZipFile, KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a skops file: {for_message(str(error), 200)}") from error
    for loader, name in _nodes(schema):
        if loader not in _LOADERS or not (name in _TYPES or name.rpartition(".")[0] == "numpy"):
            known = ", ".join(sorted(t.rpartition(".")[2] for t in _TYPES if t.startswith("sklearn.")))
            raise CheckpointError(
                f"{path} holds a {for_message(name, 120)}, which model=sklearn does not load; it takes a Pipeline of "
                f"{known}"
            )


def _nodes(schema: Any) -> Iterator[tuple[str, str]]:
    """Yield the loader and the type of each object in a schema, at any depth."""
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if "__loader__" in node or "__class__" in node:
                yield str(node.get("__loader__")), f"{node.get('__module__')}.{node.get('__class__')}"
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _parts(path: Path, loaded: Any) -> Classifier:
    """Take a pipeline apart, and try it once.

    :raises CheckpointError: if it is not a fitted text classifier.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.pipeline import Pipeline

    steps = [step for _, step in loaded.steps] if isinstance(loaded, Pipeline) else []
    first, last = (steps[0], steps[-1]) if len(steps) > 1 else (None, loaded)
    if not isinstance(first, CountVectorizer):
        kind = type(loaded if first is None else first).__name__
        raise CheckpointError(
            f"{path} begins with a {kind}; model=sklearn takes a Pipeline of a CountVectorizer or TfidfVectorizer and "
            "a classifier"
        )
    if first.input != "content":
        raise CheckpointError(
            f"{path} has a vectorizer with input='{for_message(first.input, 60)}', which reads the files that texts "
            "name; train one with input='content'"
        )
    if not hasattr(last, "predict_proba"):
        raise CheckpointError(
            f"{path} ends with a {type(last).__name__} without predict_proba; train one that has it, such as "
            "LogisticRegression"
        )
    found = Classifier(first, tuple(step for step in steps[1:-1] if step not in (None, "passthrough")), last)
    shape = np.shape(loaded.predict_proba(["a"]))
    if shape != (1, len(found.labels)) or sorted(first.vocabulary_.values()) != list(range(found.size)):
        raise CheckpointError(f"{path} is not a classifier with one probability for each class")
    return found
