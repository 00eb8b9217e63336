"""The lines of a stream of UTF-8 text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from pipeline_kit.errors import InputError
from pipeline_kit.files.read.formats import format_from_magic
from pipeline_kit.files.read.opened import head_of

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

        :raises InputError: if it is too long or not UTF-8; the message names the byte.
        """
        if self.data is None:
            raise InputError(f"longer than {MAX_LINE_BYTES >> 20} MiB")
        try:
            return self.data.decode("utf-8")
        except UnicodeDecodeError as error:
            bad = self.data[error.start]
            raise InputError(f"not UTF-8: byte 0x{bad:02x} at byte {error.start + 1} of the line") from error


def read_lines(stream: BinaryIO, before: int = 0) -> Iterator[Line]:
    r"""Go through the lines of `stream`; ``\r\n`` counts as ``\n`` and a byte order mark is dropped.

    Other characters that Unicode calls line ends, such as U+2028, are text. A file's last newline
    begins no further line.

    :param before: how many lines were read before; only a file's first bytes show its encoding or a byte order mark.
    :raises InputError: if reading fails, or the stream is in another encoding.
    """
    if not before:
        refuse_other_encodings(head_of(stream, BYTES_LOOKED_AT))
    number = before
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


BYTES_LOOKED_AT = 8192
"""How many of a file's first bytes are looked at."""

_MARKS = ((b"\xff\xfe\0\0", "UTF-32"), (b"\0\0\xfe\xff", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))
_WIDE = (("UTF-32LE", 4), ("UTF-32BE", 4), ("UTF-16LE", 2), ("UTF-16BE", 2))
_BAD = re.compile("[\udc80-\udcff]")
_STRANGE = re.compile("[\0-\x08\x0e-\x1f\x7f\udc80-\udcff]")
_WESTERN = "ISO-8859-1"
_FEWEST_BAD = 3


def refuse_other_encodings(head: bytes) -> None:
    """See that `head`, the first bytes of lines of text, may be UTF-8, and not those of Parquet or Arrow.

    A wrong byte here and there is the fault of its row. A file is in another encoding if it begins with the mark of
    one; if it has NUL bytes and reads as UTF-16 or UTF-32; or if a third of its lines have bytes that are not UTF-8.

    :raises InputError: naming the format, or the encoding and how to convert the file.
    """
    head = head[:BYTES_LOOKED_AT]
    format = format_from_magic(head)
    if format is not None and _STRANGE.search(head.decode("utf-8", errors="surrogateescape")):
        raise InputError(f"is {format.capitalize()}, not lines of text; if it is not compressed: input.format={format}")
    name = _encoding(head)
    if name is not None:
        what = {_WESTERN: f"{_WESTERN} or CP1252", "ENCODING": "another encoding"}.get(name, name)
        raise InputError(f"is in {what}, not in UTF-8; convert it: iconv -f {name} -t UTF-8 OLD-FILE > NEW-FILE")


def _encoding(head: bytes) -> str | None:
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    text = head.decode("utf-8", errors="surrogateescape")
    if "\0" in text:
        return next((name for name, width in _WIDE if _reads_as(head, name, width, text)), None)
    bad = len(_BAD.findall(re.sub(r"[\udc80-\udcff]{1,3}\Z", "", text)))  # the last character may be cut in two
    lines = text.split("\n")
    if bad < _FEWEST_BAD or 3 * sum(_BAD.search(line) is not None for line in lines) < len(lines):
        return None
    good = sum(not character.isascii() for character in text) - len(_BAD.findall(text))
    if good > bad:
        return None
    if bad > sum(character.isascii() and character.isalpha() for character in text):
        return "ENCODING"  # of another script; which one takes a dictionary to tell
    return None if b"\xfe" in head or b"\xff" in head else _WESTERN  # letters that hardly a text has


def _reads_as(head: bytes, name: str, width: int, text: str) -> bool:
    """Return whether `head` is text in a wide encoding, of which `text` is the reading as UTF-8."""
    whole = head[: len(head) // width * width]
    try:
        wide = whole.decode(name)
    except UnicodeDecodeError as error:
        if error.start < len(whole) - width:
            return False
        wide = whole[: error.start].decode(name)  # the last character is cut in two
    if len(wide) < 2 or not all(character.isprintable() or character in "\t\n\r\f" for character in wide):
        return False
    return wide.isascii() or (20 * len(_STRANGE.findall(text)) > len(text) and ("\n" in wide or " " in wide))
