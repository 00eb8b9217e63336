"""``pipeline-kit bench``: flags, sides, texts, the report as JSON, table and plot."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import checkpoint, cli

from pipeline_kit.bench import machine, measure
from pipeline_kit.bench.plot import check_plot, draw_plot, write_plot
from pipeline_kit.cli import texts as bench_texts
from pipeline_kit.errors import OutputError, UsageError

ENTITIES = ("tokenizer.overflow=truncate", "postprocessor.aggregation=none")
TINY = f"checkpoint.path={checkpoint()}"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure next to nothing, on a machine that is always idle."""
    monkeypatch.setattr(measure, "LATENCY_TEXTS", 3)
    monkeypatch.setattr(machine, "load_per_cpu", lambda: 0.0)


def bench(*argv: str, code: int = 0) -> tuple[dict[str, Any], str]:
    """Run on few texts; return the report and what stderr said."""
    done = cli("bench", "--repeats", "2", *argv)
    assert done.code == code, done.err
    [line] = done.out.splitlines()
    return json.loads(line), done.err


def test_a_sample_is_measured_and_the_report_says_all() -> None:
    report, err = bench("--rows", "6", TINY)
    [side] = report["sides"]
    assert report["texts"] == {"source": "short", "rows": 6, "left_out": 0, "characters": report["texts"]["characters"]}
    assert (report["repeats"], report["order"], report["ratios"]) == (2, [["as given"], ["as given"]], [])
    assert len(side["seconds"]["rounds"]) == 2
    assert side["latency_ms"]["texts"] == 3
    assert side["memory"]["peak_bytes"] > 0
    assert 0 <= side["padding_share"] < 1
    assert side["tokens"] < side["slots"] or side["padding_share"] == 0
    assert side["pipeline"]["model"]["name"] == "hf"
    assert side["pipeline"]["device"] == report["sides"][0]["pipeline"]["device"]
    assert "as given: " in err
    assert bench("--rows", "2", "--quiet", TINY)[1] == ""


def test_other_pipelines_are_the_first_with_more_overrides() -> None:
    vs = ["--vs", "padding=max_length padding.max_length=64", "--vs", "", "--vs", ""]
    report, err = bench(*vs, "--rows", "6", "padding=none", "device.threads=1", TINY)
    names = ["as given", "padding=max_length padding.max_length=64", "the same again", "the same again (2)"]
    assert [side["name"] for side in report["sides"]] == names
    assert [ratio["other"] for ratio in report["ratios"]] == names[1:]
    assert [side["pipeline"]["padding"]["name"] for side in report["sides"]] == ["none", "max_length", "none", "none"]
    assert {side["pipeline"]["device"]["threads"] for side in report["sides"]} == {1}
    assert report["sides"][1]["slots"] == 6 * 64
    assert report["order"] == [names, [*names[1:], names[0]]]
    for ratio in report["ratios"]:
        assert ratio["results"]["largest_score_difference"] < 1e-5
        assert ratio["results"]["same_label"] == 1
    assert "the same again: " in err


def test_every_side_has_its_own_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        report, _ = bench("-m", "device.threads=1,2", "--rows", "2", TINY)
    finally:
        torch.set_num_threads(before)
    assert [side["name"].split()[0] for side in report["sides"]] == ["device.threads=1", "device.threads=2"]
    assert [side["pipeline"]["device"]["threads"] for side in report["sides"]] == [1, 2]


@pytest.mark.parametrize(
    ("task", "head", "more"),
    [
        ("text-classification", "sequence-classification", ()),
        ("token-classification", "token-classification", ENTITIES),
        ("feature-extraction", "base", ()),
        ("fill-mask", "masked-lm", ()),
        ("zero-shot-classification", "sequence-classification", ("postprocessor.labels=[sport,art]",)),
    ],
)
def test_against_transformers_for_every_task_that_both_have(
    tmp_path: Path, task: str, head: str, more: tuple[str, ...]
) -> None:
    folder = checkpoint(head=head, labels=["contradiction", "neutral", "entailment"])
    vs = ["--vs", "transformers", "--vs", "transformers:4"]
    texts = ["--sample", "mixed", "--rows", "12"]
    report, _ = bench(*vs, *texts, f"checkpoint.path={folder}", f"task={task}", *more)
    first, plain, batched = report["sides"]
    assert (plain["name"], batched["name"]) == ("pipeline()", "pipeline() batch 4")
    assert first["tokens"] == plain["tokens"] == batched["tokens"]  # texts are cut at the same length
    assert plain["padding_share"] <= batched["padding_share"]
    assert batched["pipeline"]["batch_size"] == 4
    found = report["ratios"][1]["results"]
    if task != "feature-extraction":
        assert found["rows"] == 12
        assert found["largest_score_difference"] < 1e-5
        assert found["same_label"] == 1


def test_transformers_gets_pairs_and_the_length_limit() -> None:
    pair = ["--json", '{"text": "I love this film a lot, really", "text_pair": "me too"}']
    report, _ = bench(*pair, "--vs", "transformers:2", "tokenizer.max_length=8", TINY)
    assert [side["tokens"] for side in report["sides"]] == [8, 8]
    assert report["sides"][1]["pipeline"]["max_length"] == 8
    assert report["ratios"][0]["results"]["largest_score_difference"] < 1e-5


def test_the_users_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_texts, "GIVEN_ROWS", 3)
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(f'{{"body": "number {i}"}}\n' for i in range(4)) + "no json\n")
    columns = ["--input", str(path), "--fields", "text=body", TINY]
    report, _ = bench(*columns)
    assert (report["texts"]["source"], report["texts"]["rows"]) == ("given", 3)
    assert report["notes"][0].startswith("the first 3 rows of the input were taken")
    report, _ = bench("--rows", "9", *columns)
    assert report["texts"]["rows"] == 4
    assert "1 rows could not be read, such as row 4" in report["notes"][0]
    assert bench("--text", "a", "--text", "b", TINY)[0]["texts"]["characters"] == 2


def test_texts_that_fail_are_left_out_and_the_exit_code_says_so() -> None:
    rows = ["--text", "a", "--json", '{"text": 5}', "--vs", "transformers"]
    report, _ = bench(*rows, TINY, code=1)
    assert (report["texts"]["rows"], report["texts"]["left_out"]) == (1, 1)
    assert "the field 'text' is int" in cli("bench", "--json", '{"text": 5}', TINY).err


def test_transformers_is_refused_for_a_task_it_lacks(tmp_path: Path) -> None:
    folder = checkpoint(head="base")
    err = cli("bench", "--vs", "transformers", "task=sentence-embedding", f"checkpoint.path={folder}").err
    assert "--vs transformers: not for task=sentence-embedding; it is for text-classification, token-class" in err


def test_one_list_of_labels_for_transformers(tmp_path: Path) -> None:
    folder = checkpoint(labels=["contradiction", "neutral", "entailment"])
    rows = [word for labels in ("ab", "cd") for word in ("--json", json.dumps({"text": "x", "labels": [*labels]}))]
    options = ["--vs", "transformers", "task=zero-shot-classification", f"checkpoint.path={folder}"]
    assert "takes the same candidate labels for all texts" in cli("bench", *rows, *options).err


def test_table() -> None:
    done = cli("bench", "--rows", "3", "--repeats", "1", "--format", "table", "--vs", "padding=none", TINY)
    out, err = done.out, done.err
    for word in ("the first is", "tokens/s", "p99 ms", "peak MiB", "padding=none", "1 round,"):
        assert word in out
    assert "'padding=none' scores differ from the first's by" in out
    assert "note: fewer than 3 rounds" in out
    assert "tokens/s" not in err
    assert max(map(len, out.partition("3 texts")[0].splitlines())) <= 80


def test_output_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    done = cli("bench", "--rows", "2", "--output", path, TINY)
    assert (done.code, done.out, "as given: " in done.err) == (0, "", True)
    assert json.loads(path.read_text())["texts"]["rows"] == 2
    assert cli("bench", "--output", tmp_path / "none" / "report.json", TINY).code == 1


def test_plot(tmp_path: Path) -> None:
    path = tmp_path / "speed.png"
    report, _ = bench("--rows", "3", "--vs", "padding=none", "--plot", str(path), TINY)
    assert path.read_bytes().startswith(PNG)
    assert [item.name for item in tmp_path.iterdir()] == ["speed.png"]
    axes = draw_plot(report).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [
        side["tokens_per_second"]["median"] for side in report["sides"]
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["as given", "padding=none"]
    ratio = report["ratios"][0]["first_is_faster_by"]
    assert f"first is {ratio['median']:.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f})" in axes.texts[1].get_text()
    assert "tokens/s" in axes.get_xlabel()
    report["sides"][1]["tokens"] += 1
    assert "texts/s" in draw_plot(report).axes[0].get_xlabel()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError, match=r"folder\.png: is a folder"):
        write_plot(report, tmp_path / "folder.png")
    assert len(list(tmp_path.iterdir())) == 2


def test_a_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pipeline_kit.bench.plot.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'pipeline-kit\[plot\]'"):
        check_plot(str(tmp_path / "a.png"))
    assert importlib.util.find_spec("matplotlib") is not None
