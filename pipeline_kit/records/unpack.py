"""gzip and zstd streams: unpacked as they are read, in bounded memory, never without an end."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast, final

from pipeline_kit.errors import InputError
from pipeline_kit.records.extras import need
from pipeline_kit.records.formats import HEAD_BYTES, Codec, codec_of

__all__ = ["HARMLESS_BYTES", "Limits", "head_of", "plain", "unpacked"]

HARMLESS_BYTES = 16 << 20
"""What unpacks to less than this is not checked for its ratio: a short file of equal lines has a high one too."""

_BLOCK = 64 << 10
# zstd has no bound on what one call gives; 256 bytes give at most 8 MiB (64 run-length blocks of 128 KiB).
_ZSTD_PIECE = 256
_CUT_OFF = "ends in the middle of its {} stream: it was cut off"

Read = Callable[[int], bytes]


@dataclass(frozen=True)
class Limits:
    """When unpacking stops.

    :param max_bytes: the most bytes that one file may unpack to.
    :param max_ratio: the most bytes unpacked for each byte read, once `HARMLESS_BYTES` are passed.
    """

    max_bytes: int = 100 << 30
    max_ratio: float = 200.0

    def check(self, given: int, taken: int) -> None:
        """See that `taken` bytes may become `given`.

        :raises InputError: if not; it names the option to raise.
        """
        if given > self.max_bytes:
            raise InputError(
                f"unpacks to more than {self.max_bytes:,} bytes; if that is right, raise input.max_decompressed_bytes"
            )
        if given > HARMLESS_BYTES and given > self.max_ratio * taken:
            raise InputError(
                f"unpacks to more than {self.max_ratio:g} times its size ({taken:,} bytes became {given:,}): "
                "a compression bomb? If that is right, raise input.max_ratio"
            )


def head_of(stream: BinaryIO, count: int = HEAD_BYTES) -> bytes:
    """Return up to `count` bytes that come next and leave them in the stream.

    Nothing if it can neither peek nor seek; fewer if a buffer or what has arrived in a pipe holds no more.
    """
    try:
        if isinstance(stream, io.BufferedReader | io.BufferedRandom):
            return stream.peek(count)[:count]
        if not hasattr(stream, "seekable") or not stream.seekable():
            return b""
        place = stream.tell()
        head = stream.read(count)
        stream.seek(place)
    except OSError as error:
        raise InputError(f"reading failed: {error.strerror or error}") from error
    return head


def plain(stream: BinaryIO, name: str, limits: Limits) -> BinaryIO:
    """Give `stream` unpacked if it is compressed, itself if not.

    :param name: the file's name, whose ending may promise a compression.
    :raises InputError: if that is not there, or one that is not read here is; later as :func:`unpacked`.
    """
    codec = codec_of(name, head_of(stream))
    return stream if codec is None else unpacked(stream, codec, limits)


def unpacked(stream: BinaryIO, codec: Codec, limits: Limits) -> BinaryIO:
    """Give `stream` without its compression. Reading it fails with what `Limits.check` or this says.

    Closing the result leaves `stream` open. A stream may hold several members or frames, one after another.

    :raises InputError: while reading: if it is damaged, cut off or unpacks beyond `limits`. What was
        unpacked before that is given first.
    :raises UsageError: if zstandard is not installed.
    """
    if codec == "zstd":
        need("zstandard", "zstandard", "reading zstd")
    chunks = _gunzip if codec == "gzip" else _unzstd
    return cast("BinaryIO", io.BufferedReader(_Unpacked(stream, chunks, limits), _BLOCK))


@final
class _Unpacked(io.RawIOBase):
    """Raw bytes of a generator of chunks, counted."""

    def __init__(self, stream: BinaryIO, chunks: Callable[[Read], Iterator[bytes]], limits: Limits) -> None:
        self._stream = stream
        self._chunks = chunks(self._read)
        self._limits = limits
        self._taken = self._given = 0
        self._ready = memoryview(b"")
        self._failed: InputError | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        if self._failed is not None:
            raise self._failed
        try:
            while not self._ready:
                chunk = next(self._chunks, None)
                if chunk is None:
                    return 0
                self._given += len(chunk)
                self._limits.check(self._given, self._taken)
                self._ready = memoryview(chunk)
        except InputError as error:
            self._failed = error  # a second read must not take the generator's end for the file's
            raise
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _read(self, count: int) -> bytes:
        data = self._stream.read(count)
        self._taken += len(data)
        return data


def _gunzip(read: Read) -> Iterator[bytes]:
    data = read(_BLOCK)
    while data:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            data = data or read(_BLOCK)
            if not data:
                raise InputError(_CUT_OFF.format("gzip"))
            try:
                yield member.decompress(data, _BLOCK)
            except zlib.error as error:
                raise InputError(f"its gzip stream is damaged: {error}") from error
            data = member.unconsumed_tail
        data = member.unused_data.lstrip(b"\0")  # tapes and some disks pad with zeros
        while not data and (more := read(_BLOCK)):
            data = more.lstrip(b"\0")


def _unzstd(read: Read) -> Iterator[bytes]:
    import zstandard

    data = read(_ZSTD_PIECE)
    while data:
        frame = zstandard.ZstdDecompressor().decompressobj()
        while not frame.eof:
            data = data or read(_ZSTD_PIECE)
            if not data:
                raise InputError(_CUT_OFF.format("zstd"))
            try:
                yield frame.decompress(data)
            except zstandard.ZstdError as error:
                raise InputError(f"its zstd stream is damaged: {error}") from error
            data = frame.unused_data  # nothing, until the frame ends
        data = data or read(_ZSTD_PIECE)
