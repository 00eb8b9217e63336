"""gzip and zstd: any stream that is whole is read, any other stops with the last whole row, and no bomb goes off."""

from __future__ import annotations

import gzip
import io
import random
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline_kit.errors import InputError, UsageError
from pipeline_kit.files.read import opened as unpack_module
from pipeline_kit.files.read.opened import DecompressionLimits, unpacked
from pipeline_kit.files.read.parts import InputConfig
from pipeline_kit.files.read.paths import read_records
from pipeline_kit.files.read.source import Source

zstandard = pytest.importorskip("zstandard")

PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": lambda data: bytes(zstandard.ZstdCompressor(write_checksum=True).compress(data)),
}
ENDING = {"gzip": ".gz", "zstd": ".zst"}
CODECS = pytest.mark.parametrize("codec", ["gzip", "zstd"])
LINES = b"".join(b"row %d %d\n" % (number, number * 7919 % 1009) for number in range(2000))


def texts(path: Path, **options: Any) -> list[Any]:
    return [row.example for row in Source.open([str(path)], InputConfig(**options), ("text",)).rows()]


def until_it_fails(path: Path, **options: Any) -> tuple[list[Any], str]:
    found: list[Any] = []
    rows = Source.open([str(path)], InputConfig(**options), ("text",)).rows()
    with pytest.raises(InputError) as caught:
        found.extend(row.example for row in rows)
    return found, str(caught.value)


@CODECS
@pytest.mark.parametrize("name", ["a.jsonl{}", "a.csv{}", "a.txt{}", "a{}", "packed-without-ending"])
def test_known_by_ending_and_by_bytes(tmp_path: Path, codec: str, name: str) -> None:
    data = {"a.jsonl{}": b'{"text": "x"}\n', "a.csv{}": b"text\nx\n"}.get(name, b"x\n")
    path = tmp_path / name.format(ENDING[codec])
    path.write_bytes(PACK[codec](data))
    (found,) = texts(path)
    assert found in ("x", {"text": "x"})
    (record,) = read_records(path)
    assert record == found
    if "{}" not in name:
        assert list(read_records(io.BytesIO(PACK[codec](data)))) == ["x"]


@CODECS
def test_several_members_are_one_stream(tmp_path: Path, codec: str) -> None:
    pack = PACK[codec]
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0abcd" if codec == "zstd" else b""
    padding = b"\0" * 70_000 if codec == "gzip" else b""
    path = tmp_path / ("a.txt" + ENDING[codec])
    path.write_bytes(skippable + pack(b"a\nb") + pack(b"") + skippable + pack(b"c\nd\n") + padding)
    assert texts(path) == ["a", "bc", "d"]


@CODECS
def test_a_stream_cut_off_anywhere_names_the_last_whole_row(tmp_path: Path, codec: str) -> None:
    packed = PACK[codec](LINES)
    path = tmp_path / ("a.txt" + ENDING[codec])
    whole = LINES.decode().splitlines()
    for length in (*range(10, 40), *range(40, len(packed), 997), *range(len(packed) - 12, len(packed))):
        path.write_bytes(packed[:length])
        found, message = until_it_fails(path)
        assert found == whole[: len(found)]
        assert message.startswith(f"a.txt{ENDING[codec]}: ends in the middle of its {codec} stream: it was cut off")
        assert message.endswith(f"; the last whole row is in line {len(found)}") == bool(found)


@CODECS
def test_rows_before_a_cut_are_given(tmp_path: Path, codec: str) -> None:
    source = random.Random(7)
    data = b"".join(b"%d\n" % source.getrandbits(4000) for _ in range(400))
    path = tmp_path / ("a.txt" + ENDING[codec])
    path.write_bytes(PACK[codec](data)[:-1000])
    found, _ = until_it_fails(path)
    assert 300 < len(found) < 400 or codec == "zstd"  # zstd gives whole blocks of 128 KiB
    assert found == data.decode().splitlines()[: len(found)]


@CODECS
def test_a_damaged_stream_is_an_error_of_the_file(tmp_path: Path, codec: str) -> None:
    packed = bytearray(PACK[codec](LINES))
    path = tmp_path / ("a.txt" + ENDING[codec])
    source = random.Random(7)
    for _ in range(60):
        damaged = bytearray(packed)
        damaged[source.randrange(4, len(damaged))] ^= 1 << source.randrange(8)
        path.write_bytes(damaged)
        with suppress(InputError):
            # A bit of the header may mean nothing to the content, such as gzip's time.
            assert texts(path) == LINES.decode().splitlines()


@CODECS
def test_what_stands_behind_a_stream_is_an_error(tmp_path: Path, codec: str) -> None:
    path = tmp_path / ("a.txt" + ENDING[codec])
    path.write_bytes(PACK[codec](b"a\nb\n") + b"garbage")
    found, message = until_it_fails(path)
    assert found == ["a", "b"]
    assert f"its {codec} stream is damaged" in message
    assert "the last whole row is in line 2" in message


@CODECS
@pytest.mark.parametrize(("data", "held"), [(b"", "empty"), (b"plain text\n", "not ")])
def test_an_ending_that_promises_too_much(tmp_path: Path, codec: str, data: bytes, held: str) -> None:
    path = tmp_path / ("a.txt" + ENDING[codec])
    path.write_bytes(data)
    _, message = until_it_fails(path)
    assert f"ends in {ENDING[codec]} but is {held}" in message


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"BZh91AY&SY\x00", "bzip2"),
        (b"\xfd7zXZ\x00\x00\x04", "xz"),
        (b"PK\x03\x04\x14\x00", "an archive"),
        (b"\x04\x22\x4d\x18\x64", "lz4"),
    ],
)
def test_other_compressions_are_named(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(data)
    _, message = until_it_fails(tmp_path / "a.jsonl")
    assert reason in message


def bomb(codec: str, size: int) -> bytes:
    block = b"a" * ((1 << 20) - 1) + b"\n"
    if codec == "gzip":
        packer = zlib.compressobj(9, wbits=31)
        return b"".join(packer.compress(block) for _ in range(size >> 20)) + packer.flush()
    return bytes(zstandard.compress(block * (size >> 20)))


@CODECS
def test_a_bomb_stops_at_the_ratio(tmp_path: Path, codec: str) -> None:
    path = tmp_path / ("a.txt" + ENDING[codec])
    path.write_bytes(bomb(codec, 64 << 20))
    found, message = until_it_fails(path)
    assert 8 <= len(found) <= 17
    assert "unpacks to more than 200 times its size" in message
    assert "raise input.max_ratio" in message
    assert len(texts(path, max_ratio=100_000)) == 64


@CODECS
def test_a_file_stops_at_the_most_bytes(tmp_path: Path, codec: str) -> None:
    path = tmp_path / ("a.txt" + ENDING[codec])
    path.write_bytes(PACK[codec](LINES))
    assert len(texts(path, max_decompressed_bytes=len(LINES))) == 2000
    _, message = until_it_fails(path, max_decompressed_bytes=len(LINES) - 1)
    assert "raise input.max_decompressed_bytes" in message


@CODECS
def test_a_short_file_of_equal_lines_is_no_bomb(tmp_path: Path, codec: str) -> None:
    path = tmp_path / ("a.txt" + ENDING[codec])
    path.write_bytes(PACK[codec]((b"the same line".ljust(399) + b"\n") * 10_000))
    assert len(texts(path)) == 10_000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process's memory is read there")
@CODECS
def test_a_bomb_of_128_mib_is_met_in_bounded_memory(tmp_path: Path, codec: str) -> None:
    path = tmp_path / ("a.txt" + ENDING[codec])
    path.write_bytes(bomb(codec, 128 << 20))
    code = (
        "import sys, psutil\n"
        "from pipeline_kit.files.read.parts import InputConfig\n"
        "from pipeline_kit.files.read.source import Source\n"
        "import zstandard\n"
        "before = psutil.Process().memory_info().rss\n"
        "print(sum(1 for _ in Source.open([sys.argv[1]], InputConfig(max_ratio=1e9), ['text']).rows()))\n"
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM:'))\n"
        "print(int(peak.split()[1]) * 1024 - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    rows, grown = done.stdout.split()
    assert rows == "128"
    assert int(grown) < 50 << 20


def test_an_error_is_not_taken_for_the_end_when_read_again() -> None:
    stream = unpacked(io.BytesIO(gzip.compress(LINES)[:-5]), "gzip", DecompressionLimits())
    for _ in range(3):
        with pytest.raises(InputError, match="cut off"):
            list(stream)


def test_pieces_of_one_byte_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack_module, "_PIECE", 7)
    monkeypatch.setattr(unpack_module, "_ZSTD_PIECE", 1)
    for codec in ("gzip", "zstd"):
        assert unpacked(io.BytesIO(PACK[codec](LINES)), codec, DecompressionLimits()).read() == LINES


def test_without_zstandard_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(b"x\n"))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UsageError, match=r"reading zstd needs zstandard: pip install 'pipeline-kit\[files\]'"):
        texts(tmp_path / "a.txt.zst")


def test_rows_of_a_packed_file_go_on_anywhere(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(LINES))
    source = Source.open([tmp_path / "a.txt.gz"], InputConfig(), ("text",))
    source.check()
    assert source.count() is None
    assert [row.id for row in source.rows(1998)] == ["a.txt.gz:1999", "a.txt.gz:2000"]
