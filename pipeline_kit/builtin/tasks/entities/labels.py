"""What the names of a tagger's labels say: the tag, and whether an entity begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline_kit.errors import ConfigError, Fault, closest_match, for_message

OUTSIDE = "O"

# Letters of the schemes IOBES and BILOU besides B and I: the last token of an entity, and the only one of it.
_LAST, _ONLY = ("E", "L"), ("S", "U")


@dataclass(frozen=True)
class LabelTable:
    """What is known of each label of a checkpoint, ``L`` of them.

    :param names: what a result calls it: with an aggregation the tag, else the whole label.
    :param tags: the number of its tag ``[L]``; labels that differ in their prefix alone have the same.
    :param begins: whether a new entity begins at a token of this label ``[L]``.
    :param ignored: whether it is left out ``[L]``.
    """

    names: tuple[str, ...]
    tags: NDArray[np.int64]
    begins: NDArray[np.bool_]
    ignored: NDArray[np.bool_]


def label_table(labels: Sequence[str], ignore: Sequence[str], *, aggregated: bool) -> LabelTable:
    """Read the prefixes of `labels`.

    ``B-`` begins an entity, ``I-`` continues one, and so does a label without a prefix, as in transformers:
    https://github.com/huggingface/transformers/blob/main/src/transformers/pipelines/token_classification.py
    Where a tag has a ``B-`` label, ``S-`` and ``U-`` begin too, ``E-`` and ``L-`` continue.

    :param ignore: tags to leave out; without an aggregation whole labels too.
    :raises ConfigError: if `ignore` names what the checkpoint does not have, ``O`` apart.
    """
    begun = [label[2:] for label in labels if label.startswith("B-")]
    parts = [split_tag(label, begun) for label in labels]
    tags = [tag for _, tag in parts]
    numbers = {tag: i for i, tag in enumerate(dict.fromkeys(tags))}
    known = dict.fromkeys(tags if aggregated else [*labels, *tags])
    unknown = [name for name in ignore if name not in known and name != OUTSIDE]
    if unknown:
        raise ConfigError([_fault(name, labels, tuple(known), begun if aggregated else None) for name in unknown])
    names = tuple(tags if aggregated else labels)
    return LabelTable(
        names,
        np.array([numbers[tag] for tag in tags], dtype=np.int64),
        np.array([prefix in ("B", *_ONLY) for prefix, _ in parts], dtype=bool),
        np.array([tag in ignore or name in ignore for tag, name in zip(tags, names, strict=True)], dtype=bool),
    )


def _fault(name: str, labels: Sequence[str], known: tuple[str, ...], begun: Sequence[str] | None) -> Fault:
    key = "postprocessor.ignore_labels"
    if begun is not None and name in labels:
        tag = split_tag(name, begun)[1]
        problem = f"'{for_message(name, 80)}' has a prefix, which an aggregation drops."
        return Fault(key, problem, known, tag, "or keep prefixes: postprocessor.aggregation=none")
    return Fault(key, f"the checkpoint has no label '{for_message(name, 80)}'.", known, closest_match(name, known))


BLANK = " "  # between words, as task=token-classification joins them

TagSpan = tuple[int, int, str]
"""Begin and end in characters, and the label."""


def split_tag(tag: str, kinds: Sequence[str]) -> tuple[str, str]:
    """Cut ``B-PER`` into ``B`` and ``PER``; a tag without a prefix continues what is before it, as ``I-`` does.

    :param kinds: what may stand behind ``E-``, ``L-``, ``S-`` and ``U-``; with anything else they are not prefixes,
        so that a label may be called ``E-mail``.
    """
    prefix, dash, kind = tag.partition("-")
    if dash and (prefix in ("B", "I") or (prefix in (*_LAST, *_ONLY) and kind in kinds)):
        return prefix, kind
    return "I", tag


def spans_of_tags(words: Sequence[str], tags: Sequence[tuple[str, str]]) -> list[TagSpan]:
    """Return the spans that tags in any of the schemes IOB1, IOB2, IOBES and BILOU stand for.

    The rule is conlleval's, which seqeval follows unless it is told to be strict: a span begins at ``B-`` (``S-``,
    ``U-``), where the label changes, behind ``O``, and behind the end of a span, ``E-`` (``L-``, ``S-``, ``U-``).
    https://www.clips.uantwerpen.be/conll2000/chunking/output.html

    :param words: joined by a blank they are the text.
    :param tags: one for each word, as :func:`split_tag` returns it.
    """
    found: list[TagSpan] = []
    before, kind_before, at = "", OUTSIDE, 0
    for word, (prefix, kind) in zip(words, tags, strict=True):
        end = at + len(word)
        if kind != OUTSIDE:
            if prefix in ("B", *_ONLY) or kind != kind_before or before in (*_LAST, *_ONLY):
                found.append((at, end, kind))
            else:
                found[-1] = (found[-1][0], end, kind)
        before, kind_before, at = prefix, kind, end + len(BLANK)
    return found
