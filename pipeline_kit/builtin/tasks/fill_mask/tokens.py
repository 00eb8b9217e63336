"""What a tokenizer has one token for, asked of the tokenizer itself: the mask and the other special tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline_kit.checkpoint.json import read_optional
from pipeline_kit.contract.stages import Tokenizer
from pipeline_kit.contract.types import Checkpoint
from pipeline_kit.errors import CheckpointError, ConfigError, ExampleError, Fault, closest_match, for_message

_USUAL_MASKS = ("[MASK]", "<mask>")
_USUAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "</s>", "<pad>", "<unk>", "<cls>", "<sep>", *_USUAL_MASKS)

# How masks are written elsewhere, and the blank of a worksheet.
_LOOKALIKE = re.compile(r"[\[<{(]\|?mask\|?[\]>})]|_{2,}", re.IGNORECASE)

# A cuneiform sign: in no vocabulary, so a tokenizer that has a token for the unknown gives that one.
_RARE = "\U00012000"

_BEFORE = "."


@dataclass(frozen=True)
class Mask:
    """The token that a checkpoint was trained to replace, and how it is written in a text."""

    text: str
    id: int
    checkpoint: str

    def check_in(self, text: str) -> None:
        """Raise ExampleError if `text` holds no mask, naming what was perhaps meant to be one."""
        if self.text in text:
            return
        near = _LOOKALIKE.search(text)
        found = f"no mask, only '{for_message(near.group(), 40)}'" if near else "no mask"
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
    """Return the ids of `text` without the frame, tokens that stand for no character; empty if it has none."""
    try:
        encodings = tokenizer.encode([text])
    except ExampleError:
        return []
    found: list[int] = []
    for encoding in encodings:
        assert encoding.offsets is not None, "`required_fields` of the postprocessor names it"
        tokens = zip(encoding.input_ids, encoding.offsets, strict=True)
        found += [token for token, (begin, end) in tokens if end > begin]
    return found


def glued(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of `text` right behind another character, empty if they depend on that character."""
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
    """Find the mask: `wanted`, which the user names, else the one that the files name, else one of the usual ones.

    :raises ConfigError: if the tokenizer has no such token as `wanted`.
    :raises CheckpointError: if it has none that the files name, or they name none and there is no usual one.
    """
    name = for_message(checkpoint.name)
    named = wanted or next((text for role, text in _named(checkpoint) if role == "mask_token"), None)
    for text in (named,) if named else _USUAL_MASKS:
        ids = ids_of(tokenizer, text)
        if len(ids) == 1 and ids[0] not in specials.unknown:
            return Mask(text, ids[0], name)
    if wanted:
        problem = f"'{for_message(wanted, 80)}' is not one token of '{name}'."
        known = tuple(specials.names.values())
        raise ConfigError([Fault("postprocessor.mask_token", problem, known[:20], closest_match(wanted, known))])
    if named:
        raise CheckpointError(
            f"the checkpoint '{name}' names '{for_message(named, 80)}' as its mask, but its tokenizer has no such "
            "token; if the mask is called otherwise, set postprocessor.mask_token"
        )
    raise CheckpointError(
        f"the checkpoint '{name}' names no mask token, and its tokenizer has none of {', '.join(_USUAL_MASKS)}; "
        "if the mask is called otherwise, set postprocessor.mask_token"
    )


def _named(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    """Yield role and text of each special token that the tokenizer's files name."""
    for place in (checkpoint.tokenizer_config, read_optional(checkpoint.path / "special_tokens_map.json")):
        for role, value in place.items():
            values: Sequence[Any] = ()
            if role.endswith("_token"):
                values = [value]
            elif role.endswith("special_tokens") and isinstance(value, list):
                values = value
            elif role == "added_tokens_decoder" and isinstance(value, Mapping):
                values = [item for item in value.values() if isinstance(item, Mapping) and item.get("special")]
            texts = [item.get("content") if isinstance(item, Mapping) else item for item in values]
            yield from ((role, text) for text in texts if isinstance(text, str) and text)


Spacing = Literal["spaced", "start", "glued"]
"""What a mask's token has before it: a space that is part of it, nothing, or another token without a space."""


@dataclass(frozen=True, slots=True)
class TokenText:
    """How a token is written.

    :param token: the token decoded alone; a special one by its name.
    :param text: the token behind another one, without a space before it.
    :param lead: the space that stands before it then: one, none, or None if the token has no say in that.
    """

    token: str
    text: str
    lead: str | None


@dataclass(frozen=True, slots=True)
class MaskSpan:
    """A mask in its text, in characters.

    :param head: where the white space before the mask begins.
    :param begin: where the mask itself begins.
    :param taken: whether the mask's token takes that white space in, as that of RoBERTa does.
    """

    head: int
    begin: int
    end: int
    taken: bool


def place_of(source: str, mask: str, begin: int, end: int) -> MaskSpan:
    """Find `mask` in the part of `source` that its token stands for."""
    found = source.find(mask, begin, end)
    if found < 0:
        found = begin
    else:
        end = found + len(mask)
    head = found
    while head and source[head - 1].isspace():
        head -= 1
    return MaskSpan(head, found, end, taken=begin < found)


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

    def piece(self, token: int) -> TokenText:
        """Return the token `token` as it is written."""
        alone = self._tokenizer.decode([token])
        if not alone and token in self._names:
            return TokenText(self._names[token], self._names[token], None)
        both = self._tokenizer.decode([*self._anchor, token])
        rest = both[len(self._before) :] if both.startswith(self._before) else alone
        return TokenText(alone, rest.removeprefix(" "), " " if rest.startswith(" ") else "")

    def setting(self, source: str, place: MaskSpan) -> Spacing:
        """Return what stands before the mask at `place`."""
        if source[place.head : place.begin]:
            return "spaced" if place.taken or not self._spaces else "glued"
        return "glued" if place.head else "start"

    def fill(self, source: str, place: MaskSpan, piece: TokenText) -> str:
        """Return `source` with `piece` for the mask at `place`.

        The rest of a word, and a mark that stands close, come right behind what is before them. White space
        before the mask stays as it is otherwise, and none is added unless the token itself holds a space.
        """
        gap = source[place.head : place.begin]
        if piece.lead == "" and (place.taken or not self._spaces):
            gap = ""
        elif piece.lead == " " and not gap and place.head and self._spaces:
            gap = " "
        return source[: place.head] + gap + piece.text + source[place.end :]


_KEY = "postprocessor.targets"
_HINT = "a target is one token, written as in a text: good, not Ġgood, ▁good or ##good"


@dataclass(frozen=True)
class Targets:
    """The tokens that are scored, in ascending order, and which they are by what stands before a mask."""

    ids: NDArray[np.int64]
    columns: Mapping[Spacing, NDArray[np.int64]]


def find_targets(targets: Sequence[str], tokenizer: Tokenizer, specials: Specials, checkpoint: str) -> Targets:
    """Find the token of each target as it would be written in the place of a mask.

    ``good`` behind a space is another token than at the beginning of a text, or at the end of a word, in
    vocabularies that write the first one ``Ġgood``. Where there is no token for a target in one of these
    places, the one from another of them is taken. A target that begins with a space is always the first one.

    :param checkpoint: its name, for messages.
    :raises ConfigError: with a fault for each target that is not a token, or several, wherever it stands.
    """
    found: dict[Spacing, set[int]] = {setting: set() for setting in get_args(Spacing)}
    faults: list[Fault] = []
    for target in targets:
        forms = _forms(target, tokenizer) if target.strip() else {}
        tokens = {
            setting: ids[0]
            for setting, ids in forms.items()
            if len(ids) == 1 and (ids[0] not in specials.unknown or specials.names.get(ids[0]) == target)
        }
        if not tokens:
            problem = _problem(target, ids_of(tokenizer, target), tokenizer, specials, checkpoint)
            faults.append(Fault(_KEY, problem, hint=_HINT))
            continue
        other = next(iter(tokens.values()))
        for setting, chosen in found.items():
            chosen.add(tokens.get(setting, other))
    if faults:
        raise ConfigError(faults)
    ids = np.unique(np.array([token for chosen in found.values() for token in chosen], dtype=np.int64))
    columns = {
        setting: np.searchsorted(ids, np.array(sorted(chosen), dtype=np.int64)) for setting, chosen in found.items()
    }
    return Targets(ids, columns)


def _forms(target: str, tokenizer: Tokenizer) -> dict[Spacing, list[int]]:
    """Return the ids of `target` in each place, in the order in which one stands in for another."""
    word = target.lstrip()
    spaced = ids_of(tokenizer, f" {word}")
    if word != target:
        return {"spaced": spaced}
    return {"spaced": spaced, "start": ids_of(tokenizer, word), "glued": glued(tokenizer, word)}


def _problem(target: str, ids: Sequence[int], tokenizer: Tokenizer, specials: Specials, checkpoint: str) -> str:
    shown = for_message(target, 80)
    if not target.strip():
        return f"'{shown}' is empty."
    if not ids or set(ids) & specials.unknown:
        return f"'{shown}' is unknown to the tokenizer of '{checkpoint}'."
    texts = [specials.names.get(token) or tokenizer.decode([token]) for token in ids[:12]]
    pieces = ", ".join(f"'{for_message(text, 40)}'" for text in texts)
    return f"'{shown}' is {len(ids)} tokens of '{checkpoint}', not one: {pieces}{', …' * (len(ids) > 12)}."
