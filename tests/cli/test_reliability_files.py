"""H3, H9, H11, H21, H22, H24: outputs that are inputs, encodings, files that change, closed streams, odd names."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pipeline_kit
from pipeline_kit import load, run_job
from pipeline_kit.cli.app import main
from pipeline_kit.errors import InputError, OutputError, RowFailure, UsageError
from pipeline_kit.files.atomic import refuse_overlap
from pipeline_kit.files.read.parts import InputConfig
from pipeline_kit.files.read.paths import read_records
from pipeline_kit.files.read.source import Source

STATIC = ("checkpoint=tiny_static", "model=static")
TEXTS = b'{"text": "a b", "label": "POSITIVE"}\n{"text": "c", "label": "NEGATIVE"}\n'

posix = pytest.mark.skipif(os.name != "posix", reason="descriptors, links and locales as POSIX has them")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_bytes(TEXTS)
    return tmp_path


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test fail that comes as far as loading a model."""

    def build(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("pipeline_kit.compose.build.build", build)


# H3: an output that is an input


@posix
@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("words", "flag"),
    [
        ("run -i in.jsonl -o in.jsonl", "--output in.jsonl"),
        ("run -i link.jsonl -o in.jsonl", "--output in.jsonl"),
        ("run -i in.jsonl -o hard.jsonl", "--output hard.jsonl"),
        ("run -i in.jsonl -o sub/../in.jsonl", "--output sub/../in.jsonl"),
        ("run -i *.jsonl -o in.jsonl input.limit=1", "--output in.jsonl"),
        ("run -i in.padding=none.jsonl -m padding=none,longest -o in.jsonl", "--output in.padding=none.jsonl"),
        ("run -i sub/part-00000.jsonl -o sub", "--output sub: holds"),
        ("run -i sub/part-00000.jsonl -o elsewhere", "--output elsewhere: holds"),
        ("run -i data -o data/out.jsonl", "--output data/out.jsonl: is in the folder 'data'"),
        ("run -i data -o data/out/", "--output data/out: is in the folder 'data'"),
        ("evaluate -i in.jsonl --save in.jsonl", "--save in.jsonl"),
        ("explain -i in.jsonl --html in.jsonl", "--html in.jsonl"),
        ("explain --text a --html model/config.json checkpoint.path=model", "--html model/config.json"),
        ("explain --text a --html mine.yaml --config mine.yaml", "--html mine.yaml"),
        ("tune -i in.jsonl --output in.jsonl", "--output in.jsonl"),
        ("tune --text a --config mine.yaml --save mine.yaml --force", "--save mine.yaml"),
        ("tune --text a --save new.yaml --output new.yaml", "--save new.yaml"),
        ("bench -i in.jsonl --output in.jsonl", "--output in.jsonl"),
        ("bench -i in.png --input-format jsonl --plot in.png", "--plot in.png"),
    ],
)
def test_h3_an_output_that_is_an_input_is_refused(
    words: str, flag: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "sub").mkdir()
    (folder / "data").mkdir()
    for name in ("in.padding=none.jsonl", "in.png", "sub/part-00000.jsonl", "data/a.parquet"):
        (folder / name).write_bytes(TEXTS)
    (folder / "link.jsonl").symlink_to("in.jsonl")
    (folder / "elsewhere").symlink_to("sub")
    os.link("in.jsonl", "hard.jsonl")
    shutil.copytree(Path(pipeline_kit.__file__).parent / "builtin" / "assets" / "tiny_static", "model")
    (folder / "mine.yaml").write_text("defaults: [config, _self_]\n")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    chosen = () if "checkpoint" in words or "--config" in words else STATIC
    assert main([*words.split(), *chosen]) == 2
    err = capsys.readouterr().err
    assert f"error: {flag}" in err
    assert "which this command uses too; name another place" in err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_h3_python_jobs_refuse_it_too(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "part-00000.jsonl").write_bytes(TEXTS)
    with pytest.raises(UsageError, match=r"output out: holds 'out.part-00000.jsonl'"):
        run_job(*STATIC, output="out", files="out/*.jsonl")
    assert os.listdir("out") == ["part-00000.jsonl"]


@posix
def test_h3_the_files_behind_stdin_and_stdout_count(folder: Path) -> None:
    run = [sys.executable, "-m", "pipeline_kit", "run", *STATIC, "-q"]
    with open("in.jsonl", "rb") as stdin:
        done = subprocess.run([*run, "-o", "in.jsonl"], stdin=stdin, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--output in.jsonl: is the same file as stdin" in done.stderr
    with open("in.jsonl", "ab") as stdout:
        done = subprocess.run([*run, "-i", "in.jsonl"], stdout=stdout, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert "stdout" in done.stderr
    assert Path("in.jsonl").read_bytes() == TEXTS


def test_h3_places_beside_the_input_are_free(folder: Path) -> None:
    refuse_overlap([("--output", folder / "out.jsonl"), ("--save", folder / "in.jsonl.save")], [folder / "in.jsonl"])
    refuse_overlap([("--output", folder / "out")], [folder / "in.jsonl", folder / "outer", "-"])


# H9: other encodings

LINES = {
    "text": "Ein großartiger Film über München.\nÜberhaupt nicht schön.\nNa ja, für Kinder.\n",
    "jsonl": '{"text": "schön"}\n{"text": "größer"}\n{"text": "für"}\n',
    "csv": "text,id\nschön,1\ngrößer,2\nfür,3\n",
    "tsv": "text\tid\nschön\t1\ngrößer\t2\nfür\t3\n",
}
RUSSIAN = "Очень хороший фильм.\nЯ не люблю это кино.\n"
CHINESE = "这部电影很好看。\n我不喜欢这个上映的电影，太无聊了！\n"  # noqa: RUF001 - as it is written


@pytest.mark.parametrize("name", ["UTF-16", "UTF-16LE", "UTF-16BE", "UTF-32", "UTF-32BE", "ISO-8859-1"])
@pytest.mark.parametrize("format", LINES)
def test_h9_another_encoding_is_said_once_for_the_file(
    format: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = LINES[format].encode(name)
    (folder / f"in.{format}").write_bytes(data)
    (folder / f"in.{format}.gz").write_bytes(gzip.compress(data))
    message = rf": is in {name}( or CP1252)?, not in UTF-8; convert it: iconv -f {name} -t UTF-8"
    for file in (f"in.{format}", f"in.{format}.gz"):
        with pytest.raises(InputError, match=f"^{file}{message}"):
            Source.open(file, InputConfig(), ["text"]).check()
        with pytest.raises(InputError, match=f"^{file}{message}"):
            next(read_records(file))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))
    with pytest.raises(InputError, match=f"^stdin{message}"):
        next(read_records("-", format=format))


@pytest.mark.parametrize("text", [RUSSIAN, CHINESE, "great", "a 😀 b\n"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("times", [1, 1000])
def test_h9_wide_encodings_without_a_mark_are_recognised_in_any_script(text: str, encoding: str, times: int) -> None:
    with pytest.raises(InputError, match=f"is in {encoding[:-3].upper()}{encoding[-2:].upper()},"):
        next(read_records(io.BytesIO((text * times).encode(encoding))))


def test_h9_other_scripts_in_narrow_encodings_are_not_guessed() -> None:
    for data in (RUSSIAN.encode("cp1251"), RUSSIAN.encode("koi8-r"), CHINESE.encode("gbk")):
        with pytest.raises(InputError, match="is in another encoding, not in UTF-8; convert it: iconv -f ENCODING"):
            next(read_records(io.BytesIO(data)))


@pytest.mark.parametrize(
    "data",
    [
        b"a\0b\nc\0\n",
        b"abc\0def\n",
        b"\0\0\0\n",
        "überall\n".encode() * 40 + b"caf\xe9\nna\xefve\nh\xfc\n",
        b"one\ntwo\ncaf\xe9\nfour\n",
        b"a\nb\xff\nc\n\xff\n\xff\n",
        ("ü" * 4096 + "\n").encode()[:-2],
        ("a" + "ü" * 4096 + "\n").encode(),
    ],
)
def test_h9_single_bad_bytes_are_their_rows_fault_alone(data: bytes) -> None:
    found = list(read_records(io.BytesIO(data)))
    assert len(found) == len(data.removesuffix(b"\n").split(b"\n"))


# H11: input that changes


def changed(path: Path) -> None:
    """Put another version of the same size in a file's place, as an editor does."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[::-1])
    os.replace(other, path)


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(37)


READERS = (
    "run -i in.jsonl -o out.jsonl",
    "run -i in.jsonl -o out.jsonl input.limit=1",
    "run -i in.jsonl -o out.csv",
    "run -i in.jsonl.gz -o out.jsonl",
    "run -i in.csv -o out.jsonl",
    "run -i in.parquet -o out.jsonl",
    "run -i in.parquet -o out.jsonl input.limit=1",
    "run -i data -o out.jsonl",
    "run -i in.jsonl -o out/",
    "evaluate -i in.jsonl --save out.jsonl",
    "bench -i in.jsonl --output out.jsonl --repeats 1",
    "bench -i in.jsonl --output out.jsonl --repeats 1 --rows 1",
    "tune -i in.jsonl --output out.jsonl --minutes 0.001",
)


@pytest.mark.parametrize(("words", "how"), list(zip(READERS, itertools.cycle((changed, cut)), strict=False)))
def test_h11_a_file_that_changes_while_the_model_loads_is_an_error(
    words: str,
    how: Callable[[Path], None],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (folder / "in.jsonl.gz").write_bytes(gzip.compress(TEXTS))
    (folder / "in.csv").write_bytes(b"text,label\n" + b"some words here,POSITIVE\n" * 9)
    table = pa.table({"text": ["a b", "c"], "label": ["POSITIVE", "NEGATIVE"]})
    pq.write_table(table, "in.parquet")
    (folder / "data").mkdir()
    with pa.OSFile("data/data-00000-of-00001.arrow", "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    (folder / "data" / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "x"})
    )
    name = words.split()[2]
    path = folder / ("data/data-00000-of-00001.arrow" if name == "data" else name)
    pipe = load(*STATIC)

    def build(*_: object) -> object:
        how(path)
        return pipe

    monkeypatch.setattr("pipeline_kit.compose.build.build", build)
    assert main([*words.split(), *STATIC]) == 2
    out, err = capsys.readouterr()
    assert "was changed after it was opened first, so results may mix two versions of it; run again" in err
    assert (out, Path("out.jsonl").exists(), Path("out.csv").exists()) == ("", False, False)
    assert not Path("out/_SUCCESS").exists()


@posix
def test_h11_a_file_behind_stdin_counts_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("in.jsonl", "rb") as stream:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stream))
        records = read_records("-", format="jsonl")
        with open("in.jsonl", "ab") as more:  # before the first row is read
            more.write(b'"more"\n')
        with pytest.raises(InputError, match="stdin: was changed"):
            list(records)


def test_h11_python_jobs_notice(folder: Path) -> None:
    def write_more() -> None:
        with open("in.jsonl", "ab") as more:
            more.write(b'"more"\n')

    source = Source.open("in.jsonl", InputConfig(limit=2), ["text"])
    source.check()
    rows = source.rows()
    assert not isinstance(next(rows).example, RowFailure)
    write_more()
    with pytest.raises(InputError, match=r"in.jsonl: was changed"):
        list(rows)


# H21: closed standard streams


@posix
@pytest.mark.parametrize(
    ("words", "closed", "code", "said"),
    [
        ("run -q --text a", "1>&-", 1, "error: stdout: cannot be written: Bad file descriptor; it is closed"),
        ("run -q --text a", "<&- 2>&-", 0, ""),
        ("run -q", "<&-", 2, "error: nothing to run on"),
        ("run -q -i - -o out.jsonl", "<&-", 2, "error: stdin is closed; name a file"),
        ("run -q --text a -o out.jsonl", "<&- >&- 2>&-", 0, ""),
        ("run -q --text a -o out/ runner.workers=2", "<&- >&- 2>&-", 0, ""),
        ("ls padding", ">&-", 1, "error: stdout: cannot be written"),
        ("run --help", ">&-", 1, "error: stdout: cannot be written"),
        ("cfg nothing=here", "2>&-", 2, ""),
    ],
)
def test_h21_closed_streams(words: str, closed: str, code: int, said: str, folder: Path) -> None:
    chosen = " ".join(STATIC) if words.startswith("run -q") else ""
    line = f"exec {sys.executable} -m pipeline_kit {words} {chosen} {closed}"
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(said)
    assert bool(done.stderr) == bool(said)
    if code == 0 and " -o out.jsonl" in words:
        assert set(json.loads(Path("out.jsonl").read_text())) == {"label", "score"}  # and no message is in it
    if "out/" in words:
        assert Path("out/_SUCCESS").exists()


# H22: names that no file can have

NAMES = {"long": "x" * 300, "nul": "a\0b", "surrogate": "a\ud800b", "home": "~nobody-of-this-name/x"}


FLAGS = (
    (("run", "--text", "a", "--output", "{}.jsonl"), "--output"),
    (("run", "--text", "a", "--output", "{}/"), "--output"),
    (("run", "--input", "{}"), "--input"),
    (("run", "--input", "{}", "input.limit=1"), "--input"),
    (("evaluate", "--input", "in.jsonl", "--save", "{}.jsonl"), "--save"),
    (("explain", "--text", "a", "--html", "{}"), "--html"),
    (("cfg", "--config", "{}.yaml"), "--config"),
    (("validate", "{}.yaml"), "--config"),
    (("ls", "--config-dir", "{}"), "--config-dir"),
    (("cfg", "--config-dir", "{}"), "--config-dir"),
    (("ls", "--plugin", "{}.py"), "--plugin"),
    (("tune", "--text", "a", "--save", "{}.yaml"), "--save"),
    (("bench", "--text", "a", "--plot", "{}.png"), "--plot"),
    (("new-plugin", "model", "abc", "--output", "{}"), "--output"),
    (("run", "--text", "a", "checkpoint.path='{}'"), "checkpoint.path"),
)


# Each flag with two of the kinds.
@pytest.mark.parametrize(
    ("words", "flag", "kind"),
    [(*case, kind) for i, case in enumerate(FLAGS) for j, kind in enumerate(NAMES) if (i + j) % 2],
)
def test_h22_a_name_that_no_file_can_have_is_a_fault_of_its_flag(
    words: tuple[str, ...], flag: str, kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.replace("{}", NAMES[kind]) for word in words]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {flag}") or (flag in err and kind == "nul")
    assert len(err) < 1000


def test_h22_odd_names_that_files_can_have_work(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a\nb", "a'b,c=[]", "a\udcffb", "-x", "x" * 249):
        (folder / f"{name}.txt").write_bytes(b"a b\n")
        words = [f"--input={name}.txt", f"--output={name}.jsonl", *STATIC]
        assert main(["run", "-q", *words]) == 0, capsys.readouterr().err
        assert set(json.loads((folder / f"{name}.jsonl").read_text())) == {"label", "score"}


def test_h22_python_outputs_too(folder: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"), pipeline_kit.files.atomic.atomic_writer("a\0b"):
        pass


# H24: a plain C locale


@posix
def test_h24_names_outside_ascii_in_a_plain_c_locale(folder: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    shutil.copytree(Path(pipeline_kit.__file__).parent / "builtin" / "assets" / "tiny_static", "mödell")
    (folder / "größe" / "padding").mkdir(parents=True)
    (folder / "größe" / "padding" / "meins.yaml").write_text(
        "# what: schön\ndefaults: [longest, _self_]\n", encoding="utf-8"
    )
    (folder / "プラグ.py").write_text("def register(registry): pass\n", encoding="utf-8")
    (folder / "日本.txt").write_text("schön\n日本\n", encoding="utf-8")
    files = ["-i", "日本.txt", "-o", "größer.jsonl", "--plugin", "プラグ.py", "--config-dir", "größe"]
    run = ["run", "-q", *files, "padding=meins", "model=static"]
    shown = b""
    for words in ([*run, "checkpoint.path='mödell'"], ["ls", "padding", "--config-dir", "größe"]):
        done = subprocess.run([sys.executable, "-m", "pipeline_kit", *words], capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr
        shown += done.stdout
    assert len((folder / "größer.jsonl").read_text().splitlines()) == 2
    assert "schön" in shown.decode("utf-8")
