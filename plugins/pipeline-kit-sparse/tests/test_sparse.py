"""The task on a tiny SPLADE checkpoint: equal to sentence-transformers, and known to every command."""

from __future__ import annotations

import json
import math
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pk_sparse
import pytest
from pk_sparse import SparseConfig
from pk_sparse.stage import SparseEmbedding, SparseEvaluator

import pipeline_kit as pk
from pipeline_kit.kit import CheckpointError, EvaluationContext
from pipeline_kit.testing import PostprocessorConformance, tiny_checkpoint, tiny_stage_context

TEXTS = ["I love this film.", "a", "It was a terrible film, and the plot was dull!", "Grüße aus Köln 🙂 漢字"]
PLUGIN = ["pk_sparse"]


class TestConformance(PostprocessorConformance):
    stage = "sparse"
    register = pk_sparse.register

    def forward(self, batch: Any, device: Any = None) -> Any:
        output = super().forward(batch, device)
        return type(output)({"logits": output["last_hidden_state"]}, frozenset({"logits"}))


class TestSums(TestConformance):
    options: ClassVar[Mapping[str, Any]] = {"pooling": "sum", "activation": "log1p_relu", "top_k": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("splade") / "plain", "bert", head="masked-lm", max_positions=48)


def load(folder: Path, *overrides: str) -> pk.Pipeline:
    return pk.load("task=sparse-embedding", f"checkpoint.path={folder}", "device=cpu", *overrides, plugins=PLUGIN)


def dense(results: Sequence[Mapping[str, Any]], width: int) -> np.ndarray[Any, Any]:
    rows = np.zeros((len(results), width))
    for row, result in zip(rows, results, strict=True):
        for term in result["terms"]:
            row[term["id"]] = term["weight"]
    return rows


@pytest.mark.parametrize(("pooling", "activation"), [("max", "relu"), ("sum", "relu"), ("max", "log1p_relu")])
@pytest.mark.filterwarnings("ignore")
def test_embeddings_are_those_of_sentence_transformers(
    folder: Path, tmp_path: Path, pooling: Any, activation: Any
) -> None:
    st = pytest.importorskip("sentence_transformers.sparse_encoder")
    from sentence_transformers.base.modules import Transformer

    parts = [Transformer(str(folder), transformer_task="fill-mask"), st.modules.SpladePooling(pooling, activation)]
    encoder = st.SparseEncoder(modules=parts, device="cpu")
    encoder.save_pretrained(str(tmp_path / "saved"))
    wanted = np.stack([encoder.encode([text], show_progress_bar=False).to_dense()[0].numpy() for text in TEXTS])
    assert len({len(row.nonzero()[0]) for row in wanted}) > 1
    found = load(tmp_path / "saved")(TEXTS)
    np.testing.assert_allclose(dense(found, wanted.shape[1]), wanted, atol=1e-5, rtol=0)
    for result in found:
        weights = [term["weight"] for term in result["terms"]]
        assert weights == sorted(weights, reverse=True)
        assert min(weights) > 0


def test_the_heaviest_terms_and_windows_of_a_long_text(folder: Path) -> None:
    whole = load(folder)(TEXTS[2])["terms"]
    assert load(folder, "postprocessor.top_k=3")(TEXTS[2])["terms"] == whole[:3]
    assert load(folder, "postprocessor=sparse_small")(TEXTS[2])["terms"] == whole[:64]
    long = " ".join(TEXTS[2:3] * 9)
    split = load(folder, "tokenizer.overflow=window")(long)
    assert split["windows"] > 1
    parts = load(folder, "tokenizer.overflow=truncate")(long)
    kept = {term["id"]: term["weight"] for term in split["terms"]}
    assert all(kept[term["id"]] >= term["weight"] - 1e-6 for term in parts["terms"]), "each window may add to it"


def test_an_unknown_pooling_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "1_SpladePooling").mkdir()
    (tmp_path / "modules.json").write_text('[{"path": "1_SpladePooling", "type": "x.SpladePooling"}]')
    (tmp_path / "1_SpladePooling" / "config.json").write_text('{"pooling_strategy": "median"}')
    context = tiny_stage_context()
    object.__setattr__(context.checkpoint, "path", tmp_path)
    with pytest.raises(CheckpointError, match="pooling_strategy 'median', which is not one of max, sum"):
        SparseEmbedding(SparseConfig(), context)


Command = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run ``pipeline-kit WORDS`` with the plugin in this process; return stdout of a success, stderr of a failure."""

    def run(*words: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["pipeline-kit", *words, "--plugin", "pk_sparse"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("pipeline_kit", run_name="__main__")
        out, err = capsys.readouterr()
        assert (ended.value.code or 0) == code, err
        return err if code else out

    return run


def test_it_is_listed_and_shown_with_an_example(command: Command) -> None:
    [row] = [line for line in command("ls", "task").splitlines() if "sparse-embedding" in line]
    assert row.split()[:4] == ["task", "sparse-embedding", "text", "terms"]
    shown = json.loads(command("show", "task/sparse-embedding", "--json"))
    assert (
        shown["run"] == 'pipeline-kit run task=sparse-embedding checkpoint.path=./my-splade --text "I love this film."'
    )
    assert (shown["head"], shown["parameters"]) == ("masked-lm", "postprocessor.top_k")


def test_validate_finds_a_checkpoint_without_the_head(command: Command, folder: Path) -> None:
    assert command("validate", "task=sparse-embedding", f"checkpoint.path={folder}") == "ok\n"
    assert "has no masked-lm head" in command("validate", "task=sparse-embedding", code=2)


def test_a_job_writes_typed_columns(command: Command, folder: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    words = ["run", "task=sparse-embedding", f"checkpoint.path={folder}", "--input", str(tmp_path / "in.jsonl"), "-q"]
    command(*words, "--output", str(tmp_path / "out"), "output.format=parquet")
    [shard] = (tmp_path / "out").rglob("*.parquet")
    table = parquet.read_table(shard)
    term = "struct<token: string, id: int64, weight: float>"
    assert str(table.schema.field("terms").type) == f"list<element: {term}>"
    assert table.column_names == ["id", "terms", "truncated", "truncated_chars", "windows"]
    assert table.num_rows == len(TEXTS)
    assert "…" in command(*words[:3], "--text", TEXTS[0], "--format", "table"), "the heaviest terms on a terminal"


def test_texts_that_are_alike_are_judged_by_their_dot_product(command: Command, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    evaluator = SparseEvaluator(EvaluationContext("sparse-embedding"))
    terms = [[{"id": 1, "weight": 2.0}, {"id": 2, "weight": 1.0}], [{"id": 2, "weight": 0.5}, {"id": 3, "weight": 9.0}]]
    assert evaluator.score([{"terms": terms[0]}, {"terms": terms[1]}]) == 0.5
    pairs = [(TEXTS[0], TEXTS[0], 5), (TEXTS[0], TEXTS[1], 1), (TEXTS[2], TEXTS[3], 2)]
    rows = [{"text": one, "text_pair": other, "label": label} for one, other, label in pairs]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--input", str(tmp_path / "in.jsonl"), "task=sparse-embedding", f"checkpoint.path={folder}", "--json"]
    found = json.loads(command("evaluate", *words, "postprocessor.top_k=1"))
    pipe = load(folder)
    dots = [float(np.prod(dense(pipe([one, other]), 400), axis=0).sum()) for one, other, _ in pairs]
    labels = [label for _, _, label in pairs]
    assert found["metrics"]["pearson"] == pytest.approx(np.corrcoef(labels, dots)[0, 1], abs=1e-5)


def test_explain_shows_where_each_weight_comes_from(folder: Path) -> None:
    pipe = load(folder)
    [row] = pipe.explain([TEXTS[0]]).rows
    [panel] = row.panels["postprocessor"]
    result = pipe(TEXTS[0])["terms"]
    assert len(result) > 50, "the rest is left out, with a note"
    assert f"{len(result) - 50} more terms" in panel.note
    assert [row[0] for row in panel.rows] == [term["token"] for term in result[:50]]
    for _, _, _, _, logit, weight in panel.rows:
        assert weight == pytest.approx(math.log1p(max(logit, 0.0)), abs=1e-6)


def test_tune_compares_engines_on_it(command: Command, folder: Path) -> None:
    texts = [word for text in TEXTS for word in ("--text", text)]
    words = ["tune", "task=sparse-embedding", f"checkpoint.path={folder}", "device=cpu", *texts, "--repeats", "1"]
    report = json.loads(command(*words, "--format", "jsonl", "--minutes", "0.05", "-q"))
    assert report["trials"][0]["agreement"] == 1.0
    assert report["texts"]["rows"] == len(TEXTS)
