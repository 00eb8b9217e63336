"""Which tokens make up a word: by the tokenizer's own words and white space, or by the words that the user gave."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline_kit.builtin.postprocessors.entity_windows import Tokens

__all__ = ["given_words", "words_of_text"]

Bools = np.ndarray[Any, np.dtype[np.bool_]]

_JOINERS = "\u200c\u200d"


def words_of_text(tokens: Tokens, text: str) -> Bools:
    """Tell for each token whether a word begins with it, ``[N]``; there must be a token.

    A word begins where the tokenizer begins one, and behind white space, since some tokenizers take a whole text for
    one word. Blanks before a word belong to it. What some tokenizers split for reasons of their own stays together:
    the digits of a number, and a letter with its combining marks.
    """
    spaces = _spaces(text)
    # The number of white characters before each place; between two tokens also the last and the first of theirs count.
    before = np.concatenate([[0], np.cumsum(spaces)])
    last, first = np.maximum(tokens.ends[:-1] - 1, 0), np.minimum(tokens.starts[1:] + 1, len(text))
    blank = before[tokens.ends] - before[tokens.starts] == tokens.ends - tokens.starts
    spaced = (before[np.maximum(first, last)] > before[last]) & ~blank[:-1]
    begins = np.ones(len(tokens.starts), dtype=bool)
    begins[1:] = (tokens.breaks[1:] | spaced) & ~tokens.inside[1:]
    for i in (np.flatnonzero(begins[1:] & ~spaced) + 1).tolist():
        end, start = int(tokens.ends[i - 1]), int(tokens.starts[i])
        begins[i] = end != start or not 0 < start < len(text) or not _one_word(text[end - 1], text[start])
    return begins


def given_words(tokens: Tokens, text: str, words: Sequence[str]) -> Bools:
    """Tell for each token whether a word begins with it, ``[N]``, where `text` is `words` joined by a blank."""
    lengths = np.fromiter((len(word) + 1 for word in words), dtype=np.int64, count=len(words))
    beginnings = np.cumsum(lengths) - lengths
    # A token may begin with blanks; its word is that of the first character that is none.
    places = np.where(_spaces(text), len(text), np.arange(len(text)))
    solid = np.append(np.minimum.accumulate(places[::-1])[::-1], len(text))
    owners = np.searchsorted(beginnings, solid[tokens.starts], side="right")
    begins = np.ones(len(tokens.starts), dtype=bool)
    begins[1:] = (owners[1:] != owners[:-1]) & ~tokens.inside[1:]
    return begins


def _spaces(text: str) -> Bools:
    """Tell for each character whether it is white space."""
    characters = np.frombuffer(text.encode("utf-32-le"), dtype="<U1")
    return np.asarray(np.char.isspace(characters), dtype=bool)


def _one_word(left: str, right: str) -> bool:
    """Tell whether neighbouring characters belong to one word even if a tokenizer splits them."""
    if left.isdecimal() and right.isdecimal():
        return True
    return _joins(right) or (_joins(left) and right.isalpha())


def _joins(character: str) -> bool:
    return character in _JOINERS or unicodedata.category(character).startswith("M")
