"""Text in another encoding than UTF-8, recognised by a file's first bytes."""

from __future__ import annotations

import re

from pipeline_kit.errors import InputError

BYTES_LOOKED_AT = 8192
"""How many of a file's first bytes are looked at."""

_MARKS = ((b"\xff\xfe\0\0", "UTF-32"), (b"\0\0\xfe\xff", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))
_WIDE = (("UTF-32LE", 4), ("UTF-32BE", 4), ("UTF-16LE", 2), ("UTF-16BE", 2))
_BAD = re.compile("[\udc80-\udcff]")
_STRANGE = re.compile("[\0-\x08\x0e-\x1f\x7f\udc80-\udcff]")
_WESTERN = "ISO-8859-1"
_FEWEST_BAD = 3


def refuse_other_encodings(head: bytes) -> None:
    """See that `head`, the first bytes of lines of text, may be UTF-8.

    A wrong byte here and there is the fault of its row. A file is in another encoding if it begins with the mark of
    one; if it has NUL bytes and reads as UTF-16 or UTF-32; or if a third of its lines have bytes that are not UTF-8.

    :raises InputError: naming the encoding, and how to convert the file.
    """
    name = _encoding(head[:BYTES_LOOKED_AT])
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
