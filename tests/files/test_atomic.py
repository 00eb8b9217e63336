"""A file appears complete or not at all, whichever step fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline_kit.errors import OutputError
from pipeline_kit.files.atomic import BLOCK, atomic_writer

STEPS = ("open", "write", "fsync", "replace")


class Breaking:
    """Makes the k-th call of one of os's functions raise; later calls work again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, at: int, code: int) -> None:
        self.calls = 0
        real: Callable[..., Any] = getattr(os, name)

        def call(*args: Any, **more: Any) -> Any:
            self.calls += 1
            if self.calls == at:
                raise OSError(code, os.strerror(code))
            return real(*args, **more)

        monkeypatch.setattr(os, name, call)


def write_three_blocks(path: Path) -> None:
    with atomic_writer(path) as file:
        for letter in "abc":
            file.write(letter * BLOCK)


def calls_of(name: str, folder: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        counted = Breaking(patch, name, 0, errno.EIO)
        write_three_blocks(folder / "counted.txt")
    (folder / "counted.txt").unlink()
    return counted.calls


@pytest.mark.parametrize("name", STEPS)
def test_failure_of_any_call_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    count = calls_of(name, tmp_path)
    assert count >= (3 if name == "write" else 1)
    for at in range(1, count + 1):
        path = tmp_path / f"out-{at}.txt"
        with monkeypatch.context() as patch:
            Breaking(patch, name, at, errno.ENOSPC)
            with pytest.raises(OutputError, match=rf"out-{at}\.txt: cannot be written: {os.strerror(errno.ENOSPC)}"):
                write_three_blocks(path)
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["open", "write", "replace"])
def test_failure_keeps_what_was_there_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / "out.txt"
    path.write_text("before")
    with monkeypatch.context() as patch:
        Breaking(patch, name, 1, errno.EIO)
        with pytest.raises(OutputError):
            write_three_blocks(path)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync
    calls: list[int] = []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.EINVAL, "no sync of folders")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_writer(tmp_path / "out.txt") as file:
        file.write("x")
    assert len(calls) == 2
    assert (tmp_path / "out.txt").read_text() == "x"


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(143)])
def test_an_interrupted_body_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    def interrupted() -> None:
        with atomic_writer(tmp_path / "out.txt") as file:
            file.write("x" * (2 * BLOCK))
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert os.listdir(tmp_path) == []


def test_nothing_has_the_final_name_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    with atomic_writer(path) as file:
        file.write("é\u2028\n" * 3)
        for data in (b"\xff", memoryview(b"\0\r"), bytearray(b"\n")):
            file.write(data)
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == "é\u2028\n".encode() * 3 + b"\xff\0\r\n"


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data[:7])))
    with atomic_writer(tmp_path / "out.txt") as file:
        file.write("0123456789" * 10)
    assert (tmp_path / "out.txt").read_text() == "0123456789" * 10


def test_permissions_are_those_of_a_file_opened_plainly_or_of_the_file_replaced(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with atomic_writer(tmp_path / "new") as file:
        file.write("x")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "new").chmod(0o640)
    with atomic_writer(tmp_path / "new") as file:
        file.write("y")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


def test_folders_links_devices_and_missing_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "folder").mkdir()
    cases = {
        str(tmp_path / "link"): "symbolic link; name the file it points to: .*real",
        str(tmp_path / "folder"): "is a folder; name a file in it",
        os.devnull: "is a device or a pipe",
        str(tmp_path / "none" / "out"): "is there a folder '.*none'",
        str(tmp_path / ("n" * 300)): "cannot be written",
    }
    for path, message in cases.items():
        with pytest.raises(OutputError, match=message), atomic_writer(path) as file:
            file.write("x")
    assert (tmp_path / "real").read_text() == "kept"
    assert sorted(os.listdir(tmp_path)) == ["folder", "link", "real"]
