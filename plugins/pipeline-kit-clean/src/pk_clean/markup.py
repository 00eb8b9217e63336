"""HTML in running text: tags, comments, scripts and entities, found in linear time."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from html.entities import html5

from .edits import Edit

__all__ = ["entities", "tags"]

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
