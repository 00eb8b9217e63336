"""A tiny checkpoint like NLLB: it frames a text with the token of its language and starts with that of another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from pipeline_kit.testing.checkpoints import tiny_checkpoint
from pipeline_kit.testing.tiny_tokenizers import WORDS

__all__ = ["tiny_translator"]

_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


def tiny_translator(
    folder: Path, languages: Sequence[str] = ("eng_Latn", "fra_Latn", "deu_Latn"), *, seed: int = 0
) -> Path:
    """Write an ``m2m_100`` of two layers with random weights and the tokenizer class of NLLB into `folder`.

    :param languages: their codes, each of which becomes a special token.
    :returns: `folder`, which is made if it is not there.
    """
    tokenizer = _tokenizer(languages)
    size = tokenizer.get_vocab_size()
    tiny_checkpoint(folder, "m2m_100", head="seq2seq-lm", seed=seed, vocab_size=size, decoder_start_token_id=2)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "NllbTokenizer",
        "additional_special_tokens": list(languages),
        "model_max_length": 64,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "cls_token": "<s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        "src_lang": languages[0],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return folder


def _tokenizer(languages: Sequence[str]) -> Tokenizer:
    """Build pairs of pieces that grow each word of `WORDS` from its left, in the manner of sentencepiece."""
    pieces = dict.fromkeys([*_SPECIAL, "▁", *map(chr, range(33, 127))])
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        for end in range(1, len(word) + 1):
            merges[("▁" + word[: end - 1], word[end - 1])] = None
            pieces["▁" + word[:end]] = None
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab, list(merges), unk_token="<unk>", fuse_unk=True))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (*_SPECIAL, *languages, "<mask>")])
    frame = [(token, tokenizer.token_to_id(token)) for token in (languages[0], "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{languages[0]} $A </s>", pair=f"{languages[0]} $A $B </s>", special_tokens=frame
    )
    return tokenizer
