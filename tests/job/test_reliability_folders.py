"""H1, H2, H4, H5, H25, H28: a job's folder is data that anyone may have changed; a run leaves nothing else there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from echo_job import EchoPostprocessor, Interrupted, dead_of, echo, job_config, lines_of, reseal, run_echo, write_rows

from pipeline_kit.cli.app import main
from pipeline_kit.errors import OutputError, UsageError
from pipeline_kit.files import atomic
from pipeline_kit.files.atomic import atomic_writer
from pipeline_kit.files.lock import lock_file
from pipeline_kit.files.read.source import Source
from pipeline_kit.graphs import cache
from pipeline_kit.job import sealed as stored
from pipeline_kit.job.ledger import JobWatcher
from pipeline_kit.job.run import JobSummary, run_to_end
from pipeline_kit.job.runner import Job

CHANGED = "this folder was changed by something else"
OPTIONS = ("job.max_failed_rows=null", "input.id=id")
LEFT = ".pipeline-kit-0123456789abcdef.tmp"
posix = pytest.mark.skipif(os.name != "posix", reason="signals and locks as POSIX has them")


@pytest.fixture(autouse=True)
def _terminal_can_be_closed() -> Iterator[None]:
    """Let SIGHUP end a process, also where the tests were started under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


class Setting:
    """A complete job of three shards, of which the second has a dead letter."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out"
        rows = [{"id": f"r{i}", "text": f"row {i}" + ("~p" if i == 4 else "")} for i in range(8)]
        self.source = write_rows(folder / "in.jsonl", rows)

    def run(self, *, build: Any = echo, **how: Any) -> JobSummary:
        return run_echo(job_config(*OPTIONS), [self.source], self.out, build=build, **how)

    def retry(self, *overrides: str, build: Any = echo) -> JobSummary:
        config = job_config(*OPTIONS, *overrides)
        return run_echo(config, [self.source], self.out, retry=True, build=build)

    def refused(self, match: str = CHANGED) -> None:
        """See that neither running nor retrying touches anything in or beside the folder."""
        before = everything(self.out.parent)
        for attempt in (self.run, self.retry):
            with pytest.raises(OutputError, match=match):
                attempt()
            assert everything(self.out.parent) == before


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    setting = Setting(tmp_path_factory.mktemp("made"))
    setting.run()
    return setting.out


@pytest.fixture
def setting(made: Path, tmp_path: Path) -> Setting:
    shutil.copytree(made, tmp_path / "out")
    return Setting(tmp_path)


def everything(folder: Path) -> dict[str, bytes | str]:
    """All there is below `folder`; the lock, which names the last process, is left out."""
    found: dict[str, bytes | str] = {}
    for path in folder.rglob("*"):
        if path.name != "_lock":
            found[str(path)] = path.read_bytes() if path.is_file() else os.readlink(path) if path.is_symlink() else ""
    return found


def mended(config: Any) -> Any:
    class Mended(EchoPostprocessor):
        def __call__(self, examples: Any, encodings: Any, outputs: Any) -> Any:
            return super().__call__([str(e["text"]).replace("~", "") for e in examples], encodings, outputs)

    return echo(config, postprocessor=Mended())


# H1: nothing that a file in the folder names is imported, executed or taken as an option.


def test_h1_a_manifest_that_names_plugins_and_options_is_no_job(
    setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = setting.out / "marker"
    (setting.out / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    command = {"plugins": [str(setting.out / "evil.py")], "overrides": ["job.max_failed_rows=null"]}
    reseal(setting.out / "_manifest.json", command=command)
    setting.refused("cannot be told what the job is")
    assert main(["retry", str(setting.out)]) == 2
    assert "'retry' is not a subcommand" in capsys.readouterr().err
    assert not marker.exists()


def test_h1_what_a_first_load_settled_chooses_only_where_the_user_said_auto(setting: Setting) -> None:
    from pipeline_kit.job.runner import with_pinned_options

    config = job_config("model.linear=auto")
    evil = {"linear": "packed", "cache_dir": "/evil", "attn_implementation": "evil/kernel", "none": 1}
    options = with_pinned_options(config, evil).model.options
    assert options.linear == "packed"
    assert vars(options) | {"linear": "auto"} == vars(config.model.options)
    with pytest.raises(OutputError, match=r"model\.linear: 'evil'"):
        with_pinned_options(config, {"linear": "evil"})


def test_h1_an_input_that_can_be_read_once_is_neither_resumed_nor_retried(setting: Setting, tmp_path: Path) -> None:
    config = job_config("job.max_failed_rows=null")

    def go(retry: bool = False) -> JobSummary:
        with Source.of(iter(["a~p", "b"]), config.input, config.task.takes) as source:
            return run_to_end(Job(config, source, str(tmp_path / "once"), echo, retry=retry), JobWatcher())

    assert go().rows == 2
    for retry in (False, True):
        with pytest.raises(UsageError, match="can be gone through only once"):
            go(retry)


def test_h1_retry_from_python(tmp_path: Path) -> None:
    import pipeline_kit as pk

    with pytest.raises(UsageError, match="holds no job"):
        pk.run_job("device=cpu", rows=["a"], output=tmp_path / "none", retry=True)
    with pytest.raises(UsageError, match="one of the two"):
        pk.run_job("device=cpu", rows=["a"], output=tmp_path / "none", retry=True, restart=True)
    assert os.listdir(tmp_path) == []


# H2: what receipts, dead letters and manifests say is checked before anything is touched.

NAMES = ["_dead/../../victim.txt", "../victim.txt", "/etc/hostname", "_manifest.json", "part-00002.jsonl"]
NAMES += ["_dead/part-00001.csv", "part-00001.retry-0.jsonl", "part-00001.jsonl\n", "", "_dead/", ".."]
NAMES += ["part-\u0660\u0660\u0660\u0660\u0661.jsonl", "part-1.jsonl"]


@pytest.mark.parametrize("name", NAMES)
def test_h2_a_receipt_that_names_another_file_is_refused(setting: Setting, name: str) -> None:
    victim = setting.out.parent / "victim.txt"
    victim.write_text("theirs")
    path = setting.out / "_receipts" / "part-00001.json"
    files = json.loads(path.read_text())["files"]
    reseal(path, files={**files, name: stored.sha256(victim)})
    setting.refused()


VALUES: dict[str, list[Any]] = {
    "dead": [-1, True, 1.0, "1", None, 10**30, [1]],
    "counts": [{"tokens": -1}, {"tokens": "1"}, {"tokens": float("nan")}, {"a": 1e999}, []],
    "files": [[], {"part-00001.jsonl": 1}, {"part-00001.jsonl": "0" * 63}, None],
    "shard": [2],
    "rows": [30],
    "first": [9],
    "last": [5000],
    "job": ["another", None],
    "more": [1],
}
RECEIPTS = [(name, value) for name, values in VALUES.items() for value in values]


def test_h2_a_receipt_far_behind_the_others_is_refused(setting: Setting) -> None:
    receipts = setting.out / "_receipts"
    name, far = "part-00001", 10**12
    content = json.loads((receipts / f"{name}.json").read_text())
    path = receipts / f"part-{far}.json"
    path.write_text(json.dumps(content))
    files = {key.replace(name, f"part-{far}"): value for key, value in content["files"].items()}
    sizes = {key.replace(name, f"part-{far}"): value for key, value in content["sizes"].items()}
    reseal(path, shard=far, first=far, last=far + 2, files=files, sizes=sizes)
    setting.refused()


@pytest.mark.parametrize("change", RECEIPTS, ids=str)
def test_h2_a_receipt_that_says_what_no_job_writes_is_refused(setting: Setting, change: tuple[str, Any]) -> None:
    reseal(setting.out / "_receipts" / "part-00001.json", **dict([change]))
    setting.refused()


MANIFESTS: tuple[tuple[str, Any], ...] = (
    *(("counts", value) for value in ({"shards": -3}, {"shards": "3"}, [3], {"dead": float("inf")})),
    *(("settled", []), ("resolved", 1), ("schema", [1]), ("totals", {"tokens": None}), ("identity", "x")),
)


@pytest.mark.parametrize("change", MANIFESTS, ids=str)
def test_h2_a_manifest_that_says_what_no_job_writes_is_refused(setting: Setting, change: tuple[str, Any]) -> None:
    reseal(setting.out / "_manifest.json", **dict([change]))
    setting.refused()


SCHEMAS = [{"columns": 1}, {"columns": [["id", "nonsense"]]}, {"other": []}, {"columns": [["id", {"list": 1}]]}]


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_h2_columns_that_cannot_be_written_are_refused(tmp_path: Path, schema: Any) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"text": "a"}])
    config = job_config("output.format=parquet")
    run_echo(config, [source], tmp_path / "out")
    reseal(tmp_path / "out" / "_manifest.json", schema=schema)
    with pytest.raises(OutputError, match=CHANGED):
        run_echo(config, [source], tmp_path / "out")


@pytest.mark.parametrize("index", [-1, 10**30, "4", True, 4.0, 1, None])
def test_h2_a_dead_letter_of_a_row_that_is_not_the_shards_is_refused(setting: Setting, index: Any) -> None:
    dead, receipt = setting.out / "_dead" / "part-00001.jsonl", setting.out / "_receipts" / "part-00001.json"
    letter = json.loads(dead.read_text())
    dead.write_text(json.dumps(letter | {"index": index}) + "\n")
    files = json.loads(receipt.read_text())["files"]
    reseal(receipt, files={**files, "_dead/part-00001.jsonl": stored.sha256(dead)})
    before = everything(setting.out)
    with pytest.raises(OutputError, match=CHANGED):
        setting.retry()
    assert everything(setting.out) == before


@posix
@pytest.mark.parametrize("how", ["link", "pipe", "folder"])
@pytest.mark.parametrize("name", ["_receipts/part-00001.json", "_manifest.json", "_SUCCESS", "_lock"])
def test_h2_what_a_job_wrote_is_a_regular_file(setting: Setting, name: str, how: str) -> None:
    path, victim = setting.out / name, setting.out.parent / "victim"
    victim.write_bytes(path.read_bytes())
    path.unlink()
    if how == "link":
        path.symlink_to(victim)
    elif how == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    setting.refused()


def test_h2_a_receipt_of_another_job_is_not_mixed_in(made: Path, setting: Setting) -> None:
    other = setting.out.parent / "other"
    rows = write_rows(setting.out.parent / "other.jsonl", [{"id": f"x{i}", "text": f"other {i}"} for i in range(8)])
    run_echo(job_config(*OPTIONS), [rows], other)
    for name in ("part-00002.jsonl", "_receipts/part-00002.json"):
        shutil.copyfile(other / name, setting.out / name)
    setting.refused()


# H4: only what a receipt of this job names, with the same content, is deleted.

FOREIGN: tuple[str, ...] = ("part-00077.jsonl", "_dead/part-00077.jsonl", "_receipts/part-00077.json", "part-00000.csv")
FOREIGN += ("part-00001.retry-1.jsonl", "_dead/part-00000.jsonl", "_SUCCESS", "_lock")


@pytest.mark.parametrize("name", FOREIGN)
def test_h4_a_file_of_somebody_else_among_the_shards_is_refused_and_kept(setting: Setting, name: str) -> None:
    (setting.out / name).write_text("theirs")
    setting.refused()
    assert (setting.out / name).read_text() == "theirs"


@pytest.mark.parametrize("name", ["part-00001.jsonl", "part-00077.jsonl", "_dead/part-00002.jsonl", "part-00002.csv"])
def test_h4_a_file_of_somebody_else_where_a_shard_will_be_is_kept(tmp_path: Path, name: str) -> None:
    setting = Setting(tmp_path)
    with pytest.raises(InterruptedError):
        setting.run(watcher=Interrupted())
    assert not list(setting.out.glob("part-*"))
    (setting.out / name).write_text("theirs")
    with pytest.raises(OutputError, match=CHANGED):
        setting.run()
    assert (setting.out / name).read_text() == "theirs"
    assert not (setting.out / "_SUCCESS").exists()
    (setting.out / name).unlink()
    assert setting.run().rows == 8


def test_h4_what_a_kill_left_is_removed_though_the_row_does_not_fail_again(
    setting: Setting, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead letter that no receipt names yet, of a row that has a result the next time."""
    shutil.rmtree(setting.out)
    writes: list[str] = []
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        writes.append(Path(target).name)
        if str(target).endswith("_receipts/part-00001.json"):
            raise InterruptedError
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(OutputError):
            setting.run()
    assert dead_of(setting.out)
    assert "part-00001.begun.json" in writes
    summary = setting.run(build=mended)
    assert (summary.dead, dead_of(setting.out)) == (0, [])
    assert len(lines_of(setting.out)) == 8
    assert sorted(os.listdir(setting.out / "_receipts")) == [f"part-0000{i}.json" for i in range(3)]


# H5: litter is not seen, and what a job does not write is not its business.

LITTER = [".DS_Store", "._part-00000.jsonl", "Thumbs.db", "desktop.ini", ".nfs00000001", ".~lock.part-00000.csv#"]
LITTER += [".part-00000.jsonl.swp", "part-00000.jsonl~", ".gitkeep", ".fuse_hidden001", "~$part-00000.csv"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_h5_litter_locks_no_job_out_and_is_left_alone(tmp_path: Path, when: str) -> None:
    setting = Setting(tmp_path)
    if when == "after":
        setting.run()
    places = [setting.out / name for name in LITTER]
    if when == "after":
        places += [setting.out / folder / ".DS_Store" for folder in ("_dead", "_receipts")]
    for path in places:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("theirs")
    (setting.out / "@eaDir").mkdir()
    assert setting.run().rows == 8
    assert setting.retry(build=mended).dead == 0
    assert all(path.read_text() == "theirs" for path in places)


def test_h5_a_note_beside_the_shards_is_left_alone_and_a_folder_with_files_is_not_made_a_job(setting: Setting) -> None:
    (setting.out / "notes.txt").write_text("theirs")
    (setting.out / "part-x.jsonl").write_text("theirs")
    assert setting.run().reused == 8
    folder = setting.out.parent / "files"
    folder.mkdir()
    (folder / "notes.txt").write_text("theirs")
    with pytest.raises(OutputError, match=r"holds something that is not a job's \(notes.txt\)"):
        run_echo(job_config(), [setting.source], folder)
    assert os.listdir(folder) == ["notes.txt"]


# H28: no temporary file stays for ever.


@pytest.fixture
def fresh() -> Iterator[None]:
    """As in a process that wrote nothing yet."""
    atomic._remove_leftovers_once.cache_clear()
    yield
    atomic._remove_leftovers_once.cache_clear()


@posix
def test_h28_temporary_files_of_dead_processes_are_removed_and_no_others(tmp_path: Path, fresh: None) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from pipeline_kit.files.atomic import atomic_writer\n"
        "with atomic_writer('killed') as file:\n    file.write('x'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path)
    [left] = os.listdir(tmp_path)
    theirs = [".pipeline-kit-notes.tmp", ".pipeline-kit-0123.tmp", "x.tmp", LEFT.upper()]
    for name in theirs:
        (tmp_path / name).write_text("theirs")
    (tmp_path / LEFT).symlink_to(tmp_path / "x.tmp")
    with atomic_writer(tmp_path / "first") as first:
        first.write("first")
        first.flush()
        atomic._remove_leftovers_once.cache_clear()
        with atomic_writer(tmp_path / "second") as second:
            second.write("second")
    assert not (tmp_path / left).exists()
    assert sorted(os.listdir(tmp_path)) == sorted([*theirs, LEFT, "first", "second"])
    assert (tmp_path / "first").read_text() == "first"


@posix
def test_h28_a_file_that_was_taken_for_a_leftover_is_begun_again(
    tmp_path: Path, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking another process may look: it must not cost the run its file."""
    opened: list[Any] = []
    real = os.open

    def opening(path: Any, flags: int, *more: Any, **named: Any) -> int:
        descriptor = real(path, flags, *more, **named)
        if str(path).endswith(".tmp") and not opened:
            opened.append(path)
            os.unlink(path)
        return descriptor

    monkeypatch.setattr(os, "open", opening)
    with atomic_writer(tmp_path / "out") as file:
        file.write("x")
    assert len(opened) == 1
    assert os.listdir(tmp_path) == ["out"]


@posix
def test_h28_what_a_killed_export_left_is_removed_when_another_is_made(tmp_path: Path) -> None:
    dead, live = "0" * 64, "1" * 64
    for name in (dead, live):
        (tmp_path / f".{name}-abcdefgh").mkdir()
        (tmp_path / f".{name}-abcdefgh" / "file").write_text("x")
    (tmp_path / ".notes-abcdefgh").mkdir()

    def build(folder: Path) -> dict[str, Any]:
        (folder / "file").write_text("y")
        return {}

    with lock_file(tmp_path / f"{live}.lock", wait=True):
        cache.cached(tmp_path, {"a": 1}, build)
    names = {name for name in os.listdir(tmp_path) if name.startswith(".")}
    assert names == {f".{live}-abcdefgh", ".notes-abcdefgh"}


STOPPING = """
import os, signal
{before}
def register(registry):
    pass
"""


@pytest.fixture
def stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str, str], tuple[int, str]]:
    def run(code: str, command: str) -> tuple[int, str]:
        (tmp_path / "stopping.py").write_text(STOPPING.format(before=code))
        out = [] if command == "cfg" else ["--text", "a", "--output", str(tmp_path / "out.jsonl")]
        result = main([command, "--plugin", str(tmp_path / "stopping.py"), "device=cpu", *out])
        return result, capsys.readouterr().err

    return run


SWALLOWED = """
try:
    os.kill(os.getpid(), signal.{name})
    for _ in range(1000): pass
except BaseException:
    pass
"""


@posix
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.parametrize("how", ["os.kill(os.getpid(), signal.{name})", SWALLOWED])
def test_h25_a_signal_while_composing_ends_with_its_code(
    stopped: Callable[[str, str], tuple[int, str]], name: str, code: int, how: str, tmp_path: Path
) -> None:
    """H25, H28: also where a plugin, or a library that is imported, swallows every exception."""
    found, told = stopped(how.format(name=name), "cfg")
    assert found == code
    assert told in ("terminated\n", "the terminal was closed\n")
    assert sorted(os.listdir(tmp_path)) == ["stopping.py"]


@posix
def test_h25_a_signal_that_was_swallowed_is_sent_again(
    stopped: Callable[[str, str], tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline_kit.cli import signals

    monkeypatch.setattr(signals, "SECONDS_TO_HEAR", 0.01)
    found, _ = stopped(SWALLOWED.format(name="SIGTERM") + "\nsignal.pause()\nopen('/nonexistent')", "cfg")
    assert found == 143


@posix
def test_h28_a_hangup_that_is_ignored_stays_ignored(stopped: Callable[[str, str], tuple[int, str]]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert stopped("os.kill(os.getpid(), signal.SIGHUP)", "cfg") == (0, "")
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@posix
@pytest.mark.parametrize("name", ["out.jsonl", "out/"])
def test_h28_a_closed_terminal_leaves_no_temporary_file(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the model is loaded, when the output's file is open already."""
    import pipeline_kit.compose.build

    def hung_up(config: Any) -> Any:
        os.kill(os.getpid(), signal.SIGHUP)
        for _ in range(1000):
            pass
        raise AssertionError("the signal was not heard")

    monkeypatch.setattr(pipeline_kit.compose.build, "build", hung_up)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert main(["run", "--text", "a", "--output", str(tmp_path / name), "device=cpu"]) == 129
    assert "the terminal was closed" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.tmp"))
    assert not (tmp_path / "out.jsonl").exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers
