"""The classifier of scikit-learn as a pipeline: the same probabilities, and what it refuses."""

from __future__ import annotations

import json
import runpy
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar
from zipfile import ZipFile

import joblib
import numpy as np
import pk_sklearn
import pytest
import skops.io
from pk_sklearn.files import settings_of
from pk_sklearn.stage import SklearnTokenizer
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.naive_bayes import ComplementNB, MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MaxAbsScaler
from sklearn.svm import LinearSVC

import pipeline_kit as pk
from pipeline_kit import ExampleError, StageContext
from pipeline_kit.kit import ENCODING_FIELDS, Checkpoint, CheckpointError, ConfigError, Device
from pipeline_kit.testing import ModelConformance, TokenizerConformance

TRAINED = [
    ("I love this good film.", "pos"),
    ("What a great plot, I love it!", "pos"),
    ("A good day for a film.", "pos"),
    ("I hate this film, and I would not see it again!", "neg"),
    ("An awful plot. Bad, bad, bad.", "neg"),
    ("A café that is not good.", "neg"),
    ("It rains.", "none"),
    ("The text is longer than the others.", "none"),
]
TEXTS = [
    *(text for text, _ in TRAINED),
    *(
        "",
        "nothing of it is known: xyzzy",
        "GOOD good Good film",
        "bad plot " * 400,
        "CAFE\u0301 \u0130stanbul good",
        "🙂 film",
    ),
]


def fitted(*steps: Any) -> Any:
    texts, labels = zip(*TRAINED, strict=True)
    return make_pipeline(*steps).fit(texts, labels)


def save(folder: Path, classifier: Any) -> Path:
    folder.mkdir(exist_ok=True)
    skops.io.dump(classifier, folder / "model.skops")
    return folder


def pipeline(folder: Path, *more: str) -> pk.Pipeline:
    return pk.load("checkpoint=sklearn", f"checkpoint.path={folder}", *more, plugins=["pk_sklearn"])


def refusal(folder: Path, *more: str) -> str:
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        pipeline(folder, *more)
    return str(caught.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tfidf = TfidfVectorizer(ngram_range=(1, 2), strip_accents="unicode")
    return save(tmp_path_factory.mktemp("sklearn"), fitted(tfidf, LogisticRegression()))


CLASSIFIERS: Mapping[str, Any] = {
    "tf-idf, bigrams": (TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression()),
    "counts, then tf-idf": (CountVectorizer(stop_words=["the", "a"]), TfidfTransformer(), ComplementNB()),
    "present or not": (CountVectorizer(binary=True, lowercase=False), MaxAbsScaler(), SGDClassifier(loss="log_loss")),
    "characters": (TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)), MultinomialNB()),
    "a group in the pattern": (CountVectorizer(token_pattern=r"(?u)\b(\w\w)\w*", dtype=np.float32), MultinomialNB()),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_scores_are_predict_proba(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of strange parameters, which are meant here
        classifier = fitted(*CLASSIFIERS[name])
    expected = classifier.predict_proba(TEXTS)
    pipe = pipeline(save(tmp_path, classifier), "postprocessor.top_k=null")
    for result, row in zip(pipe(TEXTS), expected, strict=True):
        scores = {item["label"]: item["score"] for item in result["labels"]}
        assert scores == pytest.approx(dict(zip(classifier.classes_, row, strict=True)), abs=1e-5)


def test_numbers_as_classes_are_labels_by_their_text(tmp_path: Path) -> None:
    texts = [text for text, _ in TRAINED]
    classifier = make_pipeline(CountVectorizer(), MultinomialNB()).fit(texts, [0, 0, 0, 1, 1, 1, 7, 7])
    assert pipeline(save(tmp_path, classifier))("bad plot")["label"] == "1"


def context(folder: Path, *, tokenizer: bool = False, head: str = "sequence-classification") -> StageContext:
    bare = Checkpoint(folder, "trained")
    checkpoint = Checkpoint(folder, "trained", settings_of(bare), own_format=True)
    found = StageContext(checkpoint, Device(), head, ENCODING_FIELDS)
    if not tokenizer:
        return found
    stage = SklearnTokenizer(pk_sklearn.SklearnTokenizerConfig(), found)
    return StageContext(checkpoint, Device(), head, ENCODING_FIELDS, tokenizer=stage)


class OnTrained:
    folder: ClassVar[Path]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def trained(cls, folder: Path) -> None:
        cls.folder = folder


class TestTokenizer(OnTrained, TokenizerConformance):
    stage = "sklearn"
    register = pk_sklearn.register
    options: ClassVar[Mapping[str, Any]] = {"max_length": 40}

    def context(self, device: Device | None = None) -> StageContext:
        del device
        return context(self.folder)


class TestModel(OnTrained, ModelConformance):
    stage = "sklearn"
    register = pk_sklearn.register
    tolerance = 1e-6

    def context(self, device: Device | None = None) -> StageContext:
        del device
        return context(self.folder, tokenizer=True)


def tokenizer(folder: Path, max_length: int | None = None) -> SklearnTokenizer:
    return SklearnTokenizer(pk_sklearn.SklearnTokenizerConfig(max_length), context(folder))


def test_tokens_are_terms_with_their_places(folder: Path) -> None:
    text = "A GOOD film: xyzzy plot"
    [found] = tokenizer(folder).encode([text])
    assert list(found.tokens or ()) == ["good", "film", "plot", "good film"]
    assert [text[begin:end] for begin, end in found.offsets or ()] == ["GOOD", "film", "plot", "GOOD film"]
    assert found.word_ids == [0, 1, 3, 0]
    assert tokenizer(folder).decode(found.input_ids) == "good film plot good film"


def test_places_are_right_where_a_letter_changes_its_length(folder: Path) -> None:
    text = "\u0130\u0130 CAFE\u0301 good"
    [found] = tokenizer(folder).encode([text])
    places = dict(zip(found.tokens or (), found.offsets or (), strict=True))
    assert text[slice(*places["good"])] == "good"
    assert text[slice(*places["cafe"])].startswith("CAFE")


def test_a_text_without_a_known_term_has_a_token_that_counts_nothing(folder: Path) -> None:
    stage = tokenizer(folder)
    [found] = stage.encode(["xyzzy"])
    assert found.input_ids == [stage.pad_token_id]
    assert found.special_tokens_mask == [1]


def test_what_is_cut_is_counted(folder: Path) -> None:
    [found] = tokenizer(folder, 2).encode(["good film, bad plot"])
    assert len(found.input_ids) == 2
    assert found.truncated > 0


def test_a_pair_is_refused(folder: Path) -> None:
    with pytest.raises(ExampleError, match="one text, not a pair"):
        tokenizer(folder).encode([{"text": "a", "text_pair": "b"}])


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((CountVectorizer(), LinearSVC()), "holds a sklearn.svm._classes.LinearSVC"),
        ((CountVectorizer(), FunctionTransformer(), MultinomialNB()), "FunctionTransformer"),
        ((HashingVectorizer(n_features=64), SGDClassifier(loss="log_loss")), "HashingVectorizer"),
        ((CountVectorizer(), SGDClassifier(loss="hinge")), "Hinge"),
        ((CountVectorizer(), TfidfTransformer()), "ends with a TfidfTransformer without predict_proba"),
    ],
)
def test_what_it_does_not_load(steps: Any, said: str, tmp_path: Path) -> None:
    assert said in refusal(save(tmp_path, fitted(*steps)))


def test_a_classifier_alone_or_not_fitted_is_refused(tmp_path: Path) -> None:
    assert "begins with a MultinomialNB" in refusal(save(tmp_path, MultinomialNB()))
    assert "cannot be run: NotFittedError" in refusal(save(tmp_path, make_pipeline(CountVectorizer(), MultinomialNB())))


def test_one_that_would_read_the_files_that_texts_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_text("good")
    classifier = fitted(CountVectorizer(), MultinomialNB())
    classifier.steps[0][1].input = "filename"
    assert "input='filename', which reads the files" in refusal(save(tmp_path / "model", classifier))


def test_steps_that_are_not_pairs_are_an_error_of_the_checkpoint(tmp_path: Path) -> None:
    classifier = fitted(CountVectorizer(), MultinomialNB())
    classifier.steps = [("count",)]
    assert "cannot be run: ValueError" in refusal(save(tmp_path, classifier))


@pytest.mark.parametrize(
    ("module", "name", "loader"),
    [("builtins", "getattr", "FunctionNode"), ("numpy.lib.npyio", "DataSource", "ObjectNode")],
)
def test_a_type_that_skops_would_take_is_refused_before_it_sees_it(
    module: str, name: str, loader: str, folder: Path, tmp_path: Path
) -> None:
    schema = json.loads(ZipFile(folder / "model.skops").read("schema.json"))
    node = {"__class__": name, "__module__": module, "__loader__": loader, "__id__": 7}
    schema["content"]["content"]["verbose"] = node
    with ZipFile(tmp_path / "model.skops", "w") as archive:
        archive.writestr("schema.json", json.dumps(schema))
    assert f"holds a {module}.{name}, which model=sklearn does not load" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"x" * 100])
def test_a_broken_file_is_an_error_of_the_checkpoint(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.skops").write_bytes(content)
    assert "is not a skops file" in refusal(tmp_path)


def test_a_folder_without_a_classifier(tmp_path: Path) -> None:
    assert "skops.io.dump(pipeline, 'model.skops')" in refusal(tmp_path)


def test_two_classifiers_are_one_too_many(folder: Path, tmp_path: Path) -> None:
    for name in ("a.skops", "b.skops"):
        (tmp_path / name).write_bytes((folder / "model.skops").read_bytes())
    assert "holds 2 skops files (a.skops, b.skops)" in refusal(tmp_path)


def test_the_two_stages_belong_together(folder: Path) -> None:
    with pytest.raises(ConfigError, match="add tokenizer=sklearn"):
        pk.load(
            f"checkpoint.path={folder}",
            "model=sklearn",
            "tokenizer=words",
            plugins=["pk_sklearn", "pipeline_kit.testing"],
        )
    assert "use task=text-classification" in refusal(folder, "task=sentence-embedding")


def test_a_pickle_is_opened_only_where_it_is_trusted(tmp_path: Path) -> None:
    classifier = fitted(CountVectorizer(), MultinomialNB())
    joblib.dump(classifier, tmp_path / "model.joblib")
    assert "pass the text 'checkpoint.trust=pickle'" in refusal(tmp_path)
    assert "skops.io.dump" in refusal(tmp_path, "checkpoint.unsafe_files=ignore")
    [result] = pipeline(tmp_path, "checkpoint.trust=pickle")(["bad plot"])
    assert result["label"] == "neg"


def logit_without_bias(folder: Path, text: str) -> float:
    classifier = skops.io.load(folder / "model.skops")
    features, last = classifier[:-1].transform([text]), classifier[-1]
    place = list(last.classes_).index("pos")
    return float((features @ last.coef_.T)[0, place])


def test_explain_shows_what_each_term_adds(folder: Path) -> None:
    trace = pipeline(folder).explain("a good film")
    [panel] = trace.batches[0].panels
    assert panel.title == "what each term adds to pos"
    assert sum(row[3] for row in panel.rows) == pytest.approx(logit_without_bias(folder, "a good film"))
    [tokens] = [sequence.tokens for sequence in trace.rows[0].sequences]
    assert [(token.text, token.start, token.end) for token in tokens] == [
        ("good", 2, 6), ("film", 7, 11), ("good film", 2, 11)
    ]  # fmt: skip


def ran(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run ``python -m pipeline_kit`` in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["pipeline-kit", *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("pipeline_kit", run_name="__main__")
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_command_line_runs_a_job_evaluates_and_tunes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(tmp_path)
    rows = [{"text": text, "label": label} for text, label in TRAINED]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--plugin", "pk_sklearn", "checkpoint=sklearn", f"checkpoint.path={folder}"]
    assert ran(monkeypatch, "run", *words, "--input", "rows.jsonl", "--output", "out", "output.format=parquet") == 0
    found = pq.read_table("out").to_pylist()
    expected = skops.io.load(folder / "model.skops").predict([row["text"] for row in rows])
    assert [row["label"] for row in found] == list(expected)
    capsys.readouterr()
    assert ran(monkeypatch, "evaluate", *words, "--input", "rows.jsonl", "--json") == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["accuracy"] == pytest.approx(
        np.mean(expected == [row["label"] for row in rows])
    )
