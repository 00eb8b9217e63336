"""The storage interface: what local folders promise, and that readers and writers reach files through it alone."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline_kit.errors import InputError, OutputError
from pipeline_kit.files import storage as storage_module
from pipeline_kit.files.read.parts import InputConfig
from pipeline_kit.files.read.source import Source
from pipeline_kit.files.storage import FileStatus, Storage, Version, WholeFile, storage_of
from pipeline_kit.files.write.formats import stream_format
from pipeline_kit.files.write.layout import Layout
from pipeline_kit.files.write.one_file import rows_file


class MemoryStorage(Storage):
    """Files in memory, as a store of objects has them: no folders but in names, a version for every write."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def status(self, key: str) -> FileStatus:
        if key in self.files:
            return FileStatus("file", (str(hash(self.files[key])),))
        if any(name.startswith(f"{key}/") for name in self.files):
            return FileStatus("folder", ())
        raise FileNotFoundError(2, "No such object", key)

    def open(self, key: str, version: Version | None = None) -> io.BytesIO:
        if version not in (None, self.status(key).version):
            raise InputError(storage_module.CHANGED)
        return io.BytesIO(self.files[key])

    def list(self, pattern: str) -> list[str]:
        return sorted(name for name in self.files if fnmatchcase(name, pattern))

    @contextmanager
    def writer(self, key: str) -> Iterator[WholeFile]:
        parts: list[bytes] = []

        class Written:
            def write(self, data: str | bytes | bytearray | memoryview) -> None:
                parts.append(data.encode() if isinstance(data, str) else bytes(data))

        yield Written()
        self.files[key] = b"".join(parts)

    def create(self, key: str, data: bytes) -> bool:
        return self.files.setdefault(key, data) is data


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    memory = MemoryStorage()
    monkeypatch.setattr(storage_module, "_LOCAL", memory)
    return memory


def test_one_of_many_writers_creates_a_file(tmp_path: Path) -> None:
    key = str(tmp_path / "out")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: storage_of(key).create(key, b"%d" % number * 100), range(8)))
    assert made.count(True) == 1
    assert Path(key).read_bytes() == b"%d" % made.index(True) * 100
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not storage_of(key).create(key, b"more")
    with pytest.raises(OutputError, match="is there a folder"):
        storage_of(key).create(str(tmp_path / "none" / "out"), b"")


def test_a_file_that_is_created_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").write_bytes(b"first")
    monkeypatch.setattr("os.path.lexists", lambda path: False)
    assert not storage_of("").create(str(tmp_path / "out"), b"second")
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
        memory.files[name] = sink.getvalue()
    memory.files["s3/saved/state.json"] = json.dumps({"_data_files": [{"filename": "data.arrow"}]}).encode()
    source = Source.open(["s3/*.jsonl", "s3/folder", "s3/saved"], InputConfig(), ["text"])
    source.check()
    assert [row.example for row in source.rows()] == [{"text": "one"}, {"text": "two"}, {"text": "two"}]
    assert [item["name"] for item in source.identity()] == ["in.jsonl", "a.parquet", "saved/data.arrow"]
    with pytest.raises(InputError, match=r"s3/im.jsonl: cannot be read: No such object. Did you mean 's3/in.jsonl'\?"):
        Source.open(["s3/im.jsonl"], InputConfig(), ["text"])
    memory.files["s3/in.jsonl"] += b'"more"\n'
    with pytest.raises(InputError, match=r"in.jsonl: was changed"):
        list(source.rows())


def _write_stream(table: pa.Table, sink: io.BytesIO) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
