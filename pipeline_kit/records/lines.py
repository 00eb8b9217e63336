r"""Lines of a byte stream: split on ``\n`` alone, decoded strictly, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from pipeline_kit.errors import InputError
from pipeline_kit.records.encodings import LOOKED_AT, refuse_other_encodings
from pipeline_kit.records.unpack import head_of

__all__ = ["MAX_LINE_BYTES", "Line", "read_lines"]

MAX_LINE_BYTES = 32 << 20
_BOM = b"\xef\xbb\xbf"


class Line(NamedTuple):
    r"""One line.

    :param number: its place in the file, from 1.
    :param data: its bytes without the line end; None if it is too long to be held.
    :param ended: whether a ``\n`` ended it; only the last line can lack one.
    """

    number: int
    data: bytes | None
    ended: bool

    def text(self) -> str:
        """Decode the line.

        :raises InputError: if it is too long or not UTF-8; says which byte.
        """
        if self.data is None:
            raise InputError(f"longer than {MAX_LINE_BYTES >> 20} MiB")
        try:
            return self.data.decode("utf-8")
        except UnicodeDecodeError as error:
            bad = self.data[error.start]
            raise InputError(f"not UTF-8: byte 0x{bad:02x} at byte {error.start + 1} of the line") from error


def read_lines(stream: BinaryIO) -> Iterator[Line]:
    r"""Go through the lines of `stream`; ``\r\n`` counts as ``\n`` and a byte order mark is dropped.

    Other characters that Unicode calls line ends, such as U+2028, are text. A file's last newline
    begins no further line.

    :raises InputError: if reading fails, or the stream is in another encoding.
    """
    refuse_other_encodings(head_of(stream, LOOKED_AT))
    number = 0
    while True:
        number += 1
        data = _read(stream, MAX_LINE_BYTES + 2)
        if not data:
            return
        if number == 1:
            data = data.removeprefix(_BOM)
        ended = data.endswith(b"\n")
        if not ended and len(data) > MAX_LINE_BYTES:
            while (rest := _read(stream, 1 << 20)) and not rest.endswith(b"\n"):
                pass
            yield Line(number, None, bool(rest))
            continue
        yield Line(number, data.removesuffix(b"\n").removesuffix(b"\r"), ended)


def _read(stream: BinaryIO, limit: int) -> bytes:
    try:
        return stream.readline(limit)
    except OSError as error:
        raise InputError(f"reading failed: {error.strerror or error}") from error
