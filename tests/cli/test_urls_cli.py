"""URLs on the command line: what they name, what is refused in one line, and runs against a server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import checkpoint, cli
from huggingface_hub import constants
from s3_server import CANARY, S3Server, s3_server

from pipeline_kit.cli.commands.run_job import folder_path, folder_within
from pipeline_kit.errors import UsageError
from pipeline_kit.files.storage.local import storage_of

ROWS = b'{"text": "I love this.", "label": "POSITIVE"}\n{"text": "I hate it.", "label": "NEGATIVE"}\n'


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def bucket(server: S3Server, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of this test's own with two files of rows and a checkpoint."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    url = server.bucket(request.node.name.replace("_", "-")[:60])
    contents = {"data/0.jsonl": ROWS, "data/1.jsonl": ROWS}
    contents |= {f"model/{path.name}": path.read_bytes() for path in checkpoint().iterdir()}
    for name, data in contents.items():
        storage_of(url).create(f"{url}/{name}", data)
    return url


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("s3://b/out/", "s3://b/out"),
        ("s3://b/run-v1.2", "s3://b/run-v1.2"),
        ("S3://b/x.jsonl/", "S3://b/x.jsonl"),
        ("s3://my.bucket", "s3://my.bucket"),
        ("labels", "labels"),
        ("labels.jsonl", None),
        ("-", None),
    ],
)
def test_which_outputs_are_folders(name: str, folder: str | None) -> None:
    assert folder_path(name) == folder


def test_the_runs_of_a_sweep_have_folders_of_their_own() -> None:
    assert folder_within("s3://b/out", "checkpoint=a") == "s3://b/out/checkpoint=a"
    assert folder_within("s3://b/out", "") == "s3://b/out"


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv.gz", "x.parquet", "x.xlsx"])
def test_one_file_is_not_written_to_a_store(name: str) -> None:
    with pytest.raises(UsageError, match=rf"^--output s3://b/{name}: one file .*; name a folder: s3://b/x/$"):
        folder_path(f"s3://b/{name}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--text", "a", "--output", "s3://"], "--output s3://: names no bucket"),
        (["run", "--text", "a", "-o", "s3://b/in", "-i", "s3://b/in/a.jsonl"], "holds 's3://b/in/a.jsonl'"),
        (["evaluate", "--save", "s3://b/x.jsonl", "-i", "x.jsonl"], "--save s3://b/x.jsonl: this file is written on"),
        (["explain", "--html", "s3://b/x.html", "--text", "a"], "--html s3://b/x.html: this file is written on"),
        (["bench", "--output", "s3://b/x.jsonl", "--text", "a"], "--output s3://b/x.jsonl: this file is written on"),
        (["run", "-i", "s3://id:SECRET99@b/x"], "the secrets in it"),
        (["run", "--text", "a", "checkpoint.path=s3://id:SECRET99@b/x"], "the secrets in it"),
        (["run", "--text", "a", "-o", "s3://id:SECRET99@b/x/"], "the secrets in it"),
    ],
)
def test_refused_in_one_line(words: list[str], message: str) -> None:
    done = cli(*words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert "SECRET99" not in done.err


def test_without_the_extra_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['obstore'] = None; from pipeline_kit.cli.app import main; sys.exit(main(sys.argv[1:]))"
    )
    for words in (["-i", "s3://b/a"], ["--text", "a", "checkpoint.path=s3://b/m"], ["--text", "a", "-o", "s3://b/out"]):
        done = subprocess.run([sys.executable, "-c", code, "run", *words], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "error: s3:// needs obstore: pip install 'pipeline-kit[storage]'\n"


def test_rows_and_a_checkpoint_come_from_a_bucket(bucket: str, tmp_path: Path) -> None:
    words = ["run", "-i", f"{bucket}/data/*.jsonl", "--quiet", "--format", "jsonl"]
    done = cli(*words, f"checkpoint.path={bucket}/model")
    assert done.code == 0, done.err
    (tmp_path / "in.jsonl").write_bytes(ROWS * 2)
    assert (
        done.out
        == cli("run", "-i", tmp_path / "in.jsonl", "-q", "--format", "jsonl", f"checkpoint.path={checkpoint()}").out
    )
    chosen = cli(*words, f"checkpoint.path={bucket}/model", "input.skip=1", "input.carry=[text]")
    assert [json.loads(line)["text"] for line in chosen.out.splitlines()] == [
        "I hate it.",
        "I love this.",
        "I hate it.",
    ]
    everything = [done.out, done.err, *(str(path) for path in tmp_path.rglob("*"))]
    assert not any(CANARY in text for text in everything)


def test_a_job_reads_a_bucket_and_writes_a_folder_for_each_run_of_a_sweep(
    bucket: str, server: S3Server, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    for number in range(2):
        (tmp_path / "data" / f"{number}.jsonl").write_bytes(ROWS)
    words = ["run", "-m", "-q", "padding=longest,none", "output.rows_per_shard=3", "input.carry=[text]"]
    assert (
        cli(*words, "-i", f"{tmp_path}/data/*.jsonl", "-o", tmp_path / "out", f"checkpoint.path={checkpoint()}").code
        == 0
    )
    stored = [*words, "-i", f"{bucket}/data/*.jsonl", "-o", f"{bucket}/out/", f"checkpoint.path={bucket}/model"]
    done = cli(*stored)
    assert (done.code, done.out) == (0, ""), done.err
    assert cli(*stored).code == 0  # nothing is left to do
    found = server.contents(bucket.removeprefix("s3://"))
    for run in ("padding=longest", "padding=none"):
        for name in ("part-00000.jsonl", "part-00001.jsonl", "_SUCCESS"):
            assert found[f"out/{run}/{name}"] == (tmp_path / "out" / run / name).read_bytes()
            assert server.versions(bucket.removeprefix("s3://"))[f"out/{run}/{name}"] == 1
    assert not any(CANARY.encode() in data for data in found.values())


def test_labels_are_read_from_a_bucket(bucket: str) -> None:
    done = cli("evaluate", "-i", f"{bucket}/data/*.jsonl", "--json", "--quiet", "input.limit=3")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["rows"] == 3
    done = cli("evaluate", "-i", f"{bucket}/model/tokenizer_config.txt")
    assert "cannot be read" in done.err
