"""S5, S6, S15, S16: secrets stay out of what is written, files stay in their folder, and cells are no formulas."""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from echo_job import ids_of, job_config, lines_of, run_echo, write_rows
from harness import checkpoint

from pipeline_kit.cli.app import main
from pipeline_kit.errors import InputError, OutputError
from pipeline_kit.files.write.text import strip_formula_guard
from pipeline_kit.job.folder import JobFolder

CANARY = "canary8f3a1bd52c"

KEYED = """
from dataclasses import dataclass

from pipeline_kit import Postprocessor, option


@dataclass
class Config:
    api_key: str = option("", "for a service")
    hub_token: str = option("", "for another")
    where: str = option("", "an address")


class Keyed(Postprocessor):
    def __init__(self, config, context):
        pass

    def __call__(self, examples, encodings, outputs):
        if any("poison" in str(example) for example in examples):
            raise ValueError("cannot swallow this")
        return [{"label": "A", "score": 0.5} for example in examples]


def register(registry):
    registry.postprocessor("keyed", __name__ + ":Keyed", Config)
"""


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run with secrets in the environment and among the options; give all that was printed."""
    for name in ("HF_TOKEN", "API_KEY", "MY_SECRET"):
        monkeypatch.setenv(name, CANARY)
    (tmp_path / "keyed.py").write_text(KEYED)
    secrets = [f"postprocessor.api_key={CANARY}", f"postprocessor.hub_token={CANARY}"]
    secrets += [f"postprocessor.where='https://me:{CANARY}@host/x'"]
    rows = write_rows(tmp_path / "in.jsonl", [{"text": "a"}, {"text": "poison"}, {"text": "b"}])
    argv = [f"checkpoint.path={checkpoint()}", "device=cpu", "--input", str(rows)]
    argv += ["--plugin", str(tmp_path / "keyed.py"), "postprocessor=keyed"]

    def call(*more: str, code: int, name: str = "run") -> str:
        assert main([name, *argv, *more, *secrets]) == code
        printed = capsys.readouterr()
        return printed.out + printed.err

    return call


def files_with(folder: Path, word: str) -> list[str]:
    found = [path for path in folder.rglob("*") if path.is_file() and word.encode() in path.read_bytes()]
    return [str(path.relative_to(folder)) for path in found]


def test_a_secret_is_in_no_file_and_no_message_of_a_job(command: Callable[..., str], tmp_path: Path) -> None:
    out = ["--output", str(tmp_path / "out")]
    shown = command(*out, code=1)  # stops at the poison row
    shown += command(*out, "job.max_failed_rows=null", code=1)
    shown += command(*out, "job.max_failed_rows=null", code=1)  # is complete
    shown += command(*out, "padding=max_length", code=2)  # refused, with what differs
    shown += command(*out, "postprocessor.where=elsewhere", "--restart", "--log-json", code=1)
    shown += command("--output", str(tmp_path / "sweep"), "-m", "padding=longest,max_length", code=1)
    assert "poison" not in shown
    assert CANARY not in shown
    assert files_with(tmp_path, CANARY) == []
    assert len(files_with(tmp_path, "api_key")) > 3, "what a job was asked for is written, without its secrets"


def test_nor_in_one_file_or_on_stdout(command: Callable[..., str], tmp_path: Path) -> None:
    shown = command("--output", str(tmp_path / "out.csv"), code=1)
    shown += command("-m", "padding=longest,max_length", code=1)
    shown += command("--output", str(tmp_path / "out.jsonl"), "-m", "padding=longest,max_length", code=1)
    shown += command("--output", str(tmp_path / "no" / "such" / "folder.csv"), code=1)
    shown += command("postprocessor.unknown=1", code=2)
    assert CANARY not in shown
    assert files_with(tmp_path, CANARY) == []


def test_nor_in_what_explain_shows_and_writes(command: Callable[..., str], tmp_path: Path) -> None:
    page = str(tmp_path / "page.html")
    shown = command("--format", "json", "--html", page, code=1, name="explain")
    assert "api_key" in shown
    assert CANARY not in shown
    assert files_with(tmp_path, CANARY) == []


HOSTILE_IDS = ["../../escaped", "/etc/escaped", "..", "a/b", "part-00009.jsonl", "_SUCCESS", "a\u202eb", "x" * 1000]


def test_ids_are_never_names_of_files(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "root"
    root.mkdir(parents=True)
    rows = write_rows(root / "in.jsonl", [{"text": f"row {i}~p", "id": id} for i, id in enumerate(HOSTILE_IDS)])
    config = job_config("job.max_failed_rows=null", "input.id=id")
    run_echo(config, [rows], root / "out")
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    inside = {name for name in names if name.startswith("deep/root/out/")}
    assert names - inside == {"deep/root/in.jsonl"}
    kept = {"part-0000", "_dead/part-0000", "_receipts/part-0000", "_manifest.json", "_SUCCESS", "_lock"}
    assert all(name.removeprefix("deep/root/out/").startswith(tuple(kept)) for name in inside)


@pytest.mark.parametrize("name", ["", "_lock", "_manifest.json", "_dead", "_receipts", "part-00001.jsonl", "_SUCCESS"])
def test_a_link_is_not_followed(tmp_path: Path, name: str) -> None:
    """Someone else put a link where a job writes: nothing behind it is changed."""
    rows = write_rows(tmp_path / "in.jsonl", [{"text": f"row {i}~p" if i == 4 else f"row {i}"} for i in range(8)])
    config = job_config("job.max_failed_rows=null")
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    folder = name in ("", "_dead", "_receipts")
    if name:
        out.mkdir()
        (out / "_receipts").mkdir()
    if folder:
        elsewhere.mkdir()
        (out / "_receipts").rmdir() if name == "_receipts" else None
    else:
        elsewhere.write_text("theirs")
    if name == "part-00001.jsonl":  # beside a manifest, or the folder is no job's
        run_echo(config, [rows], out)
        (out / name).unlink()
    (out / name if name else out).symlink_to(elsewhere)
    with suppress(OutputError):  # refused, or a job in a folder of its own beside the link
        run_echo(config, [rows], out)
    if folder:
        assert list(elsewhere.iterdir()) == []
    else:
        assert elsewhere.read_text() == "theirs"


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_link_is_not_taken_for_the_folder_it_leads_to(slash: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="link: is a symbolic link; name the folder it points to"):
        JobFolder(f"{tmp_path}/link{slash}").claim()


def test_a_job_deletes_nothing_that_it_did_not_make(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", [{"text": "a"}])
    out = tmp_path / "out"
    run_echo(job_config(), [rows], out)
    theirs = [out / "_theirs" / "deep" / "file", out / "_dead" / "note.tmp", out / "_receipts" / "part-x.json"]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("theirs")
    run_echo(job_config(), [rows], out)
    assert all(path.read_text() == "theirs" for path in theirs)
    run_echo(job_config("padding=max_length"), [rows], out, restart=True)
    for path in theirs:
        assert (tmp_path / "out.1" / path.relative_to(out)).read_text() == "theirs"


def test_a_compressed_bomb_ends_a_job_and_keeps_what_is_done(tmp_path: Path) -> None:
    """That it takes bounded memory is in test_records_unpack."""
    rows = write_rows(tmp_path / "a.jsonl", [{"text": f"row {i}"} for i in range(4)])
    bomb = tmp_path / "b.txt.gz"
    bomb.write_bytes(gzip.compress((b"x" * (1 << 20) + b"\n") * 64))
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"b\.txt\.gz: .*input\.max_ratio") as caught:
        run_echo(job_config("output.rows_per_shard=4"), [rows, bomb], out)
    assert caught.value.exit_code == 2
    assert ids_of(lines_of(out))[:4] == [f"a.jsonl:{i + 1}" for i in range(4)]
    assert not (out / "_SUCCESS").exists()


FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\0=1", '=HYPERLINK("http://x")', "'=1"]
PLAIN = ["1+1", "a=b", "-0.5", "+1e3", "it's", "", " =1"]


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_no_cell_of_a_job_is_a_formula(tmp_path: Path, format: str) -> None:
    """OWASP ASVS 1.2.10: a result, a carried column and an id that a spreadsheet would run."""
    texts = FORMULAS + PLAIN
    rows = write_rows(tmp_path / "in.jsonl", [{"text": text, "n": text, "id": text or "none"} for text in texts])
    config = job_config("input.id=id", "input.carry=[n]", f"output.format={format}")
    run_echo(config, [rows], tmp_path / "out")
    found: list[dict[str, Any]] = []
    for path in sorted((tmp_path / "out").glob("part-*")):
        if format == "csv":
            found += csv.DictReader(io.StringIO(path.read_bytes().decode(), newline=""), strict=True)
        elif format == "parquet":
            import pyarrow.parquet as pq

            found += pq.read_table(path).to_pylist()
    found = found or lines_of(tmp_path / "out")
    for row, text in zip(found, texts, strict=True):
        for name, cell in (("label", text), ("n", text), ("id", text or "none")):
            if format != "csv":
                assert row[name] == cell
                continue
            assert strip_formula_guard(row[name]) == cell
            assert not row[name].startswith(("=", "@", "\t", "\r", "\n", "\0"))
            assert row[name] == cell if text in PLAIN else row[name] == "'" + cell


def test_output_names_are_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    (work / "sub").mkdir(parents=True)
    rows = write_rows(tmp_path / "in.jsonl", [{"text": "a"}])
    monkeypatch.chdir(work / "sub")
    run_echo(job_config(), [rows], Path("../beside"))
    assert sorted(os.listdir(work)) == ["beside", "sub"]
    assert ids_of(lines_of(work / "beside")) == ["in.jsonl:1"]
    with pytest.raises(OutputError, match="there is no folder"):
        run_echo(job_config(), [rows], Path("no/such/folder"))
    assert os.listdir(work / "sub") == []
