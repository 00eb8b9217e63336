"""A task of a plugin is known to every command by its name, as the built-in ones are."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fake_plugins import TASK, install
from harness import checkpoint, cli

import pipeline_kit as pk
from pipeline_kit.builtin.tasks.options import ClassificationConfig
from pipeline_kit.compose import plugins as discovery
from pipeline_kit.compose.compose import complete, compose
from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.contract.registry import Registry
from pipeline_kit.errors import ConfigError, RegistryError
from pipeline_kit.evaluate.likeness import compare_results
from pipeline_kit.testing import PostprocessorConformance

TINY = f"checkpoint.path={checkpoint()}"


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    (tmp_path / "moods.py").write_text(TASK)
    return str(tmp_path / "moods.py")


def out(*words: object, code: int = 0) -> str:
    """Return stdout of a success, stderr of a failure."""
    done = cli(*words)
    assert (done.code, "Traceback" in done.err) == (code, False), done.err
    return done.err if code else done.out


def test_it_is_listed_shown_and_completed(plugin: str) -> None:
    rows = {row["name"]: row for row in json.loads(out("ls", "task", "--json", "--plugin", plugin))["stages"]}
    assert rows["mood-detection"] == {
        "kind": "task",
        "name": "mood-detection",
        "takes": "text, tone?",
        "gives": "mood, logits, moods",
        "from": plugin,
        "summary": "The mood of a text.",
    }
    assert rows["mood-of"]["summary"] == "another name of mood-detection"
    assert rows["mood-of"]["takes"] == "text, tone?"
    text = out("show", "task/mood-of", "--plugin", plugin)
    assert 'pipeline-kit run task=mood-of --text "I love this."' in text
    assert "postprocessor.loud=true" in text
    assert 'pipeline-kit run task=even-moods --text "I love this."' in out(
        "show", "postprocessor/mood", "--plugin", plugin
    ), "a stage is tried with the task that it belongs to"
    registry = load_registry([plugin])
    assert complete("task=mood-", registry) == ["task=mood-detection", "task=mood-of"]
    with pytest.raises(ConfigError, match="Did you mean 'mood-detection'"):
        compose(["task=mood-detecton"], registry=registry)


def test_it_runs_with_its_fields_and_its_cells(plugin: str) -> None:
    words = ("run", TINY, "--plugin", plugin, "--json", '{"text": "good", "tone": "sad "}', "-q")
    result = json.loads(out(*words, "task=mood-of", "postprocessor.loud=true"))
    assert list(result) == ["mood", "logits", "moods"]
    assert result["mood"].isupper()
    table = out(*words, "task=mood-detection", "--format", "table")
    assert f"({result['mood'].lower()})" in table
    assert "moods" not in table
    pipe = pk.load("task=mood-of", TINY, plugins=[plugin])
    assert pipe.description["task"] == "mood-detection"


def test_its_columns_are_typed_and_no_others_are_there(plugin: str, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("good\nbad\n")
    words = ("run", TINY, "task=mood-detection", "--plugin", plugin, "--input", tmp_path / "in.txt", "-q")
    out(*words, "--output", tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["mood", "logits", "moods", "truncated", "truncated_chars", "windows", "error"]
    assert str(table.schema.field("logits").type) == "list<element: float>"
    assert str(table.schema.field("moods").type) == "list<element: struct<name: string, points: double>>"
    out(*words, "--output", tmp_path / "job", "output.vectors=npy")
    assert list((tmp_path / "job").rglob("*.npy"))


def test_it_is_evaluated_with_fields_of_the_evaluator(plugin: str, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    rows = [{"text": text, "who": "me", "label": "negative"} for text in ("good", "bad", "a film")]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("evaluate", TINY, "--plugin", plugin, "--input", tmp_path / "in.jsonl", "--json", "task=mood-of")
    report = json.loads(out(*words))
    found = pk.load("task=mood-of", TINY, plugins=[plugin])([row["text"] for row in rows])
    assert report["metrics"]["hits"] == sum(result["mood"] == "negative" for result in found) / 3
    assert "the first label was negative" in report["notes"]
    err = out(*words[:-1], "task=even-moods", code=2)
    assert "task 'even-moods' cannot be evaluated; these can: " in err
    assert "mood-detection" in err


def test_heads_of_its_own_and_heads_that_are_missing(plugin: str) -> None:
    assert out("validate", "task=even-moods", TINY, "--plugin", plugin) == "ok\n"
    assert {r["points"] for r in pk.load("task=even-moods", TINY, plugins=[plugin])("a")["moods"]} == {0.0}
    err = out("validate", "task=odd-moods", TINY, "--plugin", plugin, code=2)
    assert "task=odd-moods: it needs the head 'odd-head', which model=hf does not have." in err
    assert "masked-lm" in err
    err = out("validate", "task=mood-detection", "model=even", TINY, "--plugin", plugin, code=2)
    assert "needs the head 'sequence-classification', which model=even does not have" in err
    masked = f"checkpoint.path={checkpoint(head='masked-lm')}"
    err = out("validate", "task=mood-detection", masked, "--plugin", plugin, code=2)
    assert "has no sequence-classification head. It has a masked-lm head" in err
    assert out("validate", "task=mood-detection", "checkpoint.path=org/not-here", "--plugin", plugin) == "ok\n"
    explained = out("explain", "task=even-moods", TINY, "--plugin", plugin, "--text", "a")
    assert "even-moods" in explained.splitlines()[0] + explained.splitlines()[1]


def test_lists_that_stand_best_first_may_change_their_order(plugin: str) -> None:
    pipe = pk.load("task=mood-detection", TINY, plugins=[plugin])
    moods = [{"name": name, "points": 0.5} for name in "abc"]
    mine, theirs = [{"moods": moods}], [{"moods": [moods[0], moods[2], moods[1]]}]
    assert compare_results(mine, theirs, pipe.postprocessor.best_first).agreement == 1.0
    assert compare_results(mine, [{"moods": moods[::-1]}], pipe.postprocessor.best_first).agreement == 0.0


def test_an_installed_plugin_is_found_by_the_name_of_its_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "pk_moods", body=TASK.replace("__name__", '"pk_moods"'))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("PIPELINE_KIT_PLUGINS")
    discovery._entry_points.cache_clear()
    try:
        assert compose(["task=mood-of", TINY]).task.spec.source == "dist-of-moods 0.7"
    finally:
        discovery._entry_points.cache_clear()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('registry.task("x-y", "classificaton", head="base")', "its postprocessor 'classificaton' is not registered"),
        ('registry.task("x-y", "logits", head="base", model="hff")', "its model 'hff' is not registered. Did you mean"),
        (
            'registry.task("x-y", "pooling", head="base", parameters=["postprocessor.pool"])',
            "its parameter 'postprocessor.pool' is not an option of its stages. Did you mean 'postprocessor.pooling'",
        ),
        ('registry.task("ner", "logits", head="base")', "task=ner: registered twice: by pipeline-kit and by"),
        ('registry.task("X Y", "logits", head="base")', "task=X Y: is not a name of this kind"),
    ],
)
def test_a_wrong_registration_names_what_is_wrong(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(f"def register(registry):\n    {line}\n")
    with pytest.raises(RegistryError) as caught:
        load_registry([str(tmp_path / "wrong.py")])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        ({"label": "string", "score": "string"}, "`gives` names 'score' as string, and a result has 0."),
        ({"label": "string"}, "`gives` names label, and a result has label, score"),
        ({"label": "string", "score": "float64", "more": "string"}, "names label, score, more, and a result has label"),
        ({"label": "string", "score": "float64", "more?": "string"}, None),
        (None, None),
    ],
)
def test_the_suite_compares_results_with_their_columns(gives: Any, message: str | None) -> None:
    class Suite(PostprocessorConformance):
        stage = "mine"

        def register(registry: Registry) -> None:  # type: ignore[misc]
            target = "pipeline_kit.builtin.tasks.classification.stage:Classification"
            registry.postprocessor("mine", target, ClassificationConfig, gives=gives)

    with nullcontext() if message is None else pytest.raises(AssertionError, match=message):
        Suite().test_results_are_json()
