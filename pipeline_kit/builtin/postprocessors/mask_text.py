"""Puts a token in the place of a mask, leaving the rest of the user's text as it was written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline_kit.builtin.postprocessors.mask_tokens import Specials, ids_of
from pipeline_kit.stages import Tokenizer

__all__ = ["Piece", "Place", "Setting", "Writer", "place_of"]

Setting = Literal["spaced", "start", "glued"]
"""What a mask's token has before it: a space that is part of it, nothing, or another token without a space."""


@dataclass(frozen=True, slots=True)
class Piece:
    """How a token is written.

    :param token: the token decoded alone; a special one by its name.
    :param text: the token behind another one, without a space before it.
    :param lead: the space that stands before it then: one, none, or None if the token has no say in that.
    """

    token: str
    text: str
    lead: str | None


@dataclass(frozen=True, slots=True)
class Place:
    """A mask in its text, in characters.

    :param head: where the white space before the mask begins.
    :param begin: where the mask itself begins.
    :param taken: whether the mask's token takes that white space in, as that of RoBERTa does.
    """

    head: int
    begin: int
    end: int
    taken: bool


def place_of(source: str, mask: str, begin: int, end: int) -> Place:
    """Find `mask` in the part of `source` that its token stands for."""
    found = source.find(mask, begin, end)
    if found < 0:
        found = begin
    else:
        end = found + len(mask)
    head = found
    while head and source[head - 1].isspace():
        head -= 1
    return Place(head, found, end, taken=begin < found)


class Writer:
    """Writes the tokens of one tokenizer into texts."""

    def __init__(self, tokenizer: Tokenizer, specials: Specials) -> None:
        """Ask the tokenizer how it treats spaces.

        One that does not tell ``a.`` from ``a .`` has no tokens that hold a space; its decoder puts one before
        each word, and only the text knows whether there is one.
        """
        self._tokenizer = tokenizer
        self._names = specials.names
        self._spaces = ids_of(tokenizer, "a.") != ids_of(tokenizer, "a .")
        self._anchor = ids_of(tokenizer, "a")[-1:]
        self._before = tokenizer.decode(self._anchor)

    def piece(self, token: int) -> Piece:
        """Give the token `token` as it is written."""
        alone = self._tokenizer.decode([token])
        if not alone and token in self._names:
            return Piece(self._names[token], self._names[token], None)
        both = self._tokenizer.decode([*self._anchor, token])
        rest = both[len(self._before) :] if both.startswith(self._before) else alone
        return Piece(alone, rest.removeprefix(" "), " " if rest.startswith(" ") else "")

    def setting(self, source: str, place: Place) -> Setting:
        """Tell what stands before the mask at `place`."""
        if source[place.head : place.begin]:
            return "spaced" if place.taken or not self._spaces else "glued"
        return "glued" if place.head else "start"

    def fill(self, source: str, place: Place, piece: Piece) -> str:
        """Give `source` with `piece` for the mask at `place`.

        The rest of a word, and a mark that stands close, come right behind what is before them. White space
        before the mask stays as it is otherwise, and none is added unless the token itself holds a space.
        """
        gap = source[place.head : place.begin]
        if piece.lead == "" and (place.taken or not self._spaces):
            gap = ""
        elif piece.lead == " " and not gap and place.head and self._spaces:
            gap = " "
        return source[: place.head] + gap + piece.text + source[place.end :]
