"""What a tokenizer has one token for, asked of the tokenizer itself: the mask and the other special tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline_kit.builtin.tokenizers.traits import read_optional
from pipeline_kit.errors import CheckpointError, ConfigError, ExampleError, Fault, closest, shorten
from pipeline_kit.stages import Tokenizer
from pipeline_kit.types import Checkpoint

__all__ = ["Mask", "Specials", "find_mask", "glued", "ids_of", "special_tokens"]

_USUAL_MASKS = ("[MASK]", "<mask>")
_USUAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "</s>", "<pad>", "<unk>", "<cls>", "<sep>", *_USUAL_MASKS)

# How masks are written elsewhere, and the blank of a worksheet.
_LOOKALIKE = re.compile(r"[\[<{(]\|?mask\|?[\]>})]|_{2,}", re.IGNORECASE)

# A cuneiform sign: in no vocabulary, so a tokenizer that has a token for the unknown gives that one.
_RARE = "\U00012000"

_BEFORE = "."


@dataclass(frozen=True)
class Mask:
    """The token that a checkpoint was trained to replace.

    :param text: how it is written in a text.
    :param checkpoint: the checkpoint's name, for messages.
    """

    text: str
    id: int
    checkpoint: str

    def check_in(self, text: str) -> None:
        """Raise ExampleError if `text` holds no mask, naming what was perhaps meant to be one."""
        if self.text in text:
            return
        near = _LOOKALIKE.search(text)
        found = f"no mask, only '{shorten(near.group(), 40)}'" if near else "no mask"
        raise ExampleError(
            f"the text has {found}; the mask of '{self.checkpoint}' is '{self.text}': write that where a token is "
            "to be filled in"
        )


@dataclass(frozen=True)
class Specials:
    """The special tokens of a tokenizer: their names by id, and the ids that stand for what it does not know."""

    names: Mapping[int, str]
    unknown: frozenset[int]


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """Give the ids of `text` alone, without the frame of special tokens; empty if it cannot be encoded.

    The tokens of a frame are the ones that stand for no character. `tokenizer` has to fill ``offsets``.
    """
    try:
        encodings = tokenizer.encode([text])
    except ExampleError:
        return []
    found: list[int] = []
    for encoding in encodings:
        assert encoding.offsets is not None, "`requires` of the postprocessor names it"
        tokens = zip(encoding.input_ids, encoding.offsets, strict=True)
        found += [token for token, (begin, end) in tokens if end > begin]
    return found


def glued(tokenizer: Tokenizer, text: str) -> list[int]:
    """Give the ids of `text` right behind another character, empty if they depend on that character."""
    before, both = ids_of(tokenizer, _BEFORE), ids_of(tokenizer, _BEFORE + text)
    return both[len(before) :] if before and both[: len(before)] == before else []


def special_tokens(checkpoint: Checkpoint, tokenizer: Tokenizer) -> Specials:
    """Find the special tokens that the checkpoint's files name, or that are called as usual."""
    roles = list(_named(checkpoint))
    stand_ins = {text for role, text in roles if role == "unk_token"} | {"[UNK]", "<unk>"}
    texts = dict.fromkeys([*(text for _, text in roles), *_USUAL])
    found = {text: ids[0] for text in texts if len(ids := ids_of(tokenizer, text)) == 1}
    unknown = {token for text, token in found.items() if text in stand_ins}
    rare = glued(tokenizer, _RARE)
    if len(rare) == 1:
        unknown.add(rare[0])
    names: dict[int, str] = {}
    for text, token in found.items():
        if token not in unknown or text in stand_ins:
            names.setdefault(token, text)
    return Specials(names, frozenset(unknown))


def find_mask(checkpoint: Checkpoint, tokenizer: Tokenizer, specials: Specials, wanted: str | None) -> Mask:
    """Find the mask: the user's, else the one that the checkpoint's files name, else one of the usual ones.

    :param wanted: what the user calls it, None to take the checkpoint's own.
    :raises ConfigError: if the tokenizer has no such token as `wanted`.
    :raises CheckpointError: if it has none that the files name, or they name none and there is no usual one.
    """
    name = shorten(checkpoint.name)
    named = wanted or next((text for role, text in _named(checkpoint) if role == "mask_token"), None)
    for text in (named,) if named else _USUAL_MASKS:
        ids = ids_of(tokenizer, text)
        if len(ids) == 1 and ids[0] not in specials.unknown:
            return Mask(text, ids[0], name)
    if wanted:
        problem = f"'{shorten(wanted, 80)}' is not one token of '{name}'."
        known = tuple(specials.names.values())
        raise ConfigError([Fault("postprocessor.mask_token", problem, known[:20], closest(wanted, known))])
    if named:
        raise CheckpointError(
            f"the checkpoint '{name}' names '{shorten(named, 80)}' as its mask, but its tokenizer has no such token; "
            "if the mask is called otherwise, set postprocessor.mask_token"
        )
    raise CheckpointError(
        f"the checkpoint '{name}' names no mask token, and its tokenizer has none of {', '.join(_USUAL_MASKS)}; "
        "if the mask is called otherwise, set postprocessor.mask_token"
    )


def _named(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """Give role and text of each special token that the tokenizer's files name."""
    for place in (checkpoint.tokenizer_config, read_optional(checkpoint.path / "special_tokens_map.json")):
        for role, value in place.items():
            if role.endswith("_token"):
                yield from ((role, text) for text in _contents([value]))
            elif role.endswith("special_tokens") and isinstance(value, list):
                yield from ((role, text) for text in _contents(value))
            elif role == "added_tokens_decoder" and isinstance(value, Mapping):
                special = [item for item in value.values() if isinstance(item, Mapping) and item.get("special")]
                yield from ((role, text) for text in _contents(special))


def _contents(values: Sequence[Any]) -> Iterator[str]:
    for value in values:
        text = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(text, str) and text:
            yield text
