"""The steps of cleaning. Each finds replacements in one pass whose time grows with the text's length only."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from html.entities import html5
from typing import Literal

from . import CleanConfig
from .edits import Edit, Way, apply

Form = Literal["NFC", "NFKC"]
Step = Callable[[str], Iterable[Edit]]

_WORDS = re.compile(r"(?<!\S)(?:(?P<mention>@\S+)|(?P<url>http\S*))")
# Addresses come first, so that an @ inside one is not taken for a mention.
_PARTS = re.compile(
    r"(?P<url>(?<![\w@.])(?:https?://|www\.)[^\s<>\"]+)|(?P<mention>(?<![\w@/])@\w+(?:@\w+(?:[.-]\w+)*)?)",
    re.IGNORECASE,
)
_SPACES = re.compile(r"\s+")
_AFTER_URL = ".,;:!?'\"*_)]}\N{RIGHT DOUBLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}\N{HORIZONTAL ELLIPSIS}"

# An ASCII letter joins the marks behind it.
_NOT_ASCII = re.compile(r"[\x00-\x7f]?[^\x00-\x7f]++")

# A longer run of marks is no writing, but sorting it as a whole would take quadratic time.
_LONGEST_CLUSTER = 64


def steps(config: CleanConfig) -> list[Step]:
    """Return the steps that `config` asks for, in their order."""
    found: list[Step] = [tags, entities] if config.html else []
    if config.unicode is not None:
        found.append(partial(normal_form, config.unicode))
    if config.mentions is not None or config.urls is not None:
        found.append(partial(placeholders, config.mentions, config.urls, config.whole_words))
    if config.whitespace:
        found.append(spaces)
    return found


def clean(text: str, todo: Iterable[Step]) -> tuple[str, list[Way]]:
    """Run the steps of `todo` on `text`; returns the way back too, for :func:`~pk_clean.edits.trace`."""
    ways: list[Way] = []
    for step in todo:
        text, way = apply(text, step(text))
        if way is not None:
            ways.append(way)
    return text, ways


def placeholders(mentions: str | None, urls: str | None, whole_words: bool, text: str) -> Iterator[Edit]:
    """Find mentions and web addresses; punctuation behind an address is not part of it, a bracket opened in it is."""
    for match in (_WORDS if whole_words else _PARTS).finditer(text):
        new = mentions if match["mention"] else urls
        if new is None:
            continue
        begin, end = match.span()
        if (url := match["url"]) and not whole_words:
            found = url.rstrip(_AFTER_URL)
            end = begin + len(found) + ("(" in found and url[len(found) :].startswith(")"))
        yield begin, end, new


def spaces(text: str) -> Iterator[Edit]:
    """Find runs of white space that are not one space between words."""
    for match in _SPACES.finditer(text):
        begin, end = match.span()
        new = "" if begin == 0 or end == len(text) else " "
        if match.group() != new:
            yield begin, end, new


def normal_form(form: Form, text: str) -> Iterator[Edit]:
    """Find the clusters that are not in their normal form.

    A cluster begins where no character joins its neighbour or changes places with it under any form, so
    the clusters' normal forms, put together, are that of the whole. https://www.unicode.org/reports/tr15/
    """
    for match in _NOT_ASCII.finditer(text):
        run, start = match.group(), match.start()
        if len(run) <= _LONGEST_CLUSTER and unicodedata.is_normalized(form, run):
            continue
        begin = 0
        for end in range(1, len(run) + 1):
            if end < len(run) and end - begin < _LONGEST_CLUSTER and not _begins_cluster(form, run[end]):
                continue
            new = unicodedata.normalize(form, run[begin:end])
            if new != run[begin:end]:
                yield start + begin, start + end, new
            begin = end


@lru_cache(maxsize=4096)
def _begins_cluster(form: Form, character: str) -> bool:
    """Return whether no earlier character can join or change places with this one."""
    first = unicodedata.normalize("NFD" if form == "NFC" else "NFKD", character)[0]
    # Marks join the letter before them, and so do the vowels and finals of Korean syllables.
    return not (unicodedata.category(first).startswith("M") or "\u1160" <= first <= "\u11ff")


# A name ends where <bob@example.com> and <https://example.com> go on.
_TAG = re.compile(r"<(?:(?P<comment>!--)|[/!?]?(?P<name>[A-Za-z][A-Za-z0-9-]*+)(?=[\s/>])[^<>]*+>)")
_ENDS = {
    "comment": re.compile("-->"),
    "script": re.compile(r"</script[^<>]*>", re.IGNORECASE),
    "style": re.compile(r"</style[^<>]*>", re.IGNORECASE),
}
# Words go on across these; any other tag stands between two words.
_INLINE = {"a", "abbr", "b", "bdi", "bdo", "big", "code", "em", "font", "i", "ins", "kbd", "mark", "s", "small", "span"}
_INLINE |= {"strong", "sub", "sup", "tt", "u", "wbr"}

# Without its semicolon an entity is left alone: AT&T and ?a=1&copy=2 are no entities.
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")


def tags(text: str) -> Iterator[Edit]:
    """Find what HTML does not show; ``a < b`` and ``<3`` are not tags."""
    place = 0
    unclosed: set[str] = set()
    while match := _TAG.search(text, place):
        begin, place = match.span()
        name = "comment" if match["comment"] else match["name"].lower()
        opening = name in _ENDS and text[begin + 1] != "/"
        # Looking for each missing end again would make hostile texts take quadratic time.
        end = _ENDS[name].search(text, place) if opening and name not in unclosed else None
        if end is not None:
            place = end.end()
        elif opening:
            unclosed.add(name)
            if name == "comment":
                continue
        yield begin, place, "" if name == "comment" or name in _INLINE else " "


def entities(text: str) -> Iterator[Edit]:
    """Find entities such as ``&amp;`` and ``&#8217;``; names that HTML does not know stay."""
    for match in _ENTITY.finditer(text):
        name = match.group()[1:]
        new = html.unescape(match.group()) if name.startswith("#") else html5.get(name)
        if new is not None:
            yield match.start(), match.end(), new
