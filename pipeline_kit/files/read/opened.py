"""Files that can be opened again and again, and streams that are copied so that they can, too."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sys
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, cast, final

from pipeline_kit.errors import InputError, closest_match, for_message
from pipeline_kit.files.read.formats import HEAD_BYTES, Codec, codec_of, import_optional
from pipeline_kit.files.read.parts import InputPart, as_input_error
from pipeline_kit.files.storage.base import CHANGED, FileStatus, RangedFile, Version, scheme_of
from pipeline_kit.files.storage.local import storage_of, stream_version

_BLOCK = 1 << 20


class File(ABC):
    """Bytes under a name.

    :param label: the name in ids and messages.
    :param name: the name whose ending says what is in it.
    :param path: where it is on this machine, if it can be opened there again.
    :param remote: whether reading it takes a network, so that it is not read just to be counted or hashed.
    """

    label: str
    name: str
    path: Path | None = None
    remote: bool = False

    @abstractmethod
    def open(self) -> BinaryIO:
        """Open it from its start; the stream can seek.

        :raises InputError: if that fails.
        """

    def check(self) -> None:  # noqa: B027 - nobody else can write to a copy
        """See that the file is still the same.

        :raises InputError: if not.
        """

    def close(self) -> None:  # noqa: B027 - most files hold nothing
        """Release what is held."""

    def identity(self) -> dict[str, Any]:
        """Return name, size and sha256 of the bytes.

        :raises InputError: if they cannot be read.
        """
        with self.open() as stream:
            try:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
                size = stream.tell()
            except OSError as error:
                raise InputError(f"reading failed: {error.strerror or error}") from error
        self.check()
        return {"name": self.label, "size": size, "sha256": digest}


@final
class StoredFile(File):
    """A file of a storage. One that changes after it was named is refused."""

    def __init__(self, key: str, label: str, status: FileStatus) -> None:
        """Name the file; `status` is what it was when its name was looked up."""
        self.label = label
        self.name = os.path.basename(key)
        self._key = key
        self._storage = storage_of(key)
        self._status = status
        self.path = self._storage.path(key)
        self.remote = scheme_of(key) is not None

    def open(self) -> BinaryIO:
        """Open the file."""
        return _opened(self._key, self._status.version)

    def check(self) -> None:
        """Compare the file's version with what it was."""
        try:
            same = self._storage.status(self._key).version == self._status.version
        except OSError:
            same = False
        if not same:
            raise InputError(CHANGED)

    def identity(self) -> dict[str, Any]:
        """Return name, size and sha256; in a store the version in place of the hash, since that would read it all."""
        if not self.remote:
            return super().identity()
        return {"name": self.label, "size": self._status.size, "version": list(self._status.version)}


@final
class SpooledFile(File):
    """A stream that can be read once, such as stdin or a named pipe.

    When it is opened first, all of it is copied to a temporary file without a name, so that it can be hashed and read
    again.
    """

    def __init__(self, label: str, key: str | None = None) -> None:
        """Take `key`, or stdin if it is None."""
        self.label = label
        self.name = "" if key is None else os.path.basename(key)
        self._key = key
        self._copy: IO[bytes] | None = None

    def open(self) -> BinaryIO:
        """Open the copy."""
        if self._copy is None:
            self._copy = self._copied()
        copy = self._copy

        def fetch(start: int, end: int) -> bytes:
            copy.seek(start)
            return copy.read(end - start)

        return cast("BinaryIO", io.BufferedReader(RangedFile(fetch, copy.seek(0, os.SEEK_END)), _BLOCK))

    def close(self) -> None:
        """Remove the copy."""
        if self._copy is not None:
            self._copy.close()

    def _copied(self) -> IO[bytes]:
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object
        try:
            with same_throughout(stdin_bytes()) if self._key is None else _opened(self._key) as stream:
                shutil.copyfileobj(stream, copy, _BLOCK)
        except OSError as error:
            copy.close()
            reason = error.strerror or str(error)
            raise InputError(f"could not be copied to {tempfile.gettempdir()}: {reason}") from error
        return cast("IO[bytes]", copy)


class FilePart(InputPart):
    """One file or several with the same columns, read one after another."""

    def __init__(self, label: str, files: Sequence[File]) -> None:
        self.label = label
        self._files = files

    def identity(self) -> list[dict[str, Any]]:
        """Return name, size and sha256 of each file."""
        found = []
        for file in self._files:
            with as_input_error(file.label):
                found.append(file.identity())
        return found

    def unchanged(self) -> None:
        """See that every file is the same."""
        for file in self._files:
            with as_input_error(file.label):
                file.check()

    def close(self) -> None:
        """Release the copy of stdin."""
        for file in self._files:
            file.close()


def opened_file(key: str, label: str, found: FileStatus | None = None) -> File:
    """Name a file, a named pipe or a device.

    :param found: what is known of it already.
    :raises InputError: if it is not there; it names the closest one that is.
    """
    try:
        found = found or storage_of(key).status(key)
    except (OSError, ValueError) as error:
        raise InputError(f"{for_message(key)}: {_unreadable(key, error)}") from error
    if found.kind == "folder":
        raise InputError(f"{key}: is a folder; name a file in it")
    return StoredFile(key, label, found) if found.kind == "file" else SpooledFile(label, key)


def stdin_bytes() -> BinaryIO:
    """Return stdin.

    :raises InputError: if it is closed.
    """
    if sys.stdin is None:
        raise InputError("stdin is closed; name a file")
    return sys.stdin.buffer


@contextmanager
def same_throughout(stream: BinaryIO, before: Version | None = None) -> Iterator[BinaryIO]:
    """See, when the body has ended, that a regular file behind `stream` is what it was, as stdin may be one.

    :param before: what :func:`stream_version` returned earlier; None: what it returns now.
    :raises InputError: if it was changed.
    """
    before = before or stream_version(stream)
    yield stream
    if stream_version(stream) != before:
        raise InputError(CHANGED)


def _opened(key: str, version: Version | None = None) -> BinaryIO:
    try:
        return storage_of(key).open(key, version)
    except (OSError, ValueError) as error:
        raise InputError(_unreadable(key, error)) from error


def _unreadable(key: str, error: OSError | ValueError) -> str:
    """Return why a file cannot be read, with the file of the same folder that was most likely meant."""
    reason = getattr(error, "strerror", None) or str(error)
    folder, name = os.path.split(key)
    try:
        beside = storage_of(key).files(folder or ".").items()
        near = closest_match(name, [other for other, found in beside if found.kind != "folder"][:10_000])
    except (OSError, ValueError):
        near = None
    hint = f". Did you mean '{os.path.join(folder, near)}'?" if near else ""
    return f"cannot be read: {reason}{hint}"


HARMLESS_BYTES = 16 << 20
"""What unpacks to less than this is not checked for its ratio: a short file of equal lines has a high one too."""

_PIECE = 64 << 10
# zstd has no bound on what one call returns; 256 bytes become at most 8 MiB (64 run-length blocks of 128 KiB).
_ZSTD_PIECE = 256

Read = Callable[[int], bytes]


@dataclass(frozen=True)
class DecompressionLimits:
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


def decompressed(stream: BinaryIO, name: str, limits: DecompressionLimits) -> BinaryIO:
    """Return `stream` unpacked if it is compressed, itself if not.

    :param name: the file's name, whose ending may promise a compression.
    :raises InputError: if that is not there, or one that is not read here is; later as :func:`unpacked`.
    """
    codec = codec_of(name, head_of(stream))
    return stream if codec is None else unpacked(stream, codec, limits)


def unpacked(stream: BinaryIO, codec: Codec, limits: DecompressionLimits) -> BinaryIO:
    """Return `stream` without its compression. Reading it fails with what `DecompressionLimits.check` raises, or this.

    Closing the result leaves `stream` open. A stream may hold several members or frames, one after another.

    :raises InputError: while reading: if it is damaged, cut off or unpacks beyond `limits`. What was
        unpacked before that is returned first.
    :raises UsageError: if zstandard is not installed.
    """
    if codec == "zstd":
        import_optional("zstandard", "zstandard", "reading zstd")
    return cast("BinaryIO", io.BufferedReader(_Unpacked(stream, codec, limits), _PIECE))


@final
class _Unpacked(io.RawIOBase):
    """Raw bytes of a generator of chunks, counted."""

    def __init__(self, stream: BinaryIO, codec: Codec, limits: DecompressionLimits) -> None:
        self._stream = stream
        self._chunks = _chunks(self._read, codec)
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


def _chunks(read: Read, codec: Codec) -> Iterator[bytes]:
    new: Callable[[], Any] = partial(zlib.decompressobj, wbits=31)
    broken: type[Exception] = zlib.error
    piece, bound, padding = _PIECE, [_PIECE], b"\0"  # tapes and some disks pad with zeros
    if codec == "zstd":
        import zstandard

        new, broken = zstandard.ZstdDecompressor().decompressobj, zstandard.ZstdError
        piece, bound, padding = _ZSTD_PIECE, [], b""
    data = read(piece)
    while data:
        member = new()
        while not member.eof:
            data = data or read(piece)
            if not data:
                raise InputError(f"ends in the middle of its {codec} stream: it was cut off")
            try:
                yield member.decompress(data, *bound)
            except broken as error:
                raise InputError(f"its {codec} stream is damaged: {error}") from error
            data = member.unconsumed_tail
        data = member.unused_data.lstrip(padding)
        while not data and (more := read(piece)):
            data = more.lstrip(padding)
