"""Ids to text in pieces: what is certain already, and what the ids to come may still change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = ["before_stop", "pieces", "until_stop"]

Decode = Callable[[Sequence[int]], str]

_HALF = "\ufffd"  # what a decoder gives for the bytes of half a character


def pieces(prompt: Sequence[int], ids: Iterable[int], decode: Decode) -> Iterator[str]:
    """Decode `ids` one by one; joined, the pieces are the text that stands behind that of `prompt`.

    A token's text may depend on the one before it (a space, half a character), so each is decoded together with
    those since the last piece but one; the cost of a token does not grow with the text.
    """
    waiting = list(prompt)
    shown = len(waiting)  # how many of `waiting` are in the text that was given or in the prompt
    for token in ids:
        waiting.append(token)
        text = decode(waiting)
        before = decode(waiting[:shown])
        if len(text) > len(before) and not text.endswith(_HALF):
            yield text[len(before) :]
            waiting = waiting[shown:]
            shown = len(waiting)
    rest = decode(waiting)[len(decode(waiting[:shown])) :]
    if rest:
        yield rest


def until_stop(parts: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Pass text on up to the first of `stops`; what may be the beginning of one waits for more."""
    held = ""
    for part in parts:
        held += part
        cut = before_stop(held, stops)
        if len(cut) < len(held):
            if cut:
                yield cut
            return
        keep = max((n for stop in stops for n in range(1, len(stop)) if held.endswith(stop[:n])), default=0)
        ready, held = held[: len(held) - keep], held[len(held) - keep :]
        if ready:
            yield ready
    if held:
        yield held


def before_stop(text: str, stops: Sequence[str]) -> str:
    """Give what stands before the first of `stops`, all of `text` if none is in it."""
    places = [place for place in map(text.find, stops) if place >= 0]
    return text[: min(places)] if places else text
