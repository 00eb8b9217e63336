"""How much of a long text is tokenized, and where it may be cut, so that a huge row costs little."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from pipeline_kit.builtin.tokenizers.configs import HfTokenizerConfig

__all__ = ["Looks", "View", "looks", "view"]

CHARS_PER_TOKEN = 250
"""No text needs more characters than this for a token; the rest of a longer one is never looked at."""

# Measured with BERT's tokenizer: this many full stops, each a token, take 20 to 50 ms, text less.
_FIRST_LOOK = 16_000
_FIRST_PER_TOKEN = 8

_BACK_OFF = 256  # characters given up to cut between words
_JOINERS = frozenset("\u200d\ufe0e\ufe0f")  # zero width joiner and the two variation selectors


@dataclass(frozen=True, slots=True)
class Looks:
    """The characters of a text that are tokenized: `first`, doubled up to `last` while they give too few tokens."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class View:
    """The part of a text that is tokenized.

    :param start: its place in the text, in characters.
    :param unseen: characters of the text that are not in it.
    """

    text: str
    start: int = 0
    unseen: int = 0


def looks(options: HfTokenizerConfig, max_length: int | None) -> Looks | None:
    """Make the option ``max_chars`` definite; None looks at everything."""
    if options.max_chars is not None:
        return Looks(options.max_chars, options.max_chars)
    if max_length is None or options.overflow == "window":
        return None
    last = CHARS_PER_TOKEN * max_length
    return Looks(min(last, max(_FIRST_LOOK, _FIRST_PER_TOKEN * max_length)), last)


def view(text: str, limit: int | None, left: bool) -> View:
    """Cut `text` to at most `limit` characters, between words where one ends nearby, else between characters.

    :param left: keep the end of the text instead of its beginning.
    """
    length = len(text)
    if limit is None or length <= limit:
        return View(text)
    if left:
        start = _boundary(text, length - limit, 1)
        return View(text[start:], start, start)
    end = _boundary(text, limit, -1)
    return View(text[:end], 0, length - end)


def _boundary(text: str, place: int, step: int) -> int:
    """Find a place to cut at or beyond `place`: before a white space, else where no character is split."""
    for back in range(min(_BACK_OFF, (len(text) - place if step > 0 else place) // 2)):
        if text[place + step * back].isspace():
            return place + step * back
    for _ in range(32):
        if not 0 < place < len(text) or not (_continues(text[place]) or text[place - 1] == "\u200d"):
            break
        place += step
    return min(max(place, 1), len(text) - 1)


def _continues(character: str) -> bool:
    return (
        unicodedata.combining(character) != 0
        or character in _JOINERS
        or unicodedata.category(character) in ("Mn", "Mc", "Me")
        or "\U0001f3fb" <= character <= "\U0001f3ff"  # skin tones
    )
