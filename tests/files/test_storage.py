"""The storage interface: what local folders promise, and that readers and writers reach files through it alone."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from memory_storage import MemoryStorage

from pipeline_kit.errors import InputError, OutputError
from pipeline_kit.files.read.parts import InputConfig
from pipeline_kit.files.read.source import Source
from pipeline_kit.files.storage import local as storage_module
from pipeline_kit.files.storage.base import Conflict
from pipeline_kit.files.storage.local import storage_of
from pipeline_kit.files.write.formats import stream_format
from pipeline_kit.files.write.layout import Layout
from pipeline_kit.files.write.one_file import rows_file


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    memory = MemoryStorage()
    monkeypatch.setattr(storage_module, "_LOCAL", memory)
    return memory


def test_one_of_many_writers_creates_a_file(tmp_path: Path) -> None:
    key = str(tmp_path / "out")

    def create(number: int) -> bool:
        try:
            return storage_of(key).create(key, b"%d" % number * 100)
        except Conflict:
            return False

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(create, range(8)))
    assert made.count(True) == 1
    content = Path(key).read_bytes()
    assert content == b"%d" % made.index(True) * 100
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not storage_of(key).create(key, content)
    with pytest.raises(Conflict, match=f"sha256 {sha256(content).hexdigest()}; to be written: sha256 "):
        storage_of(key).create(key, b"more")
    with pytest.raises(OutputError, match="is there a folder"):
        storage_of(key).create(str(tmp_path / "none" / "out"), b"")


def test_a_file_that_is_created_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").write_bytes(b"first")
    monkeypatch.setattr("os.path.lexists", lambda path: False)
    with pytest.raises(Conflict, match="another file is there"):
        storage_of("").create(str(tmp_path / "out"), b"second")
    assert (tmp_path / "out").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_kinds_versions_and_names(tmp_path: Path) -> None:
    storage, key = storage_of(""), str(tmp_path / "a.txt")
    (tmp_path / "folder").mkdir()
    with storage.writer(key) as file:
        file.write("é")
        assert storage.kind(key) is None
    assert [storage.kind(name) for name in (key, str(tmp_path / "folder"), "/dev/null")] == ["file", "folder", "stream"]
    assert storage.list(str(tmp_path / "*")) == [key, str(tmp_path / "folder")]
    version = storage.status(key).version
    with storage.open(key, version) as stream:
        assert stream.read() == "é".encode()
    with storage.writer(key) as file:
        file.write("e")
    with pytest.raises(InputError, match="was changed after it was opened first"):
        storage.open(key, version)


def test_rows_are_read_from_any_storage_and_written_to_it(memory: MemoryStorage) -> None:
    with rows_file(Path("s3/in.jsonl"), stream_format("jsonl", Layout({}))) as add:
        add({"text": "one"})
    table = pa.table({"text": ["two"]})
    for name, write in (("s3/folder/a.parquet", pq.write_table), ("s3/saved/data.arrow", _write_stream)):
        sink = io.BytesIO()
        write(table, sink)
        memory.data[name] = sink.getvalue()
    memory.data["s3/saved/state.json"] = json.dumps({"_data_files": [{"filename": "data.arrow"}]}).encode()
    source = Source.open(["s3/*.jsonl", "s3/folder", "s3/saved"], InputConfig(), ["text"])
    source.check()
    assert [row.example for row in source.rows()] == [{"text": "one"}, {"text": "two"}, {"text": "two"}]
    assert [item["name"] for item in source.identity()] == ["in.jsonl", "a.parquet", "saved/data.arrow"]
    with pytest.raises(InputError, match=r"s3/im.jsonl: cannot be read: No such object. Did you mean 's3/in.jsonl'\?"):
        Source.open(["s3/im.jsonl"], InputConfig(), ["text"])
    memory.data["s3/in.jsonl"] += b'"more"\n'
    with pytest.raises(InputError, match=r"in.jsonl: was changed"):
        list(source.rows())


def _write_stream(table: pa.Table, sink: io.BytesIO) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def test_a_file_is_swapped_for_exactly_the_version_that_was_seen(tmp_path: Path) -> None:
    storage, key = storage_of(""), str(tmp_path / "a")
    first = storage.swap(key, b"1", None)
    with pytest.raises(Conflict):
        storage.swap(key, b"2", None)
    second = storage.swap(key, b"2", first)
    with pytest.raises(Conflict):
        storage.swap(key, b"3", first)
    assert (storage.read(key), storage.status(key).version) == (b"2", second)
    (tmp_path / "link").symlink_to(key)
    assert {name: (found.kind, found.size) for name, found in storage.files(str(tmp_path)).items()} == {
        "a": ("file", 1),
        "link": ("stream", 0),
    }
    storage.delete(key)
    storage.delete(key)
    assert list(storage.files(str(tmp_path), after="a")) == ["link"]
    assert storage.files(str(tmp_path / "none")) == {}
