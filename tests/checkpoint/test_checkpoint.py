"""Finding, parsing and checking a model folder."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoint_folders
import pytest

from pipeline_kit.checkpoint.resolve import CheckpointConfig, fingerprint, resolve_checkpoint, weight_shapes
from pipeline_kit.checkpoint.weights import read_header
from pipeline_kit.contract.options import parse_options
from pipeline_kit.contract.types import Checkpoint
from pipeline_kit.errors import CheckpointError, Fault

SHAPES = {name: tensor.shape for name, tensor in checkpoint_folders.TENSORS.items()}


def resolve(path: Path | str, **options: Any) -> Checkpoint:
    return resolve_checkpoint(CheckpointConfig(path=str(path), **options))


def message(path: Path | str, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve(path, **options)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoint_folders.make(tmp_path / "model")


def test_a_sound_folder(folder: Path) -> None:
    found = resolve(folder)
    assert found.path == folder
    assert found.name == str(folder)
    assert found.revision is None
    assert found.labels == ("NEGATIVE", "POSITIVE")
    assert found.tokenizer_config == {"tokenizer_class": "BertTokenizerFast"}
    assert weight_shapes(found) == SHAPES


def test_shards(folder: Path) -> None:
    found = resolve(checkpoint_folders.shard(folder))
    assert weight_shapes(found) == SHAPES
    assert "model-00002-of-00002.safetensors" in fingerprint(found)


def test_a_static_model_needs_no_tokenizer_config(tmp_path: Path) -> None:
    contents = checkpoint_folders.files({"model_type": "static"})
    del contents["tokenizer_config.json"]
    found = resolve(checkpoint_folders.write(tmp_path, contents))
    assert found.tokenizer_config == {}


def test_relative_and_home_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    for path in ("model", "./model", "~/model", "model/"):
        assert resolve(path).path.resolve() == folder
        assert resolve(path).path.is_absolute()


def test_symlinks_are_followed_as_the_hub_cache_needs(folder: Path, tmp_path: Path) -> None:
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for path in folder.iterdir():
        (linked / path.name).symlink_to(Path("..") / "model" / path.name)
    assert resolve(linked).labels == ("NEGATIVE", "POSITIVE")
    assert fingerprint(resolve(linked)) == fingerprint(resolve(folder))


def test_a_folder_inside_a_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "hostile_pkg_for_tests"
    checkpoint_folders.make(package / "data" / "tiny")
    for place in (package, package / "data"):
        (place / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("pkg://hostile_pkg_for_tests.data/tiny").path == package / "data" / "tiny"
    assert resolve("pkg://hostile_pkg_for_tests/data/tiny").path == package / "data" / "tiny"
    assert not [name for name in sys.modules if name.startswith("hostile_pkg_for_tests")]
    assert "did you mean pkg://hostile_pkg_for_tests.data/tiny?" in message("pkg://hostile_pkg_for_tests.data/tinny")
    assert "no folder 'x'; it has: tiny" in message("pkg://hostile_pkg_for_tests.data/x")
    assert "no package 'no_such_package_here' is installed" in message("pkg://no_such_package_here/x")


@pytest.mark.parametrize(
    "path",
    ["pkg://", "pkg://a", "pkg://a/", "pkg://a-b/x", "pkg://a/../b", "pkg:///etc", "pkg://a//etc", "pkg://os;x/y"],
)
def test_package_paths_that_are_refused(path: str) -> None:
    assert "write pkg://package/folder" in message(path) or "is installed" in message(path)


def test_no_model_library_is_loaded(folder: Path) -> None:
    code = (
        "import sys; from pipeline_kit.checkpoint.resolve import *; c = "
        "resolve_checkpoint(CheckpointConfig(path=sys.argv[1]));"
        "weight_shapes(c), fingerprint(c);"
        "print([m for m in ('torch', 'transformers', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_options_are_checked_like_a_stage() -> None:
    faults: list[Fault] = []
    assert parse_options(CheckpointConfig, {"unsafe_files": "ignor", "revison": "x"}, "checkpoint", faults) is None
    text = "\n".join(str(fault) for fault in faults)
    assert "checkpoint.path: is required" in text
    assert "Did you mean 'revision'?" in text
    assert "Did you mean 'ignore'?" in text


def test_a_missing_folder_names_the_closest(folder: Path) -> None:
    text = message(folder.parent / "modell")
    assert "no such folder" in text
    assert f"Did you mean the folder '{folder}'?" in text


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("https://huggingface.co/org/name", "is a URL"),
        ("org--x/name", "no hub id either"),
        ("org/na me", "no hub id either"),
        ("name.git", "no hub id either"),
        ("-name", "no hub id either"),
        ("x" * 97, "no hub id either"),
        ("x" * 5000, "cannot be looked up"),
        ("./" + "\x1b[31m" * 3, r"\x1b[31m"),
    ],
)
def test_paths_that_are_none(path: str, expected: str) -> None:
    text = message(path)
    assert expected in text
    assert "\x1b" not in text
    assert len(text) < 1000


@pytest.mark.parametrize(
    "path", ["./acme/tiny", "../tiny", "/acme/tiny", "~/tiny", "a/b/c", "acme\\tiny", "acme/tiny/"]
)
def test_what_looks_like_a_path_never_goes_to_the_hub(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pipeline_kit.checkpoint.hub", None)
    assert "no such folder" in message(path)
    with pytest.raises(ImportError):
        resolve("acme/tiny")


def test_a_file_in_place_of_a_folder(folder: Path) -> None:
    assert "is a file; name the folder that holds it" in message(folder / "model.safetensors")


def test_a_revision_of_a_local_folder_is_refused(folder: Path) -> None:
    assert "has no revisions" in message(folder, revision="main")


def test_no_config(folder: Path) -> None:
    assert f"did you mean checkpoint.path={folder}?" in message(folder.parent)
    (folder / "config.json").unlink()
    text = message(folder)
    assert "has no config.json" in text
    assert "model.safetensors" in text
    (folder / "adapter_config.json").write_text("{}")
    assert "PEFT adapter" in message(folder)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "line 1, column 1"),
        (b'{"a": 1,}', "not valid JSON: "),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[1]", "holds a list, not a JSON object"),
        (b"null", "holds a NoneType"),
        (b"1" * 5000, "not valid JSON"),
        (b'{"a":' * 100_000, "nested more than"),
        (b'{"a": "' + b"x" * (4 << 20) + b'"}', "larger than 4 MB"),
        (b'{"num_labels": -1, "' + b"k" * (1 << 20) + b'": [' + b"[]," * 20_000 + b"[]]}", "'num_labels' is"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b'{"id2label": ["a"]}', "'id2label' must map"),
        (b'{"id2label": {"a": "b"}}', "'id2label' has the index 'a'"),
        (b'{"id2label": {"99999999999": "b"}}', "'id2label' has the index"),
        (b'{"num_labels": 1000000000000}', "'num_labels' is"),
        (b'{"num_labels": -1}', "'num_labels' is"),
    ],
)
def test_broken_configs(folder: Path, content: bytes, expected: str) -> None:
    (folder / "config.json").write_bytes(content)
    text = message(folder)
    assert str(folder / "config.json") in text
    assert expected in text


def test_a_broken_tokenizer_config(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("[]")
    assert "tokenizer_config.json holds a list" in message(folder)


def header(content: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(content)) + content + data


def tensor(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def tensors(**entries: Any) -> bytes:
    return json.dumps(entries).encode()


WEIGHTS = {
    "empty": (b"", "too short to have a header"),
    "short": (b"abc", "too short to have a header"),
    "huge header": (struct.pack("<Q", 100_000_001) + b"{}", "it claims a header of over 100 MB"),
    "cut in the header": (struct.pack("<Q", 50) + b"{}", "it ends inside its header"),
    "no json": (header(b"{abc"), "its header is not JSON"),
    "deep": (header(b'{"a":' * 100_000), "its header is not JSON"),
    "list": (header(b"[]"), "its header is not JSON that describes tensors"),
    "stray tensor": (header(tensors(a=1)), "its header is not JSON that describes tensors"),
    "negative": (header(tensors(a=tensor(-4, 0, [1])), b"abcd"), "its header is not JSON that describes tensors"),
    "many dimensions": (header(tensors(a=tensor(0, 4, [1] * 65)), b"abcd"), "'a' has too many dimensions"),
    "shape": (header(tensors(a=tensor(0, 4, [2])), b"abcd"), "invalid shape"),
    "gap": (header(tensors(a=tensor(4, 8, [1])), b"abcdefgh"), "invalid offset for tensor `a`"),
    "overlap": (header(tensors(a=tensor(0, 4, [1]), b=tensor(0, 4, [1])), b"abcd"), "invalid offset for tensor"),
    "cut off": (header(tensors(a=tensor(0, 8, [2])), b"abcd"), "it is cut off, or has stray bytes"),
    "stray bytes": (header(tensors(a=tensor(0, 4, [1])), b"abcdefgh"), "it is cut off, or has stray bytes"),
    "overflow": (header(tensors(a=tensor(0, 4, [2**40, 2**40])), b"abcd"), "overflow"),
    "pickle": (b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c", "looks like a pickle"),
    "zip": (b"PK\x03\x04" + b"\0" * 40, "is a zip archive"),
    "gguf": (b"GGUF" + b"\0" * 40, "is a GGUF file"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
}


@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_broken_weights(folder: Path, name: str) -> None:
    content, expected = WEIGHTS[name]
    (folder / "model.safetensors").write_bytes(content)
    text = message(folder)
    assert str(folder / "model.safetensors") in text
    assert expected in text


def test_a_header_whose_length_begins_like_a_pickle_is_read(folder: Path) -> None:
    content = tensors(a=tensor(0, 4, [1]))
    (folder / "model.safetensors").write_bytes(header(content + b" " * (0x180 - len(content)), b"abcd"))
    assert set(weight_shapes(resolve(folder))) == {"a"}


def test_every_cut_of_a_weights_file_is_seen(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            read_header(path)


def _index(content: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return write


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([], "has no 'weight_map'"),
        ({}, "has no 'weight_map'"),
        ({"weight_map": {}}, "has no 'weight_map'"),
        ({"weight_map": {"a": 1}}, "has no 'weight_map'"),
        ({"weight_map": {"a": "model-1.safetensors"}}, "lacks the shard 'model-1.safetensors'"),
        ({"weight_map": {"a": "\x1b[2J.safetensors"}}, r"lacks the shard '\x1b[2J.safetensors'"),
        ({"weight_map": {"a": "../model/x.safetensors"}}, "lies outside the folder"),
        ({"weight_map": {"a": "/etc/x.safetensors"}}, "lies outside the folder"),
        ({"weight_map": {"a": "sub/x.safetensors"}}, "lies outside the folder"),
        ({"weight_map": {"a": "..\\x.safetensors"}}, "lies outside the folder"),
        ({"weight_map": {"a": "c:x.safetensors"}}, "lies outside the folder"),
        ({"weight_map": {"a": "pytorch_model.bin"}}, "is not a .safetensors file"),
    ],
)
def test_broken_indexes(folder: Path, content: object, expected: str) -> None:
    _index(content)(folder)
    assert expected in message(folder)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("other.safetensors", "rename the file that holds the whole model"),
        ("model.gguf", "GGUF weights (model.gguf)"),
        ("model.onnx", "ONNX weights (model.onnx)"),
        ("onnx/model.onnx", "ONNX weights (model.onnx)"),
        ("notes.md", "holds no safetensors"),
    ],
)
def test_no_weights(folder: Path, file: str, expected: str) -> None:
    (folder / "model.safetensors").unlink()
    checkpoint_folders.write(folder, {file: b"x"})
    assert expected in message(folder)


def test_a_dead_link_to_the_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../blobs/gone")
    assert "it is a symlink to ../blobs/gone" in message(folder)


def test_fingerprint_covers_what_stages_read_and_sees_a_flipped_bit(folder: Path) -> None:
    checkpoint_folders.write(folder, {"1_Pooling/config.json": b"{}", "README.md": b"x", "x.safetensors": b"x"})
    before = fingerprint(resolve(folder))
    assert sorted(before) == sorted([*checkpoint_folders.files(), "1_Pooling/config.json"])
    assert before["vocab.txt"] == hashlib.sha256(b"[PAD]\n[UNK]\n").hexdigest()
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    after = fingerprint(resolve(folder))
    assert {name for name in before if before[name] != after[name]} == {"model.safetensors"}
