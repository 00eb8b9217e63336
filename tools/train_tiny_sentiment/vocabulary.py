"""Trimming the word pieces to the ones worth their bytes, and renumbering the tokenizer."""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from tools.train_tiny_sentiment.settings import MAX_TOKENS

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUATION = "##"


@dataclass(frozen=True)
class Trimmed:
    """A smaller tokenizer, and for each new id the old one: int64 [pieces]."""

    tokenizer: Tokenizer
    old_ids: torch.Tensor


def open_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer without the fixed truncation and padding that the base model stores in it."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def trim(tokenizer: Tokenizer, texts: Iterable[list[int]], size: int, general: int) -> Trimmed:
    """Keep specials, ASCII characters, ``general`` common words and the pieces ``texts`` use most.

    The base vocabulary lists whole words from common to rare, so its first words stand for plain
    English that the training text happens not to hold.
    """
    vocabulary = tokenizer.get_vocab()
    characters = [prefix + char for char in string.printable for prefix in ("", CONTINUATION)]
    kept = {vocabulary[piece] for piece in (*SPECIAL, *characters) if piece in vocabulary}
    by_id = sorted(vocabulary.items(), key=lambda item: item[1])
    kept.update([index for piece, index in by_id if piece.isalpha() and piece.isascii() and len(piece) > 1][:general])
    counts = Counter(index for ids in texts for index in ids)
    for index, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if len(kept) >= size:
            break
        kept.add(index)
    old_ids = sorted(kept)
    names = {index: piece for piece, index in vocabulary.items()}
    renumbered = renumber(json.loads(tokenizer.to_str()), {names[old]: new for new, old in enumerate(old_ids)})
    return Trimmed(Tokenizer.from_str(json.dumps(renumbered)), torch.tensor(old_ids))


def renumber(state: dict[str, Any], vocabulary: dict[str, int]) -> dict[str, Any]:
    """Return every place of a stored tokenizer that holds an id the new one."""
    state["model"]["vocab"] = vocabulary
    for token in state["added_tokens"]:
        token["id"] = vocabulary[token["content"]]
    for token in state["post_processor"]["special_tokens"].values():
        token["ids"] = [vocabulary[name] for name in token["tokens"]]
    return state


def respell(texts: list[list[int]], old: Tokenizer, new: Tokenizer) -> list[list[int]]:
    """Spell texts encoded with the old word pieces with the new ones, at most ``MAX_TOKENS`` each.

    Word by word, since a word whose piece was dropped falls into other, shorter ones.
    """
    names = {index: piece for piece, index in old.get_vocab().items()}
    spelled = {name: [index] for name, index in new.get_vocab().items() if name in SPECIAL}

    def spell(word: str) -> list[int]:
        if word not in spelled:
            spelled[word] = new.encode(word, add_special_tokens=False).ids
        return spelled[word]

    result = []
    for ids in texts:
        words: list[str] = []
        for index in ids:
            piece = names[index]
            if piece.startswith(CONTINUATION) and words and words[-1] not in SPECIAL:
                words[-1] += piece.removeprefix(CONTINUATION)
            else:
                words.append(piece.removeprefix(CONTINUATION) if len(piece) > len(CONTINUATION) else piece)
        body = [index for word in words[1:-1] for index in spell(word)]
        result.append([*spell(words[0]), *body[: MAX_TOKENS - 2], *spell(words[-1])])
    return result
