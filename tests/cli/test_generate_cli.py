"""``pipeline-kit run`` with tasks that write, and ``--stream``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from generate_helpers import TEMPLATE
from harness import checkpoint, cli, with_files

from pipeline_kit import load
from pipeline_kit.cli.app import main
from pipeline_kit.testing import tiny_checkpoint
from pipeline_kit.testing.checkpoints import tiny_translator

SHORT = "model.generation.max_new_tokens=6"
TALK = json.dumps({"messages": [{"role": "user", "content": "hi"}]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tiny_checkpoint(tmp_path_factory.mktemp("cli") / "checkpoint", "qwen2", head="causal-lm", seed=1)
    return with_files(found, tokenizer_config={"chat_template": TEMPLATE.replace("<s>", "").replace("</s>", "")})


@pytest.fixture(scope="module")
def words(folder: Path) -> list[str]:
    return ["task=text-generation", f"checkpoint.path={folder}", SHORT, "device=cpu"]


@pytest.mark.parametrize("example", [["--text", "I love this."], ["--json", TALK]])
def test_stream_prints_the_text(words: list[str], example: list[str]) -> None:
    text = json.loads(cli("run", *words, *example).out)["text"]
    done = cli("run", *words, *example, "--stream")
    assert (done.code, done.out, "warning" in done.err) == (0, text + "\n", False)


def test_stream_says_that_a_text_was_cut(words: list[str]) -> None:
    done = cli("run", *words, "--stream", "--text", "what a day " * 60)
    assert (done.code, "warning: the text was too long and was cut" in done.err) == (0, True)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--text", "a", "--text", "b"], "--stream takes one --text or --json, not 2"),
        (["--input", "x.txt"], "leave --input out"),
        (["--text", "a", "--output", "x.jsonl"], "leave --output out"),
        (["--text", "a", "--format", "jsonl"], "leave --format out"),
        (["--text", "a", "-m", "model.generation.seed=1,2"], "leave -m out"),
        (["--text", "a", "model.generation.num_beams=2"], "set model.generation.num_beams=1"),
    ],
)
def test_stream_refuses(words: list[str], more: list[str], message: str) -> None:
    done = cli("run", *words, "--stream", *more)
    assert (done.code, done.out.strip(), message in done.err) == (2, "", True), done.err


def test_stream_needs_a_model_that_writes() -> None:
    done = cli("run", "--stream", "--text", "a", f"checkpoint.path={checkpoint()}")
    assert (done.code, "HfModel does not return text in pieces" in done.err) == (2, True)


def test_a_bad_row_keeps_its_place(words: list[str], tmp_path: Path) -> None:
    lines = ['{"text": "I love it"}', '{"messages": []}', TALK, '{"words": 1}', '{"text": " "}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    done = cli("run", *words, "--input", tmp_path / "in.jsonl")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 1
    assert [list(row) for row in rows] == [["text"], ["error"], ["text"], ["error"], ["error"]]


@pytest.mark.parametrize("task", ["translation", "text2text-generation", "text2text"])
def test_languages_are_of_tasks_that_translate(tmp_path: Path, task: str) -> None:
    folder = tiny_translator(tmp_path / "x")
    pipe = load(f"task={task}", f"checkpoint.path={folder}", "task.src_lang=deu_Latn", "task.tgt_lang=eng_Latn", SHORT)
    assert pipe("I love it")["text"]


def test_other_tasks_have_no_languages(words: list[str]) -> None:
    done = cli("run", *words, "--text", "a", "task.src_lang=en")
    assert (done.code, "has no languages to choose from" in done.err) == (2, True)
    done = cli("run", "--text", "a", "task.src_lang=en")
    assert done.code == 0
    assert "note: task.src_lang and task.tgt_lang have no effect with task=text-class" in done.err


def test_nothing_is_written_but_the_result(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *words, "--text", "I love this.", "--quiet"]) == 0
    printed = capfd.readouterr()
    assert len(printed.out.splitlines()) == 1
    assert printed.err == ""
