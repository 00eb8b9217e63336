"""Tags of words, as in CoNLL files, to spans of characters."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["OUTSIDE", "Span", "spans_of_tags", "split_tag"]

OUTSIDE = "O"
DELIMITER = " "  # between words, as task=token-classification joins them

Span = tuple[int, int, str]
"""Begin and end in characters, and the label."""

_BEGIN, _ONLY = ("B", "S", "U"), ("S", "U")
_LAST = ("E", "L", "S", "U")


def split_tag(tag: str, kinds: Sequence[str]) -> tuple[str, str]:
    """Cut ``B-PER`` into ``B`` and ``PER``; a tag without a prefix goes on with what is before it, as ``I-`` does.

    :param kinds: what may stand behind ``E-``, ``L-``, ``S-`` and ``U-``; with anything else they are no prefixes,
        so that a label may be called ``E-mail``.
    """
    prefix, dash, kind = tag.partition("-")
    if dash and kind and (prefix in ("B", "I") or (prefix in (*_LAST, *_ONLY) and kind in kinds)):
        return prefix, kind
    return "I", tag


def spans_of_tags(words: Sequence[str], tags: Sequence[tuple[str, str]]) -> list[Span]:
    """Give the spans that tags in any of the schemes IOB1, IOB2, IOBES and BILOU stand for.

    The rule is conlleval's, which seqeval follows unless it is told to be strict: a span begins at ``B-`` (``S-``,
    ``U-``), where the label changes, behind ``O``, and behind the end of a span, ``E-`` (``L-``, ``S-``, ``U-``).
    https://www.clips.uantwerpen.be/conll2000/chunking/output.html

    :param words: joined by a blank they are the text.
    :param tags: one for each word, as :func:`split_tag` gives it.
    """
    found: list[Span] = []
    before, kind_before, at = "", OUTSIDE, 0
    for word, (prefix, kind) in zip(words, tags, strict=True):
        end = at + len(word)
        if kind != OUTSIDE:
            if prefix in _BEGIN or kind != kind_before or before in _LAST:
                found.append((at, end, kind))
            else:
                found[-1] = (found[-1][0], end, kind)
        before, kind_before, at = prefix, kind, end + len(DELIMITER)
    return found
