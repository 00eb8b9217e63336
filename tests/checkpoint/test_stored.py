"""Checkpoints in a store: copied once, whole or not at all, data alone; messages name the URL."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import checkpoint_folders
import pytest
from huggingface_hub import constants

from pipeline_kit.checkpoint.resolve import CheckpointConfig, find_folder, fingerprint, resolve_checkpoint
from pipeline_kit.contract.types import Checkpoint
from pipeline_kit.errors import CheckpointError, UsageError
from pipeline_kit.files.storage.base import Version
from pipeline_kit.files.storage.local import storage_of
from pipeline_kit.files.storage.objects import ObjectStorage, forget_stores

URL = "memory://bucket/models/tiny"
OTHERS = ("pytorch_model.bin", "modeling.py", ".git/config.json", "onnx/model.json", "checkpoint-5/model.safetensors")
"""What is in such folders and is not copied."""


@pytest.fixture
def files() -> Iterator[dict[str, bytes]]:
    """The files of a checkpoint, which lie in a store with others."""
    found = checkpoint_folders.files()
    for name, data in {**found, **dict.fromkeys(OTHERS, b"?")}.items():
        put(name, data)
    yield found
    forget_stores()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    return tmp_path / "pipeline-kit"


class Opened(list[str]):
    """The keys that are opened; `stop` is the ending of one at which that fails."""

    stop = "no file"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = ObjectStorage.open

        def open_(storage: ObjectStorage, key: str, version: Version | None = None) -> BinaryIO:
            self.append(key)
            if key.endswith(self.stop):
                raise KeyboardInterrupt
            return real(storage, key, version)

        monkeypatch.setattr(ObjectStorage, "open", open_)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Opened:
    return Opened(monkeypatch)


def put(name: str, data: bytes) -> None:
    with storage_of(URL).writer(f"{URL}/{name}") as file:
        file.write(data)


def resolved(path: str = URL, **options: Any) -> Checkpoint:
    return resolve_checkpoint(CheckpointConfig(path=path, **options))


def folders(home: Path) -> list[str]:
    return [path.name for path in home.iterdir() if path.is_dir()]


def test_data_files_are_copied_once(files: dict[str, bytes], home: Path, reads: Opened, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.mkdir()
    for name, data in files.items():
        (local / name).write_bytes(data)
    found = resolved()
    assert found.name == URL
    assert found.path.parent == home
    assert sorted(path.relative_to(found.path).as_posix() for path in found.path.rglob("*")) == sorted(files)
    assert fingerprint(found) == fingerprint(resolved(str(local)))
    assert len(reads) == len(files)
    assert resolved(f"{URL}/").path == found.path
    assert len(reads) == len(files)
    put("config.json", files["config.json"].replace(b"NEGATIVE", b"negative"))
    assert resolved().path != found.path
    assert resolved(cache_dir=str(tmp_path / "other")).path.parent == tmp_path / "other"


def test_what_is_cut_off_is_copied_anew(
    files: dict[str, bytes], home: Path, reads: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads.stop = "tokenizer.json"
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda *_, **__: None)  # a killed process removes nothing
        with pytest.raises(KeyboardInterrupt):
            resolved()
    assert folders(home)[0].startswith(".tiny-")
    reads.stop = "no file"
    path = resolved().path
    assert folders(home) == [path.name]
    (path / "model.safetensors").write_bytes(b"short")
    assert resolved().path == path
    assert (path / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert folders(home) == [path.name]


def test_of_many_one_copies(files: dict[str, bytes], reads: Opened) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = {found.path for found in pool.map(lambda _: resolved(), range(4))}
    assert len(paths) == 1
    assert len(reads) == len(files)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("memory://bucket/model", {}, "^checkpoint.path=memory://bucket/model: no such folder, or it is empty"),
        ("memory://bucket/models", {}, f"^memory://bucket/models has no config.json, .* checkpoint.path={URL}\\?"),
        (f"{URL}/config.json", {}, "is a file; name the folder that holds it"),
        (URL, {"revision": "main"}, f"^checkpoint.revision=main: '{URL}' has no revisions"),
        (URL, {"offline": True}, f"^checkpoint.offline=True: '{URL}' needs the network"),
        (URL, {"trust": "pickle"}, "^checkpoint.trust=pickle: this model stage reads safetensors alone"),
    ],
)
def test_what_cannot_be_copied_is_named(
    path: str, options: dict[str, Any], message: str, files: dict[str, bytes], home: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        resolved(path, **options)


def test_a_store_of_endless_files_is_given_up(
    files: dict[str, bytes], reads: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        put(f"run-{number % 2}/{number}.json", b"{}")
    monkeypatch.setattr("pipeline_kit.checkpoint.stored.MAX_FILES", 20)
    with pytest.raises(CheckpointError, match=f"^{URL} holds over 20 files; name the model's own folder"):
        resolved()
    assert reads == []


def test_messages_name_the_url(files: dict[str, bytes], home: Path) -> None:
    put("config.json", b"{")
    with pytest.raises(CheckpointError, match=f"^{URL}/config.json") as caught:
        resolved()
    assert str(home) not in str(caught.value)


def test_a_format_of_its_own_is_copied_whole_if_it_is_safe(files: dict[str, bytes]) -> None:
    config = CheckpointConfig(path=URL)
    with pytest.raises(CheckpointError, match=f"^{URL} holds modeling.py, pytorch_model.bin: such a file can run code"):
        resolve_checkpoint(config, lambda: lambda checkpoint: {})
    storage_of(URL).delete(f"{URL}/modeling.py")
    config.trust = "pickle"
    found = resolve_checkpoint(config, lambda: lambda checkpoint: {})
    assert (found.path / "pytorch_model.bin").read_bytes() == b"?"
    assert not (found.path / ".git").exists()


def test_a_secret_in_the_url_is_refused_unseen() -> None:
    with pytest.raises(UsageError, match="the secrets in it") as caught:
        find_folder("s3://user:hunter2secret@bucket/model")
    assert "hunter2" not in str(caught.value)
