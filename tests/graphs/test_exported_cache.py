"""Folders that are complete or not there: reuse, damage, several processes, a process that is killed."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline_kit.errors import ConfigError
from pipeline_kit.graphs.cache import cached, default_folder, name_of

KEY = {"head": "base", "checkpoint": {"model.safetensors": "0" * 64}}


def writes(text: str, calls: list[str] | None = None) -> Callable[[Path], dict[str, Any]]:
    def build(folder: Path) -> dict[str, Any]:
        if calls is not None:
            calls.append(text)
        (folder / "model.onnx").write_text(text)
        (folder / "model.onnx.data").write_text(text * 100)
        return {"sides": ["right"], "text": text}

    return build


def never(folder: Path) -> dict[str, Any]:
    raise AssertionError(f"built again in {folder}")


def test_the_second_time_nothing_is_built(tmp_path: Path) -> None:
    folder, facts = cached(tmp_path, KEY, writes("one"))
    assert facts == {"sides": ["right"], "text": "one"}
    assert cached(tmp_path, dict(reversed(KEY.items())), never) == (folder, facts)
    assert folder.name == name_of(KEY)
    assert len(folder.name) == 64


def test_another_key_has_another_folder(tmp_path: Path) -> None:
    first, _ = cached(tmp_path, KEY, writes("one"))
    second, facts = cached(tmp_path, {**KEY, "head": "masked-lm"}, writes("two"))
    assert first != second
    assert facts["text"] == "two"
    assert cached(tmp_path, KEY, never)[1]["text"] == "one"


def cut(folder: Path) -> None:
    path = folder / "model.onnx.data"
    path.write_bytes(path.read_bytes()[:-1])


def flip(folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(b"x" + path.read_bytes()[1:])


def remove(folder: Path) -> None:
    (folder / "model.onnx").unlink()


def link(folder: Path) -> None:
    (folder / "model.onnx").rename(folder.parent / "elsewhere")
    (folder / "model.onnx").symlink_to(folder.parent / "elsewhere")


def cut_seal(folder: Path) -> None:
    path = folder / "entry.json"
    path.write_text(path.read_text()[:50])


def change_facts(folder: Path) -> None:
    path = folder / "entry.json"
    path.write_text(path.read_text().replace("right", "left"))


def list_instead(folder: Path) -> None:
    (folder / "entry.json").write_text("[]")


def another_key(folder: Path) -> None:
    other, _ = cached(folder.parent, {"another": 1}, writes("two"))
    for path in other.iterdir():
        path.replace(folder / path.name)


@pytest.mark.parametrize(
    "damage", [cut, flip, remove, link, cut_seal, change_facts, list_instead, another_key], ids=lambda f: f.__name__
)
def test_a_damaged_folder_is_made_anew(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder, _ = cached(tmp_path, KEY, writes("one"))
    damage(folder)
    calls: list[str] = []
    again, facts = cached(tmp_path, KEY, writes("one", calls))
    assert (again, facts["text"], calls) == (folder, "one", ["one"])
    assert (folder / "model.onnx").read_text() == "one"
    assert cached(tmp_path, KEY, never) == (folder, facts)
    assert not list(tmp_path.glob(".*"))


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(folder: Path) -> dict[str, Any]:
        (folder / "model.onnx").write_text("half")
        raise ValueError("no such operator")

    with pytest.raises(ValueError, match="no such operator"):
        cached(tmp_path, KEY, fails)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    assert cached(tmp_path, KEY, writes("one"))[1]["text"] == "one"


def test_without_locks_the_first_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError("no locks on this file system")

    monkeypatch.setattr("fcntl.flock", unsupported)

    def slow(folder: Path) -> dict[str, Any]:
        cached(tmp_path, KEY, writes("faster"))
        return writes("slower")(folder)

    folder, facts = cached(tmp_path, KEY, slow)
    assert facts["text"] == "faster"
    assert (folder / "model.onnx").read_text() == "faster"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("below", ["", "more"])
def test_a_place_that_cannot_be_used_is_told(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"model\.cache_dir: .*file.* cannot be used"):
        cached(tmp_path / "file" / below, KEY, never)


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder("onnx") == tmp_path / "pipeline-kit" / "onnx"
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert default_folder("onnx") == Path.home() / ".cache" / "pipeline-kit" / "onnx"


BUILDER = """
import json, sys
from pathlib import Path
from pipeline_kit.graphs.cache import cached

def build(folder):
    (folder / "model.onnx").write_text("by " + sys.argv[2])
    print("building", flush=True)
    sys.stdin.readline()
    (folder / "model.onnx.data").write_text("rest")
    return {"by": sys.argv[2]}

print(json.dumps(cached(Path(sys.argv[1]), json.loads(sys.argv[3]), build)[1]), flush=True)
"""


def start(root: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, str(root), name, json.dumps(KEY)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path: Path) -> None:
    with start(tmp_path, "one") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "building\n"
        with (tmp_path / f"{name_of(KEY)}.lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with start(tmp_path, "two") as second:
            out, _ = first.communicate("\n")
            assert json.loads(out) == {"by": "one"}
            out, _ = second.communicate("\n")
            assert json.loads(out) == {"by": "one"}, "the second one built, too"
    assert not list(tmp_path.glob(".*"))


def test_after_a_kill_the_next_process_builds_and_tidies_up(tmp_path: Path) -> None:
    with start(tmp_path, "one") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "building\n"
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert [path.name for path in tmp_path.glob(".*/*")] == ["model.onnx"]
    assert not (tmp_path / name_of(KEY)).exists()
    other = tmp_path / ".another-key-half"
    other.mkdir()
    folder, facts = cached(tmp_path, KEY, writes("two"))
    assert facts["text"] == "two"
    assert list(tmp_path.glob(".*")) == [other], "what belongs to others stays"
    assert (folder / "model.onnx").read_text() == "two"
