"""``run --retry``: rows that failed run again, each id in one place whatever interrupts it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from echo_job import EchoModel, content_of, dead_of, echo, job_config, lines_of, run_echo, write_rows

from pipeline_kit.cli.app import main
from pipeline_kit.compose.schema import PipelineConfig
from pipeline_kit.contract.types import ModelOutput, TokenBatch
from pipeline_kit.errors import UsageError
from pipeline_kit.job.run import JobSummary
from pipeline_kit.runtime.pipeline import Pipeline

OPTIONS = ("input.id=id", "job.max_failed_rows=null")


class Mended(EchoModel):
    """No longer minds ``~m``."""

    def forward(self, batch: TokenBatch) -> ModelOutput:
        return ModelOutput({"sum": (batch.input_ids * batch.attention_mask).sum(1).float()})


def mended(config: PipelineConfig) -> Pipeline:
    return echo(config, model=Mended())


def rows(path: Path, count: int = 14) -> Path:
    faults = {1: "~m one", 4: "~p four", 5: "~m five", 11: "~m eleven"}
    return write_rows(path, [{"id": f"r{i}", "text": faults.get(i, f"text {i}")} for i in range(count)])


def retry(source: Path, out: Path, *overrides: str, build: Any = mended) -> JobSummary:
    return run_echo(job_config(*OPTIONS, *overrides), [source], out, retry=True, build=build)


def placed(out: Path) -> tuple[list[str], list[str]]:
    """The ids of the output and of the dead letters; a receipt's counts must say the same."""
    receipts = [json.loads(path.read_text()) for path in sorted((out / "_receipts").glob("*.json"))]
    written, dead = [row["id"] for row in lines_of(out)], [row["id"] for row in dead_of(out)]
    assert sum(receipt["written"] for receipt in receipts) == len(written)
    assert sum(receipt["dead"] for receipt in receipts) == len(dead)
    return sorted(written), sorted(dead)


def test_rows_that_have_a_result_now_leave_the_dead_letters(tmp_path: Path) -> None:
    source, out = rows(tmp_path / "in.jsonl"), tmp_path / "out"
    config = job_config(*OPTIONS)
    run_echo(config, [source], out)
    assert placed(out)[1] == ["r1", "r11", "r4", "r5"]
    before = content_of(out)
    done = retry(source, out)
    assert (done.reused, done.dead, done.complete, done.changes) == (10, 1, True, [])
    assert (done.stats.rows, done.stats.failed) == (4, 1)
    written, dead = placed(out)
    assert dead == ["r4"]
    assert written == sorted(f"r{i}" for i in range(14) if i != 4)
    again = [path.name for path in sorted(out.glob("*.retry-1.*"))]
    assert again == ["part-00000.retry-1.jsonl", "part-00001.retry-1.jsonl", "part-00003.retry-1.jsonl"]
    assert (out / "_SUCCESS").exists()
    assert {name: content for name, content in content_of(out).items() if name in before and "_dead" not in name} == {
        name: content for name, content in before.items() if "_dead" not in name
    }
    assert json.loads((out / "_manifest.json").read_text())["counts"]["dead"] == 1
    assert retry(source, out).dead == 1, "what failed again may be tried again"
    assert run_echo(config, [source], out).reused == 14, "the job is complete"


def test_a_shard_that_must_be_made_anew_takes_the_retried_rows_with_it(tmp_path: Path) -> None:
    source, out = rows(tmp_path / "in.jsonl"), tmp_path / "out"
    config = job_config(*OPTIONS)
    run_echo(config, [source], out)
    retry(source, out)
    (out / "part-00001.jsonl").write_bytes(b"torn")
    run_echo(config, [source], out, build=mended)
    written, dead = placed(out)
    assert sorted([*written, *dead]) == sorted(f"r{i}" for i in range(14))
    assert not (out / "part-00001.retry-1.jsonl").exists()


class Cut(Exception):
    """The power goes."""


SIDES = (0, 1, 17, 18, 22, 25, 26, 29, 31, 32, 49, 52)
"""Before and after each kind of call on each kind of file; the other steps are the storm's."""


@pytest.mark.parametrize("step", [i if i in SIDES else pytest.param(i, marks=pytest.mark.storm) for i in range(56)])
def test_cut_off_at_any_step_each_id_is_in_one_place_after_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    source, out = rows(tmp_path / "in.jsonl"), tmp_path / "out"
    run_echo(job_config(*OPTIONS), [source], out)
    steps = 0

    def cutting(call: Any) -> Any:
        def cut(*given: Any, **named: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps > step:
                raise Cut
            return call(*given, **named)

        return cut

    with monkeypatch.context() as patch:
        for name in ("write", "fsync", "replace", "unlink"):
            patch.setattr(os, name, cutting(getattr(os, name)))
        try:
            retry(source, out)
            whole = True
        except Cut:
            whole = False
    assert whole == ((out / "_SUCCESS").exists() and steps <= step)
    retry(source, out)
    written, dead = placed(out)
    assert (len(written), dead) == (13, ["r4"])
    assert len(set(written)) == 13
    assert (out / "_SUCCESS").exists()
    assert not list(out.rglob(".pipeline-kit-*"))


def test_what_the_rows_are_cannot_change(tmp_path: Path) -> None:
    source, out = rows(tmp_path / "in.jsonl"), tmp_path / "out"
    run_echo(job_config(*OPTIONS), [source], out)
    before = content_of(out)
    with pytest.raises(UsageError, match=r"output.rows_per_shard: 3 before, 4 now"):
        retry(source, out, "output.rows_per_shard=4")
    other = write_rows(tmp_path / "other.jsonl", [{"id": "r0", "text": "x"}])
    with pytest.raises(UsageError, match="cannot change"):
        retry(other, out)
    assert content_of(out) == before
    assert retry(source, out, "padding=none").changes == ["config.padding.name: longest before, none now"]


def test_a_folder_without_a_job_is_refused_and_left_alone(tmp_path: Path) -> None:
    source = rows(tmp_path / "in.jsonl")
    with pytest.raises(UsageError, match="holds no job"):
        retry(source, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_damaged_dead_letters_are_told(tmp_path: Path) -> None:
    source, out = rows(tmp_path / "in.jsonl"), tmp_path / "out"
    run_echo(job_config(*OPTIONS), [source], out)
    # A receipt vouches for its dead letters: with one changed, the shard is not the job's and nothing is retried.
    (out / "_dead" / "part-00001.jsonl").write_text("{}\n")
    assert retry(source, out).complete is False
    run_echo(job_config(*OPTIONS), [source], out)
    assert sorted([*placed(out)[0], *placed(out)[1]]) == sorted(f"r{i}" for i in range(14))


def test_the_users_own_command_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plugin = Path(__file__).parents[1] / "faulty_stages.py"
    Path("in.csv").write_text("number,review\n1,good\n2,~fail here\n3,bad\n")
    words = ["--plugin", str(plugin), "tokenizer=faulty", "postprocessor=faulty", "device=cpu", "input.id=number"]
    words += ["--input", "in.csv", "--fields", "text=review", "--format", "csv", "job.max_failed_rows=1"]
    words = ["run", "--output", "out/", *words]
    assert main(words) == 1
    assert main([*words, "--retry"]) == 1
    assert "0 rows have a result now, 1 failed again" in capsys.readouterr().err
    monkeypatch.setenv("FAULTS_MENDED", "1")
    assert main([*words, "--retry", "batching.max_rows=4"]) == 0
    told = capsys.readouterr().err
    assert "1 row has a result now" in told
    assert "config.batching.max_rows" in told
    assert "~fail here" in Path("out/part-00000.retry-1.csv").read_text()
    assert list(Path("out/_dead").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--text", "a"], "--restart, --retry, --verify and --log-json are for jobs: pass --output DIR"),
        (["--text", "a", "--output", "none.jsonl"], "for jobs: pass --output DIR"),
        (["--text", "a", "--output", "none/"], "holds no job"),
        (["--text", "a", "--output", "none/", "--restart"], "pass one of the two"),
    ],
)
def test_wrong_use(
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--retry", "device=cpu", *words]) == 2
    assert said in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
