"""Inputs by URL: what they are called, what identifies them, how many requests they take, and what is refused."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline_kit.errors import InputError, UsageError
from pipeline_kit.files.atomic import refuse_overlap
from pipeline_kit.files.read.parts import InputConfig
from pipeline_kit.files.read.paths import expand_patterns, known_rows, read_records
from pipeline_kit.files.read.source import Source
from pipeline_kit.files.storage.local import storage_of
from pipeline_kit.files.storage.objects import ObjectStorage, forget_stores


@pytest.fixture
def bucket() -> Iterator[str]:
    """A bucket in memory with three files."""
    url = "memory://bucket"
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["four", "five"]}), sink)
    put(f"{url}/a/one.jsonl", b'{"text": "one"}\n{"text": "two"}\n')
    put(f"{url}/b/one.jsonl.gz", gzip.compress(b'{"text": "three"}\n'))
    put(f"{url}/tables/part.parquet", sink.getvalue())
    yield url
    forget_stores()


def put(key: str, data: bytes) -> None:
    with storage_of(key).writer(key) as file:
        file.write(data)


def opened(*names: str) -> Source:
    return Source.open(names, InputConfig(), ["text"])


def test_files_patterns_and_folders_are_read_by_url(bucket: str) -> None:
    source = opened(f"{bucket}/[ab]/one*", f"{bucket}/tables/")
    source.check()
    rows = list(source.rows())
    assert [row.example for row in rows] == [{"text": text} for text in ("one", "two", "three", "four", "five")]
    assert [row.id for row in rows] == [
        "one.jsonl:1",
        "one.jsonl:2",
        "one.jsonl.gz:1",
        "part.parquet:0",
        "part.parquet:1",
    ]
    assert list(read_records(f"{bucket}/b/one.jsonl.gz")) == [{"text": "three"}]
    version = storage_of(bucket).status(f"{bucket}/a/one.jsonl").version
    assert source.identity()[0] == {"name": "one.jsonl", "size": 32, "version": list(version)}
    assert source.count() is None  # to count lines is to read them all
    assert (known_rows(f"{bucket}/tables", None), known_rows(f"{bucket}/a/one.jsonl", None)) == (2, None)


def test_two_files_of_one_name_are_called_by_their_urls(bucket: str) -> None:
    put(f"{bucket}/b/one.jsonl", b'"six"\n')
    assert [row.id for row in opened(f"{bucket}/**/one.jsonl").rows()][1:] == [
        f"{bucket}/a/one.jsonl:2",
        f"{bucket}/b/one.jsonl:1",
    ]


def test_many_files_are_looked_up_by_listing_their_folder(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        put(f"{bucket}/many/{number:02}.jsonl", b'"row"\n')
    asked: list[str] = []
    ask = ObjectStorage._ask

    def counted(self: ObjectStorage, place: object, doing: str, send: object) -> object:
        asked.append(doing)
        return ask(self, place, doing, send)  # type: ignore[arg-type]

    monkeypatch.setattr(ObjectStorage, "_ask", counted)
    assert len(opened(f"{bucket}/many/*").identity()) == 20
    assert len(asked) < 10


def test_a_file_that_changes_is_found(bucket: str) -> None:
    source = opened(f"{bucket}/a/one.jsonl")
    put(f"{bucket}/a/one.jsonl", b'"one"\n"2"\n')
    with pytest.raises(InputError, match=r"^one.jsonl: was changed after it was opened first"):
        list(source.rows())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["/a/on.jsonl"],
            r"^memory://bucket/a/on.jsonl: cannot be read: .*Did you mean 'memory://bucket/a/one.jsonl'\?",
        ),
        (["/a"], r"^memory://bucket/a: is a folder; name a file in it, or .* 'memory://bucket/a/\*.jsonl'"),
        (["/c/*.jsonl"], r"^memory://bucket/c/\*.jsonl: no file matches this pattern"),
        (["/a/one.jsonl", "/a/*"], r"^memory://bucket/a/one.jsonl: is named twice"),
    ],
)
def test_what_cannot_be_read_is_named(names: list[str], message: str, bucket: str) -> None:
    with pytest.raises(InputError, match=message):
        opened(*(bucket + name for name in names))


def test_a_store_that_refuses_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "denied: look at AWS_ACCESS_KEY_ID")

    monkeypatch.setattr(ObjectStorage, "_ask", denied)
    for name in (f"{bucket}/a/*", f"{bucket}/a/one.jsonl"):
        with pytest.raises(InputError, match=r"^memory://bucket/a/.*: cannot be read: denied: look at AWS_ACC"):
            opened(name)


@pytest.mark.parametrize("name", ["s3://user:secret@bucket/a.jsonl", "https://host/a.jsonl?signature=secret"])
def test_a_url_with_a_secret_is_refused_unseen(name: str) -> None:
    with pytest.raises(UsageError, match="the secrets in it") as caught:
        expand_patterns([name])
    assert "=secret" not in str(caught.value)
    assert "user" not in str(caught.value).partition("a user,")[0]


@pytest.mark.parametrize(
    ("output", "read", "problem"),
    [
        ("s3://b/out", "s3://b/out/", "is the same folder as"),
        ("s3://b/out", "s3://b/out/in.jsonl", "holds"),
        ("s3://b/in/out", "s3://b/in", "is in the folder"),
        ("s3a://b/out", "s3://b/out/in.jsonl", "holds"),
        ("az://b/out", "abfs://b/out", "is the same folder as"),
        ("gs://b/out", "s3://b/out", None),
        ("s3://b/out", "s3://b/outer/in.jsonl", None),
        ("s3://b/out", "s3://c/out", None),
        ("s3://b/out", Path("s3:/b/out"), None),
    ],
)
def test_an_output_is_compared_with_what_is_read(output: str, read: str | Path, problem: str | None) -> None:
    if problem is None:
        refuse_overlap([("--output", output)], [read])
        return
    with pytest.raises(UsageError, match=f"^--output {output}: {problem} '{read}'"):
        refuse_overlap([("--output", output)], [read])
