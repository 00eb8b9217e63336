"""Tiny tokenizers of each kind, built from a few words and saved as checkpoint folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from harness import scratch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pipeline_kit.builtin.tokenizers.hf import HfTokenizer, TokenizersJson
from pipeline_kit.builtin.tokenizers.options import HfTokenizerConfig, TokenizersJsonConfig
from pipeline_kit.contract.stages import StageContext
from pipeline_kit.contract.types import Checkpoint

_TEXT = """
the a of and to in film is was it this that good bad not love hate story acting plot very really
movie great awful funny dull watch again never always with without because but so much more less
one two three house river mountain children teacher morning evening weather music painting
"""
WORDS = _TEXT.split()
CORPUS = [" ".join(WORDS[i:] + WORDS[:i]) + "." for i in range(len(WORDS))]

_BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def wordpiece() -> Tokenizer:
    pieces = [*_BERT, *WORDS, *".,!?'-", *"abcdefghijklmnopqrstuvwxyz"]
    pieces += ["##" + letter for letter in "abcdefghijklmnopqrstuvwxyz"] + ["##ing", "##ed", "##s"]
    made = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(_BERT)
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.decoder = decoders.WordPiece()
    return made


def bpe() -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token=None))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=_ROBERTA,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return made


def gpt() -> Tokenizer:
    made = bpe()
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    return made


def unigram() -> Tokenizer:
    scored = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -3.0)]
    scored += [("▁" + word, -4.0 - i / 50) for i, word in enumerate(WORDS)]
    scored += [(letter, -6.0) for letter in "abcdefghijklmnopqrstuvwxyz.,!?'"]
    made = Tokenizer(models.Unigram(scored, unk_id=2, byte_fallback=False))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    made.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    return made


KINDS: dict[str, tuple[Callable[[], Tokenizer], dict[str, Any], dict[str, Any]]] = {
    "bert": (
        wordpiece,
        {"model_type": "bert", "max_position_embeddings": 64, "type_vocab_size": 2, "pad_token_id": 0},
        {"tokenizer_class": "BertTokenizer", "pad_token": "[PAD]"},
    ),
    "distilbert": (
        wordpiece,
        {"model_type": "distilbert", "max_position_embeddings": 64, "pad_token_id": 0},
        {"tokenizer_class": "DistilBertTokenizer", "pad_token": "[PAD]"},
    ),
    "roberta": (
        bpe,
        {"model_type": "roberta", "max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1},
        {"tokenizer_class": "RobertaTokenizer", "pad_token": "<pad>"},
    ),
    "gpt2": (
        gpt,
        {"model_type": "gpt2", "n_positions": 64},
        {"tokenizer_class": "GPT2Tokenizer"},
    ),
    "generic": (
        unigram,
        {"model_type": "t5", "n_positions": 32, "pad_token_id": 0},
        {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>"},
    ),
}


def save(
    folder: Path,
    kind: str = "bert",
    *,
    config: dict[str, Any] | None = None,
    names: dict[str, Any] | None = None,
    backend: Tokenizer | None = None,
) -> Checkpoint:
    """Write a folder of `kind`, with changes to ``config.json`` and ``tokenizer_config.json``; None drops a key."""
    build, base, base_names = KINDS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    (backend or build()).save(str(folder / "tokenizer.json"))
    files: list[dict[str, Any]] = []
    changes = ({**base, **(config or {})}, {"model_max_length": 64, **base_names, **(names or {})})
    for name, data in zip(("config.json", "tokenizer_config.json"), changes, strict=True):
        kept = {key: value for key, value in data.items() if value is not None}
        (folder / name).write_text(json.dumps(kept), encoding="utf-8")
        files.append(kept)
    return Checkpoint(folder, folder.name, files[0], files[1])


def opened(folder: Path) -> Checkpoint:
    """Read a folder that is already there."""
    config, names = (
        json.loads((folder / name).read_text(encoding="utf-8")) for name in ("config.json", "tokenizer_config.json")
    )
    return Checkpoint(folder, folder.name, config, names)


def hf(checkpoint: Checkpoint, requires: frozenset[str] = frozenset(), **options: Any) -> HfTokenizer:
    return HfTokenizer(HfTokenizerConfig(**options), StageContext(checkpoint, required_fields=requires))


def from_json(checkpoint: Checkpoint, requires: frozenset[str] = frozenset(), **options: Any) -> TokenizersJson:
    return TokenizersJson(TokenizersJsonConfig(**options), StageContext(checkpoint, required_fields=requires))


BOTH = (hf, from_json)


@cache
def kept(name: str) -> Checkpoint:
    """Return a folder of a kind, or of "left", a bert that is cut and padded on the left. Nobody may change it."""
    left = {"truncation_side": "left", "padding_side": "left"}
    return save(scratch() / name, "bert", names=left) if name == "left" else save(scratch() / name, name)
