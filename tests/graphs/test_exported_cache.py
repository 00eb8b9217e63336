"""Folders that are complete or not there: reuse, damage, several processes, a process that is killed."""

from __future__ import annotations

import fcntl
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import warm

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
import json, sys, time
from pathlib import Path
from pipeline_kit.graphs.cache import cached

root, name, key = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])

def build(folder):
    (folder / "model.onnx").write_text("by " + name)
    print("building", file=sys.stderr)
    while not (root.parent / "go").exists():
        time.sleep(0.01)
    (folder / "model.onnx.data").write_text("rest")
    return {"by": name}

print("starting", file=sys.stderr)
print(json.dumps(cached(root, key, build)[1]))
"""


def start(root: Path, name: str) -> warm.Process:
    return warm.start("-c", BUILDER, root, name, json.dumps(KEY))


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    first = start(root, "one")
    first.until_printed("building")
    with (root / f"{name_of(KEY)}.lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    second = start(root, "two")
    second.until_printed("starting")
    (tmp_path / "go").touch()
    assert json.loads(first.wait().out) == {"by": "one"}
    assert json.loads(second.wait().out) == {"by": "one"}, "the second one built, too"
    assert not list(root.glob(".*"))


def test_after_a_kill_the_next_process_builds_and_tidies_up(tmp_path: Path) -> None:
    first = start(tmp_path, "one")
    first.until_printed("building")
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
