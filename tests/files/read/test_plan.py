"""Stretches: read in any order by any process, they hold the rows that one process reads in a row."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline_kit.errors import InputError
from pipeline_kit.files.read import arrow, lines, plan, source, text_lines
from pipeline_kit.files.read.columns import Columns
from pipeline_kit.files.read.parts import InputConfig, Mark
from pipeline_kit.files.read.plan import InputPlan
from pipeline_kit.files.read.source import PythonPart, Source, SourceRow

ENDINGS = (".txt", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".arrows", ".jsonl.gz", ".csv.gz", ".dataset")
CELLS = ("", "a", 'b "q"', "c,d", "two\nlines", "cr\r\nlf", "é\u2028", "\ufeff", " ")
BAD_LINES = (b"{", b'"open', b"a,b,c,d", b"\xff\xfe", b"", b"  ", b"[1]", b'{"text": 5, "id": [1]}')


def some_id(rng: Random) -> str | None:
    """Make an id that others may have, too, some by repeating one."""
    place = f"{rng.randrange(3)}{rng.choice(ENDINGS)}:{rng.randrange(9)}{rng.choice(['', chr(39)])}"
    return rng.choice([None, "", "a", "b", "7", place, place, str(rng.random())])


def line_bytes(rng: Random, ending: str, rows: list[tuple[str | None, str]]) -> bytes:
    """Write rows as lines, with bad and blank ones among them."""
    end = rng.choice([b"\n", b"\r\n"])
    written = []
    for id, text in rows:
        if ending.startswith(".jsonl"):
            line = json.dumps({"id": id, "text": text}, ensure_ascii=False).encode()
        elif ending.startswith(".csv"):
            cells = io.StringIO()
            csv.writer(cells, lineterminator="", quoting=csv.QUOTE_ALL).writerow([id, text])
            line = cells.getvalue().encode()
        else:
            line = f"{id or ''}\t{text}".encode().replace(b"\n", b" ").replace(b"\r", b" ")
        written += [line] if rng.random() < 0.8 else [line, rng.choice(BAD_LINES)]
    header = {".csv": [b"id,text"], ".tsv": [b"id\ttext"]}.get(ending, [])
    return rng.choice([b"", b"\xef\xbb\xbf"]) + end.join([*header, *written]) + rng.choice([b"", end])


def write_table(path: Path, rows: list[tuple[str | None, str]]) -> None:
    """Write rows as a Parquet file, an Arrow file or stream, or a saved dataset of two files."""
    table = pa.table(
        {"id": [row[0] for row in rows], "text": [row[1] for row in rows]},
        pa.schema({"id": pa.string(), "text": pa.string()}),
    )
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=3)
    elif path.suffix == ".dataset":
        path.mkdir()
        for name, half in (("1.arrow", table[: len(rows) // 2]), ("2.arrow", table[len(rows) // 2 :])):
            with pa.ipc.new_stream(path / name, table.schema) as writer:
                writer.write_table(half, max_chunksize=3)
        (path / "state.json").write_text(
            json.dumps({"_data_files": [{"filename": "1.arrow"}, {"filename": "2.arrow"}]})
        )
    else:
        opened = pa.ipc.new_file if path.suffix == ".arrow" else pa.ipc.new_stream
        with opened(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)


def write_input(rng: Random, folder: Path) -> list[Path]:
    """Write one to three files of any formats."""
    names = []
    for number in range(rng.randint(1, 3)):
        ending, rows = rng.choice(ENDINGS), [(some_id(rng), rng.choice(CELLS)) for _ in range(rng.randint(0, 40))]
        names.append(folder / f"{number}{ending}")
        kind = ending.removesuffix(".gz")
        if kind not in (".txt", ".jsonl", ".csv", ".tsv"):
            write_table(names[-1], rows)
        else:
            data = line_bytes(rng, kind, rows)
            names[-1].write_bytes(data if kind == ending else gzip.compress(data))
    return names


def one_pass(names: list[Path], options: InputConfig) -> tuple[list[SourceRow], str | None]:
    """Read all rows in a row, or return why that fails."""
    try:
        return list(Source.open(names, options, ("text",)).rows()), None
    except InputError as error:
        return [], str(error)


def planned(names: list[Path], options: InputConfig, size: int) -> tuple[Source, InputPlan]:
    """Index every part, each by a source of its own."""
    first = Source.open(names, options, ("text",))
    indexes = [Source.open(names, options, ("text",)).index(part) for part in range(first.parts)]
    return first, first.plan(indexes, size)


@pytest.fixture
def dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set marks, batches and jumps so close that small files have several."""
    monkeypatch.setattr(lines, "MARK_ROWS", 3)
    monkeypatch.setattr(plan, "MARK_ROWS", 3)
    monkeypatch.setattr(arrow, "BATCH_ROWS", 2)
    monkeypatch.setattr(source, "FARTHEST", 4)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    return lambda: tmp_path_factory.mktemp("input")


@given(rng=st.randoms(use_true_random=True))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_stretches_hold_the_rows_of_one_pass(dense: None, folder: Callable[[], Path], rng: Random) -> None:
    names = write_input(rng, folder())
    options = InputConfig(
        id=rng.choice([None, "id"]),
        carry=[] if any(name.suffix == ".txt" for name in names) else rng.choice([[], ["id"]]),
        skip=rng.choice([0, 0, rng.randint(1, 12)]),
        limit=rng.choice([None, None, rng.randint(0, 80)]),
        shard=rng.choice([None, None, "0/2", "2/3"]),
        unique_ids=rng.choice(["checked", "checked", "trusted"]),
    )
    size = rng.randint(1, 5)
    expected, problem = one_pass(names, options)
    if problem is not None:
        with pytest.raises(InputError, match=re.escape(problem)):
            planned(names, options, size)
        return
    kept, found = planned(names, options, size)
    stretches = pickle.loads(pickle.dumps(list(found)))
    assert (found.rows, len(found)) == (len(expected), -(-len(expected) // size))
    in_order = rng.random() < 0.5
    for number in sorted(range(len(stretches)), key=lambda at: at * in_order or rng.random()):
        stretch, mine = stretches[number], expected[number * size : (number + 1) * size]
        if in_order and rng.random() < 0.3:
            continue
        reader = kept if rng.random() < 0.8 else Source.open(names, options, ("text",))
        assert reader.read(stretch) == mine
        assert (stretch.first, stretch.last, stretch.rows) == (mine[0].index, mine[-1].index, len(mine))


HOSTILE = st.one_of(
    st.sampled_from([None, "x", "y"]),
    st.builds("{}:{}{}".format, st.sampled_from("ab"), st.integers(0, 5), st.sampled_from(["", "'", "''"])),
)


@given(
    parts=st.lists(st.lists(HOSTILE, max_size=7), min_size=1, max_size=2),
    limit=st.one_of(st.none(), st.integers(0, 14)),
    size=st.integers(1, 5),
)
@settings(max_examples=150, deadline=None)
def test_repeated_ids_end_as_in_one_pass(parts: list[list[str | None]], limit: int | None, size: int) -> None:
    """Ids that equal the ids which rows with repeated ids get, and those that such rows get in turn."""
    options, columns = InputConfig(id="id", limit=limit), Columns.of(("text",), id="id")
    rows = [[{"id": id, "text": "t"} for id in ids] for ids in parts]
    whole = Source([PythonPart(part, label) for part, label in zip(rows, "ab", strict=False)], options, columns)
    stretches = whole.plan([whole.index(part) for part in range(whole.parts)], size)
    assert [row for stretch in stretches for row in whole.read(stretch)] == list(whole.rows())


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """A file of 2,000 lines of ten bytes."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'"{number:07}"\n' for number in range(2000)))
    return path


def test_a_stretch_is_read_from_the_mark_before_it(numbered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = planned([numbered], InputConfig(), 100)
    *_, last = found
    assert last.mark == Mark(1536, 15360, 1536)
    read: list[int] = []
    whole = text_lines._read

    def counted(stream: BinaryIO, limit: int) -> bytes:
        read.append(limit)
        return whole(stream, limit)

    monkeypatch.setattr(text_lines, "_read", counted)
    kept = Source.open([numbered], InputConfig(), ("text",))
    assert [row.id for row in kept.read(last)] == [f"a.jsonl:{line}" for line in range(1901, 2001)]
    assert len(read) == 2000 - 1536
    kept.read(found[0])
    kept.read(found[1])
    assert len(read) == 2000 - 1536 + 200, "the second goes on where the first ended"
    del read[:]
    Source.open([numbered], InputConfig(skip=10, limit=20), ("text",)).index(0)
    assert len(read) == 30, "no more is indexed than the limit needs"


def test_a_file_that_changes_after_it_was_named_is_refused(numbered: Path) -> None:
    kept, found = planned([numbered], InputConfig(), 100)
    kept.read(found[3])
    with numbered.open("a") as file:
        file.write('"more"\n')
    for number in (4, 0):  # from the open file, and from one that is opened anew
        with pytest.raises(InputError, match=r"a\.jsonl: was changed"):
            kept.read(found[number])


def test_a_cut_file_is_refused_by_the_index_as_by_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(os.urandom(30_000).hex().encode().replace(b"0", b'\n"a"\n'))[:-9000])
    _, problem = one_pass([path], InputConfig())
    assert problem is not None
    assert "the last whole row is in line" in problem
    with pytest.raises(InputError, match=re.escape(problem)):
        planned([path], InputConfig(), 10)


def test_what_no_other_process_can_open_is_not_split(numbered: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert Source.open([numbered], InputConfig(), ("text",)).splittable
    assert not Source.open([numbered, tmp_path / "pipe.jsonl"], InputConfig(), ("text",)).splittable
    assert not Source.of(["a"], InputConfig(), ("text",)).splittable
