"""Tiny tokenizers of the kinds real checkpoints have, built in memory from one word list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from pipeline_kit.types import Side

__all__ = ["STYLES", "WORDS", "TokenizerStyle", "tiny_tokenizer"]

_TEXT = """
a about acting after again all amazing am an and answer any are as at awful bad batch be beautiful because
been best better book boring but by can car cat city class course day did do dog dull easy end ever every fast
film fine first food for friend from fun get good great had happy has hate have he help her him his horrible
how hugging face i if in into is it its just kind know last life like little long love made make man many me
more most movie much music my never new nice no not now of on one only or other our out over paris people
perfect place plot poor quick rain read really right sad said say scene school see she short show slow small
so some song soon star still story sun team terrible than that the their them then there these they thing
think this time to too truly two up us very waiting want was watch water way we weak week well were what when
where which who whole why will wish with wonderful word work world worse worst would year yes you young your
"""

WORDS: tuple[str, ...] = tuple(_TEXT.split())
"""What a tiny tokenizer knows as whole words; other words fall apart into characters or bytes."""

_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"()-/&%$#@*+=<>[]{}|_~^\\`"


@dataclass(frozen=True)
class TokenizerStyle:
    """How a family of checkpoints cuts texts and frames them.

    :param special: the special tokens by role, in the order of their ids from 0; two roles may share one.
    :param single: the frame of one text, in the notation of ``TemplateProcessing``; empty for none.
    :param pair: the frame of a text and its pair.
    :param segments: whether the model takes ``token_type_ids``.
    """

    model: Literal["wordpiece", "bytes", "unigram"]
    special: Mapping[str, str]
    single: str = ""
    pair: str = ""
    segments: bool = False
    padding_side: Side = "right"


_BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_ROBERTA = {
    "cls": "<s>",
    "bos": "<s>",
    "pad": "<pad>",
    "sep": "</s>",
    "eos": "</s>",
    "unk": "<unk>",
    "mask": "<mask>",
}
_BERT_FRAMES = ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
_ROBERTA_FRAMES = ("<s> $A </s>", "<s> $A </s> </s> $B </s>")

STYLES: Mapping[str, TokenizerStyle] = {
    "bert": TokenizerStyle("wordpiece", _BERT, *_BERT_FRAMES, segments=True),
    "distilbert": TokenizerStyle("wordpiece", _BERT, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]"),
    "mpnet": TokenizerStyle("wordpiece", _ROBERTA, *_ROBERTA_FRAMES),
    "roberta": TokenizerStyle("bytes", _ROBERTA, *_ROBERTA_FRAMES),
    "xlm-roberta": TokenizerStyle("unigram", _ROBERTA, *_ROBERTA_FRAMES),
    "albert": TokenizerStyle("unigram", _BERT, *_BERT_FRAMES, segments=True),
    "modernbert": TokenizerStyle("bytes", _BERT, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]"),
    "t5": TokenizerStyle("unigram", {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}, "$A </s>", "$A </s> $B </s>"),
    "gpt2": TokenizerStyle("bytes", {"pad": "<|pad|>", "bos": "<|endoftext|>", "eos": "<|endoftext|>"}),
    "llama": TokenizerStyle(
        "bytes",
        {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>"},
        "<s> $A",
        "<s> $A <s>:1 $B:1",
        padding_side="left",
    ),
    "qwen2": TokenizerStyle("bytes", {"pad": "<|endoftext|>", "eos": "<|im_end|>"}, padding_side="left"),
    "xlnet": TokenizerStyle(
        "unigram",
        {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>", "cls": "<cls>", "sep": "<sep>", "mask": "<mask>"},
        "$A <sep> <cls>:2",
        "$A <sep> $B:1 <sep>:1 <cls>:2",
        segments=True,
        padding_side="left",
    ),
}
"""By family; :data:`pipeline_kit.testing.checkpoints.ARCHITECTURES` says which one an architecture has."""


def tiny_tokenizer(style: str = "bert") -> Tokenizer:
    """Build a tokenizer of about 350 tokens that encodes any text and frames it as `style` does.

    It is lower-casing only for word pieces, and it knows the whole words of `WORDS`.

    :param style: a key of `STYLES`.
    """
    chosen = STYLES[style]
    special = list(dict.fromkeys(chosen.special.values()))
    build = {"wordpiece": _wordpiece, "bytes": _byte_level, "unigram": _unigram}[chosen.model]
    tokenizer = build(special, chosen.special.get("unk"))
    mask = chosen.special.get("mask")
    tokenizer.add_special_tokens([AddedToken(token, special=True, lstrip=token == mask) for token in special])
    if chosen.single:
        framing = [(token, tokenizer.token_to_id(token)) for token in special]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=chosen.single, pair=chosen.pair, special_tokens=framing
        )
    return tokenizer


def _wordpiece(special: list[str], unknown: str | None) -> Tokenizer:
    characters = dict.fromkeys(_CHARACTERS.lower())
    pieces = [*special, *characters, *(f"##{c}" for c in characters), *(w for w in WORDS if len(w) > 1)]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=unknown or "[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _byte_level(special: list[str], unknown: str | None) -> Tokenizer:
    del unknown  # every text has bytes
    pieces = dict.fromkeys([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:  # only prefixes that begin with a space are merged, so a word always grows from its left
        for end in range(1, len(word) + 1):
            merges[("Ġ" + word[: end - 1], word[end - 1])] = None
            pieces["Ġ" + word[:end]] = None
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _unigram(special: list[str], unknown: str | None) -> Tokenizer:
    pieces = [(token, 0.0) for token in special]
    pieces += [("▁", -6.0), *((character, -8.0) for character in dict.fromkeys(_CHARACTERS))]
    pieces += [(f"▁{word}", -4.0) for word in WORDS]
    tokenizer = Tokenizer(models.Unigram(pieces, special.index(unknown or "<unk>"), False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer
